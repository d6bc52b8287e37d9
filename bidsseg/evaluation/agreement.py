"""Agreement of two label maps on one grid: overlap, surfaces and volumes, and their means over brains.

Values of the regions of one brain have the shape (R,), values of many brains (B, R). Undefined values are NaN and
excluded from every mean: all measures of a region that neither map has, distances of a region that only one map has,
and relative volumes of a region that the reference lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from bidsseg.errors import DataError
from bidsseg.labels.protocol import Protocol, Region
from bidsseg.settings import Mask


@dataclass(frozen=True, eq=False)
class Agreement:
    """Measures of one brain, each of shape (R,): one value for each scored region of a protocol except the background.

    Attributes:
        dice: Dice; 0 for a region that only one map has.
        hausdorff95_mm, surface_distance_mm: see :func:`surface_distances`.
        found_mm3, reference_mm3: volumes in both maps.
        voxel_error: share of wrong voxels inside the reference brain, a single number.
    """

    dice: np.ndarray
    hausdorff95_mm: np.ndarray
    surface_distance_mm: np.ndarray
    found_mm3: np.ndarray
    reference_mm3: np.ndarray
    voxel_error: float

    @property
    def volume_difference_mm3(self) -> np.ndarray:
        """Found volume minus reference volume; NaN for a region that neither map has."""
        return np.where(np.isnan(self.dice), np.nan, self.found_mm3 - self.reference_mm3)

    @property
    def volume_difference_percent(self) -> np.ndarray:
        """Volume difference in percent of the reference volume; NaN for a region that the reference lacks."""
        return ratio(100 * (self.found_mm3 - self.reference_mm3), self.reference_mm3)


def compare(
    found: np.ndarray, reference: np.ndarray, protocol: Protocol, *, affine: np.ndarray, mask: Mask = "own"
) -> Agreement:
    """Return all measures of one brain.

    Args:
        found: evaluated label map (X, Y, Z).
        reference: reference label map (X, Y, Z).
        protocol: protocol of both maps.
        affine: from voxels to mm, (4, 4); its axes need not be perpendicular.
        mask: see :func:`counted`.

    Raises:
        DataError: a map has values that the protocol lacks.
    """
    return measured(*counted(found, reference, protocol, mask=mask), protocol, affine=affine)


def measured(found: np.ndarray, reference: np.ndarray, protocol: Protocol, *, affine: np.ndarray) -> Agreement:
    """Return all measures of one brain, from the maps (X, Y, Z) that :func:`counted` returns."""
    indices = [region.index for region in scored_regions(protocol)]
    voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
    return Agreement(
        dice(found, reference, indices),
        *surface_distances(found, reference, indices, affine=affine),
        found_mm3=voxel_counts(found, indices) * voxel_mm3,
        reference_mm3=voxel_counts(reference, indices) * voxel_mm3,
        voxel_error=voxel_error(found, reference),
    )


def scored_regions(protocol: Protocol) -> list[Region]:
    """Return the regions of the measures, in the order of the measures."""
    return [region for region in protocol.regions if region.scored and region.index != 0]


def counted(
    found: np.ndarray, reference: np.ndarray, protocol: Protocol, *, mask: Mask = "own"
) -> tuple[np.ndarray, np.ndarray]:
    """Return both maps (X, Y, Z) with background in all voxels that do not count.

    Voxels of unscored regions in the reference do not count. With the mask ``reference``, voxels outside the reference
    brain, which is everything that the reference labels, do not count either, as if the network had been given the true
    brain. With ``own``, labels outside the reference brain count as errors.
    """
    if found.shape != reference.shape:
        raise ValueError(f"label maps of shapes {found.shape} and {reference.shape} are on different grids")
    for name, labels in (("label map", found), ("reference", reference)):
        unknown = np.setdiff1d(labels, protocol.indices).tolist()
        if unknown:
            raise DataError(f"the {name} has the values {unknown[:5]}, which {protocol.name} lacks")
    unscored = [region.index for region in protocol.regions if not region.scored]
    dropped = np.isin(reference, unscored)
    outside = reference == 0 if mask == "reference" else False
    found = np.where(dropped | outside | np.isin(found, unscored), 0, found)
    return found, np.where(dropped, 0, reference)


def dice(found: np.ndarray, reference: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """Return the Dice of each region, shape (R,)."""
    both = voxel_counts(found[found == reference], indices)
    return ratio(2.0 * both, voxel_counts(found, indices) + voxel_counts(reference, indices))


def voxel_error(found: np.ndarray, reference: np.ndarray) -> float:
    """Return the share of the voxels labelled in the reference that have another label, or none, in the found map."""
    brain = reference != 0
    return float((found[brain] != reference[brain]).mean()) if brain.any() else float("nan")


def voxel_counts(labels: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """Return the number of voxels of each region, integers of shape (R,)."""
    return np.bincount(labels.ravel(), minlength=max(indices) + 1)[list(indices)]


def surface_distances(
    found: np.ndarray, reference: np.ndarray, indices: Sequence[int], *, affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % Hausdorff distance and the mean surface distance (mm) of each region, both of shape (R,).

    The surface of a region consists of its voxels that share a face with another label or are at the edge of the grid;
    all of them have the same weight. Each surface voxel of one map has a distance to the nearest surface voxel of the
    other. The 95 % Hausdorff distance is the larger of the two directions' 95th percentiles; the mean is over the
    voxels of both surfaces.
    """
    hausdorff95, mean = np.full(len(indices), np.nan), np.full(len(indices), np.nan)
    surfaces = zip(_surfaces(found, indices, affine), _surfaces(reference, indices, affine), strict=True)
    for i, (one, other) in enumerate(surfaces):
        if len(one) and len(other):
            # No distance transforms: a single stray voxel would enlarge the box of its region to the whole head.
            there, back = KDTree(other).query(one)[0], KDTree(one).query(other)[0]
            hausdorff95[i] = max(np.quantile(there, 0.95), np.quantile(back, 0.95))
            mean[i] = np.concatenate([there, back]).mean()
    return hausdorff95, mean


def _surfaces(labels: np.ndarray, indices: Sequence[int], affine: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the positions (N, 3) in mm of the surface voxels of each region; N is 0 for an absent region."""
    # Numbers from 1 instead of the values, which may be large: a box is stored for each number up to the largest.
    number = np.zeros(max(int(labels.max()), *indices) + 1, np.int32)
    number[list(indices)] = np.arange(1, len(indices) + 1)
    for index, box in zip(indices, ndimage.find_objects(number[labels], len(indices)), strict=True):
        if box is None:
            yield np.empty((0, 3))
            continue
        region = labels[box] == index
        surface = region & ~ndimage.binary_erosion(region)
        yield (np.argwhere(surface) + [side.start for side in box]) @ affine[:3, :3].T


def brain_means(values: np.ndarray) -> np.ndarray:
    """Return the mean over the regions of each brain, from (B, R) to (B,)."""
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0).sum(1), known.sum(1))


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Return the quotient of arrays of one shape, NaN where the divisor is 0 or NaN."""
    quotient: np.ndarray = np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom > 0)
    return quotient
