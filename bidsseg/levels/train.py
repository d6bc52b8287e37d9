"""Level train: a recipe and labelled datasets become a model folder."""

from __future__ import annotations

import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from bidsseg import __version__
from bidsseg.derivative.ownership import check_model_folder
from bidsseg.errors import DataError, NothingSelected, OutputNotWritable, TemporaryFailure, UsageError
from bidsseg.execution.machine import choose_machine, emulation, keep_freed_memory
from bidsseg.settings import Report, Settings, Training

if TYPE_CHECKING:
    from bidsseg.labels import Protocol
    from bidsseg.learning.cases import Case
    from bidsseg.learning.recipe import Recipe
    from bidsseg.models.library import Model
    from bidsseg.networks.network import Network


def train_level(settings: Settings) -> Path:
    """Trains the recipe on everything that is labelled and returns the model folder.

    The participants of one fold, or those named, are held out; the card states what the model reaches on them.
    TemporaryFailure (75) if it was told to stop before its time: run again with --resume.
    """
    with Interruption() as interruption:
        return _train(settings, interruption)


def _train(settings: Settings, interruption: Interruption) -> Path:
    """The same, asking now and then whether it is to stop."""
    keep_freed_memory()
    import torch

    from bidsseg.labels import load_protocol, shipped_protocols
    from bidsseg.learning.datasets import load_cases, person, split
    from bidsseg.learning.loop import Plan, fit
    from bidsseg.learning.processes import Processes
    from bidsseg.learning.recipe import load_recipe
    from bidsseg.learning.record import save_curve, save_outcome
    from bidsseg.learning.registration_loop import DFNET, fit_mover
    from bidsseg.learning.segnet import fit_voxels
    from bidsseg.learning.state import Conditions, same_run
    from bidsseg.models.card import CARD, Card, read_card
    from bidsseg.models.library import build, load_model, save_protocol
    from bidsseg.networks.segnet.staged import StagedSegNet

    options, report = settings.training, settings.report
    recipe = load_recipe(options.recipe, options.small)
    if not options.labels:
        raise UsageError("train needs --labels PROTOCOL=DERIVATIVES_DIR, at least once")
    spoken = {name: load_protocol(name) for name in recipe.heads}
    heads = tuple(protocol.scored() for protocol in spoken.values())
    recipe = with_names(recipe, {name: protocol.name for name, protocol in spoken.items()})
    machine = choose_machine(settings)
    processes = Processes.join(machine.device)
    report = settings.report if processes.first else Report()
    if warning := emulation(machine):
        report.warn(warning)
    if recipe.voxels is None and processes.count > recipe.batch:
        report.say(f"a step has {processes.count} samples in place of {recipe.batch}: one of each process")
        recipe = replace(recipe, batch=processes.count)
    folder = settings.output_dir / "models" / recipe.name
    check_model_folder(settings.output_dir, folder)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists() and not options.resume and not settings.overwrite:
        raise UsageError(f"{checkpoint} is there: give --resume to go on, --overwrite to start again")
    if (folder / CARD).exists() and not checkpoint.exists() and not settings.overwrite:
        if not options.resume:
            raise UsageError(f"{folder} holds a finished model: give --overwrite to train it again")
        before, now = read_card(folder).recipe, learnt(recipe, options)
        shared = before.keys() & now.keys()
        same_run({name: before[name] for name in shared}, {name: now[name] for name in shared}, folder)
        report.say(f"model: {folder} is finished")
        return folder
    check_labels(options.labels, heads, report)
    check_sides(recipe, [*heads, *(load_protocol(name) for name in options.labels)])
    cases = load_cases(
        settings,
        report,
        recipe.inputs,
        unlabelled=recipe.registration is not None,
        synthetic=recipe.synthetic_share > 0,
    )
    if processes.agree(interruption.asked())[0]:
        raise TemporaryFailure("stopped before the training began: give the same command again")
    seen, unseen = split([case for case in cases if case.annotations], options.folds, options.fold, options.hold_out)
    held = {person(case) for case in unseen}
    targets = [case for case in cases if not case.annotations and person(case) not in held]
    if not seen:
        raise NothingSelected("no labelled participant is left to learn from: fewer --folds or more data")
    watched: list[Case] = []
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
    for name, protocol in spoken.items():
        if name not in shipped_protocols() and processes.first:
            save_protocol(protocol, folder)
    processes.wait()
    torch.set_num_threads(machine.threads)
    torch.manual_seed(options.seed)
    start = load_model(options.init) if options.init else None
    card = Card(
        **recipe.on_card(),
        sha256="",
        lesion=next((head.name for head in heads if head.lesions), None),
        pose=pose_on_card(recipe, seen),
        recipe=learnt(recipe, options, start),
        data=[
            *counted(seen),
            *counted(watched, ", which chose the weights"),
            *(counted(targets, " without annotation") if recipe.registration is not None else ()),
            *([f"{entry} (of {start.card.name}, the start)" for entry in start.card.data] if start else ()),
        ],
        code_version=__version__,
        folder=folder,
    )
    network = build(card)
    check_recipe(recipe, network)
    if start is not None:
        copied = start_from(network, start, recipe.heads)
        if not copied:
            raise UsageError(f"--init {options.init}: nothing of it fits the network of the recipe {recipe.name}")
        report.say(f"{copied} of {len(network.state_dict())} tensors taken from {options.init}")
    scans = {"learns from": [case.name for case in seen], "holds out": [case.name for case in unseen]}
    conditions = Conditions(
        folder,
        60 * options.time_budget_min if options.time_budget_min else math.inf,
        interruption.asked,
        report.say,
        torch.bfloat16 if machine.precision == "bf16" else torch.float32,
        processes,
        {**asdict(recipe), **learnt(recipe, options, start), **scans},
    )
    plan = Plan(recipe, heads, options.seed)
    if recipe.registration is not None:
        mover, spent_s = fit_mover(seen, targets, plan, conditions)
        plan = replace(plan, mover=mover)
        conditions = replace(conditions, budget_s=max(1.0, conditions.budget_s - spent_s))
    if isinstance(network, StagedSegNet):
        state = fit_voxels(network, seen, plan, conditions)
    else:
        state = fit(network, seen, watched or unseen, plan, conditions)
    (told_to_stop,) = processes.agree(interruption.asked())
    if processes.first:
        save_curve(state.curve, folder)
    processes.leave()
    if told_to_stop:
        raise TemporaryFailure(f"stopped after {state.step} steps, all kept in {folder}: run again with --resume")
    if processes.first:
        save_outcome(card, network.cpu(), unseen, report.say, state, machine.precision, folder, interruption.asked)
        checkpoint.unlink(missing_ok=True)
        report.say(f"model: {folder} (use it with --model {folder})")
    return folder


