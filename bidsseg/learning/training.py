"""The steps of a training run, from its data to the model folder."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bidsseg import __version__
from bidsseg.derivative.ownership import CHECKPOINT, MODEL_FILES
from bidsseg.errors import NothingSelected, OutputNotWritable, TemporaryFailure, UsageError
from bidsseg.files import remove_halves
from bidsseg.labels import Protocol
from bidsseg.labels.protocol import read_protocol
from bidsseg.learning.average import average_brain
from bidsseg.learning.card_texts import texts_of
from bidsseg.learning.case_reading import Source
from bidsseg.learning.cases import ListedCase
from bidsseg.learning.checks import check_drawn, check_labels, check_sides
from bidsseg.learning.datasets import find_sources
from bidsseg.learning.folds import WATCHED, divided, held_out, person, split
from bidsseg.learning.interruption import INTERRUPTED, Interruption
from bidsseg.learning.loop import fit
from bidsseg.learning.prepared import prepared_cases
from bidsseg.learning.readout import fit_readout
from bidsseg.learning.recipe import DESCRIBING, ON_CARD, Recipe
from bidsseg.learning.registration_loop import DFNET, fit_mover
from bidsseg.learning.samples import Plan
from bidsseg.learning.segnet import fit_voxels
from bidsseg.learning.state import Conditions, State, same_run
from bidsseg.learning.teacher import Teacher, taught_heads
from bidsseg.learning.training_outputs import hardly_learned, save_curve, save_outcome
from bidsseg.learning.training_setup import Setup
from bidsseg.models.card import CARD, Card, find_card, read_card, table_name
from bidsseg.models.library import Model, build, save_protocol
from bidsseg.models.participants import participants, shortened
from bidsseg.networks.network import Network
from bidsseg.networks.segnet.staged import StagedSegNet
from bidsseg.settings import Training

NOBODY_LEFT = "no labelled participant is left for training: give fewer --folds or more data"


@dataclass(frozen=True)
class People:
    """The scans of a training.

    Attributes:
        seen: training scans.
        watched: validation scans that select the weights if the recipe keeps the best ones.
        unseen: held-out scans that are evaluated at the end.
        targets: scans without annotation, for a recipe that registers samples to them.
    """

    seen: Sequence[ListedCase]
    watched: Sequence[ListedCase]
    unseen: Sequence[ListedCase]
    targets: Sequence[ListedCase]


def is_finished(setup: Setup) -> bool:
    """Return whether the model is already trained.

    Raises:
        DataError: the model, or the checkpoint to be resumed, is of another run.
        UsageError: the folder holds a model or a checkpoint that is neither to be resumed nor to be replaced, or the
            initial model would be replaced.
    """
    settings, options, folder = setup.settings, setup.options, setup.folder
    checkpoint = folder / CHECKPOINT
    start = find_card(options.init) if options.init else None
    check_start_is_kept(setup, [folder])
    if checkpoint.exists() and not options.resume and not settings.overwrite:
        raise UsageError(f"{checkpoint} exists: give --resume to resume the training, --overwrite to start again")
    if settings.overwrite and is_complete(folder):
        return False
    if options.resume:
        check_regions(setup)
    if not is_complete(folder):
        return False
    if not options.resume:
        raise UsageError(f"{folder} holds a finished model: give --overwrite to train it again, or --resume to keep it")
    card = read_card(folder)
    # The record leaves out what the card has itself; of the heads, it has the weights.
    before = {**{name: getattr(card, name) for name in ON_CARD - {"heads"}}, **card.recipe}
    now = {**setup.recipe.on_card(), **training_record(setup.recipe, options, start)}
    names = (before.keys() & now.keys()) | {"init"}  # older cards lack some keys; a card without init had no start
    same_run({name: before.get(name) for name in names}, {name: now.get(name) for name in names}, folder)
    return True


def check_start_is_kept(setup: Setup, folders: Iterable[Path]) -> None:
    """Raise UsageError if --overwrite would remove the initial model, which is in one of the folders."""
    init = setup.options.init
    if init is None or not setup.settings.overwrite:
        return
    if find_card(init).folder.resolve() in {folder.resolve() for folder in folders}:
        raise UsageError(f"--init {init}: --overwrite removes this model first: choose another OUTPUT_DIR")


def is_complete(folder: Path) -> bool:
    """Return whether a folder holds a model whose training is finished."""
    return (folder / CARD).is_file() and not (folder / CHECKPOINT).exists()


def check_regions(setup: Setup) -> None:
    """Raise DataError if a protocol that is stored with the model now has other regions."""
    for head in setup.heads:
        table = setup.folder / table_name(head.name)
        if table.is_file():
            stored, _ = read_protocol(table, head.name)
            before, now = ([(region.index, region.name) for region in each.regions] for each in (stored, head))
            what = f"regions of {head.name}"
            same_run({what: before}, {what: now}, setup.folder)


def find_data(setup: Setup) -> list[Source]:
    """Return the training data, not read yet. UsageError for labels that do not fit the recipe."""
    recipe, report = setup.recipe, setup.report
    protocols = [source.protocol for source in setup.labels]
    check_labels(protocols, setup.heads, report)
    check_sides(recipe, [*setup.heads, *protocols])
    unlabelled, synthetic = recipe.registration is not None, recipe.synthetic_share > 0
    return find_sources(setup.settings, report, unlabelled=unlabelled, synthetic=synthetic, labels=setup.labels)


def prepare_data(setup: Setup, sources: Sequence[Source], interruption: Interruption) -> Sequence[ListedCase]:
    """Return all scans, after those that are not in the store yet were read. TemporaryFailure if interrupted."""
    processes = setup.processes

    def check() -> None:
        setup.check_memory()
        if interruption.asked():
            raise TemporaryFailure(INTERRUPTED)

    cases = prepared_cases(
        sources,
        setup.recipe.inputs,
        setup.store,
        report=setup.report,
        readers=setup.readers,
        processes=processes,
        check=check,
    )
    if processes.agree(interruption.asked())[0]:
        raise TemporaryFailure(INTERRUPTED)
    check_drawn(setup.recipe, cases, setup.report)
    return cases


def held_out_of(setup: Setup, sources: Sequence[Source]) -> set[str]:
    """Return the participants to hold out, before any data is read.

    Raises:
        NothingSelected: no training participant is left.
        UsageError: the fold holds out nobody, or ``--hold-out`` names a participant without an annotation.
    """
    options = setup.options
    labelled = {source.name: source.maps for source in sources if source.maps}
    held = held_out(labelled, options.folds, options.fold, hold_out=options.hold_out, kinds=labelled)
    people = {person(name) for name in labelled}
    if people == held:
        raise NothingSelected(NOBODY_LEFT)
    if options.folds > 1 and not held:
        raise UsageError(
            f"--fold {options.fold} of --folds {options.folds} holds out none of the {len(people)} labelled "
            "participants: give a smaller fold, fewer folds, or --folds 1 to hold out nobody"
        )
    return held


def people_of(setup: Setup, cases: Sequence[ListedCase], held: Container[str]) -> People:
    """Return the training and held-out scans, and report them. NothingSelected if no training scan is left.

    Args:
        held: held-out participants.
    """
    recipe, report = setup.recipe, setup.report
    seen, unseen = divided([case for case in cases if case.protocols], held)
    targets = [case for case in cases if not case.protocols and person(case.name) not in held]
    if not seen:
        raise NothingSelected(NOBODY_LEFT)
    watched: list[ListedCase] = []
    if recipe.keep == "best":
        seen, watched = split(seen, *WATCHED)  # none of fewer than five participants
        if watched:
            report.say(f"the weights with the best result on {', '.join(c.name for c in watched)} are kept")
        else:
            report.say('keep = "best": too few participants are left to select the weights; the last ones are kept')
    names = ", ".join(case.name for case in unseen) or "nobody"
    report.say(f"{len(seen)} training scans, {len(unseen)} held out: {names}")
    if recipe.registration is not None:
        report.say(f"{len(targets)} scans without annotation as registration targets")
    return People(seen, watched, unseen, targets)


def begin(setup: Setup) -> None:
    """Create the model folder, remove a model that is not resumed and half files, and store own protocols."""
    try:
        setup.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputNotWritable(f"cannot create {setup.folder}: {error.strerror}; choose another OUTPUT_DIR") from error
    if setup.processes.first:
        remove_halves(setup.folder.glob(".*.part"))
        if not setup.options.resume or is_complete(setup.folder):
            discard(setup.folder)  # its weights would have the new protocols
        for protocol in setup.own_protocols:
            save_protocol(protocol, setup.folder)
    setup.processes.wait()
    torch.set_num_threads(setup.threads)
    torch.manual_seed(setup.options.seed % 2**32)  # as `state.derived` does: torch refuses larger ones


def discard(folder: Path) -> None:
    """Remove a model, its protocols and its checkpoint, so that nothing is resumed or treated as finished."""
    for path in (*(folder / name for name in (*MODEL_FILES, CHECKPOINT, DFNET)), *folder.glob(table_name("*"))):
        path.unlink(missing_ok=True)


def card_of(setup: Setup, people: People, start: Model | None) -> Card:
    """Return the card of the model, without the values that are only known after training."""
    recipe, targets = setup.recipe, people.targets if setup.recipe.registration is not None else ()
    used = [case.name for case in (*people.seen, *people.watched, *targets)]
    return Card(
        **{**recipe.on_card(), **texts_of(setup, used, start.card if start else None)},
        sha256="",
        lesion=next((head.name for head in setup.heads if head.lesions), None),
        pose=pose_on_card(setup, people.seen),
        recipe=training_record(recipe, setup.options, start.card if start else None),
        data=[
            *counted(people.seen),
            *counted(people.watched, ", which selected the weights"),
            *counted(targets, " without annotation"),
            *(data_of(start) if start else ()),
        ],
        trained_on=trained_on(people, start),
        metrics=leakage(people, start),
        code_version=__version__,
        folder=setup.folder,
    )


def data_of(start: Model) -> list[str]:
    """Return the training data of an initial model, as lines for the card; those of earlier models are unchanged.

    Earlier models of one name, each trained from the one before, may have the same line.
    """
    name = start.card.name
    lines = [entry if "(from " in entry else f"{entry} (from {name}, the initial model)" for entry in start.card.data]
    return list(dict.fromkeys(lines))


def trained_on(people: People, start: Model | None) -> dict[str, str]:
    """Return the training participants for the card, with those of the initial model."""
    before = participants(start.card.trained_on) if start else set()
    now = {person(case.name) for case in (*people.seen, *people.watched)}
    return shortened(now | before, others=start.card.unlisted if start else ())


def leakage(people: People, start: Model | None) -> dict[str, Any]:
    """Return for the card's metrics the held-out participants that the initial model was trained on, if any."""
    known = participants(start.card.trained_on) if start else set()
    seen = sorted(known & {person(case.name) for case in people.unseen})
    return {"seen_by_initial_model": seen} if seen else {}


