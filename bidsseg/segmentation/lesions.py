"""Single lesions of a mask: connected components, with their volume, centre and diameter in scanner millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import cdist

from bidsseg.models.lesion_rule import LesionRule

TOUCHING = np.ones((3, 3, 3), int)
"""Connectivity: neighbouring voxels of a lesion share a face, an edge or a corner."""
FEW = 2000
"""Number of voxels up to which all pairs are compared; of more, only the corners of their convex hull."""


@dataclass(frozen=True)
class Lesion:
    """One lesion.

    Attributes:
        index: its value in the map of lesions, from 1 for the largest.
        centre_mm: mean position of its voxels, RAS+ mm of the scanner.
        diameter_mm: see `diameter_mm`.
        probability: mean probability of its voxels, 0 to 1; None if it is not known.
    """

    index: int
    voxels: int
    volume_mm3: float
    centre_mm: tuple[float, float, float]
    diameter_mm: float
    probability: float | None


def selected(mask: np.ndarray, probability: np.ndarray, rule: LesionRule, *, voxel_mm3: float) -> np.ndarray:
    """Return a mask (X, Y, Z) without the lesions that are too small or not probable enough for a rule.

    Args:
        probability: of a lesion in each voxel, (X, Y, Z).
    """
    if rule.least_mm3 <= 0 and rule.least_peak <= 0:
        return mask
    pieces, count = ndimage.label(mask, TOUCHING)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1) * voxel_mm3
    kept = sizes >= rule.least_mm3 * (1 - 1e-6)  # a volume of exactly the minimum may be rounded below it
    kept[0] = False
    inside = pieces > 0
    peaks = np.zeros(count + 1, probability.dtype)
    np.maximum.at(peaks, pieces[inside], probability[inside])
    kept &= peaks >= rule.least_peak
    found: np.ndarray = kept[pieces]
    return found


def numbered(mask: np.ndarray) -> np.ndarray:
    """Return the map of lesions of a mask (X, Y, Z): 1 in the largest lesion, 2 in the second and so on, uint16.

    Lesions of one size are in the order of their first voxels.
    """
    pieces, count = ndimage.label(mask, TOUCHING)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    rank = np.zeros(count + 1, np.uint16 if count < 1 << 16 else np.uint32)
    rank[1 + np.argsort(-sizes, kind="stable")] = np.arange(1, count + 1)
    found: np.ndarray = rank[pieces]
    return found


def describe(lesions: np.ndarray, affine: np.ndarray, probability: np.ndarray | None = None) -> list[Lesion]:
    """Return every lesion of a map of lesions, the largest first.

    Args:
        lesions: map (X, Y, Z) from `numbered`.
        affine: voxel to RAS+ mm, (4, 4).
        probability: of a lesion in each voxel, (X, Y, Z).
    """
    found = []
    voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
    for index, box in enumerate(ndimage.find_objects(lesions), 1):
        inside = lesions[box] == index
        voxels = np.argwhere(inside) + [side.start for side in box]
        x, y, z = apply_affine(affine, voxels.mean(0)).tolist()
        chance = None if probability is None else float(probability[box][inside].mean(dtype=np.float64))
        found.append(
            Lesion(index, len(voxels), len(voxels) * voxel_mm3, (x, y, z), diameter_mm(voxels, affine), chance)
        )
    return found


def diameter_mm(voxels: np.ndarray, affine: np.ndarray) -> float:
    """Return the largest diameter of a lesion (mm): the longest line through two voxel centres, to the outer faces.

    A line consists of the distance between two centres and of its part in the outer half of both voxels. The diameter
    is at least the longest edge of a voxel, which is that of a single voxel.

    Args:
        voxels: (N, 3) indices.
        affine: voxel to RAS+ mm, (4, 4).
    """
    corners = voxels
    if len(voxels) > FEW:
        try:
            corners = voxels[ConvexHull(voxels).vertices]
        except QhullError:  # all voxels are in one plane
            corners = voxels
    points = apply_affine(affine, corners)
    steps = np.maximum(cdist(corners, corners, "chebyshev"), 1)
    lengths = cdist(points, points) * (1 + 1 / steps)  # of a line of n steps, 1 / n is in the two outer halves
    return float(max(lengths.max(), voxel_sizes(affine).max()))
