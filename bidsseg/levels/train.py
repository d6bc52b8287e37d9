"""The level ``train``: train a recipe on labelled datasets."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bidsseg.derivative.ownership import check_model_folder
from bidsseg.errors import UsageError
from bidsseg.execution.machine import (
    check_memory_used,
    choose_machine,
    choose_processes,
    emulation,
    keep_freed_memory,
    share_cores,
)
from bidsseg.learning.interruption import Interruption
from bidsseg.settings import Settings

if TYPE_CHECKING:
    from bidsseg.learning.case_reading import Source
    from bidsseg.learning.crossvalidation import Part
    from bidsseg.learning.record import LoggedReport
    from bidsseg.learning.training import People
    from bidsseg.learning.training_setup import Setup


MOST_READERS = 32
"""Largest number of scans that are read at once."""


def train_level(settings: Settings) -> Path:
    """Train the recipe on all labelled scans and return the model folder.

    The participants of one fold, or the named participants, are held out, and the card has the results on them. A
    cross-validation trains every fold, then a final model on all participants, whose card has the results of the folds.

    Raises:
        TemporaryFailure: the run was interrupted; run again with --resume. Or another training writes to the folder.
        UsageError: training on this device is not supported, or scans should be selected by their marks.
    """
    if settings.where:
        raise UsageError("--where does not select scans for training: leave the others out of the folders of --labels")
    if settings.device == "mps":
        raise UsageError("--device mps: a model can only be trained on cpu or cuda")
    with Interruption() as interruption:
        keep_freed_memory()
        share_cores()
        from bidsseg.learning.prepared import READER_MB
        from bidsseg.learning.processes import Processes
        from bidsseg.learning.record import LoggedReport
        from bidsseg.learning.training_setup import set_up

        report = LoggedReport(settings.report)
        settings = replace(settings, report=report)
        machine = choose_machine(settings)
        setup = set_up(
            settings,
            machine.device,
            machine.precision,
            threads=machine.threads,
            readers=choose_processes(settings, MOST_READERS, READER_MB) // Processes.neighbours() or 1,
            check_memory=partial(check_memory_used, settings.memory_mb),
        )
        if warning := emulation(machine):
            setup.report.warn(warning)
        train = _train if settings.training.cross_validate is None else _cross_validate
        return train(setup, report, interruption)


def _train(setup: Setup, report: LoggedReport, interruption: Interruption) -> Path:
    """Train one model and return its folder."""
    from bidsseg.learning import preconditions, record, training

    check_model_folder(setup.settings.output_dir, setup.folder)
    with record.alone(setup, [setup.folder]):
        finished = training.is_finished(setup)
        sources = training.find_data(setup)
        held = training.held_out_of(setup, sources)
        if finished:
            preconditions.checked_files([], sources, done=[setup])
            return setup.folder
        preconditions.check_beforehand(setup, sources, [setup.options.init], held=[held])
        preconditions.warn_about_leakage(setup, held, sources)
        files = preconditions.checked_files([setup], sources)
        if setup.settings.dry_run:
            for line in preconditions.plan_in_words(setup, sources, held):
                setup.report.say(line)
            return setup.folder
        with record.recorded(setup, report, preconditions.parts_of_sources(sources, held)):
            people = training.people_of(setup, training.prepare_data(setup, sources, interruption), held)
            return _fit(setup, people, files=files, interruption=interruption)


def _cross_validate(setup: Setup, report: LoggedReport, interruption: Interruption) -> Path:
    """Train all unfinished folds and the final model, and return the folder of the final model."""
    from bidsseg.learning import crossvalidation, preconditions, record, training

    parts = crossvalidation.parts_of(setup)
    for part in parts:
        check_model_folder(part.setup.settings.output_dir, part.setup.folder)
    with record.alone(setup, [part.setup.folder for part in parts]):
        done = [part for part in parts if training.is_finished(part.setup)]
        sources = training.find_data(setup)
        maps = {source.name: source.maps for source in sources if source.maps}
        crossvalidation.check_people(parts, done, maps)
        held = [crossvalidation.people_held_out(part, maps) for part in parts]
        preconditions.check_beforehand(setup, sources, [part.setup.options.init for part in parts], held=held)
        left = [part.setup for part in parts if part not in done]
        files = preconditions.checked_files(left, sources, done=[part.setup for part in done])
        if setup.settings.dry_run:
            for line in preconditions.plan_in_words(setup, sources, ()):
                setup.report.say(line)
            crossvalidation.report_folds(parts, maps)
            return setup.folder
        with record.recorded(setup, report, preconditions.parts_of_sources(sources, ())):
            _fit_parts(setup, parts, done, sources=sources, files=files, interruption=interruption)
            return crossvalidation.conclude(setup, parts)


def _fit_parts(
    setup: Setup,
    parts: Sequence[Part],
    done: Sequence[Part],
    *,
    sources: Sequence[Source],
    files: Mapping[str, str],
    interruption: Interruption,
) -> None:
    """Train the unfinished parts of a cross-validation, one after the other."""
    from bidsseg.learning import crossvalidation, training

    left = [part for part in parts if part not in done]
    maps = {source.name: source.maps for source in sources if source.maps}
    cases = training.prepare_data(setup, sources, interruption) if left else []
    if setup.settings.overwrite:
        crossvalidation.forget(setup, parts)
    for number, part in enumerate(left):
        with crossvalidation.named(part):
            timed = crossvalidation.with_time(part, done, len(left) - number)
            crossvalidation.check_wanted(interruption)
            held = crossvalidation.people_held_out(part, maps)
            _fit(timed, training.people_of(timed, cases, held), files=files, interruption=interruption)
        gc.collect()  # frees networks and optimisers of this part before those of the next part are created


def _fit(setup: Setup, people: People, *, files: Mapping[str, str], interruption: Interruption) -> Path:
    """Train on scans that were read, until finished or interrupted, and return the model folder.

    Args:
        files: checksums of the images and label maps.
    """
    from bidsseg.learning import training
    from bidsseg.learning.data_files import digest
    from bidsseg.learning.training_outputs import rehearsal
    from bidsseg.models.library import load_model

    training.begin(setup)
    start = load_model(setup.options.init) if setup.options.init else None
    card = training.card_of(setup, people, start)
    card = replace(card, recipe={**card.recipe, "files": digest(files)})
    network = training.begun(setup, card, start)
    conditions = training.conditions_of(setup, people, start, files=files, interruption=interruption)
    if people.unseen and setup.options.time_budget_min is not None:
        say = setup.report.say
        conditions = replace(conditions, rehearse=rehearsal(card, people.unseen, precision=setup.precision, say=say))
    state = training.learn(network, setup, people, start=start, conditions=conditions)
    return training.conclude(setup, people, card, network=network, state=state, interruption=interruption)