def begun(setup: Setup, card: Card, start: Model | None) -> Network:
    """Return the network of the card with matching weights of the initial model. UsageError if no weights match."""
    network = build(card)
    if start is not None:
        copied = start_from(network, start, setup.recipe.inputs, heads=setup.heads)
        if not copied:
            raise UsageError(
                f"--init {setup.options.init}: none of its weights fit the network of the recipe {setup.recipe.name}"
            )
        setup.report.say(f"{copied} of {len(network.state_dict())} tensors copied from {setup.options.init}")
    return network


def conditions_of(
    setup: Setup, people: People, start: Model | None, *, files: Mapping[str, str], interruption: Interruption
) -> Conditions:
    """Return the conditions of the training run, with the values that identify its checkpoint.

    Args:
        files: checksums of the images and label maps, see ``data_files.fingerprints``.
    """
    minutes, spent_s = setup.options.time_budget_min, time.monotonic() - setup.started
    seen, unseen = ([case.name for case in cases] for cases in (people.seen, people.unseen))
    return Conditions(
        setup.folder,
        max(1.0, 60 * minutes - spent_s) if minutes else math.inf,
        interruption.asked,
        setup.report.say,
        torch.bfloat16 if setup.precision == "bf16" else torch.float32,
        setup.processes,
        {
            **{key: value for key, value in asdict(setup.recipe).items() if key not in DESCRIBING},
            **training_record(setup.recipe, setup.options, start.card if start else None),
            "learns from": seen,  # codespell:ignore (a key of existing checkpoints)
            "holds out": unseen,
        },
        files,
        check_memory=setup.check_memory,
    )


