"""Masks of the brain: one component without holes or attached structures."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

BRIDGE_MM = 3.0
"""Half the width of the thinnest bridge that is kept."""


def without_bridges(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return a mask (X, Y, Z) without parts attached by bridges thinner than twice BRIDGE_MM, e.g. at the skull base.

    Args:
        spacing: (3,) mm.
    """
    boxes = ndimage.find_objects(mask.view(np.uint8))
    reach = np.rint(BRIDGE_MM / spacing).astype(int)
    if not boxes or not reach.any():
        return mask
    inside = mask[boxes[0]]
    core = np.pad(inside, 1).view(np.uint8)
    for axis, n in enumerate(reach):
        core = ndimage.minimum_filter1d(core, 2 * n + 1, axis)
    grown = largest_piece(core > 0).view(np.uint8)
    for axis, n in enumerate(reach):
        grown = ndimage.maximum_filter1d(grown, 2 * n + 3, axis)
    kept = np.zeros_like(mask)
    kept[boxes[0]] = inside & (grown[1:-1, 1:-1, 1:-1] > 0)
    return kept if kept.any() else mask


def shrunk(mask: np.ndarray, reach_mm: float, spacing: np.ndarray) -> np.ndarray:
    """Return a mask (X, Y, Z) eroded by a cuboid with this half edge; the outside counts as part of the mask.

    Args:
        spacing: (3,) mm.
    """
    inside = mask.view(np.uint8)
    for axis, n in enumerate(np.rint(reach_mm / spacing).astype(int)):
        inside = ndimage.minimum_filter1d(inside, 2 * n + 1, axis)
    return inside > 0


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected component of a mask, with its holes filled."""
    boxes = ndimage.find_objects(mask.view(np.uint8))
    if not boxes:
        return mask
    found = np.zeros_like(mask)
    pieces, _ = ndimage.label(mask[boxes[0]])
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    outside, _ = ndimage.label(np.pad(pieces != sizes.argmax(), 1, constant_values=True))
    found[boxes[0]] = (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return found
