"""Epochs over voxels drawn from labelled brains, for one of SegNet's networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bidsseg.errors import DataError
from bidsseg.labels import Protocol, load_relation
from bidsseg.learning.cases import Case
from bidsseg.learning.optimiser import rate_factor
from bidsseg.learning.processes import Processes
from bidsseg.learning.recipe import Voxels
from bidsseg.learning.state import derived
from bidsseg.networks.segnet.network import SegNet
from bidsseg.networks.segnet.surroundings import (
    Surroundings,
    centroids_of,
    describe,
    distances,
    draw_voxels,
    surroundings,
)

CHUNK = 20
"""Number of batches whose inputs are computed together."""
SAMPLE = 2000
"""Number of voxels of each scan that determine the scale of the distances."""


@dataclass(frozen=True)
class Brain:
    """A labelled scan, prepared for training voxel by voxel.

    Attributes:
        labels: (X, Y, Z) positions in the head's protocol, -1 where the annotation is open.
        centroids: (N, 3) of the true regions.
    """

    name: str
    seen: Surroundings
    labels: Tensor
    centroids: Tensor


def labelled_brain(case: Case, head: Protocol) -> Brain:
    """Return a case prepared for SegNet; DataError unless an annotation determines exactly the region of each voxel."""
    if case.image is None:
        raise DataError(f"{case.name}: has no image, and SegNet cannot be trained on synthesised images")
    for annotation in case.annotations:
        relation = load_relation(annotation.protocol, head)
        if relation is not None and annotation.protocol.name == head.name:
            exact = torch.from_numpy(relation.allowed.sum(1) == 1)
            values = annotation.values.long()
            found = torch.from_numpy(relation.allowed.argmax(1))[values]
            labels = torch.where(exact[values] & case.brain, found, -1)
            centroids = centroids_of(labels.clamp(min=0), len(head.regions) - 1)
            # only the brain, as at inference, where it is cropped first
            return Brain(case.name, surroundings(case.image[0] * case.brain, case.brain), labels, centroids)
    raise DataError(f"{case.name}: no annotation in the protocol {head.name}")


class Trainer:
    """Epochs of one network over drawn voxels.

    Args:
        augmented: returns the brains of an epoch; without it, the brains are unchanged.

    Attributes:
        used: used share of the time for all epochs, on which the rate of Adam depends.
    """

    def __init__(
        self,
        network: SegNet,
        brains: Sequence[Brain],
        voxels: Voxels,
        *,
        seed: int,
        precision: torch.dtype,
        processes: Processes,
        augmented: Callable[[Generator], Sequence[Brain]] | None = None,
    ) -> None:
        self.network, self.brains, self.voxels, self.seed, self.augmented = network, brains, voxels, seed, augmented
        self.precision, self.processes, self.device = precision, processes, processes.device
        self.used = 0.0
        self.descent: torch.optim.Optimizer = (
            torch.optim.Adam(network.parameters(), voxels.rate, fused=True)
            if voxels.adam
            else torch.optim.SGD(network.parameters(), voxels.rate, momentum=voxels.momentum)
        )
        generator = Generator().manual_seed(seed)
        drawn = [draw_voxels(brain.labels + 1, voxels.per_scan + voxels.validation, generator) for brain in brains]
        self.others = [points[len(points) - min(voxels.validation, len(points) // 2) :] for points in drawn]
        self.points = [points[: len(points) - len(others)] for points, others in zip(drawn, self.others, strict=True)]
        self.best = copy.deepcopy(network.state_dict())
        if "distances" in network.groups:
            sample = [
                distances(points[:SAMPLE], brain.centroids, network.scale)
                for brain, points in zip(brains, self.points, strict=True)
            ]
            network.learn_distances(torch.cat(sample).to(self.device))

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[int, float]]:
        """Train once on all voxels, in an order that depends on the seed and the number of the epoch.

        After each chunk, beginning with the requested first one, yield the number of its steps and the completed share
        (0..1) of the epoch.
        """
        voxels = self.voxels
        generator = Generator().manual_seed(derived(self.seed, number))
        brains, points = self.brains, self.points
        if self.augmented is not None:
            brains = self.augmented(generator)
            points = [draw_voxels(brain.labels + 1, voxels.per_scan, generator) for brain in brains]
        elif voxels.fresh:
            points = self.drawn(generator)
        total = sum(len(some) for some in points)
        done = first * CHUNK * voxels.batch
        for chunk, (size, inputs, targets) in enumerate(self.chunks(brains, points, generator, first=first), first):
            self.network.train()
            torch.manual_seed(derived(self.seed, number, chunk))  # for the noise
            starts = range(0, size, voxels.batch)
            own = len(range(self.processes.rank, voxels.batch, self.processes.count))
            for i, start in enumerate(starts):
                some = torch.arange(i * own, min((i + 1) * own, len(targets)))
                for group in self.descent.param_groups:
                    group["lr"] = self.rate(number + (done + start) / total)
                self.descent.zero_grad(set_to_none=True)
                if len(some):
                    loss = F.cross_entropy(self.logits(inputs, some), targets[some].to(self.device), reduction="sum")
                    (loss / min(voxels.batch, size - start)).backward()
                self.processes.add_gradients(self.network.parameters())
                self.descent.step()
            done += size
            yield len(starts), done / total

    def drawn(self, generator: Generator) -> list[Tensor]:
        """Draw further voxels of each brain, none of which is used to measure the error."""
        found = []
        for brain, others in zip(self.brains, self.others, strict=True):
            labels = brain.labels.clone()
            labels[tuple(others.unbind(1))] = -1
            found.append(draw_voxels(labels + 1, self.voxels.per_scan, generator))
        return found

    def rate(self, epochs: float) -> float:
        """Return the learning rate after a number of epochs."""
        voxels = self.voxels
        if voxels.adam:
            return voxels.rate * rate_factor(min(1.0, max(epochs / voxels.epochs, self.used)), 0.0)
        return voxels.rate * 0.5 ** sum(epochs >= epoch for epoch in voxels.halve_at)

    @torch.no_grad()
    def error(self) -> tuple[float, float]:
        """Return the share of wrong voxels, and the cross-entropy, of the validation voxels."""
        self.network.eval()
        wrong, entropy, count = 0, 0.0, 0
        generator = Generator().manual_seed(self.seed)
        for _, inputs, targets in self.chunks(self.brains, self.others, generator, shared=False):
            logits = self.logits(inputs, torch.arange(len(targets))).cpu()
            wrong += int((logits.argmax(1) != targets).sum())
            entropy += F.cross_entropy(logits, targets, reduction="sum").item()
            count += len(targets)
        return wrong / max(count, 1), entropy / max(count, 1)

    def logits(self, inputs: dict[str, Tensor], some: Tensor) -> Tensor:
        """Return the logits of some of the voxels of a chunk, (P, N+1)."""
        with torch.autocast(self.device.split(":")[0], self.precision, enabled=self.precision != torch.float32):
            logits: Tensor = self.network({name: group[some].to(self.device) for name, group in inputs.items()}).float()
            return logits

    def chunks(
        self,
        brains: Sequence[Brain],
        points: Sequence[Tensor],
        generator: Generator,
        *,
        first: int = 0,
        shared: bool = True,
    ) -> Iterator[tuple[int, dict[str, Tensor], Tensor]]:
        """Yield chunks of voxels from the first on, all brains mixed: their number, inputs and regions.

        With shared chunks, each process has its part of every batch.
        """
        network, processes = self.network, self.processes
        options: dict[str, Any] = {"planes": network.planes, "scale": network.scale}
        owner = torch.cat([torch.full((len(some),), i) for i, some in enumerate(points)])
        order = torch.randperm(len(owner), generator=generator)
        every = torch.cat(list(points))
        for chunk in order.split(CHUNK * self.voxels.batch)[first:]:
            size = len(chunk)
            if shared:
                turn = torch.arange(size) % self.voxels.batch % processes.count
                chunk = chunk[turn == processes.rank]
            inputs: list[dict[str, Tensor]] = []
            targets, places = [], []
            for i, brain in enumerate(brains):
                mine = torch.nonzero(owner[chunk] == i)[:, 0]
                if len(mine) == 0:
                    continue
                where = every[chunk[mine]]
                inputs.append(describe(brain.seen, where, network.groups, centroids=brain.centroids, **options))
                targets.append(brain.labels[tuple(where.unbind(1))])
                places.append(mine)
            if not places:
                yield size, {}, torch.zeros(0)
                continue
            back = torch.argsort(torch.cat(places))
            joined = {name: torch.cat([part[name] for part in inputs])[back] for name in inputs[0]}
            yield size, joined, torch.cat(targets)[back]

    def remember(self) -> None:
        """Store the weights as the best so far."""
        self.best = copy.deepcopy(self.network.state_dict())

    def keep_best(self) -> None:
        """Restore the best weights in the network."""
        self.network.load_state_dict(self.best)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint besides the weights."""
        return {"descent": self.descent.state_dict(), "best": self.best}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.descent.load_state_dict(saved["descent"])
        self.best = saved["best"]
