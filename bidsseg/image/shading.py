"""Smooth shading of an image, caused by coils, estimated from tissue that should have equal brightness everywhere."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

DEGREE = 3
"""Degree of the polynomials: coil fields are smooth, and distant tissue supports no more terms."""
STIFFNESS = 0.002
"""Weight of the regularisation towards a flat field, relative to the mean voxel."""
OUTLIER = 0.15
"""A voxel whose logarithm differs this much from the field gets half the weight."""
ROUNDS = 5
STRONGEST = 1.2
"""Largest logarithm of the field that is corrected; larger values are extrapolations."""


@dataclass(frozen=True, eq=False)
class Shading:
    """A smooth field: its logarithm is a polynomial of the position in the frame of the brain, -1..1 inside of it.

    Attributes:
        powers: (K, 3) exponents of each term, without the constant.
        weights: (K,).
        strength: standard deviation of the logarithm of the field at the voxels of the fit.
    """

    powers: np.ndarray
    weights: np.ndarray
    strength: float

    def along(self, axes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        """Return the field (D, H, W), about 1, at places (D,), (H,) and (W,) along the axes of the brain's frame."""
        clipped = [np.clip(axis, -1, 1) for axis in axes]
        log = np.zeros([len(axis) for axis in axes], np.float32)
        for (i, j, k), weight in zip(self.powers, self.weights, strict=True):
            plane = np.multiply.outer(clipped[1] ** j, clipped[2] ** k)
            log += np.multiply.outer(weight * clipped[0] ** i, plane).astype(np.float32)
        return np.exp(np.clip(log, -STRONGEST, STRONGEST))


def find_shading(brightness: np.ndarray, places: np.ndarray) -> Shading:
    """Fit a field to tissue of one kind by iteratively reweighted least squares, with less weight for outliers.

    Args:
        brightness: (N,) of the voxels, positive.
        places: (N, 3) in the frame of the brain.
    """
    powers = np.array([p for p in itertools.product(range(DEGREE + 1), repeat=3) if 0 < sum(p) <= DEGREE])
    terms = np.prod(np.clip(places, -1, 1)[:, None, :] ** powers[None], 2)
    design = np.column_stack([np.ones(len(terms)), terms])
    target = np.log(np.maximum(brightness, 1e-6))
    ridge = STIFFNESS * np.diag([0.0, *np.ones(len(powers))])
    error = np.zeros(len(target))
    for _ in range(ROUNDS):
        trust = 1 / (1 + (error / OUTLIER) ** 2)
        normal = (design * trust[:, None]).T @ design / trust.sum()
        found = np.linalg.solve(normal + ridge, (design * trust[:, None]).T @ target / trust.sum())
        error = target - design @ found
    return Shading(powers, found[1:], float((terms @ found[1:]).std()))
