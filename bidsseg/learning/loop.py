"""The training loop: one for every recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bidsseg.learning.augment import UNMOVED, Intensity
from bidsseg.learning.cases import Annotation, ListedCase, Sample, draw_sample
from bidsseg.learning.clock import Clock
from bidsseg.learning.objective import Relations, losses
from bidsseg.learning.optimiser import Stepper
from bidsseg.learning.samples import Plan, draw, drawn
from bidsseg.learning.state import Conditions, State, derived, resumed, save_checkpoint
from bidsseg.learning.validation import ERROR, comparable, compare
from bidsseg.networks.network import Network

Made = TypeVar("Made")


class Fitting:
    """A network in training, the running mean of its weights, and the best of these means.

    Attributes:
        average: running mean of the weights.
        best: the mean with the best Dice on the validation cases.
        running: running mean of each part of the loss, on the device: reading it there waits for the step.
    """

    def __init__(self, network: Network, watched: Sequence[ListedCase], plan: Plan, *, conditions: Conditions) -> None:
        device = conditions.device
        self.network = network.to(device=device, memory_format=network.memory_format)  # type: ignore[call-overload]
        self.watched, self.plan, self.conditions = watched, plan, conditions
        self.stepper = Stepper(self.network, plan.recipe.optimiser)
        self.relations = Relations(plan.heads, device, naive=plan.recipe.loss.naive)
        self.state, saved = resumed(conditions, self.network, self.stepper)
        self.average = saved.get("average") or copied(self.network.state_dict())
        self.best = saved.get("best") or self.average
        self.running: dict[str, Tensor] = {name: torch.tensor(v) for name, v in saved.get("running", {}).items()}
        self.keeps_best = plan.recipe.keep == "best" and bool(watched)
        self.network.train()

    def step(self, samples: Iterator[Sample], progress: float) -> None:
        """Train on the samples of one step, divided among the processes, at a share (0..1) of the run."""
        processes, batch, number = self.conditions.processes, self.plan.recipe.batch, self.state.step
        parts: dict[str, Tensor] = {}
        for i in range(processes.rank, batch, processes.count):
            torch.manual_seed(derived(self.plan.seed, number * batch + i, 3))  # for random draws of the network
            sample = next(samples).to(processes.device)
            loss, of_sample = losses(
                self.network,
                sample,
                self.plan,
                relations=self.relations,
                precision=self.conditions.precision,
                progress=progress,
            )
            (loss / batch).backward()
            parts |= of_sample
        processes.add_gradients(self.network.parameters())
        self.stepper.step(progress)
        processes.average(self.network.buffers())
        update(self.average, self.network, min(self.plan.recipe.optimiser.average, (1 + number) / (10 + number)))
        for name, value in parts.items():
            self.running[name] = 0.95 * self.running.get(name, value) + 0.05 * value

    def parts(self) -> dict[str, float]:
        """Return the running mean of each part of the loss."""
        return {name: value.item() for name, value in self.running.items()}

    def check(self) -> None:
        """Add a row to the curve, and keep the weights if they are the best on the validation cases."""
        state = self.state
        row = {"step": float(state.step), "elapsed_s": round(state.elapsed_s, 1), **self.parts()}
        if self.conditions.rehearse is not None and not state.reserve_s:
            state.reserve_s = with_weights(self.network, self.average, partial(self.conditions.rehearse, self.network))
            self.network.train()
        if self.watched:
            work = partial(evaluate, self.network, self.watched, self.plan, precision=self.conditions.precision)
            scores = with_weights(self.network, self.average, work)
            self.network.train()
            row |= scores
            mean = float(np.mean(list(scores.values()))) if scores else -math.inf  # every kind weighs the same
            if self.keeps_best:
                row["dice mean"] = mean
            if mean > state.best:
                state.best, self.best = mean, copied(self.average)
        state.curve.append({name: round(value, 4) for name, value in row.items()})
        self.conditions.report(f"so far: {state.curve[-1]}")

    def save(self) -> None:
        """Save everything that is needed to resume the training."""
        more = {"average": self.average, "best": self.best, "running": self.parts()}
        save_checkpoint(self.conditions, self.network, self.stepper, state=self.state, **more)


def fit(
    network: Network,
    cases: Sequence[ListedCase],
    watched: Sequence[ListedCase],
    *,
    plan: Plan,
    conditions: Conditions,
    check_every: float = 0.1,
    readout_s: float = 0.0,
) -> State:
    """Train the network in place until the steps or the time are used up, and leave the averaged weights in it.

    These are the last, or, if the recipe keeps the best, those with the highest mean Dice on the validation cases.
    A checkpoint is resumed. Several processes share the samples of each step, so that their number changes the time
    of a run, not its result, except for the running statistics of batch normalisation, which are means over processes.

    Args:
        readout_s: seconds of the time budget that the training of the last layers alone has just used.
    """
    torch.backends.cudnn.benchmark = True  # all samples have the same shape
    fitting = Fitting(network, watched, plan, conditions=conditions)
    state = fitting.state
    state.readout_s = state.readout_s or readout_s
    clock = Clock(conditions, state, plan.recipe.steps)
    done = max(0.0, (state.step - 1) / plan.recipe.steps, state.elapsed_s / clock.learning_s)
    next_check = math.floor(done / check_every + 1) * check_every
    numbered = drawn(cases, plan, state.step, processes=conditions.processes, progress=lambda: clock.agreed)
    samples = clock.timed(numbered)
    while state.step < plan.recipe.steps:
        progress = clock.progress()
        if progress >= 1 or clock.stopped:
            break
        fitting.step(samples, progress)
        clock.tick()
        if not conditions.processes.first:
            continue
        if state.step % 20 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in fitting.parts().items())
            conditions.report(f"step {state.step}, {progress:.0%}, {clock.pace(progress)}, {shown}")
        if progress >= next_check:
            next_check = math.floor(progress / check_every + 1) * check_every
            fitting.check()
        if clock.is_time_to_save():
            fitting.save()
    if conditions.processes.first and fitting.keeps_best and not conditions.stop():
        fitting.check()
    fitting.save()
    if conditions.processes.first and state.step:
        conditions.report(clock.throughput(plan.recipe.batch))
    fitting.network.load_state_dict(fitting.best if fitting.keeps_best else fitting.average)
    if plan.recipe.statistics and not conditions.stop():
        learn_statistics(fitting.network, cases, plan, precision=conditions.precision)
    return state


@torch.no_grad()
def learn_statistics(network: Network, cases: Sequence[ListedCase], plan: Plan, *, precision: torch.dtype) -> None:
    """Re-estimate the statistics of batch normalisation, as means over samples for the present weights.

    Running means belong to earlier weights, and to synthesised samples, which differ from real scans (Wu & Johnson
    2021, arXiv 2105.07576). If there are images, all samples are drawn from these.
    """
    recipe, device = plan.recipe, next(network.parameters()).device
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    cases = [case for case in cases if case.has_image] or cases
    network.train()
    for number in range(recipe.statistics):
        for norm in norms:
            norm.momentum = 1 / (number + 1)
        sample = draw(cases, plan, recipe.steps * recipe.batch + number, device=device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            network.at(sample.image, sample.coordinates, sample.points)
        for head in plan.heads:
            network.head(head.name)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return detached copies of the weights."""
    return {name: value.detach().clone() for name, value in weights.items()}


