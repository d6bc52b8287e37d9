"""Brightness: backgrounds set to 0, and scales that do not depend on the units of a scanner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bidsseg.image.volume import Volume

SAMPLE = 60_000
"""Number of brain voxels that is enough to estimate a percentile."""
CONSTANT = 1 / 3
"""Smallest share of the faces of an image that a constant background covers."""
PLATEAU = 10
"""How many times as many voxels as the next value a second, darker background has."""
SMALLEST_PLATEAU = 1e-3
"""Smallest share of a second background among the other voxels."""
AROUND = 0.95
"""Least share of a second background that is connected to the first."""
FEWEST_LEVELS = 64
"""Fewest values of an image in which a frequent one is a background: with fewer, tissues are constant, too."""
BRAIN_ALONE = 1.5
"""Volume that an image of the brain alone shows at most, in volumes of the brain."""
RIPPLE = 0.02
"""Largest difference from the background that is no part of a head, in medians of the brain above the background."""
NOISE = 6
"""Largest such difference in medians of the noise on the faces of an image."""
NOISIEST = 0.1
"""Largest such difference at which a dark skull is still seen, in medians of the brain above the background."""
DARKEST = 1e-3
"""Lowest brightness outside of the background, as a share of the range of an image."""
STEPS = np.float32(1 << 14)
"""Steps of the brightness: finer differences are rounding errors, which depend on the unit."""


def background(data: np.ndarray) -> float | None:
    """Return the single value of the background around a head (X, Y, Z); None if there is none.

    Masks, skull-stripping and padding produce such a constant, at any scale of the image; air is noise.
    """
    return _constant(_faces(data))


def _constant(faces: np.ndarray) -> float | None:
    """Return the value that most faces of an image have; None if it varies there."""
    values, counts = np.unique(faces, return_counts=True)
    return float(values[counts.argmax()]) if counts.max() >= CONSTANT * len(faces) else None


def _second_background(data: np.ndarray, surrounding: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    """Return the voxels (X, Y, Z) of a second background, booleans: the lowest other value, far more frequent, around.

    Skull-stripping, then padding or another mask, leave two of them. Fluid whose values were clipped is inside, too.

    Args:
        data: the image (X, Y, Z).
        surrounding: its voxels of the background, booleans.
        values: the values (V,) of the others.
    """
    if not values.size:
        return None
    lowest = values.min()
    others = values[values != lowest]
    count = values.size - others.size
    if count < SMALLEST_PLATEAU * values.size or not others.size:
        return None
    levels = len(np.unique(others[:: max(1, others.size // SAMPLE)]))
    if count < PLATEAU * np.count_nonzero(others == others.min()) or levels < FEWEST_LEVELS:
        return None
    plateau = data == lowest
    pieces, number = ndimage.label(plateau | surrounding)
    outside = np.bincount(pieces[surrounding], minlength=number + 1) > 0
    return plateau if outside[pieces[plateau]].mean() > AROUND else None


def shows_brain_alone(data: np.ndarray, brain: np.ndarray) -> bool:
    """Return whether an image (X, Y, Z) shows the brain alone: little else differs from the background.

    Ripples around the brain, which splines leave when a skull-stripped image is resampled, and weak noise do not count.

    Args:
        brain: mask (X, Y, Z).
    """
    count = int(np.count_nonzero(brain))
    if not count:
        return False
    faces = _faces(data)
    constant = _constant(faces)
    level = float(np.median(faces)) if constant is None else constant
    contrast = abs(float(np.median(data[brain > 0])) - level)
    noise = float(np.median(np.abs(faces - np.float32(level)))) if constant is None else 0.0
    faintest = max(RIPPLE * contrast, NOISE * noise)
    shown = int(np.count_nonzero(np.abs(data - np.float32(level)) > faintest))
    return faintest < NOISIEST * contrast and shown < BRAIN_ALONE * count


def _faces(data: np.ndarray) -> np.ndarray:
    """Return the voxels of the six faces of an image (X, Y, Z)."""
    return np.concatenate([np.moveaxis(data, axis, 0)[side].ravel() for axis in range(3) for side in (0, -1)])


def rescaled(volume: Volume) -> Volume:
    """Return an image whose background is 0 and whose other voxels are brighter, mostly in 0..1, in float32.

    The result depends neither on the units of the image nor on the value of its background.
    """
    data = np.asarray(volume.data, np.float32)
    constant = background(data)
    surrounding = None if constant is None else data == np.float32(constant)
    values = data.ravel() if surrounding is None else data[~surrounding]
    if surrounding is not None and (second := _second_background(data, surrounding, values)) is not None:
        surrounding |= second
        values = data[~surrounding]
    values = values[:: max(1, values.size // SAMPLE)]
    low, high = np.quantile(values, [0.001, 0.999]).astype(float) if values.size else (0.0, 1.0)
    scaled = (data - np.float32(low)) * np.float32(1 / (high - low) if high > low else 0)
    np.clip(scaled, DARKEST, None, out=scaled)
    np.multiply(np.rint(scaled * STEPS, out=scaled), 1 / STEPS, out=scaled)
    if surrounding is not None:
        scaled[surrounding] = 0
    return replace(volume, data=scaled)


def rescaled_each(images: Mapping[str, Volume]) -> dict[str, Volume]:
    """Return the images of a scan, each ``rescaled`` separately."""
    return {suffix: rescaled(volume) for suffix, volume in images.items()}


def percentiles(image: Tensor, mask: Tensor | None, shares: Sequence[float]) -> list[float]:
    """Return percentiles of the image's non-zero voxels, in the mask if there is one."""
    step = max(1, round((image.numel() / SAMPLE / 4) ** (1 / 3)))
    thin = (slice(None, None, step),) * 3
    image = image[thin]
    values = image[(image != 0) & mask[thin] if mask is not None else image != 0]
    if len(values) == 0:
        return [0.0 for _ in shares]
    return torch.quantile(values, torch.tensor(list(shares))).tolist()


