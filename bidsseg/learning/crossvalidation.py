"""Cross-validation: train every fold, then a final model on all participants, and report the results of the folds.

Each fold is an ordinary training run: ``OUTPUT_DIR/folds/fold-0`` has the files that ``train --folds K --fold 0``
writes, and so on; ``OUTPUT_DIR`` has those of ``train --folds 1``.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from bidsseg.bids.outputs import root_path
from bidsseg.derivative.ownership import CROSS_VALIDATION, VALIDATION
from bidsseg.errors import TemporaryFailure, UsageError
from bidsseg.learning.folds import dataset_of, held_out, person
from bidsseg.learning.interruption import Interruption
from bidsseg.learning.state import same_run
from bidsseg.learning.training import check_start_is_kept, discard, is_complete
from bidsseg.learning.training_outputs import figures, save_table
from bidsseg.learning.training_setup import Setup, model_folder
from bidsseg.learning.validation import COLUMNS, MEASURES, described, regions_of
from bidsseg.models.card import CARD, Card, find_card, located, read_card
from bidsseg.models.library import save_card
from bidsseg.report import training_page
from bidsseg.settings import Report, Training

Kinds = Mapping[str, Iterable[str]]
"""Protocols that annotate each labelled case, by its name."""


@dataclass(frozen=True, eq=False)
class Part:
    """One training run of a cross-validation.

    Attributes:
        title: name for users: fold 2 of 5, or final model.
        setup: setup of the training run, which holds out this fold, or nobody.
    """

    title: str
    setup: Setup


class TitledReport(Report):
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
    """Return the training runs of a cross-validation, the final model last. UsageError if these cannot be started."""
    options, count = setup.options, setup.options.cross_validate
    assert count is not None
    *starts, last = starts_of(options.init, count)
    if options.init is not None and last in starts:
        setup.report.warn(
            f"--init {options.init}: every fold starts from this model; the results are valid only if it was not "
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
    parts.append(part_of(setup, "final model", options=final, output_dir=output_dir))
    removed = forgotten(setup, parts)
    for part in parts:
        check_start_is_kept(part.setup, removed)
    return parts


def part_of(setup: Setup, title: str, *, options: Training, output_dir: Path) -> Part:
    """Return a training run with its own options and output folder."""
    settings = replace(setup.settings, output_dir=output_dir, training=options)
    return Part(title, replace(setup, settings=settings, report=TitledReport(setup.report, title)))


def fold_output(output_dir: Path, fold: int) -> Path:
    """Return the output folder of a fold, counted from 0."""
    return output_dir / root_path("folds") / f"fold-{fold}"


def fold_models(output_dir: Path, name: str) -> list[Path]:
    """Return the model folders of the finished folds, in order, up to the first unfinished fold."""
    folders = (model_folder(fold_output(output_dir, fold), name) for fold in itertools.count())
    return list(itertools.takewhile(is_complete, folders))


def starts_of(init: str | None, count: int) -> list[str | None]:
    """Return the initial model of each fold and, last, of the final model.

    If ``--init`` names the output folder or the final model of another cross-validation, these are its folds and its
    final model. Otherwise, it is the one model that ``--init`` names.

    Raises:
        InputMissing: the model does not exist.
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
        raise UsageError(f"--init {init}: has {len(models)} finished folds, but --cross-validate {count} needs {count}")
    return [*map(str, models), str(model_folder(output_dir, names[0]))]


def cross_validated(init: str) -> tuple[Path, list[str]]:
    """Return the output folder and the models of the cross-validation that ``--init`` names.

    A model belongs to a cross-validation if it has finished folds; the list is empty if there is none.
    """
    folder = Path(located(init))
    if not folder.is_absolute():  # a shipped model
        return folder, []
    if (folder / CARD).is_file():
        folder, names = folder.parent.parent, [folder.name]
    else:
        names = sorted(card.parent.name for card in folder.glob(f"{root_path('models')}/*/{CARD}"))
    return folder, [name for name in names if fold_models(folder, name)]


def check_people(parts: Sequence[Part], done: Collection[Part], maps: Kinds) -> None:
    """Check the folds against the labelled cases and against the finished folds.

    Args:
        done: finished parts.
        maps: protocols that annotate each labelled case, by its name.

    Raises:
        UsageError: a fold would hold nobody out, or a participant that its initial model may have been trained on.
        DataError: a finished fold has held out other participants.
    """
    *folds, final = parts
    most = max(Counter(dataset_of(each) for each in {person(name) for name in maps}).values())
    if len(folds) > most or not all(people_held_out(part, maps) for part in folds):
        most = min(most, len(folds) - 1)
        remedy = f"give {most} or fewer" if most > 1 else "at least 2 are needed"
        raise UsageError(
            f"--cross-validate {len(folds)}: no dataset has more than {most} labelled participants; {remedy}"
        )
    for part in folds:
        held, start = people_held_out(part, maps), part.setup.options.init
        if part in done:
            before = read_card(part.setup.folder).metrics.get("held_out")
            now = [name for name in maps if person(name) in held]
            same_run({"holds out": before}, {"holds out": now}, part.setup.folder)
        if start is not None and start != final.setup.options.init:
            unseen = {person(name) for name in read_card(Path(start)).metrics.get("held_out", ())}
            if others := sorted(set(held) - unseen):
                raise UsageError(
                    f"--init: {start} did not hold out {others[0]}, but {part.title} does: give a cross-validation "
                    "of the same participants"
                )


