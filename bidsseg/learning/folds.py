"""Folds: which participants are held out of a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from bidsseg.errors import UsageError
from bidsseg.learning.cases import ListedCase
from bidsseg.models.card import Card
from bidsseg.models.participants import participants

WATCHED = (5, 4)
"""Number of folds, and the fold, of the participants that select the weights: every fifth of each dataset."""


class HasName(Protocol):
    """A case, or its source."""

    @property
    def name(self) -> str:
        """Name of the case: dataset/participant, with session and run."""


Listed = TypeVar("Listed", bound=ListedCase)
Named = TypeVar("Named", bound=HasName)


def split(
    cases: Sequence[Listed], folds: int, fold: int, *, hold_out: Sequence[str] = ()
) -> tuple[list[Listed], list[Listed]]:
    """Return training and held-out cases: every ``folds``-th participant of each dataset is held out, or nobody.

    A fold holds out participants of every kind of annotation in a dataset, as far as there are enough.

    Args:
        hold_out: labels of the participants to hold out instead, or patterns with the wildcards of file names;
            UsageError if one matches no case.
    """
    kinds = {case.name: [each.name for each in case.protocols] for case in cases}
    held = held_out([case.name for case in cases], folds, fold, hold_out=hold_out, kinds=kinds)
    return divided(cases, held)


def divided(cases: Iterable[Named], held: Container[str]) -> tuple[list[Named], list[Named]]:
    """Return training cases and cases of held-out participants."""
    parts: tuple[list[Named], list[Named]] = ([], [])
    for case in cases:
        parts[person(case.name) in held].append(case)
    return parts


def held_out(
    names: Iterable[str],
    folds: int,
    fold: int,
    *,
    hold_out: Sequence[str] = (),
    kinds: Mapping[str, Iterable[str]] | None = None,
) -> set[str]:
    """Return the participants that `split` holds out of cases of those names.

    Args:
        kinds: protocols that annotate each case, by its name. A fold then holds out participants of every kind of
            annotation in a dataset, as far as there are enough.
    """
    people = sorted({person(name) for name in names})
    missing = [wanted for wanted in hold_out if not any(fnmatchcase(label(each), wanted) for each in people)]
    if missing:
        raise UsageError(f"--hold-out {missing[0]}: no participant with this label has an annotation")
    if hold_out or folds == 1:
        return {each for each in people for wanted in hold_out if fnmatchcase(label(each), wanted)}
    held: set[str] = set()
    for dataset in {dataset_of(each) for each in people}:
        groups = groups_of([each for each in people if dataset_of(each) == dataset], kinds or {})
        held |= {each for each, number in numbered(groups, folds).items() if number == fold}
    return held


def groups_of(people: Sequence[str], kinds: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the participants of a dataset, grouped by the protocols that annotate them, the largest group first.

    A participant with a kind of annotation that no other has joins the largest group: held out, this kind would not
    be trained.
    """
    spoken: dict[str, set[str]] = {each: set() for each in people}
    for name, protocols in kinds.items():
        if person(name) in spoken:
            spoken[person(name)].update(protocols)
    groups: dict[tuple[str, ...], list[str]] = {}
    for each in people:
        groups.setdefault(tuple(sorted(spoken[each])), []).append(each)
    ordered = sorted(groups.values(), key=len, reverse=True)
    first = [*ordered[0], *(each for group in ordered[1:] if len(group) == 1 for each in group)]
    return [sorted(first), *(group for group in ordered[1:] if len(group) > 1)]


def numbered(groups: Iterable[Sequence[str]], folds: int) -> dict[str, int]:
    """Return the fold of each participant.

    The first of each group is in fold 0, each other one in the fold with the fewest participants, of this group and
    then of all. Participants of a single group are thus dealt in turn.
    """
    found: dict[str, int] = {}
    total = Counter[int]()
    for group in groups:
        own = Counter[int]()
        for each in group:
            number = min(range(folds), key=lambda fold: (own[fold], total[fold] if own else 0, fold))
            found[each] = number
            own[number] += 1
            total[number] += 1
    return found


def person(name: str) -> str:
    """Return dataset and participant of a case from its name: dataset/sub-01."""
    dataset, _, key = name.partition("/")
    return f"{dataset}/{key.split('_')[0]}"


def seen_by(card: Card, people: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the participants (dataset/sub-01) that a model was trained on, and those that it may have been trained on.

    The card does not list all participants of the datasets of the latter.
    """
    known, people = participants(card.trained_on), list(people)
    unseen = {person(each) for each in card.metrics.get("held_out", ())} if not card.trained_on else set()
    doubtful = [each for each in people if dataset_of(each) in card.unlisted and each not in unseen | known]
    return [each for each in people if each in known], doubtful


def dataset_of(name: str) -> str:
    """Return the dataset of a case or participant from its name."""
    return name.partition("/")[0]


def label(participant: str) -> str:
    """Return the label, without ``sub-``, of a participant as `person` names it."""
    return participant.rpartition("sub-")[2]
