"""Checks of recipe and labels before any data is read, and of the regions in the label maps that were read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from bidsseg.errors import DataError, InputMissing, UsageError, listed
from bidsseg.labels import Protocol, load_relation
from bidsseg.labels.protocol import is_shipped
from bidsseg.learning.case_reading import LEARNING_MM
from bidsseg.learning.cases import ListedCase
from bidsseg.learning.recipe import Recipe
from bidsseg.learning.region_centres import Centres, hidden_pairs, undrawn
from bidsseg.models.card import BRAIN, find_card
from bidsseg.networks.dfnet import DFNet
from bidsseg.networks.network import Network
from bidsseg.networks.segnet.staged import StagedSegNet
from bidsseg.settings import Report


def check_names(protocols: Iterable[Protocol]) -> None:
    """Raise DataError if several regions of a protocol have one name."""
    for protocol in protocols:
        if protocol.repeated:
            name = protocol.repeated[0]
            values = ", ".join(str(region.index) for region in protocol.regions if region.name == name)
            raise DataError(f"protocol {protocol.name}: the values {values} have the same name, '{name}': rename them")


def check_labels(labels: Iterable[Protocol], heads: Sequence[Protocol], report: Report) -> None:
    """Raise UsageError for annotations without a relation to any head; warn about heads without annotations."""
    taught: set[str] = set()
    for protocol in labels:
        known = {head.name for head in heads if load_relation(protocol, head) is not None}
        if not known:
            spoken = ", ".join(head.name for head in heads)
            raise UsageError(
                f"labels of {protocol.name} have no relation to the heads {spoken}: add {protocol.name} to the heads "
                "of the recipe"
            )
        taught |= known
    for head in heads:
        if head.name not in {*taught, "brain"}:  # without labels, the brain mask comes from the image
            report.warn(f"no --labels has a relation to the head {head.name}, so it cannot be trained")


def check_sides(recipe: Recipe, protocols: Iterable[Protocol]) -> None:
    """Raise UsageError if samples are mirrored but their labels cannot be: left and right would be mixed."""
    one_sided = next((protocol.one_sided for protocol in protocols if protocol.unpaired), None)
    if recipe.mirrors and one_sided:
        raise UsageError(
            f"{one_sided}, so samples cannot be mirrored: name it in the column partner of the protocol's table, "
            "or write flip = 0.0 under [spatial] and mirror = false in the recipe"
        )


def check_drawn(recipe: Recipe, cases: Iterable[ListedCase], report: Report) -> None:
    """Check the regions of own protocols in the label maps that were read; warn about those that no map has.

    UsageError if samples are mirrored, but two regions lie left and right whose names are on no side.
    """
    protocols: dict[str, Protocol] = {}
    centres: dict[str, list[Centres]] = {}
    for case in cases:
        for protocol, of_map in zip(case.protocols, case.centres, strict=True):
            if not is_shipped(protocol):
                protocols[protocol.name] = protocol
                centres.setdefault(protocol.name, []).append(of_map)
    for name, protocol in protocols.items():
        if recipe.mirrors and (pair := next(hidden_pairs(protocol, centres[name]), None)):
            raise UsageError(
                f"protocol {name}: '{pair[0]}' is on the left and '{pair[1]}' on the right in all label maps, but not "
                "by their names, so samples cannot be mirrored: write their sides (L, R) in the column hemi and the "
                "index of each other in the column partner of the table, or write flip = 0.0 under [spatial] and "
                "mirror = false in the recipe"
            )
        if lacking := undrawn(protocol, centres[name]):
            names = listed([protocol.regions[row].name for row in lacking], 3)
            others = {protocol.sides[row] for row in lacking} - {*lacking, None}
            hint = ": if the label maps show one side alone, write flip = 0.0 under [spatial] and mirror = false"
            report.warn(f"protocol {name}: no label map has {names}{hint if recipe.mirrors and others else ''}")


def check_recipe(recipe: Recipe, network: Network) -> None:
    """Raise DataError if a recipe does not fit its network, or has no head to train."""
    if not any(recipe.heads.values()):
        raise DataError(f"recipe {recipe.name}: heads: at least one weight must be greater than 0")
    if (recipe.voxels is not None) != isinstance(network, StagedSegNet):
        raise DataError(f"recipe {recipe.name}: [voxels] requires the network segnet, and segnet requires [voxels]")
    check_locator(recipe)
    positioned, located = network.positioned, bool(recipe.locator)
    if positioned is not None and not (positioned == located == (not recipe.sampling.whole_head)):
        raise DataError(
            f"recipe {recipe.name}: coordinates = 3 requires a locator and whole_head = false under [sampling], "
            "coordinates = 0 requires whole_head = true and no locator"
        )
    if recipe.voxels is not None and recipe.spacing_mm != LEARNING_MM:
        raise DataError(f"recipe {recipe.name}: segnet is trained on a grid of {LEARNING_MM:g} mm: omit spacing_mm")
    check_grids(recipe, network)


def check_locator(recipe: Recipe) -> None:
    """Raise DataError if a recipe names a locator that does not exist, or that does not find brains."""
    if not recipe.locator:
        return
    try:
        card = find_card(recipe.locator)
    except InputMissing as error:
        raise DataError(f"recipe {recipe.name}: locator: {error}") from error
    if BRAIN not in card.heads:  # all that it sees would be brain
        raise DataError(f"recipe {recipe.name}: locator: the model {card.name} has no head {BRAIN}")


def check_grids(recipe: Recipe, network: Network) -> None:
    """Raise DataError if samples have a shape that the networks cannot take, or a grid without registration."""
    multiple, coarse = math.lcm(network.multiple, 2), recipe.coarse  # masks of samples have half the resolution
    if recipe.registration is not None:
        multiple = math.lcm(multiple, DFNet.multiple)
        if coarse is not None and coarse.steps:
            raise DataError(
                f"recipe {recipe.name}: [registration] needs samples of one grid: write steps = 0 under [coarse]"
            )
    if coarse is not None and coarse.steps >= recipe.steps:
        raise DataError(
            f"recipe {recipe.name}: all {recipe.steps} steps would be on the grid of [coarse], and none on that of the "
            "model: give fewer steps under [coarse]"
        )
    shapes = [recipe.sampling.shape, *([coarse.shape] if coarse else [])]
    if any(size % multiple for shape in shapes for size in shape):
        raise DataError(f"recipe {recipe.name}: every size in shape must be a multiple of {multiple} for this network")
