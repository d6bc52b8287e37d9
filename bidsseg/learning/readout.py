"""The last layers of a network, trained alone on stored features, for heads that its initial model did not have.

The other layers already distinguish the parts of a brain. They are applied once to each of a few samples. A step on
the stored features takes a small part of the time of a step of the whole network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from bidsseg.errors import TemporaryFailure
from bidsseg.labels import Protocol
from bidsseg.learning.cases import ListedCase, Sample
from bidsseg.learning.clock import Clock
from bidsseg.learning.interruption import INTERRUPTED
from bidsseg.learning.objective import Relations, loss_of
from bidsseg.learning.optimiser import rate_factor
from bidsseg.learning.processes import Processes
from bidsseg.learning.samples import Plan, drawn
from bidsseg.learning.state import Conditions, State, seeded
from bidsseg.networks.network import Network


@dataclass(frozen=True)
class Stored:
    """The features of some voxels of a sample.

    Attributes:
        rows: (P, K) input of the last layers at the cells of the voxels.
        within: (P,) place of each voxel in its cell.
        values: for each annotation its protocol and the values (P,).
    """

    rows: Tensor
    within: Tensor
    values: list[tuple[Protocol, Tensor]]

    def part(self, chosen: Tensor) -> Stored:
        """Return some of the voxels."""
        return Stored(self.rows[chosen], self.within[chosen], [(name, each[chosen]) for name, each in self.values])


def fit_readout(network: Network, cases: Sequence[ListedCase], plan: Plan, *, conditions: Conditions) -> float:
    """Train the last layers of a network in place, and return the seconds used.

    All processes do the same. TemporaryFailure if the run is interrupted.
    """
    readout, precision, report = plan.recipe.readout, conditions.precision, conditions.report
    limited = replace(conditions, budget_s=readout.share * conditions.budget_s)
    clock = Clock(limited, State(), readout.steps)
    network = network.to(  # type: ignore[call-overload]
        device=conditions.device, memory_format=network.memory_format
    ).eval()
    report(f"features of {readout.samples} samples are computed, on which the last layers are trained first")
    # On the grid of the finished models, the initial one and this one: it is the last of the run.
    samples = drawn(cases, plan, 0, processes=Processes(device=conditions.device), progress=lambda: 1.0)
    stored = list(stored_features(network, islice(samples, readout.samples), clock, precision=precision))
    trained = [p for name, p in network.named_parameters() if name.startswith(network.last_layers)]
    optimiser = torch.optim.AdamW(trained, readout.rate)
    relations = Relations(plan.heads, conditions.device, naive=plan.recipe.loss.naive)
    generator = seeded(plan.seed, 4)
    while (progress := share_used(clock)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = readout.rate * rate_factor(progress, 0.0)
        sample = stored[int(torch.randint(len(stored), (), generator=generator))]
        some = torch.randint(len(sample.within), (readout.points,), generator=generator)
        part = sample.part(some.to(conditions.device))
        with torch.autocast(part.rows.device.type, precision, enabled=precision != torch.float32):
            features = network.voxels(part.rows, part.within)
            logits = network.logits_of(features, (head.name for head in plan.heads))
            taught = plan.teacher.at_voxels(part.rows, part.within) if plan.teacher else {}
        loss, parts = loss_of(logits, part.values, plan, relations=relations, taught=taught)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        clock.tick()
        if clock.state.step % 100 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
            report(f"last layers: step {clock.state.step} of {readout.steps}, {shown}")
    network.zero_grad()
    return clock.elapsed_s


def share_used(clock: Clock) -> float:
    """Return the used share (0..1) of the steps or of the time. TemporaryFailure if the run is interrupted."""
    share = clock.progress()
    if clock.stopped:
        raise TemporaryFailure(INTERRUPTED)
    return share


@torch.no_grad()
def stored_features(
    network: Network, samples: Iterator[Sample], clock: Clock, *, precision: torch.dtype
) -> Iterator[Stored]:
    """Yield the features of each sample, until half of the time is used up; those of one sample at least."""
    for sample in samples:
        with torch.autocast(sample.image.device.type, precision, enabled=precision != torch.float32):
            rows, within = network.cells_at(sample.image, sample.coordinates, sample.points)
        yield Stored(rows, within, sample.values)
        clock.tick(0)
        if share_used(clock) > 0.5:
            return
