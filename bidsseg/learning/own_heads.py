"""Heads for protocols of the labels that a recipe does not have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bidsseg.bids.annotations import BRAIN
from bidsseg.bids.recons import VOLUMES
from bidsseg.labels import Protocol, load_relation, shipped_protocols
from bidsseg.learning.recipe import Recipe
from bidsseg.models.card import selected

WEIGHT = 1.0
"""Weight of the loss of an added head."""


def with_own_heads(
    recipe: Recipe, heads: Sequence[Protocol], labels: Sequence[Protocol], *, is_file: bool
) -> tuple[Recipe, list[Protocol]]:
    """Return a recipe with heads for protocols of the labels that it lacks, and the protocols of all its heads.

    An own protocol, or one of FreeSurfer, becomes a head if its labels are related to no head but ``brain``, or to
    heads that have no labels themselves; another shipped protocol if its labels are related to no head at all. Heads
    without labels of their own are then omitted, except ``brain``, and the model is named after the added protocols.

    The heads of a recipe file of the user are kept, with its name, and may be trained on labels of related protocols.

    Args:
        heads: the protocols of the recipe's heads.
        labels: the protocols of the labels.
        is_file: whether the recipe is a file of the user.
    """
    named = {protocol.name for protocol in labels}
    added = {protocol.name: protocol for protocol in labels if _is_missing(protocol, heads, named, is_file=is_file)}
    if not added:
        return recipe, list(heads)
    kept = [head for head in heads if is_file or head.name in named or head.name == BRAIN]
    weights = {head.name: recipe.heads[head.name] for head in kept} | dict.fromkeys(added, WEIGHT)
    adapted = replace(
        recipe,
        heads=weights,
        fading=[name for name in recipe.fading if name in weights],
        pose_head=recipe.pose_head if recipe.pose_head in weights else None,
    )
    return adapted if is_file else renamed(adapted, list(added)), [*kept, *added.values()]


def renamed(recipe: Recipe, protocols: Sequence[str]) -> Recipe:
    """Return a recipe whose model is named after protocols, with its own title and description."""
    names = " and ".join(protocols)
    return replace(
        recipe,
        name="".join(protocols),
        title=f"{names} from a {selected(recipe.modality)}",
        description=f"Trained with the recipe {recipe.name} for labels of {names}.",
    )


def _is_missing(protocol: Protocol, heads: Sequence[Protocol], named: set[str], *, is_file: bool) -> bool:
    """Return whether a protocol of the labels becomes a head."""
    if protocol.name in {head.name for head in heads}:
        return False
    related = {head.name for head in heads if load_relation(protocol, head) is not None}
    if protocol.name in shipped_protocols() and protocol.name not in VOLUMES:
        return not related and not is_file
    return related <= {BRAIN} or (not is_file and not related & named)