def people_held_out(part: Part, maps: Kinds) -> list[str]:
    """Return the participants that a part holds out, from the annotations of each labelled case."""
    options = part.setup.options
    return sorted(held_out(maps, options.folds, options.fold, kinds=maps))


def report_folds(parts: Sequence[Part], maps: Kinds) -> None:
    """Report the held-out participants of each fold."""
    for part in parts:
        part.setup.report.say(f"holds out {', '.join(people_held_out(part, maps)) or 'nobody'}")


def forget(setup: Setup, parts: Sequence[Part]) -> None:
    """Remove all models and checkpoints of a cross-validation, also of an earlier one with more folds."""
    for folder in forgotten(setup, parts):
        discard(folder)


def forgotten(setup: Setup, parts: Sequence[Part]) -> set[Path]:
    """Return the model folders that `forget` removes."""
    return {*(part.setup.folder for part in parts), *fold_models(setup.settings.output_dir, setup.recipe.name)}


# -- between the trainings ---------------------------------------------------------------------------------------------


@contextmanager
def named(part: Part) -> Iterator[None]:
    """Prefix the message of a TemporaryFailure with the title of the part that comes next."""
    try:
        yield
    except TemporaryFailure as error:
        raise TemporaryFailure(f"{part.title} is next: {error}") from error


def check_wanted(interruption: Interruption) -> None:
    """Raise TemporaryFailure if the run is interrupted."""
    if interruption.asked():
        raise TemporaryFailure("interrupted; finished parts are kept: run again with --resume")


def with_time(part: Part, done: Sequence[Part], left: int) -> Setup:
    """Return the setup of a part with its share of the time budget, which begins now.

    The remaining time is divided evenly: this run has used the time since it began, to read, train and evaluate, and
    earlier runs the training time of the parts that they finished. TemporaryFailure if no time is left.

    Args:
        done: parts that earlier runs finished.
        left: number of unfinished parts.
    """
    options = part.setup.options
    if options.time_budget_min is None:
        return part.setup
    now = time.monotonic()
    spent_min = sum(float(read_card(each.setup.folder).recipe.get("minutes", 0)) for each in done)
    spent_min += (now - part.setup.started) / 60
    share_min = (options.time_budget_min - spent_min) / left
    if share_min <= 0:
        raise TemporaryFailure("the time budget is used up: run again with --resume and a larger --time-budget")
    settings = replace(part.setup.settings, training=replace(options, time_budget_min=share_min))
    return replace(part.setup, settings=settings, started=now)


# -- after the last one ------------------------------------------------------------------------------------------------


def conclude(setup: Setup, parts: Sequence[Part]) -> Path:
    """Write the table of all folds beside the final model, add the results to its card, and return its folder."""
    *folds, final = (part.setup.folder for part in parts)
    table = gathered(folds)
    save_table(final / CROSS_VALIDATION, table)
    training_page(enter(final, table, len(folds)), regions_of(table), ())
    for line in described(table):
        setup.report.say(line)
    setup.report.say(f"cross-validation: {final / CROSS_VALIDATION}, and on the card beside it")
    return final


def gathered(models: Sequence[Path]) -> pd.DataFrame:
    """Return the validation tables of all folds as one table, with a column ``fold``, counted from 0."""
    tables = [
        pd.read_csv(model / VALIDATION, sep="\t", keep_default_na=False, na_values={name: [""] for name in MEASURES})
        for model in models
    ]
    complete = [table.reindex(columns=[*COLUMNS]) for table in tables]  # older folds lack distances and volumes
    return pd.concat([table.assign(fold=fold) for fold, table in enumerate(complete)], ignore_index=True)


def enter(model: Path, table: pd.DataFrame, folds: int) -> Card:
    """Add the results of a cross-validation to the metrics on the card of a model, and return the card."""
    card = read_card(model)
    found = {"split": f"{folds}-fold cross-validation by participant", "heads": figures(table)}
    card = replace(card, metrics={**card.metrics, "cross_validation": found})
    save_card(card)
    return card
