"""Brightness of several images of one head on one grid: matched, compared, and tied where they do not differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

SLOW_MM = 20.0
"""Standard deviation of the Gaussian in which shading is measured: anatomy varies faster."""
ROUNDS = 3
"""Number of corrections of the shading; each corrects what a wide Gaussian misses near the surface of the brain."""
STEP = 4
"""Voxels between the places where shading is measured."""
FAINT = 1e-3
"""Weight of the voxels outside of the brain, where shading fades to none."""
SMOOTH_MM = 1.0
"""Standard deviation of the Gaussian over which a difference or an edge is measured."""
VISIBLE_MM = 2.0
"""Shift of an edge that must be weaker than the noise if the edge is to count as none."""
NOISE = 2.0
"""A difference up to this many standard deviations of the noise counts as none."""
NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


def mean_of(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of images (X, Y, Z), float32, which depends on their order in its last digits only."""
    total = images[0].astype(np.float64)
    for image in images[1:]:
        total += image
    return (total / len(images)).astype(np.float32)


def matched(images: Sequence[np.ndarray], brain: np.ndarray, spacing_mm: float) -> list[np.ndarray]:
    """Return images (X, Y, Z) of one head with the median 1 in the brain, and with the shading of their mean.

    Args:
        images: positive in the brain, 0 around the head, float32.
        brain: booleans (X, Y, Z).
    """
    same = [image / np.float32(max(float(np.median(image[brain])), 1e-6)) for image in images]
    for _ in range(ROUNDS):
        mean = slow(mean_of(same), brain, spacing_mm)
        same = [image / (slow(image, brain, spacing_mm) / mean) for image in same]
    return same


def slow(image: np.ndarray, brain: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return the slow variation of the brightness of the brain (X, Y, Z); 1 far from the brain."""
    thin = (slice(None, None, STEP),) * 3
    inside = brain[thin].astype(np.float32)
    width = SLOW_MM / spacing_mm / STEP
    weight = ndimage.gaussian_filter(inside, width, mode="constant") + FAINT
    coarse = (ndimage.gaussian_filter(image[thin] * inside, width, mode="constant") + FAINT) / weight
    return np.asarray(
        ndimage.affine_transform(coarse, np.full(3, 1 / STEP), output_shape=image.shape, order=1, mode="nearest")
    )


def changes(images: Sequence[np.ndarray], brain: np.ndarray, spacing_mm: float) -> list[np.ndarray]:
    """Return the smoothed difference of each ``matched`` image from their mean, in standard deviations of the noise.

    The noise is that of the flat parts of the brain (median absolute deviation). Without noise, only voxels that differ
    have a value, which is infinite.
    """
    mean, width = mean_of(images), SMOOTH_MM / spacing_mm
    flat = flat_part(mean, brain, spacing_mm)
    found = []
    for image in images:
        difference = ndimage.gaussian_filter(image - mean, width)
        noise = spread(difference[flat])
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(np.nan_to_num(difference / np.float32(noise), nan=0.0, posinf=np.inf, neginf=-np.inf))
    return found


def ties(images: Sequence[np.ndarray], brain: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return from 0 to 1 how far ``matched`` images show nothing that could have changed, float32 (X, Y, Z).

    It is 1 where all images are equal up to noise and their mean has no edge, since a change would be invisible there,
    and falls to 0 where any image differs, or where a shift of an edge would be visible.
    """
    mean = mean_of(images)
    noise = spread(np.concatenate([(image - mean)[flat_part(mean, brain, spacing_mm)] for image in images]))
    if noise == 0:
        return np.zeros(mean.shape, np.float32)
    edge = edges(mean, spacing_mm) * np.float32(VISIBLE_MM / noise)
    far = np.zeros(mean.shape, np.float32)
    for change in changes(images, brain, spacing_mm):
        np.maximum(far, np.abs(change) - np.float32(NOISE), out=far)
    return np.exp(-(far**2 + edge**2) / 2)


def edges(image: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return the strength of the edges of an image (X, Y, Z): the length of its gradient, per mm."""
    found: np.ndarray = ndimage.gaussian_gradient_magnitude(image, SMOOTH_MM / spacing_mm) / np.float32(spacing_mm)
    return found


def flat_part(image: np.ndarray, brain: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return the half of the brain with the weaker edges, booleans (X, Y, Z)."""
    edge = edges(image, spacing_mm)
    flat: np.ndarray = brain & (edge <= np.median(edge[brain]))
    return flat


def spread(values: np.ndarray) -> float:
    """Return the standard deviation of most values, from their median absolute deviation."""
    return NORMAL * float(np.median(np.abs(values)))
