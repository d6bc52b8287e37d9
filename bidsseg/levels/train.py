"""The level ``train``: train a recipe on labelled datasets."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

from bidsseg.errors import UsageError
from bidsseg.execution.machine import choose_machine, emulation, keep_freed_memory
from bidsseg.learning.interruption import Interruption
from bidsseg.settings import Settings

if TYPE_CHECKING:
    from bidsseg.learning.training import People
    from bidsseg.learning.training_setup import Setup


def train_level(settings: Settings) -> Path:
    """Train the recipe on all labelled scans and return the model folder.

    The participants of one fold, or the named participants, are held out, and the card has the results on them. A
    cross-validation trains every fold, then a final model on all participants, whose card has the results of the folds.

    Raises:
        TemporaryFailure: the run was interrupted; run again with --resume.
        UsageError: training on this device is not supported.
    """
    if settings.device == "mps":
        raise UsageError("--device mps: a model can only be trained on cpu or cuda")
    with Interruption() as interruption:
        keep_freed_memory()
        from bidsseg.learning.training_setup import set_up

        machine = choose_machine(settings)
        setup = set_up(settings, machine.device, machine.precision, threads=machine.threads)
        if warning := emulation(machine):
            setup.report.warn(warning)
        train = _train if settings.training.cross_validate is None else _cross_validate
        return train(setup, interruption)


def _train(setup: Setup, interruption: Interruption) -> Path:
    """Train one model and return its folder."""
    from bidsseg.learning import training

    if training.is_finished(setup):
        return setup.folder
    people = training.people_of(setup, training.read_data(setup, training.find_data(setup), interruption))
    if setup.settings.dry_run:
        return setup.folder
    return _fit(setup, people, interruption)


def _cross_validate(setup: Setup, interruption: Interruption) -> Path:
    """Train all unfinished folds and the final model, and return the folder of the final model."""
    from bidsseg.learning import crossvalidation, training

    parts = crossvalidation.parts_of(setup)
    done = [part for part in parts if training.is_finished(part.setup)]
    left = [part for part in parts if part not in done]
    sources = training.find_data(setup)
    names = [source.name for source in sources if source.maps]
    crossvalidation.check_people(parts, done, names)
    if setup.settings.dry_run:
        crossvalidation.report_folds(parts, names)
        return setup.folder
    cases = training.read_data(setup, sources, interruption) if left else []
    if setup.settings.overwrite:
        crossvalidation.forget(setup, parts)
    for number, part in enumerate(left):
        with crossvalidation.named(part):
            timed = crossvalidation.with_time(part, [*done, *left[:number]], len(left) - number)
            crossvalidation.check_wanted(interruption)
            _fit(timed, training.people_of(timed, cases), interruption)
        gc.collect()  # frees networks and optimisers of this part before those of the next part are created
    return crossvalidation.conclude(setup, parts)


def _fit(setup: Setup, people: People, interruption: Interruption) -> Path:
    """Train on scans that were read, until finished or interrupted, and return the model folder."""
    from bidsseg.learning import training
    from bidsseg.models.library import load_model

    training.begin(setup)
    start = load_model(setup.options.init) if setup.options.init else None
    card = training.card_of(setup, people, start)
    network = training.begun(setup, card, start)
    conditions = training.conditions_of(setup, people, start, interruption=interruption)
    state = training.learn(network, setup, people, start=start, conditions=conditions)
    return training.conclude(setup, people, card, network=network, state=state, interruption=interruption)
