"""The pose of a head in its scan, from the positions of its regions compared with those of an average brain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FAR_MM = 6.0
"""A region this far from its expected position gets half the weight: it is cut, or was not recognised."""
SEEN = 0.35
"""A region counts as recognised, and its centre is used, from this share of its usual volume."""
DIFFERENCE = 0.2
"""Largest relative difference of the scale along one axis from the others: the shapes of heads differ no more."""
ROUNDS = 20


@dataclass(frozen=True, eq=False)
class Reference:
    """The regions of an average upright brain.

    Attributes:
        indices: (R,) of the regions in their protocol.
        centres_mm: (R, 3) of each region, from the middle of the brain.
        volumes_mm3: (R,).
        half_mm: (3,) half the extent of the brain, see ``grid.brain_frame``.
    """

    indices: np.ndarray
    centres_mm: np.ndarray
    volumes_mm3: np.ndarray
    half_mm: np.ndarray

    @staticmethod
    def from_card(values: Mapping[str, Any]) -> Reference:
        """Return the reference stored on a model's card."""
        rows = np.array(list(values["regions"].values()), float)
        indices = np.array([int(index) for index in values["regions"]])
        return Reference(indices, rows[:, :3], rows[:, 3], np.array(values["half_mm"], float))

    def to_card(self, head: str) -> dict[str, Any]:
        """Return the reference as stored on a model's card; ``head`` is the protocol of the regions."""
        rows = np.column_stack([self.centres_mm, self.volumes_mm3]).round(1).tolist()
        regions = {str(index): row for index, row in zip(self.indices.tolist(), rows, strict=True)}
        return {"head": head, "half_mm": self.half_mm.round(1).tolist(), "regions": regions}


@dataclass(frozen=True, eq=False)
class Pose:
    """A pose maps a place p of the average brain to ``turn @ (scale * p) + centre_mm`` in the scan.

    Attributes:
        turn: (3, 3) rotation.
        scale: (3,) along each axis of the head.
        centre_mm: (3,) middle of the brain in the canonical frame.
        error_mm: weighted mean distance of the regions from their expected positions.
    """

    turn: np.ndarray
    scale: np.ndarray
    centre_mm: np.ndarray
    error_mm: float

    @property
    def angle_deg(self) -> float:
        """Angle of the rotation of the head, about any axis."""
        return float(np.degrees(np.arccos(np.clip((np.trace(self.turn) - 1) / 2, -1, 1))))

    def places(self, reference: np.ndarray) -> np.ndarray:
        """Return canonical places (N, 3) in mm of places (N, 3) of the average brain."""
        places: np.ndarray = (self.scale * reference) @ self.turn.T + self.centre_mm
        return places


def find_pose(centres_mm: np.ndarray, volumes_mm3: np.ndarray, reference: Reference) -> Pose | None:
    """Return the pose that maps an average brain to the regions found in a scan; None with too few regions.

    A similarity (Umeyama 1991, doi:10.1109/34.88573) and a scale along each axis are fitted by iteratively reweighted
    least squares, with less weight for regions far from their expected positions (Cauchy weights).

    Args:
        centres_mm: (R, 3) canonical frame, NaN for regions that were not found.
        volumes_mm3: (R,) found volume of each region.
    """
    seen = volumes_mm3 / reference.volumes_mm3
    usual = np.median(seen[seen > 0]) if (seen > 0).any() else 1.0
    known = np.isfinite(centres_mm).all(1) & (seen > SEEN * min(usual, 1.0))
    if known.sum() < 4:
        return None
    found, there = centres_mm[known], reference.centres_mm[known]
    start = weights = np.sqrt(reference.volumes_mm3[known])
    scale = np.ones(3)
    for _ in range(ROUNDS):
        turn, size, centre = similarity(scale * there, found, weights)
        scale = along_axes(there, (found - centre) @ turn, weights, usual=size * scale)
        distance = np.linalg.norm(found - (scale * there) @ turn.T - centre, axis=1)
        weights = start / (1 + (distance / FAR_MM) ** 2)
    return Pose(turn, scale, centre, float(np.average(distance, weights=weights)))


def along_axes(source: np.ndarray, target: np.ndarray, weights: np.ndarray, *, usual: np.ndarray) -> np.ndarray:
    """Return the scale (3,) of each axis from source (N, 3) to target (N, 3), limited to a range around the usual one.

    The usual scale is the mean over all axes, since a cut brain has little information about the axis of the cut.
    """
    source = source - np.average(source, 0, weights)
    target = target - np.average(target, 0, weights)
    found = (weights[:, None] * source * target).sum(0) / (weights[:, None] * source**2).sum(0)
    mean = float(np.mean(usual))
    scale: np.ndarray = np.clip(found, (1 - DIFFERENCE) * mean, (1 + DIFFERENCE) * mean)
    return scale


def similarity(source: np.ndarray, target: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Return rotation (3, 3), scale and shift (3,) with target ≈ scale * source @ rotation.T + shift."""
    from_mean, to_mean = np.average(source, 0, weights), np.average(target, 0, weights)
    source, target = source - from_mean, target - to_mean
    left, values, right = np.linalg.svd((weights[:, None] * target).T @ source)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    rotation = (left * sign) @ right
    scale = float((values * sign).sum() / (weights[:, None] * source**2).sum())
    return rotation, scale, to_mean - scale * rotation @ from_mean
