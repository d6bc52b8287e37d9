"""The participants on a card: their labels by dataset, in a form that stays short for thousands of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

RUN = 3
"""Least number of consecutive labels that are written as a range."""


def shortened(people: Iterable[str]) -> dict[str, str]:
    """Return the labels of participants (``dataset/sub-01``) by dataset, with ranges for consecutive numbers.

    >>> shortened(["a/sub-01", "a/sub-02", "a/sub-03", "a/sub-07", "b/sub-xy"])
    {'a': '01-03 07', 'b': 'xy'}
    """
    labels: dict[str, list[str]] = {}
    for name in sorted(set(people)):
        dataset, _, participant = name.partition("/")
        labels.setdefault(dataset, []).append(participant.removeprefix("sub-"))
    return {dataset: " ".join(_ranges(found)) for dataset, found in labels.items()}


def participants(short: Mapping[str, str]) -> set[str]:
    """Return the participants of a card.

    >>> sorted(participants({"a": "01-03 07"}))
    ['a/sub-01', 'a/sub-02', 'a/sub-03', 'a/sub-07']
    """
    return {f"{dataset}/sub-{label}" for dataset, text in short.items() for label in _labels(text)}


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
        first, _, last = part.partition("-")
        label: str | None = first
        while label is not None and label != last and last:
            yield label
            label = _next(label)
        yield last or first
