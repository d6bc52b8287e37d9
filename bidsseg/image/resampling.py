"""Interpolation of scans, masks and label maps on the grids of `image.grid`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from bidsseg.errors import DataError
from bidsseg.image.grid import UPRIGHT, Grid, canonical_spacing, content_box, whole_grid
from bidsseg.image.volume import Volume, canonical

BEYOND = 12
"""Margin in voxels around an interpolated region that still influences the splines."""


PLANES = 16
"""Number of planes of a rotated grid that are interpolated at a time."""


FINE = 0.8
"""A scan with voxels smaller than this share of a rotated grid's voxels is first resampled to that spacing."""


def hat_weights(size_in: int, spacing_in: float, size_out: int, *, spacing_out: float, origin_out: float) -> np.ndarray:
    """Return weights (size_out, size_in) of linear interpolation along one axis, widened for lower resolution.

    Positions outside the field of view get no weight.
    """
    reach = max(spacing_in, spacing_out)
    target = origin_out + spacing_out * np.arange(size_out)[:, None]
    source = spacing_in * np.arange(size_in)[None]
    weights = np.clip(1 - np.abs(target - source) / reach, 0, None)
    half = spacing_in / 2 + 1e-6
    weights[(target[:, 0] < -half) | (target[:, 0] > source[0, -1] + half)] = 0
    total = weights.sum(1, keepdims=True)
    return (weights / np.where(total > 0, total, 1)).astype(np.float32)


def resample(data: Tensor, weights: Sequence[np.ndarray]) -> Tensor:
    """Return an array (X, Y, Z) multiplied by one weight matrix along each axis.

    The axes are multiplied in the order of their strides, so that only the result is moved in memory.
    """
    order = sorted(range(3), key=lambda axis: -data.stride()[axis])
    data = data.permute(order).contiguous()
    slow, middle, quick = (torch.from_numpy(weights[axis]) for axis in order)
    if data.shape[0] > len(slow):  # shrink first: fewer numbers to multiply
        data = (slow @ data.flatten(1)).unflatten(1, data.shape[1:])
        data = torch.matmul(middle, data @ quick.T)
    else:
        data = torch.matmul(middle, data @ quick.T)
        data = (slow @ data.flatten(1)).unflatten(1, data.shape[1:])
    return data.permute([order.index(axis) for axis in range(3)]).contiguous()


def to_grid(volume: Volume, grid: Grid, needed: Tensor | None = None) -> Tensor:
    """Return the scan on the model grid (D, H, W), float32, 0 outside its field of view.

    It is interpolated linearly, on a rotated grid by cubic splines, which blur less.

    Args:
        needed: booleans (D, H, W), the voxels that are needed; None for all.
    """
    data = canonical(volume.data, volume.affine)
    spacing = canonical_spacing(volume)
    if min(data.strides) < 0:
        data = data.copy(order="K")
    if grid.turn == UPRIGHT:
        weights = [
            hat_weights(
                data.shape[i], spacing[i], grid.shape[i], spacing_out=grid.spacing_mm, origin_out=grid.origin_mm[i]
            )
            for i in range(3)
        ]
        return resample(torch.from_numpy(data).float(), weights)
    origin = np.zeros(3)
    if (spacing < FINE * grid.spacing_mm).any():
        upright = whole_grid(volume, grid.spacing_mm)
        data, spacing = to_grid(volume, upright).numpy(), np.full(3, upright.spacing_mm)
        origin = np.asarray(upright.origin_mm)
    return torch.from_numpy(turned(data, origin, spacing, grid=grid, needed=needed)).clamp_(min=0)


