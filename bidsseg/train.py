"""Level train: a recipe and labelled datasets become a model folder."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from bidsseg import __version__
from bidsseg.compute import choose_machine, keep_freed_memory
from bidsseg.errors import DataError, NothingSelected, OutputNotWritable, TemporaryFailure, UsageError
from bidsseg.settings import Report, Settings

if TYPE_CHECKING:
    from bidsseg.labels import Protocol


def train_level(settings: Settings) -> Path:
    """Trains the recipe on everything that is labelled and returns the model folder.

    The participants of one fold, or those named, are held out; the card states what the model reaches on them.
    TemporaryFailure (75) if it was told to stop before its time: run again with --resume.
    """
    keep_freed_memory()
    import torch

    from bidsseg.labels import load_protocol
    from bidsseg.learning.datasets import load_cases, person, split
    from bidsseg.learning.loop import Plan, fit
    from bidsseg.learning.processes import Processes
    from bidsseg.learning.recipe import load_recipe
    from bidsseg.learning.record import save_curve, save_outcome
    from bidsseg.learning.registration_loop import DFNET, fit_mover
    from bidsseg.learning.state import Conditions
    from bidsseg.learning.voxel_loop import fit_voxels
    from bidsseg.models.card import CARD, Card
    from bidsseg.models.library import build, load_model
    from bidsseg.segmentation.voxelwise import StagedSegNet

    options, report = settings.training, settings.report
    recipe = load_recipe(options.recipe, options.small)
    if not options.labels:
        raise UsageError("train needs --labels PROTOCOL=DERIVATIVES_DIR, at least once")
    folder = settings.output_dir / "models" / recipe.name
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists() and not options.resume and not settings.overwrite:
        raise UsageError(f"{checkpoint} is there: give --resume to go on, --overwrite to start again")
    if (folder / CARD).exists() and not checkpoint.exists() and not settings.overwrite:
        if not options.resume:
            raise UsageError(f"{folder} holds a finished model: give --overwrite to train it again")
        report.say(f"model: {folder} is finished")
        return folder
    machine = choose_machine(settings)
    processes = Processes.join(machine.device)
    report = settings.report if processes.first else Report()
    heads = tuple(load_protocol(name).scored() for name in recipe.heads)
    check_labels(options.labels, heads, report)
    cases = load_cases(
        settings,
        report,
        recipe.inputs,
        unlabelled=recipe.registration is not None,
        synthetic=recipe.synthetic_share > 0,
    )
    seen, unseen = split([case for case in cases if case.annotations], options.folds, options.fold, options.hold_out)
    held = {person(case) for case in unseen}
    targets = [case for case in cases if not case.annotations and person(case) not in held]
    if not seen:
        raise NothingSelected("no labelled participant is left to learn from: fewer --folds or more data")
    watched = unseen
    if recipe.keep == "best":
        seen, watched = split(seen, 5, 4)  # nobody of fewer than five
        report.say(f"the best weights are those that do best on {', '.join(c.name for c in watched)}")
    report.say(f"{len(seen)} scans to learn from, {len(unseen)} held out: {', '.join(c.name for c in unseen)}")
    if recipe.registration is not None:
        if not targets:
            raise UsageError(f"recipe {recipe.name}: no scan is without annotation: give some with --also BIDS_DIR")
        report.say(f"{len(targets)} scans without annotation to move them onto")
    if settings.dry_run:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputNotWritable(f"cannot make {folder}: {error.strerror}; choose another OUTPUT_DIR") from error
    if not options.resume:
        for left in (checkpoint, folder / DFNET):
            left.unlink(missing_ok=True)
    processes.wait()
    torch.set_num_threads(machine.threads)
    torch.manual_seed(options.seed)
    plan = Plan(recipe, heads, options.seed)
    card = Card(
        **recipe.on_card(),
        sha256="",
        lesion=next((head.name for head in heads if head.lesions), None),
        recipe=recipe.as_dict() | {"seed": options.seed},
        data=[f"{dataset}: {count} scans" for dataset, count in Counter(case.dataset for case in seen).items()],
        code_version=__version__,
    )
    network = build(card)
    multiple = network.multiple
    if (recipe.voxels is not None) != isinstance(network, StagedSegNet):
        raise DataError(f"recipe {recipe.name}: [voxels] goes with the network segnet, and only with it")
    if recipe.voxels is None and processes.count > recipe.batch:
        raise UsageError(f"{processes.count} processes share {recipe.batch} samples a step: set batch in the recipe")
    if recipe.voxels is not None and processes.count > 1:
        raise UsageError(f"recipe {recipe.name}: learns voxel by voxel, in one process: start it without torchrun")
    if any(size % multiple for size in recipe.sampling.shape):
        raise DataError(f"recipe {recipe.name}: every size in shape must be a multiple of {multiple} for this network")
    if options.init:
        copied = start_from(network, load_model(options.init).network)
        report.say(f"{copied} of {len(network.state_dict())} tensors taken from {options.init}")
    precision = torch.bfloat16 if machine.precision == "bf16" else torch.float32
    budget_s = (options.time_budget_min or 24 * 60) * 60
    with Interruption() as interruption:
        conditions = Conditions(folder, budget_s, interruption.asked, report.say, precision, processes)
        if recipe.registration is not None:
            mover, spent_s = fit_mover(seen, targets, plan, conditions)
            plan = replace(plan, mover=mover)
            conditions = replace(conditions, budget_s=max(1.0, budget_s - spent_s))
        if isinstance(network, StagedSegNet):
            state = fit_voxels(network, seen, plan, conditions)
        else:
            state = fit(network, seen, watched, plan, conditions)
    if not processes.first:
        processes.leave()
        return folder
    save_curve(state.curve, folder)
    processes.leave()
    if interruption.asked():
        raise TemporaryFailure(f"stopped after {state.step} steps, all kept in {folder}: run again with --resume")
    save_outcome(card, network.cpu(), unseen, report.say, state, machine.precision, folder)
    checkpoint.unlink(missing_ok=True)
    report.say(f"model: {folder} (use it with --model {folder})")
    return folder


def check_labels(labels: Iterable[str], heads: Sequence[Protocol], report: Report) -> None:
    """UsageError for annotations that say nothing of any head, a warning for heads of which none says anything."""
    from bidsseg.labels import load_protocol, load_relation

    taught: set[str] = set()
    for name in labels:
        known = {head.name for head in heads if load_relation(load_protocol(name), head) is not None}
        if not known:
            spoken = ", ".join(head.name for head in heads)
            raise UsageError(f"--labels {name}=...: says nothing of the heads {spoken}; leave it out")
        taught |= known
    for head in heads:
        if head.name not in {*taught, "brain"}:  # the brain is found where no labels tell it
            report.warn(f"no --labels say anything of the head {head.name}, which learns nothing")


def start_from(network, other) -> int:  # type: ignore[no-untyped-def]
    """Copies every tensor that has the same name and shape from another network; returns how many."""
    own, given = network.state_dict(), other.state_dict()
    same = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(own | same)
    return len(same)


class Interruption:
    """Turns SIGTERM and Ctrl-C into a question that the training loop asks after each step."""

    ONE_KEY_S = 1.0
    """Within which a signal that comes again is the same one: torchrun passes on what the cluster sends to all."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remembers a signal; Ctrl-C once more ends the process as usual."""
        self.first = self.first or time.monotonic()
        if number == signal.SIGINT and time.monotonic() - self.first > self.ONE_KEY_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def asked(self) -> bool:
        """Whether the user or the cluster wants the run to stop."""
        return self.first is not None