def learn(
    network: Network, setup: Setup, people: People, *, start: Model | None = None, conditions: Conditions
) -> State:
    """Train a network in place with the training loop of the recipe, and return the final state.

    If the initial model lacks a head, the last layers are trained alone first. A network with other layers than the
    initial model does neither this nor follow the model.
    """
    # Held-out scans never select the weights, also if there are no validation scans.
    recipe = setup.recipe if people.watched else replace(setup.recipe, keep="last")
    plan = Plan(recipe, setup.heads, setup.options.seed)
    if setup.recipe.registration is not None:
        mover, spent_s = fit_mover(people.seen, people.targets, plan, conditions=conditions)
        plan = replace(plan, mover=mover)
        conditions = replace(conditions, budget_s=max(1.0, conditions.budget_s - spent_s))
    if isinstance(network, StagedSegNet):
        return fit_voxels(network, people.seen, plan, conditions=conditions)
    alike = start is not None and not random_layers(network, start, recipe.inputs, heads=setup.heads)
    new = lacking(start, setup.heads) if start is not None and alike else []
    if start is not None and alike:
        known = [head for head in setup.heads if head.name not in new]
        taught = taught_heads(known, (protocol for case in people.seen for protocol in case.protocols))
        if taught:
            setup.report.say(f"where labels do not determine {', '.join(taught)}, the initial model is followed")
            plan = replace(plan, teacher=Teacher.of(network, taught, conditions.device))
    readout_s = 0.0
    if new and network.last_layers and setup.recipe.readout.steps and not conditions.checkpoint.is_file():
        readout_s = fit_readout(network, people.seen, plan, conditions=conditions)
    watched = people.watched or people.unseen
    return fit(network, people.seen, watched, plan=plan, conditions=conditions, readout_s=readout_s)