def turned(
    data: np.ndarray, origin_mm: np.ndarray, spacing_mm: np.ndarray, *, grid: Grid, needed: Tensor | None
) -> np.ndarray:
    """Return an upright array (X, Y, Z), interpolated by cubic splines on a grid (D, H, W) of any rotation, 0 outside.

    Args:
        origin_mm, spacing_mm: (3,) of the array, in the canonical frame.
        needed: booleans (D, H, W); the result is 0 outside of their box. None for all.
    """
    matrix = grid.spacing_mm * np.asarray(grid.turn) / np.asarray(spacing_mm)[:, None]
    offset = (np.asarray(grid.origin_mm) - origin_mm) / spacing_mm
    ends = (grid.ends() - origin_mm) / spacing_mm
    first = np.clip(np.floor(ends.min(0)).astype(int) - BEYOND, 0, np.array(data.shape) - 1)
    last = np.clip(np.ceil(ends.max(0)).astype(int) + BEYOND, first + 1, data.shape)
    splines = ndimage.spline_filter(data[tuple(map(slice, first, last))], 3, np.float32)
    found = np.zeros(grid.shape, np.float32)
    everywhere = [(0, n) for n in grid.shape]
    (begin, end), rows, columns = everywhere if needed is None else content_box(needed.numpy())

    def fill(start: int) -> None:
        planes = found[start : min(start + PLANES, end), slice(*rows), slice(*columns)]
        at = offset - first + matrix @ np.array([start, rows[0], columns[0]])
        ndimage.affine_transform(splines, matrix, at, planes.shape, planes, 3, prefilter=False)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(begin, end, PLANES)))
    return found


def stack(images: Mapping[str, Volume], inputs: Sequence[str], grid: Grid, *, needed: Tensor | None = None) -> Tensor:
    """Return the images of a scan on the model grid, (C, D, H, W), in the order of inputs; a missing image is 0.

    All images must be on the grid of the first, see ``registration.align``; DataError otherwise.

    Args:
        needed: booleans (D, H, W), the voxels that are needed; None for all.
    """
    first = images[inputs[0]]
    for suffix in inputs:
        if suffix in images and not images[suffix].on_grid_of(first):
            raise DataError(f"the {suffix} is not on the grid of the {inputs[0]}: align it first")
    return torch.stack([to_grid(images[i], grid, needed) if i in images else torch.zeros(grid.shape) for i in inputs])


def between(mask: Tensor, source: Grid, target: Grid) -> Tensor:
    """Return a float array (D, H, W) on one grid, linearly interpolated on another grid of the same scan."""
    axes = np.asarray(source.turn)
    if source.turn == target.turn:
        origin = np.subtract(target.origin_mm, source.origin_mm) @ axes
        weights = [
            hat_weights(
                source.shape[i], source.spacing_mm, target.shape[i], spacing_out=target.spacing_mm, origin_out=origin[i]
            )
            for i in range(3)
        ]
        return resample(mask.float(), weights)
    matrix = axes.T @ np.asarray(target.turn) * (target.spacing_mm / source.spacing_mm)
    return linearly(mask.float(), matrix, source.voxels(np.asarray(target.origin_mm)[None])[0], shape=target.shape)


def linearly(
    values: Tensor, matrix: np.ndarray, offset: np.ndarray, *, shape: Sequence[int], outside: float = 0.0
) -> Tensor:
    """Return an array (X, Y, Z), linearly interpolated at matrix @ voxel + offset, for all voxels of a shape (D, H, W).

    Beyond the array, which has at least two voxels along each axis, it falls to the value ``outside`` within a voxel.
    """
    to_unit = 2 / np.maximum(np.array(values.shape) - 1, 1)
    start = torch.from_numpy(offset * to_unit - 1).float()
    steps = [torch.arange(n)[:, None] * torch.from_numpy(matrix[:, i] * to_unit) for i, n in enumerate(shape)]
    along, across, up = (each.float().flip(1) for each in steps)
    plane = (across[:, None] + up[None] + start.flip(0))[None]
    places = along[:, None, None, None] + plane  # each plane as a separate volume; otherwise one thread does all
    volumes = (values - outside).expand(len(places), 1, -1, -1, -1)
    return F.grid_sample(volumes, places, align_corners=True)[:, 0, 0] + outside


def labels_to_grid(data: np.ndarray, affine: np.ndarray, grid: Grid, *, spacing: np.ndarray) -> np.ndarray:
    """Return a label map (X, Y, Z) on the model grid, nearest neighbour, 0 outside its field of view."""
    data = canonical(data, affine)
    picked = data
    for axis in range(3):
        position = (grid.origin_mm[axis] + grid.spacing_mm * np.arange(grid.shape[axis])) / spacing[axis]
        index = np.rint(position).astype(int)
        inside = (index >= 0) & (index < data.shape[axis])
        picked = np.take(picked, np.clip(index, 0, data.shape[axis] - 1), axis)
        picked.swapaxes(0, axis)[~inside] = 0
    return np.ascontiguousarray(picked)