def with_names(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    """The recipe with the names of its heads' protocols, of which some may be given by the files that they are in."""
    heads = {names[name]: weight for name, weight in recipe.heads.items()}
    return replace(recipe, heads=heads, fading=[names[name] for name in recipe.fading])


def learnt(recipe: Recipe, options: Training, start: Model | None = None) -> dict[str, Any]:
    """What the card says of how a model learns."""
    held_out = sorted(options.hold_out) or (f"fold {options.fold} of {options.folds}" if options.folds > 1 else [])
    init = {"init": {"name": start.card.name, "sha256": start.sha256}} if start else {}
    return {**recipe.as_dict(), "seed": options.seed, "held_out": held_out, **init}


def pose_on_card(recipe: Recipe, cases: Sequence[Case]) -> dict[str, Any] | None:
    """Where the regions of an average brain lie, for a model that tells how a head lies."""
    from bidsseg.labels import load_protocol
    from bidsseg.learning.average import average_brain

    if recipe.pose_head is None:
        return None
    return average_brain(cases, load_protocol(recipe.pose_head).scored()).to_card(recipe.pose_head)


def counted(cases: Sequence[Case], what: str = "") -> list[str]:
    """How many scans of each dataset there are."""
    return [f"{dataset}: {n} scans{what}" for dataset, n in Counter(case.dataset for case in cases).items()]


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


def check_sides(recipe: Recipe, protocols: Iterable[Protocol]) -> None:
    """UsageError if samples are to be mirrored whose labels cannot be: left and right would be mixed."""
    one_sided = next((protocol.one_sided for protocol in protocols if protocol.unpaired), None)
    if recipe.mirrors and one_sided:
        raise UsageError(
            f"{one_sided}, so that nothing can be mirrored: name it in a column partner of the protocol's table, "
            "or write flip = 0.0 under [spatial] and mirror = false in the recipe"
        )


def check_recipe(recipe: Recipe, network: Network) -> None:
    """DataError if a recipe asks of a network what does not go with it."""
    from bidsseg.learning.datasets import LEARNING_MM
    from bidsseg.networks.segnet.staged import StagedSegNet

    if (recipe.voxels is not None) != isinstance(network, StagedSegNet):
        raise DataError(f"recipe {recipe.name}: [voxels] goes with the network segnet, and only with it")
    if recipe.voxels is not None and recipe.spacing_mm != LEARNING_MM:
        raise DataError(f"recipe {recipe.name}: segnet learns on a grid of {LEARNING_MM:g} mm: leave out spacing_mm")
    multiple = network.multiple
    shapes = [recipe.sampling.shape, *([recipe.coarse.shape] if recipe.coarse else [])]
    if any(size % multiple for shape in shapes for size in shape):
        raise DataError(f"recipe {recipe.name}: every size in shape must be a multiple of {multiple} for this network")


def start_from(network: Network, start: Model, heads: Iterable[str]) -> int:
    """Copies every tensor that has the same name and shape from a model; returns how many.

    What reads the regions of a head is copied for a head of the same protocol alone.
    """
    own, given = network.state_dict(), start.network.state_dict()
    foreign = () if set(start.card.heads) == set(heads) else network.of_regions
    same = {
        name: value
        for name, value in given.items()
        if name in own and own[name].shape == value.shape and not name.startswith(foreign)
    }
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
