"""What can be checked and listed before any image of a training is read."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from bidsseg.derivative.ownership import CHECKPOINT
from bidsseg.derivative.run_log import Entry
from bidsseg.errors import InputMissing, IOFailure, UsageError
from bidsseg.learning.case_reading import Source
from bidsseg.learning.data_files import check_finished, check_unchanged, files_of, fingerprints
from bidsseg.learning.folds import WATCHED, dataset_of, divided, held_out, person, seen_by
from bidsseg.learning.prepared import bytes_needed, entry_of, warn_of_missing
from bidsseg.learning.recipe import is_shipped
from bidsseg.learning.registration_loop import DFNET
from bidsseg.learning.training import lacking, random_layers, start_from
from bidsseg.learning.training_setup import Setup, sketched
from bidsseg.models.card import find_card, shipped
from bidsseg.models.library import build_network, load_model

COPIES = 6
"""Copies of the weights in a checkpoint: weights, their mean, the best mean, gradient moments; and one more."""
OTHERS_MB = 20.0
"""Room (MB) for tables, pictures, page and logs."""
LISTED = 20
"""Largest number of names in a line."""


def check_beforehand(
    setup: Setup, sources: Sequence[Source], starts: Iterable[str | None], *, held: Iterable[Container[str]]
) -> None:
    """Check start, names, registration, images and disk of a training, and warn about weak settings.

    Args:
        starts: initial models of the run; None for random weights.
        held: participants that each model of the run holds out.

    Raises:
        IOFailure: the disk has too little room.
        InputMissing: no scan has an image that the network reads.
        UsageError: ``--init`` does not fit the network, or a registration lacks scans.
    """
    recipe, report, options = setup.recipe, setup.report, setup.options
    for start in {name for name in starts if name is not None}:
        check_start(setup, start)
    trainings = [divided(sources, people)[0] for people in held]
    for kept in trainings:
        check_registration(setup, kept)
    check_images(setup, sources)
    check_room(setup, sources)
    if not is_shipped(options.recipe) and recipe.name in {card.name for card in shipped()}:
        report.warn(
            f"name = {recipe.name!r} is the name of a shipped model, so that outputs of both have the same names: "
            "give the recipe another name"
        )
    folders = Counter(path.resolve().name for path in (setup.settings.bids_dir, *options.also))
    for name, count in folders.items():
        if count > 1:
            report.warn(f"{count} datasets are in a folder {name}: participants with equal labels count as the same")
    if recipe.keep == "best" and not all(seen_and_watched(setup, kept)[1] for kept in trainings):
        report.warn('keep = "best" needs at least five labelled participants for training; the last weights are kept')


def seen_and_watched(setup: Setup, kept: Iterable[Source]) -> tuple[list[Source], list[Source]]:
    """Return the training scans and those that select the weights, as `training.people_of` divides them.

    Args:
        kept: scans that are not held out.
    """
    labelled = [source for source in kept if source.maps]
    maps = {source.name: source.maps for source in labelled}
    return divided(labelled, held_out(maps, *WATCHED, kinds=maps) if setup.recipe.keep == "best" else ())


def checked_files(setups: Sequence[Setup], sources: Sequence[Source], *, done: Sequence[Setup] = ()) -> dict[str, str]:
    """Return the checksums of the images and label maps of training runs with one recipe, see `fingerprints`.

    Finished training runs are reported. DataError if a file has changed since the checkpoint that one of the training
    runs resumes, or since a finished one.

    Args:
        done: finished training runs, to be kept.
    """
    files = files_of(sources, [*setups, *done][0].recipe.inputs)
    found = fingerprints(files)
    for setup in setups:
        for saved in (setup.folder / CHECKPOINT, setup.folder / DFNET):
            if setup.options.resume and saved.is_file():
                check_unchanged(saved, files, found)
    for setup in done:
        check_finished(setup.folder, found)
        setup.report.say(f"model: {setup.folder} is finished")
    return found


def check_start(setup: Setup, name: str) -> None:
    """Raise UsageError if no weights of an initial model fit the network, and InputMissing if there is no model.

    A warning names the heads that the initial model has with other regions, or in another order.
    """
    start = load_model(name)
    outputs = {head.name: len(head.regions) for head in setup.heads}
    with torch.random.fork_rng(devices=[]):
        network = build_network(setup.recipe.network, setup.recipe.inputs, outputs, where=setup.recipe.name)
    if not start_from(network, start, setup.recipe.inputs, heads=setup.heads):
        raise UsageError(f"--init {name}: none of its weights fit the network of the recipe {setup.recipe.name}")
    if others := random_layers(network, start, setup.recipe.inputs, heads=setup.heads):
        setup.report.warn(
            f"--init {name}: its network has other layers than that of the recipe {setup.recipe.name}, so that "
            f"{len(others)} of {len(network.state_dict())} tensors begin with random numbers, and it is not followed"
        )
    if changed := ", ".join(head for head in lacking(start, setup.heads) if head in start.heads):
        setup.report.warn(f"--init {name}: it has other regions of {changed}, or another order: their layer is new")


def warn_about_leakage(setup: Setup, held: Container[str], sources: Sequence[Source]) -> None:
    """Warn if the initial model was, or may have been, trained on held-out participants."""
    name = setup.options.init
    people = sorted({person(source.name) for source in sources if person(source.name) in held})
    if name is None or not people:
        return
    card = find_card(name)
    seen, doubtful = seen_by(card, people)
    if seen:
        setup.report.warn(
            f"--init {name}: it was trained on {len(seen)} of the {len(people)} held-out participants "
            f"({listed(seen)}), so that the results on these are too good: hold out others"
        )
        return
    if doubtful:
        setup.report.warn(
            f"--init {name}: its card does not list all its participants, but it was trained on datasets named "
            f"{listed(sorted({dataset_of(each) for each in doubtful}))}: the results are valid only if it was not "
            f"trained on {listed(doubtful)}"
        )


def check_registration(setup: Setup, kept: Sequence[Source]) -> None:
    """Raise UsageError if a recipe with registration has no scans to register, or none to register to.

    Args:
        kept: scans that are not held out.
    """
    if setup.recipe.registration is None:
        return
    if all(source.maps for source in kept):
        raise UsageError(f"recipe {setup.recipe.name} needs scans without annotation: give some with --also BIDS_DIR")
    if sum(source.scan is not None for source in seen_and_watched(setup, kept)[0]) < 2:
        raise UsageError(f"recipe {setup.recipe.name}: [registration] needs at least two labelled training scans")


def check_images(setup: Setup, sources: Sequence[Source]) -> None:
    """Raise InputMissing if no scan has an image that the network reads, such as a FLAIR; a dry run counts those
    without one, which a training does while it reads.

    Label maps without an image count as having all images: they are synthesised.
    """
    scans = [source.scan for source in sources if source.scan is not None]
    if setup.settings.dry_run:
        warn_of_missing(scans, setup.recipe.inputs, setup.report)
    for suffix in setup.recipe.inputs:
        if len(scans) == len(sources) and not any(scan.images([suffix]) for scan in scans):
            raise InputMissing(
                f"recipe {setup.recipe.name} reads {' and '.join(setup.recipe.inputs)}, but no scan has a {suffix}: "
                "add the images, or give the recipe other inputs"
            )


def check_room(setup: Setup, sources: Sequence[Source]) -> None:
    """Raise IOFailure if a disk has too little room for two checkpoints and the model, or for the prepared scans."""
    needed, free = needed_mb(setup), free_mb(setup.folder)
    prepared, room = prepared_mb(setup, sources), free_mb(setup.store.folder)
    if prepared and room < prepared:
        raise IOFailure(
            f"{setup.store.folder}: the prepared scans need {math.ceil(prepared)} MB, but the disk has {room:.0f} MB: "
            "free some space or give --work-dir on another disk"
        )
    if free < needed:
        raise IOFailure(
            f"{setup.settings.output_dir}: the training needs {math.ceil(needed)} MB for checkpoint and model, but the "
            f"disk has {free:.0f} MB: free some space or choose another OUTPUT_DIR"
        )


def free_mb(folder: Path) -> float:
    """Return the free room (MB) on the disk of a folder that may not exist yet."""
    return shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.is_dir())).free / 1e6


def prepared_mb(setup: Setup, sources: Sequence[Source]) -> float:
    """Return the room (MB) for the scans that are not prepared yet."""
    inputs = setup.recipe.inputs
    return bytes_needed([entry_of(source, inputs, setup.store) for source in sources], sources, inputs) / 1e6


def needed_mb(setup: Setup) -> float:
    """Return the room (MB) for a checkpoint, the one that replaces it, and the model."""
    return 4e-6 * parameters_of(setup) * (2 * COPIES + 1) + OTHERS_MB


def parameters_of(setup: Setup) -> int:
    """Return the number of weights of the network."""
    return sum(value.numel() for value in sketched(setup.recipe, setup.heads).state_dict().values())


def parts_of_sources(sources: Sequence[Source], held: Container[str]) -> list[Entry]:
    """Return for each scan, for the manifest, whether it is held out, trained on, or a target of registration."""
    return [Entry(source.name, part_of_source(source, held)) for source in sources]


def part_of_source(source: Source, held: Container[str]) -> str:
    """Return the part of a scan in the training."""
    if not source.maps:
        return "without annotation"
    return "held out" if person(source.name) in held else "training"


def plan_in_words(setup: Setup, sources: Sequence[Source], held: Container[str]) -> Iterator[str]:
    """Yield what would be trained: recipe, network, heads, scans of each dataset, held-out participants, and folder."""
    recipe, options = setup.recipe, setup.options
    yield f"recipe {options.recipe}{' --small' if options.small else ''}: {recipe.title}"
    images = f"{' + '.join(recipe.inputs)} at {recipe.spacing_mm:g} mm"
    yield f"network {recipe.network['name']}: {parameters_of(setup):,} weights, {images}"
    for head in setup.heads:
        yield f"head {head.name}: {len(head.regions) - 1} regions, weight {recipe.heads[head.name]:g}"
    for dataset in dict.fromkeys(dataset_of(source.name) for source in sources):
        own = [source for source in sources if dataset_of(source.name) == dataset]
        kinds = Counter(" + ".join(source.maps) or "no annotation" for source in own)
        people = len({person(source.name) for source in own})
        yield f"{dataset}: {people} participants; scans with {listed(f'{kind}: {n}' for kind, n in kinds.items())}"
    parts = Counter(part_of_source(source, held) for source in sources)
    people_held = sorted({person(source.name) for source in sources if part_of_source(source, held) == "held out"})
    yield f"{parts['training']} training scans, {parts['held out']} held out: {listed(people_held) or 'nobody'}"
    budget = f", at most {options.time_budget_min:g} minutes" if options.time_budget_min else ""
    yield (
        f"{recipe.steps} steps of {recipe.batch} samples{budget}"
        if recipe.voxels is None
        else f"voxel by voxel{budget}"
    )
    if options.init:
        yield f"starts from {options.init}"
    yield f"prepared scans: {setup.store.folder} (about {math.ceil(prepared_mb(setup, sources))} MB more)"
    yield f"model: {setup.folder} (about {math.ceil(needed_mb(setup))} MB while training)"


def listed(names: Iterable[str]) -> str:
    """Return names in a line, the first ones of many."""
    known = list(names)
    more = [f"and {len(known) - LISTED} more"] if len(known) > LISTED else []
    return ", ".join([*known[:LISTED], *more])
