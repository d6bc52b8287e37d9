"""The initial model as the teacher of heads for which the labels leave several regions open.

Labels of one protocol say little about the heads of others. With those of BrainCOLOR alone, background may be any
tissue or none, so that nothing would stop the brain mask from growing. There, the head learns the probabilities of the
initial model (Li & Hoiem 2016, Learning without forgetting, arXiv 1606.09282).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bidsseg.labels import Protocol, load_relation
from bidsseg.learning.cases import Sample
from bidsseg.networks.network import Network


@dataclass(frozen=True)
class Teacher:
    """A network that is not trained, and the names of the heads that it teaches."""

    network: Network
    heads: Collection[str]

    @staticmethod
    def of(network: Network, heads: Collection[str], device: str) -> Teacher:
        """Return a teacher with the present weights of a network."""
        fixed = copy.deepcopy(network).to(device=device, memory_format=network.memory_format).eval()  # type: ignore[call-overload]
        return Teacher(fixed.requires_grad_(False), heads)  # noqa: FBT003  (no name of the argument)

    @torch.no_grad()
    def at_points(self, sample: Sample) -> dict[str, Tensor]:
        """Return the probabilities (P, R) of each taught head at the points of a sample."""
        return self._read(self.network.at(sample.image, sample.coordinates, sample.points))

    @torch.no_grad()
    def at_voxels(self, rows: Tensor, within: Tensor) -> dict[str, Tensor]:
        """Return the probabilities (P, R) of each taught head, from rows (P, K) of cells and places (P,) in these."""
        return self._read(self.network.voxels(rows, within))

    def _read(self, features: Tensor) -> dict[str, Tensor]:
        logits = self.network.logits_of(features, self.heads)
        return {name: torch.softmax(values.float(), 1) for name, values in logits.items()}


def taught_heads(heads: Sequence[Protocol], labels: Iterable[Protocol]) -> list[str]:
    """Return the heads without labels of their own, and without others of which each value means one region."""
    given = {protocol.name: protocol for protocol in labels}
    return [
        head.name
        for head in heads
        if head.name not in given and not any(_determines(protocol, head) for protocol in given.values())
    ]


def _determines(annotation: Protocol, head: Protocol) -> bool:
    relation = load_relation(annotation, head)
    return relation is not None and bool((relation.allowed.sum(1) == 1).all())
