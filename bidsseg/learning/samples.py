"""The samples of a training run, drawn by their numbers on the device of the network."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch

from bidsseg.labels import Protocol
from bidsseg.learning.cases import ListedCase, Sample, draw_sample
from bidsseg.learning.processes import Processes
from bidsseg.learning.recipe import Recipe
from bidsseg.learning.registration import Mover
from bidsseg.learning.state import seeded
from bidsseg.learning.teacher import Teacher

AHEAD = 2
"""Number of samples that are drawn on a GPU beside the training, each in its own thread and stream."""
RESIDENT = 0.3
"""Share of the free memory of a GPU that the cases may fill; more cases are copied there one by one."""


@dataclass(frozen=True)
class Plan:
    """The definition of a run: a recipe, the protocols of its heads in the same order, and the random seed.

    Attributes:
        mover: warps samples onto unlabelled scans, if the recipe requires it.
        teacher: the initial model, for heads that the labels do not determine.
    """

    recipe: Recipe
    heads: tuple[Protocol, ...]
    seed: int = 0
    mover: Mover | None = None
    teacher: Teacher | None = None


def drawn(
    cases: Sequence[ListedCase],
    plan: Plan,
    first: int,
    *,
    processes: Processes,
    progress: Callable[[], float] = lambda: 0.0,
) -> Iterator[Sample]:
    """Yield the samples of all steps from the first on, divided among the processes, on the device of this process.

    A sample depends only on the seed, its number and the kind of device, so that a resumed run draws the same samples.
    Only its grid also depends on the time, if the run has a time budget.

    Args:
        progress: returns the completed share (0..1) of the run.
    """

    def make(number: int) -> Sample:
        return draw(cases, plan, number, device=processes.device, progress=progress())

    batch = plan.recipe.batch
    numbers = (
        step * batch + i for step in itertools.count(first) for i in range(processes.rank, batch, processes.count)
    )
    if torch.device(processes.device).type == "cpu":
        return drawn_in_turn(make, numbers)
    cases = resident(cases, processes.device)
    return drawn_ahead(make, numbers, device=processes.device)


def drawn_in_turn(make: Callable[[int], Sample], numbers: Iterator[int]) -> Iterator[Sample]:
    """Yield samples of these numbers, drawn on the CPU between the steps of the training.

    As many samples are drawn at once as the network has threads, one in each: drawing beside the network would make all
    of its threads wait for the one that shares its core.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as drawers:
        while True:
            yield from list(drawers.map(make, itertools.islice(numbers, threads)))


def drawn_ahead(make: Callable[[int], Sample], numbers: Iterator[int], *, device: str) -> Iterator[Sample]:
    """Yield samples of these numbers, drawn on a GPU while the network is trained there.

    In the stream of the training, each random number that the CPU reads would wait for the current step.
    """
    streams = [torch.cuda.Stream(device) for _ in range(AHEAD)]

    def drawn_beside(number: int) -> Sample:
        stream = streams[number % AHEAD]
        with torch.cuda.stream(stream):
            sample = make(number)
            stream.synchronize()
        return sample

    with ThreadPoolExecutor(AHEAD) as drawers:
        ahead = deque(drawers.submit(drawn_beside, number) for number in itertools.islice(numbers, AHEAD))
        for number in numbers:
            sample = ahead.popleft().result()
            ahead.append(drawers.submit(drawn_beside, number))
            sample.used_by(torch.cuda.current_stream(device))
            yield sample


def resident(cases: Sequence[ListedCase], device: str) -> Sequence[ListedCase]:
    """Return the cases in the memory of a GPU if they leave enough of it to the network, otherwise unchanged."""
    free = torch.cuda.mem_get_info(device)[0]
    fit = sum(case.size for case in cases) < RESIDENT * free
    return [case.opened().to(device) for case in cases] if fit else cases


def draw(
    cases: Sequence[ListedCase],
    plan: Plan,
    number: int,
    *,
    device: str | torch.device = "cpu",
    progress: float = 0.0,
) -> Sample:
    """Draw one sample of a run, by its number, on a device.

    Args:
        progress: completed share (0..1) of the run, if it is larger than that of its steps.
    """
    with torch.device(device):
        generator = seeded(plan.seed, number, device=device)
        if plan.recipe.balanced:
            kinds = sorted({case.kind for case in cases})
            cases = [case for case in cases if case.kind == kinds[number % len(kinds)]]
        with_image = [case for case in cases if case.has_image]
        without = [case for case in cases if not case.has_image]
        synthetic = not with_image or (without and torch.rand((), generator=generator) < plan.recipe.synthetic_share)
        pool = without if synthetic else with_image
        case = pool[int(torch.randint(len(pool), (), generator=generator))].opened().to(device)
        recipe = plan.recipe
        spatial, move = recipe.spatial, None
        if plan.mover is not None and case.image is not None:
            # Samples that are not moved equal those of a run without registration.
            apart = seeded(plan.seed, number, 1, device=device)
            if torch.rand((), generator=apart) < plan.mover.share:
                spatial, move = replace(spatial, still=1.0), partial(plan.mover.move, case, generator=apart)
        view = recipe.view_at(max(progress, number // recipe.batch / recipe.steps))
        view = replace(view, spatial=spatial)
        return draw_sample(case, view, generator, move=move)
