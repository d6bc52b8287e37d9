"""The place of each lesion in the white matter, from a label map of the anatomy.

The four places are those of the McDonald criteria (Thompson et al. 2018, doi:10.1016/S1474-4422(17)30470-2) as Filippi
et al. 2019 (doi:10.1093/brain/awz144) explain them: a periventricular lesion abuts a lateral ventricle, a juxtacortical
one the cortex, or is in it, and an infratentorial one is in the cerebellum or the brain stem. Other lesions are in the
deep white matter. Label maps are less certain at their borders than the eye, so that a distance of up to `ABUTTING_MM`
counts as contact; this value is a choice of this program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage
from scipy.spatial import cKDTree

from bidsseg.labels.anatomy import Anatomy

ABUTTING_MM = 2.0
"""Largest distance between the centres of voxels of a lesion and of a region that it abuts (mm).

It is the diagonal of a voxel where that is larger, so that neighbouring voxels always abut.
"""
PlaceName = Literal["periventricular", "juxtacortical", "infratentorial", "deep white"]
VENTRICLES, CORTEX, INFRATENTORIAL, CEREBRUM = 1, 2, 3, 4


@dataclass(frozen=True)
class Place:
    """The place of a lesion.

    Attributes:
        ventricle_mm, cortex_mm: smallest distance from the centre of one of its voxels to that of one of the lateral
            ventricles or of the cortex, 0 inside; infinite if the label map contains none.
    """

    name: PlaceName
    ventricle_mm: float
    cortex_mm: float


def find_places(lesions: np.ndarray, labels: np.ndarray, affine: np.ndarray, *, anatomy: Anatomy) -> list[Place]:
    """Return the place of every lesion, in the order of their indices.

    A lesion is infratentorial if more than half of its voxels are in the cerebellum or brain stem. A voxel that the
    label map calls a lesion, or none of the parts of the anatomy, counts for the nearest part. Among other lesions,
    those that abut a ventricle are periventricular, also if they abut the cortex.

    Args:
        lesions: map of lesions (X, Y, Z), see `lesions.numbered`.
        labels: label map on the same grid.
        affine: voxel to RAS+ mm, (4, 4).
    """
    count = int(lesions.max())
    voxels = np.argwhere(lesions)
    if not count:
        return []
    owner = lesions[tuple(voxels.T)].astype(np.int64)
    parts = _parts(labels, anatomy)
    here, points = parts[tuple(voxels.T)], apply_affine(affine, voxels)
    distance = {
        part: np.where(here == part, 0, _distance(parts == part, points, affine)) for part in range(1, CEREBRUM + 1)
    }
    others = np.minimum.reduce([distance[VENTRICLES], distance[CORTEX], distance[CEREBRUM]])
    below = np.bincount(owner, distance[INFRATENTORIAL] < others, count + 1)
    share = below / np.maximum(np.bincount(owner, minlength=count + 1), 1)
    ventricle, cortex = (ndimage.minimum(distance[part], owner, range(1, count + 1)) for part in (VENTRICLES, CORTEX))
    abutting = max(ABUTTING_MM, float(np.linalg.norm(voxel_sizes(affine)))) * (1 + 1e-6)
    return [
        Place(
            _name(
                infratentorial=of_below > 0.5,
                periventricular=to_ventricle <= abutting,
                juxtacortical=to_cortex <= abutting,
            ),
            to_ventricle,
            to_cortex,
        )
        for of_below, to_ventricle, to_cortex in zip(
            share[1:].tolist(), ventricle.tolist(), cortex.tolist(), strict=True
        )
    ]


def nearest_regions(
    mask: np.ndarray, labels: np.ndarray, affine: np.ndarray, *, indices: tuple[int, ...]
) -> np.ndarray:
    """Return the nearest of some regions for each voxel of a mask, integers (N,) in the order of ``labels[mask]``.

    Without a voxel of these regions, all are 0.
    """
    table = np.zeros(max(int(labels.max()), *indices) + 1, bool)
    table[list(indices)] = True
    near = _surface(table[labels])
    voxels = np.argwhere(mask)
    if not (len(near) and len(voxels)):
        return np.zeros(len(voxels), labels.dtype)
    _, closest = cKDTree(apply_affine(affine, near)).query(apply_affine(affine, voxels))
    inside = labels[mask]
    found: np.ndarray = np.where(table[inside], inside, labels[tuple(near[closest].T)])
    return found


def _name(*, infratentorial: bool, periventricular: bool, juxtacortical: bool) -> PlaceName:
    if infratentorial:
        return "infratentorial"
    if periventricular:
        return "periventricular"
    return "juxtacortical" if juxtacortical else "deep white"


def _parts(labels: np.ndarray, anatomy: Anatomy) -> np.ndarray:
    """Return the part of the anatomy of each voxel, 0 for none, uint8 (X, Y, Z)."""
    groups = {
        VENTRICLES: anatomy.ventricles,
        CORTEX: anatomy.cortex,
        INFRATENTORIAL: anatomy.infratentorial,
        CEREBRUM: anatomy.cerebrum,
    }
    table = np.zeros(max(int(labels.max()), *(index for group in groups.values() for index in group)) + 1, np.uint8)
    for part, indices in groups.items():
        table[list(indices)] = part
    found: np.ndarray = table[labels]
    return found


def _distance(mask: np.ndarray, points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the distance of each point (N, 3) in mm to the nearest surface voxel of a mask; infinite without any."""
    surface = _surface(mask)
    if not len(surface):
        return np.full(len(points), np.inf)
    distances: np.ndarray = cKDTree(apply_affine(affine, surface)).query(points)[0]
    return distances


def _surface(mask: np.ndarray) -> np.ndarray:
    """Return the voxels (N, 3) of a mask (X, Y, Z) that have a neighbour outside of it."""
    box = ndimage.find_objects(mask.view(np.uint8))
    if not box:
        return np.empty((0, 3), np.int64)
    inside = mask[box[0]]
    surface = inside & ~ndimage.binary_erosion(inside)
    voxels: np.ndarray = np.argwhere(surface) + [side.start for side in box[0]]
    return voxels
