"""Means and correlations with bootstrap intervals: participants are resampled, each with all of their scans."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bidsseg.evaluation.agreement import brain_means, ratio

DRAWS, AT_ONCE = 10_000, 500
ENDS = [0.025, 0.975]
FEWEST = 3
"""Smallest number of scans for a correlation."""
FEWEST_FOR_INTERVAL = 10
"""Smallest number of participants for the interval of a correlation; fewer are often resampled to the same few."""
CONSTANT = 1e-9
"""Variance of standardised values below which they count as equal."""


@dataclass(frozen=True)
class Estimate:
    """A mean over brains, the ends of its 95 % interval (NaN for a single brain) and the number of brains."""

    mean: float
    low: float
    high: float
    brains: int


def estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Return the mean over brains (B,), without NaN, with its percentile bootstrap interval (95 %).

    Each scan counts as a separate brain, so repeated scans of a participant make the interval too narrow.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    return mean_estimates(known[:, None], seed)[0]


def participant_means(values: np.ndarray, participants: np.ndarray) -> np.ndarray:
    """Return the mean over the scans of each participant, from (B, K) to (P, K), without NaN.

    Args:
        participants: number of the participant of each scan, from 0, shape (B,).
    """
    known = np.isfinite(values)
    members = np.eye(participants.max() + 1)[:, participants]
    return ratio(members @ np.where(known, values, 0), members @ known)


def mean_estimates(values: np.ndarray, seed: int = 0) -> list[Estimate]:
    """Return the mean of each column over participants, (P, K), with its percentile bootstrap interval (95 %).

    NaN values are excluded. The same values and seed give the same interval.
    """
    known = np.isfinite(values)
    filled = np.where(known, values, 0)

    def means(weights: np.ndarray) -> np.ndarray:
        return ratio(weights @ filled, weights @ known)

    mean = means(np.ones((1, len(values))))[0]
    draws = np.concatenate([means(weights) for weights in resamples(len(values), seed)])
    return _estimates(mean, draws, known.sum(0), fewest=2)


def correlation_estimates(
    found: np.ndarray, reference: np.ndarray, participants: np.ndarray
) -> tuple[list[Estimate], Estimate]:
    """Return Pearson's correlation over scans of each column, (B, K), and the mean of all columns, with intervals.

    Args:
        found, reference: values of both sides; NaN is excluded.
        participants: number of the participant of each scan, from 0, shape (B,).
    """
    known = np.isfinite(found) & np.isfinite(reference)
    x, y = _standard(found, known), _standard(reference, known)

    def correlations(weights: np.ndarray) -> np.ndarray:
        n = np.maximum(weights @ known, 1)
        mean_x, mean_y = weights @ x / n, weights @ y / n
        spread_x, spread_y = weights @ x**2 / n - mean_x**2, weights @ y**2 / n - mean_y**2
        root = np.sqrt(np.where((spread_x > CONSTANT) & (spread_y > CONSTANT), spread_x * spread_y, np.nan))
        each = np.clip((weights @ (x * y) / n - mean_x * mean_y) / root, -1, 1)
        each[:, known.sum(0) < FEWEST] = np.nan
        return np.column_stack([each, brain_means(each)])

    count = participants.max() + 1
    drawn = [correlations(weights[:, participants]) for weights in resamples(count)]
    people = participant_means(np.where(known, 1.0, np.nan), participants)
    counts = np.append(np.isfinite(people).sum(0), count)
    all_scans = correlations(np.ones((1, len(found))))[0]
    *each, mean = _estimates(all_scans, np.concatenate(drawn), counts, fewest=FEWEST_FOR_INTERVAL)
    return each, mean


def resamples(count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield the number of times each of ``count`` participants is drawn, (AT_ONCE, P), for DRAWS draws in total."""
    random, first = np.random.default_rng(seed), count * np.arange(AT_ONCE)[:, None]
    for _ in range(DRAWS // AT_ONCE):
        drawn = random.integers(0, count, (AT_ONCE, count)) + first
        yield np.bincount(drawn.ravel(), minlength=AT_ONCE * count).reshape(AT_ONCE, count).astype(float)


def _estimates(values: np.ndarray, draws: np.ndarray, counts: np.ndarray, *, fewest: int) -> list[Estimate]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without any value
        low, high = np.nanquantile(draws, ENDS, axis=0)
    enough = (counts >= fewest) & np.isfinite(values)
    columns: Sequence[np.ndarray] = (values, np.where(enough, low, np.nan), np.where(enough, high, np.nan), counts)
    return [Estimate(float(v), float(a), float(b), int(n)) for v, a, b, n in zip(*columns, strict=True)]


def _standard(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return each column standardised to mean 0 and variance 1; 0 where values are unknown or all equal."""
    count = np.maximum(known.sum(0), 1)
    centred = np.where(known, values, 0)
    centred = np.where(known, centred - centred.sum(0) / count, 0)
    spread = np.sqrt((centred**2).sum(0) / count)
    standard: np.ndarray = np.nan_to_num(ratio(centred, np.broadcast_to(spread, centred.shape)))
    return standard
