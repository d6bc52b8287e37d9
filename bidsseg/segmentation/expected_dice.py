"""The Dice that each region is expected to have with a reference, estimated from the probabilities of the network.

With the probability p of a region at each voxel and the set L of voxels that are labelled with it, the expected overlap
is Σ_L p and the expected size of the true region Σ p, so that the Dice is about 2 Σ_L p / (|L| + Σ p). Networks are
more confident than they are accurate, and references differ in where borders are drawn. The card of a model therefore
maps this estimate to the Dice on scans that the network was not trained on: the log odds of the Dice are a linear
function of those of the estimate, which may be higher or lower for single regions. Some, such as the accumbens, are
harder than their probabilities say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

CERTAIN = 0.999
"""Largest estimate; the log odds of 1 are infinite."""
WORST = 0.02
"""Lowest Dice, and its distance from 1, whose log odds count in the calibration of single regions."""
DRAWN = 2
"""Number of participants without any difference that are assumed beside the others, for each region."""


def estimated(labels: np.ndarray, certainty: np.ndarray, soft: np.ndarray, *, indices: np.ndarray) -> np.ndarray:
    """Return 2 Σ_L p / (|L| + Σ p) for each region (R,); NaN for a region that no voxel has, and for the background.

    Args:
        labels: index of the region of each of P voxels.
        certainty: probability of that region (P,).
        soft: sum of the probabilities of each region over all voxels (R,).
        indices: index of each region (R,).
    """
    size = int(indices.max()) + 1
    count = np.bincount(labels, minlength=size)[indices]
    inside = np.bincount(labels, weights=certainty, minlength=size)[indices]
    known = (count > 0) & (indices > 0)
    found: np.ndarray = np.divide(2 * inside, count + soft, out=np.full(len(indices), np.nan), where=known)
    return found


def calibrated(estimate: np.ndarray, calibration: Sequence[float], by_region: np.ndarray | float = 0.0) -> np.ndarray:
    """Return the expected Dice (R,) for estimates (R,), from the offset and slope of the log odds.

    Args:
        by_region: what is added to the offset (R,).
    """
    offset, slope = calibration
    expected: np.ndarray = expit(offset + by_region + slope * logit(np.clip(estimate, 1 - CERTAIN, CERTAIN)))
    return expected


def calibrate(estimate: np.ndarray, dice: np.ndarray) -> tuple[float, float]:
    """Return the offset and slope of the least mean absolute difference from the Dice (N,) of held-out regions."""

    def difference(calibration: np.ndarray) -> float:
        return float(np.abs(calibrated(estimate, (calibration[0], calibration[1])) - dice).mean())

    simplex = [[0.0, 1.0], [-1.0, 1.0], [0.0, 1.5]]
    offset, slope = minimize(difference, [0.0, 1.0], method="Nelder-Mead", options={"initial_simplex": simplex}).x
    return round(float(offset), 3), round(float(slope), 3)


def calibrate_regions(
    estimate: np.ndarray,
    dice: np.ndarray,
    calibration: Sequence[float],
    *,
    regions: Sequence[str],
    participants: Sequence[str],
) -> dict[str, float]:
    """Return what is added to the offset for each region: the mean over participants of the median over their scans.

    It is drawn towards 0, the more the fewer participants there are: a single one may be unusual.

    Args:
        estimate, dice: of held-out regions (N,).
        regions, participants: the region and the participant of each of them.
    """
    above = logit(np.clip(dice, WORST, 1 - WORST)) - logit(calibrated(estimate, calibration))
    names, people = np.array(regions), np.array(participants)
    found = {}
    for region in dict.fromkeys(regions):
        of_region = names == region
        medians = [np.median(above[of_region & (people == person)]) for person in np.unique(people[of_region])]
        found[region] = round(float(np.sum(medians) / (len(medians) + DRAWN)), 3)
    return found
