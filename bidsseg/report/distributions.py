"""Distributions of the columns of a table that may be larger than memory: the table is streamed twice."""

from __future__ import annotations

import csv
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bidsseg.derivative.cohort_numbers import SELECTED

BINS = 24
SUMMARY = ("Count", "Mean", "StandardDeviation", "Minimum", "Maximum")
"""Entries about a column in the data dictionary of a table."""
FEWEST = 10
"""Fewest scans among which a scan can be called unusual."""
FAR = 3.0
"""Distance from the mean, in standard deviations, from which a volume is unusual."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """The values of one column.

    Attributes:
        sd: standard deviation (of a sample: N - 1); NaN for one value.
        counts: number of values in each of BINS equal steps from the smallest to the largest, shape (BINS,).
    """

    name: str
    n: int
    mean: float
    sd: float
    smallest: float
    largest: float
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, int))

    def summary(self) -> dict[str, float]:
        """Return everything except the counts, and a deviation that is not known, in JSON form."""
        figures = zip(SUMMARY, (self.n, self.mean, self.sd, self.smallest, self.largest), strict=True)
        return {key: float(f"{value:.10g}") for key, value in figures if np.isfinite(value)}

    @classmethod
    def of(cls, name: str, summary: Mapping[str, float]) -> Distribution:
        """Return the distribution with a stored summary; KeyError if it is not a summary."""
        n, mean, sd, smallest, largest = (summary[key] for key in SUMMARY)
        return cls(name, int(n), mean, sd, smallest, largest)

    def distance(self, value: float) -> float:
        """Return the distance of a value from the mean, in standard deviations; 0 if all values are equal."""
        return (value - self.mean) / self.sd if self.sd else 0.0


@dataclass(frozen=True)
class Line:
    """The summary of one row of the table.

    Attributes:
        cells: cells by column, without volumes.
        unusual: number of columns with a value far from the mean.
        farthest: the column with the largest distance in standard deviations; empty with few scans.
        distance: that distance, with its sign.
    """

    cells: dict[str, str]
    unusual: int = 0
    farthest: str = ""
    distance: float = 0.0


def distributions(table: Path, columns: Sequence[str]) -> list[Distribution]:
    """Return the distribution of each column; cells without a number, and runs that do not count, are left out.

    Args:
        table: a TSV file.
    """
    size = len(columns)
    n, mean, squares = np.zeros(size, int), np.zeros(size), np.zeros(size)
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    for values in _counted(table, columns):
        known = np.isfinite(values)
        n += known
        step = np.where(known, values - mean, 0)
        mean += step / np.maximum(n, 1)
        squares += step * np.where(known, values - mean, 0)
        low, high = np.fmin(low, values), np.fmax(high, values)
    width = np.where(high > low, high - low, 1)
    counts = np.zeros((size, BINS), int)
    everything = np.arange(size)
    for values in _counted(table, columns):
        known = np.isfinite(values)
        places = np.clip((values[known] - low[known]) / width[known] * BINS, 0, BINS - 1).astype(int)
        counts[everything[known], places] += 1
    sd = np.sqrt(np.where(n > 1, squares / np.maximum(n - 1, 1), np.nan))
    return [
        Distribution(name, int(n[i]), float(mean[i]), float(sd[i]), float(low[i]), float(high[i]), counts[i])
        for i, name in enumerate(columns)
        if n[i]
    ]


def lines(table: Path, columns: Sequence[Distribution], at_most: int) -> list[Line]:
    """Return the rows of a table that contain numbers, only the most unusual ones if there are more than a limit.

    Args:
        columns: columns in which a row can be unusual.
    """
    names = [column.name for column in columns]
    mean = np.array([column.mean for column in columns])
    sd = np.array([column.sd if column.n >= FEWEST and column.sd > 0 else np.inf for column in columns])
    rows = (
        (_line(cells, (values - mean) / sd, names), -place)
        for place, (cells, values) in enumerate(_rows(table, names))
        if np.isfinite(values).any()
    )
    chosen = heapq.nlargest(at_most + 1, rows, key=lambda item: (item[0].unusual, abs(item[0].distance), item[1]))
    if len(chosen) <= at_most:
        chosen.sort(key=lambda item: -item[1])
    return [line for line, _ in chosen[:at_most]]


def bars(counts: np.ndarray, height: float) -> list[tuple[int, float, float]]:
    """Return position, top and height of each bar of a histogram, ``height`` being that of the highest."""
    highest = max(int(counts.max()), 1)
    return [(i, height - height * c / highest, height * c / highest) for i, c in enumerate(counts.tolist()) if c]


def _line(cells: Mapping[str, str], distances: np.ndarray, names: Sequence[str]) -> Line:
    short = {name: cell for name, cell in cells.items() if name not in set(names)}
    distances = np.nan_to_num(distances)
    far = int(np.argmax(np.abs(distances)))
    if not distances[far]:
        return Line(short)
    return Line(short, int((np.abs(distances) > FAR).sum()), names[far], float(distances[far]))


def _rows(table: Path, columns: Sequence[str]) -> Iterator[tuple[dict[str, str], np.ndarray]]:
    """Yield each row with its numbers in these columns, NaN for missing numbers."""
    with table.open(encoding="utf-8", newline="") as stream:
        for cells in csv.DictReader(stream, delimiter="\t"):
            yield cells, np.array([_number(cells[column]) for column in columns])


def _counted(table: Path, columns: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield the numbers of each row, except those of runs that do not count."""
    return (values for cells, values in _rows(table, columns) if cells.get(SELECTED) != "0")


def _number(text: str) -> float:
    return float("nan") if text in ("", "n/a") else float(text)
