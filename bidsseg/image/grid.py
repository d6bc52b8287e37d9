"""The model grid: isotropic, RAS, axes parallel to the scan's own; and what is measured on it.

Arrays on it are (D, H, W) = (left to right, posterior to anterior, inferior to superior). An oblique scan is not
turned: its axes are taken as the nearest anatomical ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from bidsseg.errors import DataError
from bidsseg.image.volume import Volume

SAMPLE = 60_000
"""Brain voxels that are about enough to estimate a percentile."""


def canonical(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The array (X, Y, Z) with its axes permuted and flipped to R, A, S (nearest)."""
    return nib.orientations.apply_orientation(data, nib.orientations.io_orientation(affine))


def from_canonical(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The inverse of canonical."""
    ras, native = nib.orientations.axcodes2ornt("RAS"), nib.orientations.io_orientation(affine)
    return nib.orientations.apply_orientation(data, nib.orientations.ornt_transform(ras, native))


@dataclass(frozen=True)
class Grid:
    """An isotropic grid in the canonical frame of a scan.

    Attributes:
        spacing_mm: voxel size.
        origin_mm: (3,) centre of the first voxel, from the centre of the scan's first canonical voxel along its axes.
        shape: (D, H, W).
    """

    spacing_mm: float
    origin_mm: tuple[float, float, float]
    shape: tuple[int, int, int]


def canonical_spacing(volume: Volume) -> np.ndarray:
    """Voxel sizes in mm (3,) along R, A, S."""
    axes = nib.orientations.io_orientation(volume.affine)[:, 0].astype(int)
    spacing = np.empty(3)
    spacing[axes] = volume.spacing_mm
    return spacing


def whole_grid(volume: Volume, spacing_mm: float, multiple: int = 1) -> Grid:
    """The grid that covers the whole field of view, each axis a multiple of that many voxels, centred on the scan."""
    spacing = canonical_spacing(volume)
    size = np.array(canonical(np.empty(volume.shape, np.uint8), volume.affine).shape)
    extent = size * spacing
    shape = np.maximum(1, np.ceil(extent / spacing_mm / multiple - 1e-6)).astype(int) * multiple
    origin = ((size - 1) * spacing - (shape - 1) * spacing_mm) / 2
    return Grid(spacing_mm, tuple(origin.tolist()), tuple(shape.tolist()))


def box_grid(
    whole: Grid, mask: np.ndarray, spacing_mm: float, margin_mm: float, multiple: int, native_mm: np.ndarray
) -> Grid:
    """The grid around the True voxels of a mask (D, H, W) on another grid, with a margin, to half a native voxel.

    Its first voxel is one of the scan's own, of spacing native_mm (3,), so that a scan of the grid's spacing is not
    blurred by interpolation.
    """
    found = np.argwhere(mask)
    low = np.array(whole.origin_mm) + (found.min(0) - 0.5) * whole.spacing_mm - margin_mm
    high = np.array(whole.origin_mm) + (found.max(0) + 0.5) * whole.spacing_mm + margin_mm
    shape = np.ceil((high - low) / spacing_mm / multiple).astype(int) * multiple
    origin = np.rint(((low + high) / 2 - (shape - 1) / 2 * spacing_mm) / native_mm) * native_mm
    return Grid(spacing_mm, tuple(origin.tolist()), tuple(shape.tolist()))


def hat_weights(size_in: int, spacing_in: float, size_out: int, spacing_out: float, origin_out: float) -> np.ndarray:
    """Weights (size_out, size_in) of linear interpolation along one axis, widened where it loses resolution.

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
    """An array (X, Y, Z) taken through one weight matrix an axis.

    The axes are multiplied in the order in which they lie in memory, so that nothing is moved but the result.
    """
    order = sorted(range(3), key=lambda axis: -data.stride()[axis])
    data = data.permute(order).contiguous()
    slow, middle, quick = (torch.from_numpy(weights[axis]) for axis in order)
    if data.shape[0] > len(slow):  # the fewer numbers, the sooner
        data = (slow @ data.flatten(1)).unflatten(1, data.shape[1:])
        data = torch.matmul(middle, data @ quick.T)
    else:
        data = torch.matmul(middle, data @ quick.T)
        data = (slow @ data.flatten(1)).unflatten(1, data.shape[1:])
    return data.permute([order.index(axis) for axis in range(3)]).contiguous()


def to_grid(volume: Volume, grid: Grid) -> Tensor:
    """The scan on the model grid (D, H, W), float32, linearly interpolated, 0 outside its field of view."""
    data = canonical(volume.data, volume.affine)
    spacing = canonical_spacing(volume)
    weights = [
        hat_weights(data.shape[i], spacing[i], grid.shape[i], grid.spacing_mm, grid.origin_mm[i]) for i in range(3)
    ]
    if min(data.strides) < 0:
        data = data.copy(order="K")
    return resample(torch.from_numpy(data).float(), weights)


def stack(images: Mapping[str, Volume], inputs: Sequence[str], grid: Grid) -> Tensor:
    """The images of a scan on the model grid, (C, D, H, W), in the order of inputs; a missing one is 0 everywhere.

    They must all lie on the grid of the first, see ``image.align``; DataError if one does not.
    """
    first = images[inputs[0]]
    for suffix in inputs:
        if suffix in images and not images[suffix].on_grid_of(first):
            raise DataError(f"the {suffix} does not lie on the grid of the {inputs[0]}: align it first")
    return torch.stack([to_grid(images[i], grid) if i in images else torch.zeros(grid.shape) for i in inputs])


def between(mask: Tensor, source: Grid, target: Grid) -> Tensor:
    """A float array (D, H, W) on one grid, linearly interpolated on another of the same scan."""
    origin = np.subtract(target.origin_mm, source.origin_mm)
    weights = [
        hat_weights(source.shape[i], source.spacing_mm, target.shape[i], target.spacing_mm, origin[i]) for i in range(3)
    ]
    return resample(mask.float(), weights)


def labels_to_grid(data: np.ndarray, affine: np.ndarray, grid: Grid, spacing: np.ndarray) -> np.ndarray:
    """A label map (X, Y, Z) on the model grid, nearest neighbour, 0 outside its field of view."""
    data = canonical(data, affine)
    picked = data
    for axis in range(3):
        position = (grid.origin_mm[axis] + grid.spacing_mm * np.arange(grid.shape[axis])) / spacing[axis]
        index = np.rint(position).astype(int)
        inside = (index >= 0) & (index < data.shape[axis])
        picked = np.take(picked, np.clip(index, 0, data.shape[axis] - 1), axis)
        picked.swapaxes(0, axis)[~inside] = 0
    return np.ascontiguousarray(picked)


def percentiles(image: Tensor, mask: Tensor | None, shares: Sequence[float]) -> list[float]:
    """Percentiles of the image's non-zero voxels, in the mask if there is one."""
    step = max(1, round((image.numel() / SAMPLE / 4) ** (1 / 3)))
    thin = (slice(None, None, step),) * 3
    image = image[thin]
    values = image[(image != 0) & mask[thin] if mask is not None else image != 0]
    if len(values) == 0:
        return [0.0 for _ in shares]
    return torch.quantile(values, torch.tensor(list(shares))).tolist()


def normalise(image: Tensor, mask: Tensor | None) -> Tensor:
    """Brightness scaled so that the 1st and 99th percentile become 0 and 1, at most 1.5; 0 outside the mask.

    Without a mask the whole field of view counts, its zeros aside.
    """
    low, high = percentiles(image, mask, (0.01, 0.99))
    scaled = ((image - low) / max(high - low, 1e-6)).clamp(0, 1.5)
    return scaled * mask if mask is not None else scaled


def standardise(image: Tensor, mask: Tensor | None) -> Tensor:
    """Brightness with mean 0 and standard deviation 1 over the mask, 0 outside; over the whole image without a mask."""
    inside = image if mask is None else image[mask]
    scaled = (image - inside.mean()) / inside.std(correction=0).clamp(min=1e-6)
    return scaled * mask if mask is not None else scaled


def to_byte_range(image: Tensor, mask: Tensor | None) -> Tensor:
    """As ``normalise``, in the range 0 to 255 that FreeSurfer's images have."""
    return 255 * normalise(image, mask)


def unchanged(image: Tensor, mask: Tensor | None) -> Tensor:
    """Brightness as it was scanned, 0 outside the mask; for networks that have a scale of their own."""
    return image if mask is None else image * mask


NORMALISATIONS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "percentile": normalise,
    "zscore": standardise,
    "byte": to_byte_range,
    "none": unchanged,
}


