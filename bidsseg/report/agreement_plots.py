"""Drawings of the page of the level evaluate: coordinates of boxes, points and lines, in the units of each drawing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bidsseg.evaluation.agreement import Estimate
from bidsseg.evaluation.summary import BlandAltman, Summary
from bidsseg.labels.protocol import Region

BOX_WIDTH, BOX_HEIGHT = 200.0, 14.0
POINTS = 60
"""With more scans, a box shows only the points beyond its whiskers. A plot of volumes shows four times as many."""
WHISKER = 1.5
"""Longest whisker, in heights of the box."""
LEFT, TOP, WIDE, HIGH = 34.0, 6.0, 150.0, 100.0
"""Place and size of the field of a plot of volumes."""
ROOM = 0.08
"""Between the outermost point and the edge of the field, as a share of its size."""


@dataclass(frozen=True)
class Box:
    """Values from 0 to 1 as a box from the first to the third quartile, whiskers and points; all are x coordinates.

    Attributes:
        points: path of dots.
    """

    low: float
    first: float
    median: float
    third: float
    high: float
    points: str

    @classmethod
    def of(cls, values: np.ndarray) -> Box | None:
        """Return the box of the values that are not NaN; None without any."""
        known = values[np.isfinite(values)]
        if not len(known):
            return None
        first, median, third = np.quantile(known, [0.25, 0.5, 0.75])
        reach = WHISKER * (third - first)
        inside = known[(known >= first - reach) & (known <= third + reach)]
        shown = known if len(known) <= POINTS else known[(known < inside.min()) | (known > inside.max())]
        ends = (inside.min(), first, median, third, inside.max())
        low, first, median, third, high = (round(float(end) * BOX_WIDTH, 1) for end in ends)
        return cls(low, first, median, third, high, dots((x * BOX_WIDTH, BOX_HEIGHT / 2) for x in shown.tolist()))


@dataclass(frozen=True)
class Line:
    """A line across the field of a plot, from (x1, y1) to (x2, y2); ``kind`` is its class in the style."""

    kind: str
    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""


@dataclass(frozen=True)
class Plot:
    """Points and lines on a field with the ranges of both axes.

    Attributes:
        points: path of dots.
        x_range, y_range: labels of the ends of the axes.
    """

    points: str
    lines: list[Line]
    x_range: tuple[str, str]
    y_range: tuple[str, str]


@dataclass(frozen=True)
class VolumePlots:
    """The volumes of a region over scans.

    Attributes:
        scatter: found against reference.
        difference: found less reference against their mean (Bland and Altman 1986).
        shown: number of scans that are drawn.
    """

    region: Region
    correlation: Estimate
    volumes: BlandAltman
    scatter: Plot
    difference: Plot
    scans: int
    shown: int


def volume_plots(summary: Summary, found: np.ndarray, reference: np.ndarray) -> VolumePlots:
    """Return the plots of the volumes (mm³, shape (B,)) of a region, in ml; NaN is left out."""
    assert summary.region is not None
    known = np.isfinite(found) & np.isfinite(reference)
    x, y = reference[known] / 1000, found[known] / 1000
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), 4 * POINTS)).round().astype(int))
    limits = [value / 1000 for value in (summary.volumes.low, summary.volumes.bias, summary.volumes.high)]
    return VolumePlots(
        summary.region,
        summary.correlation,
        summary.volumes,
        _scatter(x[chosen], y[chosen]),
        _difference((x[chosen] + y[chosen]) / 2, y[chosen] - x[chosen], limits),
        len(x),
        len(chosen),
    )


def dots(points: Iterable[tuple[float, float]]) -> str:
    """Return a path that draws a dot at each point, if its lines have round ends.

    >>> dots([(1, 2.04), (3, 4)])
    'M1 2h0M3 4h0'
    """
    return "".join(f"M{round(x, 1):g} {round(y, 1):g}h0" for x, y in points)


def _scatter(x: np.ndarray, y: np.ndarray) -> Plot:
    """Found against reference, both on one scale, with the line of equality."""
    low, high = _range([*x, *y], least=0.0)
    line = Line("equal", LEFT, TOP + HIGH, LEFT + WIDE, TOP)
    ends = _number(low), _number(high)
    return Plot(dots(zip(_across(x, low, high), _up(y, low, high), strict=True)), [line], ends, ends)


def _difference(mean: np.ndarray, difference: np.ndarray, limits: Sequence[float]) -> Plot:
    """Differences against means, with 0, the bias and the limits of agreement."""
    known = [limit for limit in limits if np.isfinite(limit)]
    low, high = _range([*difference, *known, 0])
    left, right = _range(mean, least=0.0)
    kinds = zip(("limit", "bias", "limit"), limits, strict=True)
    levels = [("equal", 0.0, ""), *((kind, at, f"{at:+.3g}") for kind, at in kinds if np.isfinite(at))]
    lines = [
        Line(kind, LEFT, y, LEFT + WIDE, y, label) for kind, at, label in levels for y in _up(np.array([at]), low, high)
    ]
    points = dots(zip(_across(mean, left, right), _up(difference, low, high), strict=True))
    return Plot(points, lines, (_number(left), _number(right)), (_number(low), _number(high)))


def _range(values: Iterable[float], least: float = -np.inf) -> tuple[float, float]:
    """Return where an axis begins, at the least, and ends, with room beyond the values."""
    known = list(values)
    low, high = min(known), max(known)
    room = ROOM * (high - low) or 0.1 * abs(high) or 1.0
    return max(low - room, least), high + room


def _across(values: np.ndarray, low: float, high: float) -> list[float]:
    shares: list[float] = (LEFT + (values - low) / (high - low) * WIDE).round(1).tolist()
    return shares


def _up(values: np.ndarray, low: float, high: float) -> list[float]:
    shares: list[float] = (TOP + (high - values) / (high - low) * HIGH).round(1).tolist()
    return shares


def _number(value: float) -> str:
    return f"{value:.3g}"
