"""The loss of the heads on a sample, whose annotations may be in other protocols than the heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from bidsseg.labels import Protocol, load_relation
from bidsseg.labels.relation import closed_background
from bidsseg.learning.cases import Sample
from bidsseg.learning.losses import Openness, distillation, marginal_cross_entropy, marginal_dice
from bidsseg.learning.samples import Plan
from bidsseg.networks.network import Network


class Relations:
    """The prepared relations from each annotation's protocol to each head, cached.

    Args:
        naive: close the background of every annotation (see Loss).
    """

    def __init__(self, heads: Sequence[Protocol], device: str = "cpu", *, naive: bool = False) -> None:
        self.heads, self.device, self.naive = heads, device, naive
        self.known: dict[tuple[str, str], Openness | None] = {}

    def get(self, annotation: Protocol, head: Protocol) -> Openness | None:
        """Return the relation of an annotation to a head; None if there is none."""
        key = (annotation.name, head.name)
        if key not in self.known:
            relation = load_relation(annotation, head)
            if relation is not None and self.naive:
                relation = closed_background(relation)
            self.known[key] = None if relation is None else Openness.of(relation, self.device)
        return self.known[key]


def losses(
    network: Network,
    sample: Sample,
    plan: Plan,
    *,
    relations: Relations,
    precision: torch.dtype,
    progress: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a network on a sample at a share (0..1) of the run, and its parts for the curve."""
    with torch.autocast(sample.image.device.type, precision, enabled=precision != torch.float32):
        features = network.at(sample.image, sample.coordinates, sample.points)
        logits = network.logits_of(features, (head.name for head in plan.heads))
        taught = plan.teacher.at_points(sample) if plan.teacher else {}
    return loss_of(logits, sample.values, plan, relations=relations, progress=progress, taught=taught)


def loss_of(
    logits: Mapping[str, Tensor],
    values: Sequence[tuple[Protocol, Tensor]],
    plan: Plan,
    *,
    relations: Relations,
    progress: float = 0.0,
    taught: Mapping[str, Tensor] = MappingProxyType({}),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of logits (P, R) by head, and its parts for the curve.

    A head is trained on the annotation in its own protocol if there is one, otherwise on all with a relation to it, and
    on the teacher's probabilities where these leave several regions open.

    Args:
        values: for each annotation its protocol and the values (P,).
        progress: share (0..1) of the run, for heads whose weight falls.
        taught: probabilities (P, R) of the initial model, for the heads that it teaches.
    """
    loss = plan.recipe.loss
    total = next(iter(logits.values())).new_zeros((), dtype=torch.float32)
    parts: dict[str, Tensor] = {}
    for head, weight in zip(plan.heads, plan.recipe.heads.values(), strict=True):
        if head.name in plan.recipe.fading:
            weight *= 1 - progress
        log_probability = torch.log_softmax(logits[head.name].float(), 1)
        own = [pair for pair in values if pair[0].name == head.name]
        related = [
            (protocol, annotated, openness)
            for protocol, annotated in own or values
            if (openness := relations.get(protocol, head)) is not None
        ]
        if head.name in taught:
            allowing = ((annotated, openness) for _, annotated, openness in related)
            remembered = distillation(log_probability, taught[head.name], allowing)
            total = total + weight * remembered
            parts[f"initial>{head.name}"] = remembered.detach()
        for protocol, annotated, openness in related:
            entropy = marginal_cross_entropy(log_probability, annotated, openness)
            total = total + weight * loss.entropy * entropy
            if loss.dice:
                total = total + weight * loss.dice * marginal_dice(
                    log_probability, annotated, openness, squared=loss.squared
                )
            if protocol.name in (head.name, "head") or len(plan.heads) == 1:
                parts[f"{protocol.name}>{head.name}"] = entropy.detach()
    return total, parts