def normalise(image: Tensor, mask: Tensor | None) -> Tensor:
    """Return the brightness scaled so that the 1st and 99th percentile become 0 and 1, at most 1.5; 0 outside the mask.

    Without a mask, the percentiles are those of all non-zero voxels.
    """
    low, high = percentiles(image, mask, (0.01, 0.99))
    scaled = ((image - low) / max(high - low, 1e-12)).clamp(0, 1.5)
    return scaled * mask if mask is not None else scaled


def standardise(image: Tensor, mask: Tensor | None) -> Tensor:
    """Return the brightness with mean 0 and standard deviation 1 over the mask, 0 outside.

    Without a mask, mean and standard deviation are those of the whole image.
    """
    inside = image if mask is None else image[mask]
    scaled = (image - inside.mean()) / inside.std(correction=0).clamp(min=1e-12)
    return scaled * mask if mask is not None else scaled


def to_byte_range(image: Tensor, mask: Tensor | None) -> Tensor:
    """Return the brightness as ``normalise`` does, in the range 0 to 255 of FreeSurfer's images."""
    return 255 * normalise(image, mask)


def unchanged(image: Tensor, mask: Tensor | None) -> Tensor:
    """Return the brightness unchanged, 0 outside the mask; for networks with their own scale."""
    return image if mask is None else image * mask


NORMALISATIONS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "percentile": normalise,
    "zscore": standardise,
    "byte": to_byte_range,
    "none": unchanged,
}


def normalise_each(images: Tensor, mask: Tensor | None, normalisation: str) -> Tensor:
    """Return the channels (C, D, H, W), each normalised separately; a missing channel stays 0."""
    return torch.stack([NORMALISATIONS[normalisation](channel, mask) for channel in images])
