"""The participants on a card: their labels by dataset, in a form that stays short for thousands of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

RUN = 3
"""Least number of consecutive labels that are written as a range."""
OTHERS = "?"
"""Stands for further participants of a dataset, which the card of an initial model does not list."""


def shortened(people: Iterable[str], *, others: Iterable[str] = ()) -> dict[str, str]:
    """Return the labels of participants (``dataset/sub-01``) by dataset, with ranges for consecutive numbers.

    Args:
        others: datasets with further participants, whose labels are not known.

    >>> shortened(["a/sub-01", "a/sub-02", "a/sub-03", "a/sub-07", "b/sub-xy"])
    {'a': '01-03 07', 'b': 'xy'}
    >>> shortened(["a/sub-01"], others=["a", "b"])
    {'a': '01 ?', 'b': '?'}
    """
    labels: dict[str, list[str]] = {}
    for name in sorted(set(people)):
        dataset, _, participant = name.partition("/")
        labels.setdefault(dataset, []).append(participant.removeprefix("sub-"))
    short = {dataset: list(_ranges(found)) for dataset, found in labels.items()}
    for dataset in sorted(set(others)):
        short.setdefault(dataset, []).append(OTHERS)
    return {dataset: " ".join(found) for dataset, found in short.items()}


def participants(short: Mapping[str, str]) -> set[str]:
    """Return the participants of a card.

    >>> sorted(participants({"a": "01-03 07"}))
    ['a/sub-01', 'a/sub-02', 'a/sub-03', 'a/sub-07']
    """
    return {f"{dataset}/sub-{label}" for dataset, text in short.items() for label in _labels(text)}


def with_others(short: Mapping[str, str]) -> set[str]:
    """Return the datasets of which a card does not list all participants."""
    return {dataset for dataset, text in short.items() if OTHERS in text.split()}


def _ranges(labels: Iterable[str]) -> Iterator[str]:
    """Yield labels, and ranges of consecutive ones with the same letters and number of digits."""
    run: list[str] = []
    for label in [*labels, ""]:
        if run and label != _next(run[-1]):
            yield from [f"{run[0]}-{run[-1]}"] if len(run) >= RUN else run
            run = []
        run.append(label)


def _next(label: str) -> str | None:
    """Return the label with the next number of the same length; None if there is none."""
    match = re.fullmatch(r"(.*?)([0-9]+)", label)
    if match is None:
        return None
    number = str(int(match[2]) + 1).zfill(len(match[2]))
    return match[1] + number if len(number) == len(match[2]) else None


def _labels(text: str) -> Iterator[str]:
    for part in text.split():
        if part == OTHERS:
            continue
        first, _, last = part.partition("-")
        label: str | None = first
        while label is not None and label != last and last:
            yield label
            label = _next(label)
        yield last or first
