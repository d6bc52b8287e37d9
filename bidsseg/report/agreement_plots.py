"""Coordinates of the plots on the page of the level ``evaluate``: boxes, points and lines, in units of each plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bidsseg.evaluation.bootstrap import Estimate
from bidsseg.evaluation.summary import BlandAltman, Summary
from bidsseg.labels.protocol import Region

BOX_WIDTH, BOX_HEIGHT = 200.0, 14.0
POINTS = 60
"""Largest number of points in a box plot; with more scans, it shows only points beyond its whiskers. A plot of volumes
shows at most four times as many points."""
WHISKER = 1.5
"""Largest length of a whisker, in lengths of the box."""
LEFT, TOP, WIDE, HIGH = 34.0, 6.0, 150.0, 100.0
"""Position and size of the field of a plot of volumes."""
ROOM = 0.08
"""Margin between the outermost point and the edge of the field, as a share of the field's size."""


@dataclass(frozen=True)
class Box:
    """A box plot of values from 0 to 1, with quartiles and whiskers as x coordinates.

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
        """Return the box plot of the values that are not NaN; None if there are none."""
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
    """A plot with points and lines on a field.

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
    """Plots of the volumes of a region over scans.

    Attributes:
        scatter: found volumes against reference volumes.
        difference: found minus reference volumes against their mean (Bland and Altman 1986).
        shown: number of scans in the plots.
    """

    region: Region
    correlation: Estimate
    volumes: BlandAltman
    scatter: Plot
    difference: Plot
    scans: int
    shown: int


def volume_plots(summary: Summary, found: np.ndarray, reference: np.ndarray) -> VolumePlots:
    """Return the plots of the volumes (mm³, shape (B,)) of a region, in ml, without NaN."""
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
    """Return a path that draws a dot at each point if it is stroked with round line caps.

    >>> dots([(1, 2.04), (3, 4)])
    'M1 2h0M3 4h0'
    """
    return "".join(f"M{round(x, 1):g} {round(y, 1):g}h0" for x, y in points)


def _scatter(x: np.ndarray, y: np.ndarray) -> Plot:
    """Return the plot of found against reference volumes, with equal axes and the line of equality."""
    low, high = _range([*x, *y], least=0.0)
    line = Line("equal", LEFT, TOP + HIGH, LEFT + WIDE, TOP)
    ends = _number(low), _number(high)
    return Plot(dots(zip(_across(x, low, high), _up(y, low, high), strict=True)), [line], ends, ends)


def _difference(mean: np.ndarray, difference: np.ndarray, limits: Sequence[float]) -> Plot:
    """Return the plot of differences against means, with 0, the bias and the limits of agreement."""
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
    """Return the ends of an axis, with a margin beyond the values; the lower end is not below ``least``."""
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
