"""The Dice that each region is expected to have with a reference, estimated from the probabilities of the network.

With the probability p of a region at each voxel and the set L of voxels that are labelled with it, the expected overlap
is Σ_L p and the expected size of the true region Σ p, so that the Dice is about 2 Σ_L p / (|L| + Σ p). Networks are
more confident than they are accurate, and references differ in where borders are drawn. The card of a model therefore
maps this estimate to the Dice on scans that the network was not trained on: the log odds of the Dice are a linear
function of those of the estimate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

CERTAIN = 0.999
"""Largest estimate; the log odds of 1 are infinite."""


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


def calibrated(estimate: np.ndarray, calibration: Sequence[float]) -> np.ndarray:
    """Return the expected Dice (R,) for estimates (R,), from the offset and slope of the log odds."""
    offset, slope = calibration
    expected: np.ndarray = expit(offset + slope * logit(np.clip(estimate, 1 - CERTAIN, CERTAIN)))
    return expected


def calibrate(estimate: np.ndarray, dice: np.ndarray) -> tuple[float, float]:
    """Return the offset and slope of the least mean absolute difference from the Dice (N,) of held-out regions."""

    def difference(calibration: np.ndarray) -> float:
        return float(np.abs(calibrated(estimate, (calibration[0], calibration[1])) - dice).mean())

    simplex = [[0.0, 1.0], [-1.0, 1.0], [0.0, 1.5]]
    offset, slope = minimize(difference, [0.0, 1.0], method="Nelder-Mead", options={"initial_simplex": simplex}).x
    return round(float(offset), 3), round(float(slope), 3)
