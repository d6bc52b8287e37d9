"""The model grid: isotropic, RAS, with axes parallel to those of the scan or rotated with the head.

Arrays on it are (D, H, W) = (left to right, posterior to anterior, inferior to superior). The canonical frame of a scan
has the axes of the scan, each assigned to the nearest anatomical axis, in mm from the centre of its first voxel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import apply_affine
from torch import Tensor

from bidsseg.image.volume import Volume, canonical_affine, canonical_shape

Turn = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
"""A rotation (3, 3) as nested tuples."""
UPRIGHT: Turn = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
"""No rotation: axes parallel to those of the scan."""


@dataclass(frozen=True)
class Grid:
    """An isotropic grid in the canonical frame of a scan.

    Attributes:
        spacing_mm: voxel size.
        origin_mm: (3,) centre of the first voxel, relative to the centre of the first canonical voxel of the scan.
        shape: (D, H, W).
        turn: rotation whose columns are the directions of the grid's axes in the canonical frame.
    """

    spacing_mm: float
    origin_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    turn: Turn = UPRIGHT

    def moved(self, by_mm: np.ndarray) -> Grid:
        """Return the grid shifted by (3,) mm along the axes of the scan."""
        return replace(self, origin_mm=tuple((np.asarray(self.origin_mm) + by_mm).tolist()))

    def through(self, motion: np.ndarray) -> Grid:
        """Return the grid in the canonical frame of another scan.

        Args:
            motion: (4, 4) from places in this frame to those in the other, mm. Of a motion that is not quite rigid,
                since the axes of a scan are sheared, the nearest rotation about the middle of the grid is used.
        """
        half = (np.array(self.shape) - 1) / 2
        left, _, right = np.linalg.svd(motion[:3, :3])
        axes = left @ right @ np.asarray(self.turn)
        origin = apply_affine(motion, self.places(half)) - self.spacing_mm * axes @ half
        return replace(self, origin_mm=tuple(origin.tolist()), turn=as_turn(axes))

    def places(self, voxels: np.ndarray) -> np.ndarray:
        """Return the canonical places (N, 3) in mm of voxels (N, 3) of the grid."""
        places: np.ndarray = np.asarray(self.origin_mm) + self.spacing_mm * voxels @ np.asarray(self.turn).T
        return places

    def ends(self, further: float = 0.0) -> np.ndarray:
        """Return the canonical places (8, 3) in mm of its corner voxels, or of points further outside."""
        corners = np.meshgrid(*[(-further, n - 1 + further) for n in self.shape])
        return self.places(np.stack(corners, -1).reshape(-1, 3))

    def voxels(self, places: np.ndarray) -> np.ndarray:
        """Return the voxels (N, 3) of the grid, not rounded, at canonical places (N, 3) in mm."""
        voxels: np.ndarray = (places - np.asarray(self.origin_mm)) @ np.asarray(self.turn) / self.spacing_mm
        return voxels


def as_turn(matrix: np.ndarray) -> Turn:
    """Return a rotation (3, 3) as nested tuples."""
    one, two, three = ((float(a), float(b), float(c)) for a, b, c in matrix)
    return one, two, three


def canonical_frame(volume: Volume) -> np.ndarray:
    """Return the matrix (4, 4) from places in the canonical frame of a scan to RAS+ mm."""
    frame = canonical_affine(volume)
    frame[:3, :3] /= canonical_spacing(volume)
    return frame


def canonical_spacing(volume: Volume) -> np.ndarray:
    """Return the voxel sizes in mm (3,) along R, A, S."""
    axes = nib.orientations.io_orientation(volume.affine)[:, 0].astype(int)
    spacing = np.empty(3)
    spacing[axes] = volume.spacing_mm
    return spacing


Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First voxel and the one after the last, along each axis."""


def content_box(data: np.ndarray) -> Box:
    """Return the smallest box around the voxels (X, Y, Z) that are not 0; the whole array if all are."""
    box = []
    for axis in range(3):
        filled = np.flatnonzero(data.any(axis=tuple(i for i in range(3) if i != axis)))
        box.append((int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, data.shape[axis]))
    return box[0], box[1], box[2]


def within_content(images: Mapping[str, Volume], first: str) -> tuple[dict[str, Volume], np.ndarray]:
    """Crop images to the box of the non-zero voxels of the first; return them and its start (3,), canonical, in mm.

    Without this, the empty space around a head would change results through rounding. An image on another grid is not
    cropped.
    """
    volume = images[first]
    low, high = np.array(content_box(volume.data)).T

    def part(image: Volume) -> Volume:
        affine = image.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ low
        return replace(image, data=image.data[tuple(map(slice, low, high))], affine=affine)

    axes, signs = nib.orientations.io_orientation(volume.affine).T
    start_mm = np.empty(3)
    start_mm[axes.astype(int)] = np.where(signs > 0, low, np.array(volume.shape) - high) * volume.spacing_mm
    return {suffix: part(image) if image.on_grid_of(volume) else image for suffix, image in images.items()}, start_mm


