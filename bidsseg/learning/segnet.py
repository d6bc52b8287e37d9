"""Training voxel by voxel, as SegNet is: two networks, of which the second is given distances to centroids.

De Brébisson & Montana 2015, arXiv 1502.02445, sections 3.4 and 4: stochastic gradient descent on voxels drawn evenly
from the labelled brains, until the error on other voxels of the same brains has not fallen for some epochs.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bidsseg.errors import DataError
from bidsseg.labels import Protocol, load_relation
from bidsseg.learning.cases import Case, draw_case
from bidsseg.learning.clock import Clock, time_left
from bidsseg.learning.loop import Plan
from bidsseg.learning.optimiser import rate_factor
from bidsseg.learning.processes import Processes
from bidsseg.learning.recipe import Voxels
from bidsseg.learning.state import Conditions, State, continuing, derived, save_checkpoint
from bidsseg.networks.segnet.network import SegNet
from bidsseg.networks.segnet.staged import StagedSegNet
from bidsseg.networks.segnet.surroundings import (
    Surroundings,
    centroids_of,
    describe,
    distances,
    draw_voxels,
    surroundings,
)

CHUNK = 20
"""Batches whose inputs are made at once."""
SAMPLE = 2000
"""Voxels of each scan from which the scale of the distances is learnt."""
REPORT_EVERY_S = 20


@dataclass(frozen=True)
class Brain:
    """A labelled scan, ready to be looked at voxel by voxel.

    Attributes:
        labels: (X, Y, Z) positions in the head's protocol, -1 where the annotation tells nothing.
        centroids: (N, 3) of the true regions.
    """

    name: str
    seen: Surroundings
    labels: Tensor
    centroids: Tensor


def labelled_brain(case: Case, head: Protocol) -> Brain:
    """A case as SegNet learns from it; DataError unless an annotation says exactly which region a voxel is."""
    if case.image is None:
        raise DataError(f"{case.name}: has no image, and SegNet does not learn from synthesis")
    for annotation in case.annotations:
        relation = load_relation(annotation.protocol, head)
        if relation is not None and annotation.protocol.name == head.name:
            exact = torch.from_numpy(relation.allowed.sum(1) == 1)
            values = annotation.values.long()
            found = torch.from_numpy(relation.allowed.argmax(1))[values]
            labels = torch.where(exact[values] & case.brain, found, -1)
            centroids = centroids_of(labels.clamp(min=0), len(head.regions) - 1)
            # the brain alone, as at inference, where it is cut out first
            return Brain(case.name, surroundings(case.image[0] * case.brain, case.brain), labels, centroids)
    raise DataError(f"{case.name}: no annotation in the protocol {head.name}")


@dataclass
class Progress:
    """How far the training of one of the two networks has come.

    Attributes:
        chunk: of the epoch, which comes next.
        waited: epochs since the error was last much lower than before.
    """

    stage: int = 0
    epoch: int = 0
    chunk: int = 0
    best: float = float("inf")
    waited: int = 0


def fit_voxels(network: StagedSegNet, cases: Sequence[Case], plan: Plan, conditions: Conditions) -> State:
    """Trains both networks in place, each for half of the time at most, and leaves the best weights of each in it.

    A checkpoint is continued from the chunk that it was at. Several processes share the voxels of each step, so that
    their number changes the time that a run takes, and not its result, but for the noise on the distances.
    """
    voxels = plan.recipe.voxels
    assert voxels is not None
    fitting = VoxelFitting(network, cases, plan, conditions)
    while fitting.progress.stage < 2:
        if fitting.stage_is_over():
            fitting.next_stage(voxels.warm)
        elif fitting.epoch():
            fitting.measure()
        else:
            break
    fitting.trainer.keep_best()
    return fitting.state


class VoxelFitting:
    """The two networks in training, and how far they have come."""

    def __init__(self, network: StagedSegNet, cases: Sequence[Case], plan: Plan, conditions: Conditions) -> None:
        assert plan.recipe.voxels is not None
        self.network, self.plan, self.conditions, self.voxels = network, plan, conditions, plan.recipe.voxels
        self.cases, self.head = cases, plan.heads[0]
        self.brains = [labelled_brain(case, self.head) for case in cases]
        self.state, self.progress = State(), Progress()
        network.to(conditions.device)
        self.trainer = self.trainer_of(0)
        if conditions.checkpoint.is_file():
            with continuing(conditions) as saved:
                self.state, self.progress = State(**saved["state"]), Progress(**saved["progress"])
                network.load_state_dict(saved["network"])
                self.trainer = self.trainer_of(self.progress.stage)
                self.trainer.load_state_dict(saved["optimiser"])
        self.clock = Clock(conditions, self.state)
        self.told_at = time.monotonic()

    def trainer_of(self, stage: int) -> Trainer:
        """Return what trains the network of a stage."""
        seed = derived(self.plan.seed, stage)
        shown = self.augmented if self.voxels.augmented else None
        precision, processes = self.conditions.precision, self.conditions.processes
        return Trainer(self.network.stage(stage), self.brains, self.voxels, seed, precision, processes, shown)

    def augmented(self, generator: Generator) -> list[Brain]:
        """Return the brains, each moved, bent and of other brightness."""
        view = self.plan.recipe.view
        return [labelled_brain(draw_case(case, view, generator), self.head) for case in self.cases]

    def used(self) -> float:
        """Share of the time for this stage that is used up."""
        budget_s = self.conditions.budget_s
        return 0.0 if math.isinf(budget_s) else 2 * self.clock.elapsed_s / budget_s - self.progress.stage

    def stage_is_over(self) -> bool:
        """Whether the time, the epochs or the patience of this stage are used up."""
        (self.trainer.used,) = self.conditions.processes.agree(self.used())
        progress, voxels = self.progress, self.voxels
        return self.trainer.used > 1 or progress.epoch >= voxels.epochs or progress.waited >= voxels.patience

    def next_stage(self, warm: bool) -> None:
        """Keep the best weights of this stage and begin the next, warm from the weights of this one."""
        self.trainer.keep_best()
        self.progress = Progress(self.progress.stage + 1)
        if self.progress.stage < 2:
            if warm:
                self.network.second.start_from(self.network.first)
            self.trainer = self.trainer_of(self.progress.stage)

    def epoch(self) -> bool:
        """Train for the rest of an epoch, or until the time is used up; False if told to stop, all kept."""
        progress, trainer = self.progress, self.trainer
        for steps, done in trainer.epoch(progress.epoch, progress.chunk):
            self.clock.tick(steps)
            progress.chunk += 1
            trainer.used, told_to_stop = self.conditions.processes.agree(self.used(), self.conditions.stop())
            self.report(done)
            if self.clock.is_time_to_save():
                self.save()
            if told_to_stop:
                self.save()
                return False
            if trainer.used > 1:
                break
        return True

    def report(self, done: float) -> None:
        """Say now and then how much of the epoch (0..1) is done."""
        if time.monotonic() - self.told_at <= REPORT_EVERY_S:
            return
        self.told_at = time.monotonic()
        progress, state = self.progress, self.state
        share = (progress.stage + max((progress.epoch + done) / self.voxels.epochs, self.trainer.used)) / 2
        left = time_left(state.elapsed_s, share)
        self.conditions.report(
            f"stage {progress.stage + 1} epoch {progress.epoch + 1}, {done:.0%}, step {state.step}, {left}"
        )

    def measure(self) -> None:
        """Measure the error after an epoch, keep the weights if it is the least, and save."""
        progress, state, name = self.progress, self.state, f"stage {self.progress.stage + 1}"
        error, entropy = self.conditions.processes.agree(*self.trainer.error())
        progress.epoch, progress.chunk, progress.waited = progress.epoch + 1, 0, progress.waited + 1
        if error < 0.99 * progress.best:
            progress.best, progress.waited = error, 0
            self.trainer.remember()
        row = {"step": state.step, "elapsed_s": state.elapsed_s, f"{name} error": error, f"{name} entropy": entropy}
        state.curve.append({key: round(value, 4) for key, value in row.items()})
        self.conditions.report(f"{name} epoch {progress.epoch} error {error:.3f} after {state.elapsed_s:.0f} s")
        self.save()

    def save(self) -> None:
        """Keep all that the training goes on from."""
        save_checkpoint(self.conditions, self.network, self.trainer, self.state, progress=asdict(self.progress))


class Trainer:
    """Epochs of one network over the voxels that are drawn for it.

    Args:
        augmented: makes the brains that an epoch learns from; without it they are learned from as they are.

    Attributes:
        used: share of the time for all epochs that is used up, on which the rate of Adam depends.
    """

    def __init__(
        self,
        network: SegNet,
        brains: Sequence[Brain],
        voxels: Voxels,
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
        """One pass over all voxels in an order that the seed and the number of the epoch decide.

        After each chunk, beginning with the first that is asked for, the number of its steps and the share (0..1) of
        the epoch that is done.
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
        for chunk, (size, inputs, targets) in enumerate(self.chunks(brains, points, generator, first), first):
            self.network.train()
            torch.manual_seed(derived(self.seed, number, chunk))  # of the noise
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
        """Other voxels of each brain, none of which the error is measured on."""
        found = []
        for brain, others in zip(self.brains, self.others, strict=True):
            labels = brain.labels.clone()
            labels[tuple(others.unbind(1))] = -1
            found.append(draw_voxels(labels + 1, self.voxels.per_scan, generator))
        return found

    def rate(self, epochs: float) -> float:
        """The learning rate after so many epochs."""
        voxels = self.voxels
        if voxels.adam:
            return voxels.rate * rate_factor(min(1.0, max(epochs / voxels.epochs, self.used)), 0.0)
        return voxels.rate * 0.5 ** sum(epochs >= epoch for epoch in voxels.halve_at)

    @torch.no_grad()
    def error(self) -> tuple[float, float]:
        """Share of wrong voxels, and cross-entropy, among those that were put aside."""
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
        """Of some of the voxels of a chunk, (P, N+1)."""
        with torch.autocast(self.device.split(":")[0], self.precision, enabled=self.precision != torch.float32):
            return self.network({name: group[some].to(self.device) for name, group in inputs.items()}).float()

    def chunks(
        self,
        brains: Sequence[Brain],
        points: Sequence[Tensor],
        generator: Generator,
        first: int = 0,
        shared: bool = True,
    ) -> Iterator[tuple[int, dict[str, Tensor], Tensor]]:
        """Chunks of voxels from the first on, all brains mixed: their number, and inputs and regions.

        Of shared ones each process has its part of every batch.
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
        """Keeps the weights as the best so far."""
        self.best = copy.deepcopy(self.network.state_dict())

    def keep_best(self) -> None:
        """Puts the best weights into the network."""
        self.network.load_state_dict(self.best)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the weights."""
        return {"descent": self.descent.state_dict(), "best": self.best}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.descent.load_state_dict(saved["descent"])
        self.best = saved["best"]