def conclude(
    setup: Setup, people: People, card: Card, *, network: Network, state: State, interruption: Interruption
) -> Path:
    """Evaluate and save the model in the first process, and return its folder. TemporaryFailure if interrupted."""
    processes, folder, say = setup.processes, setup.folder, setup.report.say
    (interrupted,) = processes.agree(interruption.asked())
    if processes.first:
        save_curve(state.curve, folder)
    processes.leave()
    if interrupted:
        raise TemporaryFailure(f"interrupted after {state.step} steps, saved in {folder}: run again with --resume")
    if processes.first:
        card = save_outcome(
            card,
            network.cpu(),
            people.unseen,
            say=say,
            state=state,
            precision=setup.precision,
            watched=people.watched,
            stop=interruption.asked,
        )
        (folder / CHECKPOINT).unlink(missing_ok=True)
        for head in hardly_learned(card):
            setup.report.warn(
                f"{head}: a mean Dice of {card.dice[head]:.3f} on the held-out scans: give more time or steps"
            )
        say(f"model: {folder} (use it with --model {folder})")
    return folder


def training_record(recipe: Recipe, options: Training, start: Card | None) -> dict[str, Any]:
    """Return the entry ``recipe`` of the model's card: settings, seed, held-out participants and start."""
    held_out = sorted(options.hold_out) or (f"fold {options.fold} of {options.folds}" if options.folds > 1 else [])
    init = {"init": {"name": start.name, "sha256": start.sha256}} if start else {}
    return {**recipe.as_dict(), "seed": options.seed, "held_out": held_out, **init}


def pose_on_card(setup: Setup, cases: Sequence[ListedCase]) -> dict[str, Any] | None:
    """Return the positions of the regions of an average brain, for a model that estimates the pose of a head."""
    head = next((head for head in setup.heads if head.name == setup.recipe.pose_head), None)
    return None if head is None else average_brain(cases, head).to_card(head.name)


def counted(cases: Sequence[ListedCase], what: str = "") -> list[str]:
    """Return the number of scans of each dataset, as lines for the card."""
    return [f"{dataset}: {n} scans{what}" for dataset, n in Counter(case.dataset for case in cases).items()]


def lacking(start: Model, heads: Sequence[Protocol]) -> list[str]:
    """Return the names of those heads that a model lacks, or has for other regions or another order of them."""
    before = {name: [region.name for region in head.regions] for name, head in start.heads.items()}
    return [head.name for head in heads if before.get(head.name) != [region.name for region in head.regions]]


def start_from(network: Network, start: Model, inputs: Sequence[str], *, heads: Sequence[Protocol]) -> int:
    """Copy every tensor with the same name and shape from a model, and return the number of copied tensors.

    The last layer of a head is only copied if the model has a head with the same regions, and other tensors that depend
    on regions only if all heads are the same. If the model reads only the first of the inputs, the weights of the
    others are 0.
    """
    same = fitting_weights(network, start, inputs, heads=heads)
    network.load_state_dict(network.state_dict() | same)
    return len(same)


def fitting_weights(
    network: Network, start: Model, inputs: Sequence[str], *, heads: Sequence[Protocol]
) -> dict[str, Tensor]:
    """Return the tensors of a model that `start_from` copies."""
    own, given = network.state_dict(), start.network.state_dict()
    before = tuple(start.card.inputs)
    if len(before) < len(inputs) and tuple(inputs[: len(before)]) == before:
        given = network.with_images(given, len(before))
    new = lacking(start, heads)
    has_same_heads = not new and len(start.heads) == len(heads)
    foreign = (*(f"heads.{name}." for name in new), *(() if has_same_heads else network.of_regions))
    return {
        name: value
        for name, value in given.items()
        if name in own and own[name].shape == value.shape and not name.startswith(foreign)
    }


def random_layers(network: Network, start: Model, inputs: Sequence[str], *, heads: Sequence[Protocol]) -> list[str]:
    """Return the tensors that `start_from` does not copy, without those of new heads and those of regions.

    If there are some, the network has other layers than the model, and does not predict what the model predicts.
    """
    copied = fitting_weights(network, start, inputs, heads=heads)
    own = (*(f"heads.{name}." for name in lacking(start, heads)), *network.of_regions)
    return [name for name in network.state_dict() if name not in copied and not name.startswith(own)]