def whole_grid(volume: Volume, spacing_mm: float, multiple: int = 1) -> Grid:
    """Return the grid that covers the whole field of view, centred on the scan, each axis a multiple of some voxels."""
    spacing = canonical_spacing(volume)
    size = np.array(canonical_shape(volume))
    shape = np.maximum(1, np.ceil(size * spacing / spacing_mm / multiple - 1e-6)).astype(int) * multiple
    origin = ((size - 1) * spacing - (shape - 1) * spacing_mm) / 2
    return Grid(spacing_mm, tuple(origin.tolist()), tuple(shape.tolist()))


def box_grid(
    around: Grid,
    mask: np.ndarray,
    spacing_mm: float,
    *,
    margin_mm: float,
    multiple: int,
    native_mm: np.ndarray,
    turn: Turn = UPRIGHT,
) -> Grid:
    """Return the grid around the True voxels of a mask (D, H, W) on another grid, with a margin.

    Predictions depend slightly on the position of the grid, modulo the number of voxels that the network folds. The
    distance from the centre of the mask to the first voxel is therefore a multiple of that number, or of its half and
    so on, as far as the box allows: slightly different masks then get equally placed grids. An upright grid shares a
    voxel with the scan, whose spacing is native_mm (3,), so that a scan with the spacing of the grid is not
    interpolated.
    """
    axes = np.asarray(turn)
    found = around.places(np.argwhere(mask)) @ axes
    low = found.min(0) - 0.5 * around.spacing_mm - margin_mm + 0.5 * spacing_mm
    high = found.max(0) + 0.5 * around.spacing_mm + margin_mm - 0.5 * spacing_mm
    shape = np.ceil(((high - low) / spacing_mm + 1) / multiple - 1e-6).astype(int) * multiple
    middle = found.mean(0)
    if turn == UPRIGHT:
        middle = np.rint(middle / native_mm) * native_mm
    first = [
        first_voxel(
            (low[i] - middle[i]) / spacing_mm, (high[i] - middle[i]) / spacing_mm, int(shape[i]), multiple=multiple
        )
        for i in range(3)
    ]
    origin = axes @ (middle + spacing_mm * np.array(first))
    return Grid(spacing_mm, tuple(origin.tolist()), tuple(shape.tolist()), turn)


def first_voxel(low: float, high: float, size: int, *, multiple: int) -> int:
    """Return the first of ``size`` voxels that cover low to high: the roundest number that is possible.

    Args:
        multiple: its multiples are the roundest numbers, then those of its half and so on.
    """
    step = multiple
    while step > 1:
        first = step * math.floor(low / step + 1e-6)
        if first + size - 1 >= high - 1e-6:
            return first
        step //= 2
    return round((low + high - size + 1) / 2)


def brain_frame(brain: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return centre and half extent (3,) of a mask (D, H, W), in voxels, from the 1st to the 99th percentile."""
    centre, half = np.empty(3), np.empty(3)
    for axis in range(3):
        count = brain.sum(dim=[i for i in range(3) if i != axis]).double().cpu().numpy()
        total = np.cumsum(count) / max(count.sum(), 1)
        low, high = np.searchsorted(total, 0.01), np.searchsorted(total, 0.99)
        centre[axis], half[axis] = (low + high) / 2, max((high - low) / 2, 1)
    return centre, half


def coordinates(shape: Sequence[int], centre: np.ndarray, half: np.ndarray) -> Tensor:
    """Return positions in the brain's frame, -1..1 inside it, (1, 3, D/2, H/2, W/2), of the 2³ blocks of a grid."""
    axes = [torch.tensor((np.arange(0.5, n, 2) - c) / h).float() for n, c, h in zip(shape, centre, half, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None].clamp(-1.5, 1.5)


def dilate(mask: Tensor, voxels: int) -> Tensor:
    """Return booleans (D, H, W) dilated by a cube with a radius in voxels, one axis after the other."""
    for axis in range(3):
        widened = mask.clone()
        for step in range(1, min(voxels, mask.shape[axis] - 1) + 1):
            count = mask.shape[axis] - step
            widened.narrow(axis, step, count).logical_or_(mask.narrow(axis, 0, count))
            widened.narrow(axis, 0, count).logical_or_(mask.narrow(axis, step, count))
        mask = widened
    return mask
