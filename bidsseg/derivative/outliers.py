"""Outliers within a cohort, by robust z scores."""

from __future__ import annotations

import numpy as np

FEWEST = 10
"""Fewest scans among which a scan can be an outlier."""
FAR = 3.5
"""Robust z score from which a value is an outlier (Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers)."""
OF_MEDIAN, OF_MEAN = 1.482602, 1.253314
"""Standard deviation of a normal distribution, divided by its median and by its mean absolute deviation."""


def robust_z(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the distances of values from the median of their column, in robust standard deviations.

    The standard deviation is estimated by the median absolute deviation from the median, or by the mean absolute
    deviation if more than half of the values are equal.

    Args:
        values: shape (N, C), NaN where unknown.
        among: the rows that define median and deviation, booleans (N,).

    Returns:
        Shape (N, C); NaN where unknown, and in columns with fewer than FEWEST values.
    """
    scores = np.full(values.shape, np.nan)
    for column in range(values.shape[1]):
        known = values[among, column]
        known = known[np.isfinite(known)]
        if known.size < FEWEST:
            continue
        middle = np.median(known)
        away = np.abs(known - middle)
        deviation = OF_MEDIAN * np.median(away) or OF_MEAN * away.mean()
        if deviation > 0:
            scores[:, column] = (values[:, column] - middle) / deviation
        else:
            scores[:, column] = np.where(values[:, column] == middle, 0.0, np.nan)
    return scores
