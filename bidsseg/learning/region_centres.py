"""Size and centre of the regions of label maps, and which regions are by these the two sides of one structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from bidsseg.image.grid import brain_frame
from bidsseg.labels import Protocol

Centres = Sequence[Sequence[float]]
"""Voxels of each region of a label map, and its centre, mm from that of the brain to the right, front and top: (R, 4).

All are 0 for a region that the map does not have.
"""
BESIDE_MM = 5.0
"""Least distance of a region on one side from the middle of the brain."""
NEAR_MM = 10.0
"""Largest distance along an axis between a region and the mirror image of its partner."""
AS_LARGE = 2.0
"""Largest ratio of the volumes of two partners."""


def sizes_and_centres(labels: np.ndarray, regions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return number of voxels (R,) and centre (R, 3), in voxels, of the regions of a map (X, Y, Z) of their positions.

    The background, 0, counts as missing. Centres of missing regions are NaN.
    """
    labelled = np.nonzero(labels)
    found = labels[labelled].astype(np.intp)
    sizes = np.bincount(found, minlength=regions).astype(float)
    sums = [np.bincount(found, axis, minlength=regions) for axis in labelled]
    with np.errstate(invalid="ignore"):
        return sizes, np.stack(sums, 1) / sizes[:, None]


def region_centres(values: Tensor, regions: int, brain: Tensor) -> Centres:
    """Return the centres of the regions of a label map.

    Args:
        values: positions (X, Y, Z) in a table, on a 1 mm RAS grid.
        regions: number of rows of the table.
        brain: booleans (X, Y, Z).
    """
    sizes, centres = sizes_and_centres(values.numpy(), regions)
    rows: Centres = np.nan_to_num(np.c_[sizes, centres - brain_frame(brain)[0]]).round(1).tolist()
    return rows


def hidden_pairs(protocol: Protocol, of_maps: Sequence[Centres]) -> Iterator[tuple[str, str]]:
    """Yield the names of regions that lie left and right like partners, but are on no side by their names.

    They do so in every label map that has both, and some map has both.
    """
    unsided = [
        row
        for row, (region, partner) in enumerate(zip(protocol.regions, protocol.sides, strict=True))
        if row == partner and row and region.scored and region.partner is None
    ]
    maps = np.asarray(of_maps, float)
    for left in unsided:
        for right in unsided:
            both = maps[:, left, 0] * maps[:, right, 0] > 0
            if both.any() and all(map(_is_pair, maps[both, left], maps[both, right])):
                yield protocol.regions[left].name, protocol.regions[right].name


def _is_pair(left: np.ndarray, right: np.ndarray) -> bool:
    """Return whether one region is on the left and another is where its mirror image is, by their rows (4,)."""
    mirrored = left[1:] * [-1, 1, 1]
    is_near = bool((np.abs(mirrored - right[1:]) <= NEAR_MM).all())
    small, large = sorted((left[0], right[0]))
    return left[1] < -BESIDE_MM and right[1] > BESIDE_MM and is_near and large <= AS_LARGE * small


def undrawn(protocol: Protocol, of_maps: Sequence[Centres]) -> list[int]:
    """Return the positions of the scored regions that no label map has."""
    voxels = np.asarray(of_maps, float)[:, :, 0].sum(0)
    return [row for row, region in enumerate(protocol.regions) if row and region.scored and voxels[row] == 0]
