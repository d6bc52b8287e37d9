"""Folds: which participants are held out of a training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from bidsseg.errors import UsageError
from bidsseg.learning.cases import Case


def split(
    cases: Sequence[Case], folds: int, fold: int, *, hold_out: Sequence[str] = ()
) -> tuple[list[Case], list[Case]]:
    """Return training and held-out cases: every ``folds``-th participant of each dataset is held out, or nobody.

    Args:
        hold_out: labels of the participants to hold out instead, or patterns with the wildcards of file names;
            UsageError if one matches no case.
    """
    held = held_out([case.name for case in cases], folds, fold, hold_out=hold_out)
    return [c for c in cases if person(c.name) not in held], [c for c in cases if person(c.name) in held]


def held_out(names: Iterable[str], folds: int, fold: int, *, hold_out: Sequence[str] = ()) -> set[str]:
    """Return the participants that `split` holds out of cases of those names."""
    people = sorted({person(name) for name in names})
    missing = [wanted for wanted in hold_out if not any(fnmatchcase(label(each), wanted) for each in people)]
    if missing:
        raise UsageError(f"--hold-out {missing[0]}: no participant with this label has an annotation")
    if hold_out or folds == 1:
        return {each for each in people for wanted in hold_out if fnmatchcase(label(each), wanted)}
    held: set[str] = set()
    for dataset in {dataset_of(each) for each in people}:
        held |= set([each for each in people if dataset_of(each) == dataset][fold::folds])
    return held


def person(name: str) -> str:
    """Return dataset and participant of a case from its name: dataset/sub-01."""
    dataset, _, key = name.partition("/")
    return f"{dataset}/{key.split('_')[0]}"


def dataset_of(name: str) -> str:
    """Return the dataset of a case or participant from its name."""
    return name.partition("/")[0]


def label(participant: str) -> str:
    """Return the label, without ``sub-``, of a participant as `person` names it."""
    return participant.rpartition("sub-")[2]
