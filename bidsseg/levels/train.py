"""Level train: a recipe and labelled datasets become a model folder."""

from __future__ import annotations

from pathlib import Path

from bidsseg.errors import UsageError
from bidsseg.execution.machine import choose_machine, emulation, keep_freed_memory
from bidsseg.learning.interruption import Interruption
from bidsseg.settings import Settings


def train_level(settings: Settings) -> Path:
    """Trains the recipe on everything that is labelled and returns the model folder.

    The participants of one fold, or those named, are held out; the card states what the model reaches on them.
    TemporaryFailure (75) if it was told to stop before its time: run again with --resume. UsageError (64) for a device
    on which training was never tried.
    """
    if settings.device == "mps":
        raise UsageError("--device mps: a model can only be trained on cpu or cuda")
    with Interruption() as interruption:
        return _train(settings, interruption)


def _train(settings: Settings, interruption: Interruption) -> Path:
    """Train, asking now and then whether to stop, and return the model folder."""
    keep_freed_memory()
    from bidsseg.learning import training
    from bidsseg.models.library import load_model

    machine = choose_machine(settings)
    setup = training.set_up(settings, machine.device, machine.precision, machine.threads)
    if warning := emulation(machine):
        setup.report.warn(warning)
    if training.is_finished(setup):
        setup.report.say(f"model: {setup.folder} is finished")
        return setup.folder
    people = training.read_people(setup, interruption)
    if settings.dry_run:
        return setup.folder
    training.begin(setup)
    start = load_model(setup.options.init) if setup.options.init else None
    card = training.card_of(setup, people, start)
    network = training.begun(setup, card, start)
    state = training.learn(network, setup, people, training.conditions_of(setup, people, start, interruption))
    return training.conclude(setup, people, card, network, state, interruption)
