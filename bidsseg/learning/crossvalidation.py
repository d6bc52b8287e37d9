"""Cross-validation: every fold is trained, then a final model on all participants, with the figures of the folds.

A fold is a training like any other: ``OUTPUT_DIR/folds/fold-0`` holds what ``train --folds K --fold 0`` writes, and so
on, and ``OUTPUT_DIR`` what ``train --folds 1`` writes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from bidsseg.bids.outputs import root_path
from bidsseg.derivative.ownership import CROSS_VALIDATION, VALIDATION
from bidsseg.errors import TemporaryFailure, UsageError
from bidsseg.files import write_text_atomic
from bidsseg.learning.folds import dataset_of, held_out, person
from bidsseg.learning.interruption import Interruption
from bidsseg.learning.state import CHECKPOINT, same_run
from bidsseg.learning.training import Setup, discard, model_folder
from bidsseg.learning.training_outputs import figures
from bidsseg.learning.validation import described
from bidsseg.models.card import CARD, find_card, located, read_card
from bidsseg.models.library import save_card
from bidsseg.settings import Report, Training


@dataclass(frozen=True, eq=False)
class Part:
    """One training of a cross-validation.

    Attributes:
        title: its name for users: fold 2 of 5, or final model.
        setup: of a training that holds out this fold, or nobody.
    """

    title: str
    setup: Setup


class Titled(Report):
    """A report in which each line begins with a title."""

    def __init__(self, report: Report, title: str) -> None:
        self.report, self.title = report, title

    def say(self, message: str) -> None:
        self.report.say(f"{self.title}: {message}")

    def warn(self, message: str) -> None:
        self.report.warn(f"{self.title}: {message}")

    def detail(self, message: str) -> None:
        self.report.detail(f"{self.title}: {message}")


# -- before anything is read -------------------------------------------------------------------------------------------


def parts_of(setup: Setup) -> list[Part]:
    """Return the trainings of a cross-validation, the final model last. UsageError if they cannot start so."""
    options, count = setup.options, setup.options.cross_validate
    assert count is not None
    if options.resume and setup.settings.overwrite:
        raise UsageError("--overwrite trains every fold again and --resume keeps the finished ones: give one of them")
    *starts, last = starts_of(options.init, count)
    if options.init is not None and last in starts:
        setup.report.warn(
            f"--init {options.init}: every fold starts from this model, so that the results hold only if it was not "
            "trained on these participants"
        )
    shared = replace(options, cross_validate=None, hold_out=())
    output_dir = setup.settings.output_dir
    parts = [
        part_of(
            setup,
            f"fold {fold + 1} of {count}",
            options=replace(shared, folds=count, fold=fold, init=start),
            output_dir=fold_output(output_dir, fold),
        )
        for fold, start in enumerate(starts)
    ]
    final = replace(shared, folds=1, fold=0, init=last)
    return [*parts, part_of(setup, "final model", options=final, output_dir=output_dir)]


def part_of(setup: Setup, title: str, *, options: Training, output_dir: Path) -> Part:
    """Return a training with options of its own, in a folder of its own."""
    settings = replace(setup.settings, output_dir=output_dir, training=options)
    return Part(title, replace(setup, settings=settings, report=Titled(setup.report, title)))


def fold_output(output_dir: Path, fold: int) -> Path:
    """Return the output folder of a fold, counted from 0."""
    return output_dir / root_path("folds") / f"fold-{fold}"


def fold_models(output_dir: Path, name: str) -> list[Path]:
    """Return the model folders of the folds that are finished, in order up to the first that is not."""
    folders = (model_folder(fold_output(output_dir, fold), name) for fold in itertools.count())
    return list(itertools.takewhile(lambda each: (each / CARD).is_file() and not (each / CHECKPOINT).exists(), folders))


def starts_of(init: str | None, count: int) -> list[str | None]:
    """Return the model that each fold starts from, and at last the one that the final model starts from.

    These are the same fold and the final model of another cross-validation if ``--init`` names its output folder or its
    final model, else the one model that it names.

    Raises:
        InputMissing: there is no such model.
        UsageError: the other cross-validation has another number of folds, or several models.
    """
    if init is None:
        return [None] * (count + 1)
    output_dir, names = cross_validated(init)
    if not names:
        find_card(init)
        return [init] * (count + 1)
    if len(names) > 1:
        found = ", ".join(str(model_folder(output_dir, name)) for name in names)
        raise UsageError(f"--init {init}: holds several models: give one of {found}")
    models = fold_models(output_dir, names[0])
    if len(models) != count:
        raise UsageError(f"--init {init}: has {len(models)} finished folds, and --cross-validate {count} needs as many")
    return [*map(str, models), str(model_folder(output_dir, names[0]))]


def cross_validated(init: str) -> tuple[Path, list[str]]:
    """Return the output folder and the models of the cross-validation that ``--init`` names, none if it names another.

    A model counts as one of a cross-validation if there are folds of it.
    """
    folder = Path(located(init))
    if not folder.is_absolute():  # a shipped model
        return folder, []
    if (folder / CARD).is_file():
        folder, names = folder.parent.parent, [folder.name]
    else:
        names = sorted(card.parent.name for card in folder.glob(f"{root_path('models')}/*/{CARD}"))
    return folder, [name for name in names if fold_models(folder, name)]


def check_people(parts: Sequence[Part], done: Collection[Part], names: Sequence[str]) -> None:
    """See that the folds go with the labelled cases of those names, and with what was trained before.

    Args:
        done: parts that are finished.

    Raises:
        UsageError: a fold would hold nobody out, or a participant whom its start may have been trained on.
        DataError: a finished fold has held others out.
    """
    *folds, final = parts
    most = max(Counter(dataset_of(each) for each in {person(name) for name in names}).values())
    if len(folds) > most:
        remedy = f"give {most} or fewer" if most > 1 else "at least 2 are needed"
        raise UsageError(
            f"--cross-validate {len(folds)}: no dataset has more than {most} labelled participants; {remedy}"
        )
    for part in folds:
        held, start = people_held_out(part, names), part.setup.options.init
        if part in done:
            before = read_card(part.setup.folder).metrics.get("held_out")
            now = [name for name in names if person(name) in held]
            same_run({"holds out": before}, {"holds out": now}, part.setup.folder)
        if start is not None and start != final.setup.options.init:
            unseen = {person(name) for name in read_card(Path(start)).metrics.get("held_out", ())}
            if others := sorted(set(held) - unseen):
                raise UsageError(
                    f"--init: {start} has not held out {others[0]}, which {part.title} does: give a cross-validation "
                    "of the same participants"
                )


def people_held_out(part: Part, names: Sequence[str]) -> list[str]:
    """Return the participants whom a part holds out of labelled cases of those names."""
    options = part.setup.options
    return sorted(held_out(names, options.folds, options.fold))


def tell_folds(parts: Sequence[Part], names: Sequence[str]) -> None:
    """Say who is held out in each fold."""
    for part in parts:
        part.setup.report.say(f"holds out {', '.join(people_held_out(part, names)) or 'nobody'}")


def forget(setup: Setup, parts: Sequence[Part]) -> None:
    """Take away all models and checkpoints of a cross-validation, also of one that had more folds."""
    folders = [part.setup.folder for part in parts]
    for folder in {*folders, *fold_models(setup.settings.output_dir, setup.recipe.name)}:
        discard(folder)


# -- between the trainings ---------------------------------------------------------------------------------------------


@contextmanager
def named(part: Part) -> Iterator[None]:
    """Let a TemporaryFailure name the part that comes next."""
    try:
        yield
    except TemporaryFailure as error:
        raise TemporaryFailure(f"{part.title} is next: {error}") from error


def check_wanted(interruption: Interruption) -> None:
    """TemporaryFailure if the run is told to stop."""
    if interruption.asked():
        raise TemporaryFailure("stopped; all that is finished is kept: run again with --resume")


def with_time(part: Part, done: Sequence[Part], left: int) -> Setup:
    """Return the setup of a part with its share of the time budget of all parts.

    It is an even share of what the finished parts have left. TemporaryFailure if nothing is left.

    Args:
        left: number of parts that are not finished.
    """
    options = part.setup.options
    if options.time_budget_min is None:
        return part.setup
    spent_min = sum(float(read_card(each.setup.folder).recipe.get("minutes", 0)) for each in done)
    share_min = (options.time_budget_min - spent_min) / left
    if share_min <= 0:
        raise TemporaryFailure("the time budget is used up: run again with --resume and a larger --time-budget")
    settings = replace(part.setup.settings, training=replace(options, time_budget_min=share_min))
    return replace(part.setup, settings=settings)


# -- after the last one ------------------------------------------------------------------------------------------------


def conclude(setup: Setup, parts: Sequence[Part]) -> Path:
    """Write the table of all folds beside the final model, enter the figures on its card, and return its folder."""
    *folds, final = (part.setup.folder for part in parts)
    table = gathered(folds)
    write_text_atomic(final / CROSS_VALIDATION, table.to_csv(sep="\t", index=False, float_format="%.4f"))
    enter(final, table, len(folds))
    for line in described(table):
        setup.report.say(line)
    setup.report.say(f"cross-validation: {final / CROSS_VALIDATION}, and on the card beside it")
    return final


def gathered(models: Sequence[Path]) -> pd.DataFrame:
    """Return the validation tables of the models of all folds as one, with a column ``fold``, counted from 0."""
    tables = [
        pd.read_csv(model / VALIDATION, sep="\t", keep_default_na=False, na_values={"dice": [""]}) for model in models
    ]
    return pd.concat([table.assign(fold=fold) for fold, table in enumerate(tables)], ignore_index=True)


def enter(model: Path, table: pd.DataFrame, folds: int) -> None:
    """Enter the figures of a cross-validation on the card of a model, beside those that it has."""
    card = read_card(model)
    found = {"split": f"{folds}-fold cross-validation by participant", "heads": figures(table)}
    save_card(replace(card, metrics={**card.metrics, "cross_validation": found}))
