"""Random changes of the geometry and the brightness of a scan. All use a seeded ``torch.Generator``.

All are computed on the device of the generator, which must be torch's default device meanwhile, see ``samples.draw``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from scipy.ndimage import map_coordinates
from torch import Generator, Tensor

from bidsseg.schema import NonNegativeFloat, PositiveFloat, Share

CONTROL_MM = 8.0
"""Spacing of the points at which a spatial change is computed before interpolation."""


def uniform(low: float, high: float, generator: Generator) -> float:
    """Return a random number between low and high."""
    return low + (high - low) * torch.rand((), generator=generator).item()


@dataclass(frozen=True)
class Spatial:
    """Ranges of random motion and deformation (standard deviations of normal draws, unless stated).

    Attributes:
        rotation_deg: rotation about each axis.
        scale: deviation of the logarithm of the size, one draw for all axes and one for each.
        shear: off-diagonal entries.
        shift_mm: shift of the brain's centre.
        elastic_mm: deviation of the smooth random displacement at its control points.
        elastic_varies: whether the deviation of each draw is itself drawn, up to ``elastic_mm``.
        elastic_points: control points of that displacement along each axis.
        elastic_order: order of the B-splines through the control points: 1 is linear, 3 cubic.
        ventricles_mm: largest widening of the ventricles, as in ageing; half of the draws have none.
        flip: probability of mirroring left and right.
        still: share of the draws that are only mirrored and moved by whole voxels, without interpolation.
    """

    rotation_deg: NonNegativeFloat = 7.0
    scale: NonNegativeFloat = 0.06
    shear: NonNegativeFloat = 0.03
    shift_mm: NonNegativeFloat = 4.0
    elastic_mm: NonNegativeFloat = 4.0
    elastic_varies: bool = True
    elastic_points: Annotated[int, Ge(2)] = 6
    elastic_order: Annotated[int, Ge(1), Le(5)] = 1
    ventricles_mm: NonNegativeFloat = 6.0
    flip: Share = 0.5
    still: Share = 0.25


UNMOVED = Spatial(shift_mm=0.0, flip=0.0, still=1.0)
"""Every scan unchanged."""


@dataclass(frozen=True)
class Warp:
    """The source (D, H, W, 3) of each voxel of the model grid, in voxels of the scan, and whether it is mirrored."""

    source: Tensor
    mirrored: bool


def draw_warp(
    spatial: Spatial,
    shape: Sequence[int],
    spacing_mm: float,
    *,
    centre: Tensor,
    widening: Tensor | None,
    generator: Generator,
) -> Warp:
    """Draw a random placement of the model grid in a scan on a 1 mm RAS grid.

    Args:
        shape: (D, H, W) of the model grid with voxels of spacing_mm.
        centre: (3,) voxel of the scan at the centre of the grid.
        widening: (3, d, h, w) direction towards the ventricles on a 4 mm grid of the scan, at most 1; or None.
    """
    matrix = affine(spatial, generator)
    mirrored = uniform(0, 1, generator) < spatial.flip
    mirror = torch.tensor([-1.0 if mirrored else 1.0, 1.0, 1.0])
    extent = [(n - 1) * spacing_mm for n in shape]
    if uniform(0, 1, generator) < spatial.still:
        half = torch.tensor(extent) / 2
        first = (centre + shift(spatial, generator) - half).round()
        axes = [torch.linspace(-e / 2, e / 2, n) for e, n in zip(extent, shape, strict=True)]
        return Warp(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) * mirror + first + half, mirrored)
    matrix = matrix * mirror
    axes = [torch.linspace(-e / 2, e / 2, max(2, round(e / CONTROL_MM) + 1)) for e in extent]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    source = torch.einsum("ij,jdhw->idhw", matrix, points)
    source = source + elastic(spatial, points.shape[1:], generator)
    source = source + (centre + shift(spatial, generator)).view(3, 1, 1, 1)
    if widening is not None and uniform(0, 1, generator) < 0.5:
        millimetres = uniform(-0.2, 1, generator) * spatial.ventricles_mm
        source = source + millimetres * look_up(widening, source / 4, "border")
    source = F.interpolate(source[None], size=list(shape), mode="trilinear", align_corners=True)[0]
    return Warp(source.permute(1, 2, 3, 0).contiguous(), mirrored)


def affine(spatial: Spatial, generator: Generator) -> Tensor:
    """Draw a random rotation, shear and scale, (3, 3)."""
    angles = (torch.randn(3, generator=generator) * math.radians(spatial.rotation_deg)).tolist()
    matrix = rotation(angles) @ (torch.eye(3) + spatial.shear * torch.randn(3, 3, generator=generator))
    each, all_alike = torch.randn(3, generator=generator), torch.randn(1, generator=generator)
    return matrix * torch.exp(spatial.scale * (each + all_alike))


def shift(spatial: Spatial, generator: Generator) -> Tensor:
    """Draw a random displacement of the whole scan, (3,), millimetres."""
    return spatial.shift_mm * torch.randn(3, generator=generator)


def elastic(spatial: Spatial, shape: Sequence[int], generator: Generator) -> Tensor:
    """Draw a smooth random displacement (3, D, H, W), millimetres: splines through control points on the grid."""
    strength = spatial.elastic_mm * (uniform(0, 1, generator) if spatial.elastic_varies else 1.0)
    control = strength * torch.randn((3, *[spatial.elastic_points] * 3), generator=generator)
    if spatial.elastic_order == 1:
        return F.interpolate(control[None], size=list(shape), mode="trilinear", align_corners=True)[0]
    places = np.meshgrid(*(np.linspace(0, spatial.elastic_points - 1, n) for n in shape), indexing="ij")
    splines = [
        map_coordinates(axis, places, order=spatial.elastic_order, mode="mirror") for axis in control.cpu().numpy()
    ]
    return torch.tensor(np.stack(splines))


def rotation(angles: Sequence[float]) -> Tensor:
    """Return the product of the rotations about the three axes, angles in radians, as a (3, 3) matrix."""
    product = torch.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        product = turn @ product
    return product


def look_up(values: Tensor, source: Tensor, outside: str = "zeros") -> Tensor:
    """Return values (C, X, Y, Z) linearly interpolated at source (3, ...) in voxels, (C, ...)."""
    size = torch.tensor(values.shape[1:], dtype=torch.float32)
    grid = source.reshape(3, -1).T / (size - 1).clamp(min=1) * 2 - 1
    picked = F.grid_sample(
        values[None], grid.flip(1).view(1, -1, 1, 1, 3), mode="bilinear", padding_mode=outside, align_corners=True
    )
    return picked.view(len(values), *source.shape[1:])


def sample_image(image: Tensor, warp: Warp) -> Tensor:
    """Return the channels (C, X, Y, Z) on the model grid, (C, D, H, W), interpolated linearly, 0 outside."""
    size = torch.tensor(image.shape[1:], dtype=torch.float32)
    grid = (warp.source / (size - 1) * 2 - 1).flip(-1)
    return F.grid_sample(image[None], grid[None], mode="bilinear", align_corners=True)[0]


def blurred_for(image: Tensor, spacing_mm: float) -> Tensor:
    """Return the channels (C, X, Y, Z) of a 1 mm grid, blurred as their mean in larger voxels is; others unchanged.

    A scan to be segmented is resampled with these weights, see ``image.resampling.hat_weights``: interpolation between
    the nearest voxels would leave more noise and sharper borders.
    """
    weights = [1 - step / spacing_mm for step in range(1, math.ceil(spacing_mm))]
    for axis in (1, 2, 3) if weights else ():
        size, total = image.shape[axis], image.clone()
        counted = torch.ones([size if each == axis else 1 for each in range(4)])
        for step, weight in enumerate(weights, 1):
            for there, here in ((step, 0), (0, step)):
                total.narrow(axis, there, size - step).add_(image.narrow(axis, here, size - step), alpha=weight)
                counted.narrow(axis, there, size - step).add_(weight)
        image = total.div_(counted)
    return image


def sample_labels(labels: Tensor, source: Tensor) -> Tensor:
    """Return the values of a label map (X, Y, Z) nearest to source (..., 3) in voxels, 0 outside."""
    flat = torch.zeros(source.shape[:-1], dtype=torch.int32)
    inside = torch.ones(source.shape[:-1], dtype=torch.bool)
    for axis, size in enumerate(labels.shape):
        index = source[..., axis].round().to(torch.int32)
        inside &= (index >= 0) & (index < size)
        flat = flat.mul_(size).add_(index)
    return labels.reshape(-1)[flat.mul_(inside)].mul_(inside)


@dataclass(frozen=True)
class Intensity:
    """Ranges of random changes of the brightness of a scan: probabilities and largest strengths.

    Attributes:
        gamma: standard deviation of the logarithm of the exponent.
        bias: standard deviation of the logarithm of the smooth field, drawn up to this value.
        noise: largest standard deviation, as a share of the brain's intensity range.
        blur: probability of a lower resolution along all axes or thick slices along one.
        thickest_mm: thickness of the thickest slices.
    """

    gamma: NonNegativeFloat = 0.25
    bias: NonNegativeFloat = 0.35
    noise: NonNegativeFloat = 0.06
    blur: Share = 0.3
    thickest_mm: PositiveFloat = 5.0


def change_intensity(image: Tensor, intensity: Intensity, spacing_mm: float, *, generator: Generator) -> Tensor:
    """Return an image (D, H, W) in about 0..1 with another contrast, shading, resolution and noise."""
    exponent = math.exp(intensity.gamma * torch.randn((), generator=generator).item())
    image = image.clamp(min=0) ** exponent
    strength = intensity.bias * uniform(0, 1, generator)
    field = strength * torch.randn((1, 1, 4, 4, 4), generator=generator)
    fine = [max(4, n // 8) for n in image.shape]
    field = F.interpolate(field, size=fine, mode="trilinear", align_corners=True).exp()
    image = image * F.interpolate(field, size=list(image.shape), mode="trilinear", align_corners=True)[0, 0]
    if uniform(0, 1, generator) < intensity.blur:
        image = coarsen(image, intensity.thickest_mm, spacing_mm, generator=generator)
    noise = torch.randn(image.shape, generator=generator)
    return image + intensity.noise * uniform(0, 1, generator) * noise


def coarsen(image: Tensor, thickest_mm: float, spacing_mm: float, *, generator: Generator) -> Tensor:
    """Return an image (D, H, W) as if scanned with larger voxels: thick slices along one axis, or all axes slightly."""
    size = list(image.shape)
    if uniform(0, 1, generator) < 0.5:
        axis = int(uniform(0, 3, generator))
        thickness_mm = uniform(spacing_mm, max(thickest_mm, spacing_mm), generator)
        size[axis] = max(4, round(size[axis] * spacing_mm / thickness_mm))
    else:
        factor = uniform(1, 2, generator)
        size = [max(4, round(n / factor)) for n in size]
    low = F.interpolate(image[None, None], size=size, mode="area")
    return F.interpolate(low, size=list(image.shape), mode="trilinear", align_corners=False)[0, 0]