def normalise_each(images: Tensor, mask: Tensor | None, normalisation: str) -> Tensor:
    """The channels (C, D, H, W), each normalised by itself; a missing one stays 0."""
    return torch.stack([NORMALISATIONS[normalisation](channel, mask) for channel in images])


def brain_frame(brain: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Middle and half extent (3,) of a mask (D, H, W), in voxels, from its 1st to its 99th percentile on each axis."""
    centre, half = np.empty(3), np.empty(3)
    for axis in range(3):
        count = brain.sum(dim=[i for i in range(3) if i != axis]).double().numpy()
        total = np.cumsum(count) / max(count.sum(), 1)
        low, high = np.searchsorted(total, 0.01), np.searchsorted(total, 0.99)
        centre[axis], half[axis] = (low + high) / 2, max((high - low) / 2, 1)
    return centre, half


def coordinates(shape: Sequence[int], centre: np.ndarray, half: np.ndarray) -> Tensor:
    """(1, 3, D/2, H/2, W/2): position in the brain's frame, -1..1 inside it, of the 2³ blocks of a grid (D, H, W)."""
    axes = [
        torch.from_numpy((np.arange(0.5, n, 2) - c) / h).float() for n, c, h in zip(shape, centre, half, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None].clamp(-1.5, 1.5)


def dilate(mask: Tensor, voxels: int) -> Tensor:
    """Booleans (D, H, W) widened by a cube that reaches that many voxels, one axis after the other."""
    for axis in range(3):
        widened = mask.clone()
        for step in range(1, min(voxels, mask.shape[axis] - 1) + 1):
            count = mask.shape[axis] - step
            widened.narrow(axis, step, count).logical_or_(mask.narrow(axis, 0, count))
            widened.narrow(axis, 0, count).logical_or_(mask.narrow(axis, step, count))
        mask = widened
    return mask
