"""Where the regions of label maps are, relative to the brain, and which are the two sides of one structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from bidsseg.labels import Protocol

Places = Sequence[Sequence[float]]
"""Voxels of each region of a label map, and its centre, mm from that of the brain to the right, front and top."""
BESIDE_MM = 5.0
"""Least distance of a region on one side from the middle of the brain."""
NEAR_MM = 10.0
"""Largest distance along an axis between a region and the mirror image of its partner."""
AS_LARGE = 2.0
"""Largest ratio of the volumes of two partners."""


def region_places(values: Tensor, regions: int, brain: Tensor) -> list[list[float]]:
    """Return the places of the regions of a label map.

    Args:
        values: positions (X, Y, Z) in a table, on a 1 mm RAS grid.
        regions: number of rows of the table.
        brain: booleans (X, Y, Z).
    """
    labels, inside = values.numpy(), np.nonzero(brain.numpy())
    middle = [axis.mean() if len(axis) else 0.0 for axis in inside]
    labelled = np.nonzero(labels)
    found = labels[labelled].astype(np.intp)
    voxels = np.bincount(found, minlength=regions)
    sums = [np.bincount(found, axis - middle[i], minlength=regions) for i, axis in enumerate(labelled)]
    places = np.stack([voxels, *(total / np.maximum(voxels, 1) for total in sums)], axis=1)
    rounded: list[list[float]] = places.round(1).tolist()
    return rounded


def hidden_pairs(protocol: Protocol, of_maps: Sequence[Places]) -> Iterator[tuple[str, str]]:
    """Yield the names of regions that lie left and right like partners, but are on no side by their names.

    They do so in every label map that has both, and some map has both.
    """
    unsided = [
        place
        for place, (region, partner) in enumerate(zip(protocol.regions, protocol.sides, strict=True))
        if place == partner and place and region.scored and region.partner is None
    ]
    maps = np.asarray(of_maps, float)
    for left in unsided:
        for right in unsided:
            both = maps[:, left, 0] * maps[:, right, 0] > 0
            if both.any() and all(map(_is_pair, maps[both, left], maps[both, right])):
                yield protocol.regions[left].name, protocol.regions[right].name


def _is_pair(left: np.ndarray, right: np.ndarray) -> bool:
    """Return whether one region is on the left and another is where its mirror image is, by their places (4,)."""
    mirrored = left[1:] * [-1, 1, 1]
    is_near = bool((np.abs(mirrored - right[1:]) <= NEAR_MM).all())
    small, large = sorted((left[0], right[0]))
    return left[1] < -BESIDE_MM and right[1] > BESIDE_MM and is_near and large <= AS_LARGE * small


def undrawn(protocol: Protocol, of_maps: Sequence[Places]) -> list[int]:
    """Return the positions of the scored regions that no label map has."""
    voxels = np.asarray(of_maps, float)[:, :, 0].sum(0)
    return [place for place, region in enumerate(protocol.regions) if place and region.scored and voxels[place] == 0]