@torch.no_grad()
def update(average: dict[str, Tensor], network: Network, decay: float) -> None:
    """Move the running mean of the weights towards those of the network; counters are copied."""
    weights = network.state_dict()
    real = [name for name, value in weights.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in real], [weights[name] for name in real], 1 - decay)
    for name in weights.keys() - real:
        average[name].copy_(weights[name])


def with_weights(network: Network, weights: dict[str, Tensor], work: Callable[[], Made]) -> Made:
    """Run a function with other weights in the network, then restore its own."""
    own = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(weights)
    try:
        return work()
    finally:
        network.load_state_dict(own)


@torch.no_grad()
def evaluate(network: Network, cases: Sequence[ListedCase], plan: Plan, *, precision: torch.dtype) -> dict[str, float]:
    """Return the mean Dice of each head over unseen cases, on a tenth of the voxels of the grid.

    Annotations in several protocols have separate results, however many cases have them.

    Heads without an exact annotation are omitted. Images of label maps without an image are synthesised from a fixed
    seed, near the contrast that the model reads.
    """
    network.eval()
    device = next(network.parameters()).device
    calm = Intensity(0, 0, 0.02, 0, 1)
    whole = replace(plan.recipe.sampling, realistic=1.0, contrasts=(), cut=0.0, noise_around=0.0, missing=0.0)
    sampling = replace(whole, points=400_000, inside=0.0, balance=0.0)
    view = replace(plan.recipe.view, sampling=sampling, spatial=UNMOVED, intensity=calm)
    scores: dict[str, list[float]] = {}
    for number, case in enumerate(cases):
        generator = torch.Generator().manual_seed(number)
        sample = draw_sample(case.opened(), view, generator).to(device)
        with torch.autocast(sample.image.device.type, precision, enabled=precision != torch.float32):
            features = network.at(sample.image, sample.coordinates, sample.points)
        annotations = [Annotation(protocol, values.cpu()) for protocol, values in sample.values]
        for head in plan.heads:
            answer = F.linear(features.float(), *network.head(head.name)).argmax(1).cpu()
            for annotation, relation in comparable(annotations, head):
                found = compare(np.array(head.indices)[answer], head, annotation, relation=relation)
                dice = [value for region, value in found.items() if region != ERROR]
                if dice:
                    scores.setdefault(f"dice {annotation.protocol.name}>{head.name}", []).append(float(np.mean(dice)))
    return {name: float(np.mean(values)) for name, values in scores.items()}
