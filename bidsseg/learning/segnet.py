"""Training of SegNet voxel by voxel: two networks, of which the second also reads distances to centroids.

De Brébisson & Montana 2015, arXiv 1502.02445, sections 3.4 and 4: stochastic gradient descent on voxels drawn uniformly
from the labelled brains, until the error on other voxels of the same brains has not decreased for some epochs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Generator

from bidsseg.image.brightness import percentiles
from bidsseg.learning.augment import change_intensity, draw_warp, sample_image, sample_labels
from bidsseg.learning.cases import Annotation, Case, ListedCase, View, values_at
from bidsseg.learning.clock import Clock, time_left
from bidsseg.learning.samples import Plan
from bidsseg.learning.state import Conditions, State, continuing, derived, save_checkpoint
from bidsseg.learning.voxel_trainer import Brain, Trainer, labelled_brain
from bidsseg.networks.segnet.staged import StagedSegNet

REPORT_EVERY_S = 20
ROOM = 8
"""Margin in voxels on every side of a scan that is moved as a whole."""


@dataclass
class Progress:
    """Progress of the training of one of the two networks.

    Attributes:
        chunk: number of the next chunk of the epoch.
        waited: epochs since the last marked decrease of the error.
    """

    stage: int = 0
    epoch: int = 0
    chunk: int = 0
    best: float = float("inf")
    waited: int = 0


def fit_voxels(network: StagedSegNet, cases: Sequence[ListedCase], plan: Plan, *, conditions: Conditions) -> State:
    """Train both networks in place, each for half of the time at most, and leave the best weights of each in it.

    A checkpoint is resumed at its chunk. Several processes share the voxels of each step, so that their number changes
    the time of a run, not its result, except for the noise on the distances.
    """
    fitting = VoxelFitting(network, cases, plan, conditions=conditions)
    while fitting.progress.stage < 2:
        if fitting.stage_is_over():
            fitting.next_stage()
        elif fitting.epoch():
            fitting.measure()
        else:
            break
    fitting.trainer.keep_best()
    return fitting.state


class VoxelFitting:
    """The two networks in training, and their progress."""

    def __init__(
        self, network: StagedSegNet, cases: Sequence[ListedCase], plan: Plan, *, conditions: Conditions
    ) -> None:
        assert plan.recipe.voxels is not None
        self.network, self.plan, self.conditions, self.voxels = network, plan, conditions, plan.recipe.voxels
        self.cases, self.head = cases, plan.heads[0]
        self.brains = [self.brain_of(case) for case in cases]
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
        """Return the trainer of the network of a stage."""
        seed = derived(self.plan.seed, stage)
        shown = self.augmented if self.voxels.augmented else None
        precision, processes = self.conditions.precision, self.conditions.processes
        return Trainer(
            self.network.stage(stage),
            self.brains,
            self.voxels,
            seed=seed,
            precision=precision,
            processes=processes,
            augmented=shown,
        )

    def brain_of(self, case: ListedCase) -> Brain:
        """Return a brain. All of them are held in memory, because each step reads voxels of many."""
        self.conditions.check_memory()
        return labelled_brain(case.opened(), self.head)

    def augmented(self, generator: Generator) -> list[Brain]:
        """Return the brains, each moved, deformed and changed in brightness."""
        view = self.plan.recipe.view
        return [labelled_brain(draw_case(case.opened(), view, generator), self.head) for case in self.cases]

    def used(self) -> float:
        """Return the used share of the time for this stage."""
        budget_s = self.conditions.budget_s
        return 0.0 if math.isinf(budget_s) else 2 * self.clock.elapsed_s / budget_s - self.progress.stage

    def stage_is_over(self) -> bool:
        """Return whether the time, the epochs or the patience of this stage are used up."""
        (self.trainer.used,) = self.conditions.processes.agree(self.used())
        progress, voxels = self.progress, self.voxels
        return self.trainer.used > 1 or progress.epoch >= voxels.epochs or progress.waited >= voxels.patience

    def next_stage(self) -> None:
        """Keep the best weights of this stage and begin the next, from these if the recipe sets a warm start."""
        self.trainer.keep_best()
        self.progress = Progress(self.progress.stage + 1)
        if self.progress.stage < 2:
            if self.voxels.warm:
                self.network.second.start_from(self.network.first)
            self.trainer = self.trainer_of(self.progress.stage)

    def epoch(self) -> bool:
        """Train for the rest of an epoch, or until the time is used up; False if interrupted, after saving."""
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
        """Report at intervals the completed share (0..1) of the epoch."""
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
        """Measure the error after an epoch, keep the weights if it is the smallest, and save."""
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
        """Save everything that is needed to resume the training."""
        save_checkpoint(self.conditions, self.network, self.trainer, state=self.state, progress=asdict(self.progress))


def draw_case(case: Case, view: View, generator: Generator) -> Case:
    """Draw a whole scan (X, Y, Z) moved, deformed and changed in brightness; outside of the brain it is 0.

    Its 1 mm RAS grid has a margin of ROOM voxels on every side. Brightness is a share of the brain's 99th percentile.
    """
    shape = [n + 2 * ROOM for n in case.brain.shape]
    warp = draw_warp(
        view.spatial, shape, view.spacing_mm, centre=case.centre, widening=case.widening, generator=generator
    )
    brain = sample_labels(case.brain, warp.source)
    annotations = tuple(
        Annotation(each.protocol, values_at(each, warp.source, mirrored=warp.mirrored)) for each in case.annotations
    )
    if case.image is None:
        return Case(case.name, None, annotations, brain)
    changed = []
    for channel in sample_image(case.image, warp):
        (brightest,) = percentiles(channel, brain, (0.99,))
        changed.append(
            change_intensity(channel / max(brightest, 1e-6), view.intensity, view.spacing_mm, generator=generator)
        )
    return Case(case.name, torch.stack(changed) * brain, annotations, brain)
