"""Lesions of the white matter filled in a T1w, so that programs which know healthy brains alone can segment it.

With the brightness of white matter in lesions, volumes of tissues hardly depend on the lesions (Battaglini et al. 2012,
doi:10.1002/hbm.21344). As in the method of Valverde et al. 2014 (doi:10.1016/j.nicl.2014.08.016), the brightness comes
from the normal white matter nearby instead of that of the whole brain; as in that of Prados et al. 2016 (PMC4988790),
the texture of the image continues in the lesion. Here, the mean is an average in which near voxels weigh most, and the
noise has the local standard deviation and the correlation of neighbouring voxels. The white matter is found by its
brightness, since the anatomy is segmented after the lesions are filled.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bidsseg.errors import DataError
from bidsseg.image.volume import Volume

NEAR_MM, REACH_MM = 25.0, 30.0
"""Distances from a lesion up to which tissues are distinguished, and white matter is used."""
BORDER_MM = 1.0
"""Distance from a lesion up to which voxels do not count as normal white matter."""
EVEN = 0.5
"""Share of the voxels, those that differ least from their neighbours, in which tissues are distinguished."""
UNEVEN = 2.0
"""Largest standard deviation within 3³ voxels of white matter, as a multiple of the median."""
LEAST_CONTRAST = 0.12
"""Smallest difference of white and grey matter, as a share of that of white matter and the darkest place."""
NEARER = 0.85
"""Share of the half way to grey matter within which white matter is."""
FEWEST_VOXELS = 30
"""Fewest voxels of normal white matter near the lesions."""
KERNEL_MM = ((1.5, 1.0), (3.0, 0.1), (6.0, 1e-2), (12.0, 1e-3))
"""Standard deviations and weights of the Gaussians whose sum weighs the voxels around a filled voxel."""
TEXTURE_MM = 8.0
"""Standard deviation of the Gaussian in which shading and the standard deviation of the noise are measured."""
WIDE = 2.0
"""Standard deviation of a Gaussian (voxels) from which moving means are used."""
BINS = 128
SEED = 1


@dataclass(frozen=True)
class White:
    """Normal white matter in a box: its voxels, and their local mean and standard deviation, all (X, Y, Z)."""

    voxels: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def fill_lesions(image: Volume, lesion: np.ndarray) -> Volume:
    """Return a T1w in which the voxels of lesions have the brightness of the white matter around them, with noise.

    All other voxels are unchanged. The noise is drawn with a fixed seed.

    Args:
        image: T1w, in which the white matter is the brightest tissue of the brain.
        lesion: booleans (X, Y, Z).

    Raises:
        DataError: no white matter is near the lesions.
    """
    if not lesion.any():
        return image
    spacing = image.spacing_mm
    margin = np.ceil(np.maximum(REACH_MM / spacing, 2)).astype(int)
    (tight,) = ndimage.find_objects(lesion.view(np.uint8))
    box = tuple(slice(max(side.start - m, 0), side.stop + m) for side, m in zip(tight, margin, strict=True))
    data, inside = image.data[box].astype(np.float32), lesion[box]
    away: np.ndarray = ndimage.distance_transform_edt(~inside, sampling=spacing)
    white = _white_matter(data, away, spacing)
    rest = np.where(white.voxels, data - white.mean, 0)
    near_rest = _weighted(rest, spacing) / _weighted(white.voxels, spacing)
    noise = _noise(np.where(white.voxels, rest - near_rest, 0), white.voxels) * white.deviation
    filled = image.data.astype(np.float32, copy=True)
    filled[box][inside] = (white.mean + near_rest + noise)[inside]
    return Volume(filled, image.affine, image.header)


def _white_matter(data: np.ndarray, away: np.ndarray, spacing: np.ndarray) -> White:
    """Return the normal white matter around lesions, found by its brightness.

    A voxel is white matter if the mean of the 3³ voxels around it is nearer to the local brightness of white matter
    than to that of grey matter, and if it is in an even place.

    Args:
        data: brightness (X, Y, Z).
        away: distance (mm) of each voxel from the nearest lesion.
    """
    around, sigma = away > max(BORDER_MM, 0.5 * spacing.max()), TEXTURE_MM / spacing
    near = around & (away <= max(NEAR_MM, 2 * spacing.max()))
    means, spreads = _neighbourhoods(data, around)
    peak, half = _tissues(means[near], spreads[near])
    white = np.abs(means - peak) < half
    if not (white & near).any():
        raise _no_white_matter()
    even = spreads <= UNEVEN * np.median(spreads[white & near]) + 1e-6 * half
    mean = np.full(data.shape, peak, np.float32)
    for _ in range(3):  # the brightness varies in space
        voxels = around & even & (np.abs(means - mean) < half)
        if np.count_nonzero(voxels & near) < FEWEST_VOXELS:
            raise _no_white_matter()
        share = np.maximum(_smooth(voxels, sigma), 1e-6)
        mean = peak + _smooth(np.where(voxels, data - peak, 0), sigma) / share
    square = _smooth(np.where(voxels, (data - mean) ** 2, 0), sigma) / share
    return White(voxels, mean, np.sqrt(np.maximum(square, 0)))


def _neighbourhoods(data: np.ndarray, around: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the 3³ voxels around each voxel (X, Y, Z), without those of lesions."""
    share = np.maximum(ndimage.uniform_filter(around.astype(np.float32), 3), 1e-6)
    centre = float(data[around].mean(dtype=np.float64)) if around.any() else 0.0
    shifted = np.where(around, data - np.float32(centre), 0)
    mean = ndimage.uniform_filter(shifted, 3) / share
    square = ndimage.uniform_filter(shifted**2, 3) / share - mean**2
    return mean + np.float32(centre), np.sqrt(np.maximum(square, 0))


def _tissues(means: np.ndarray, spreads: np.ndarray) -> tuple[float, float]:
    """Return the brightness of white matter, and half of its difference from grey matter.

    Even places are divided into dark ones, grey matter and white matter by the two thresholds with the least variance
    within the three classes (Otsu 1979, doi:10.1109/TSMC.1979.4310076).

    Args:
        means, spreads: mean and standard deviation of the 3³ voxels around each voxel (N,).
    """
    if len(means) < FEWEST_VOXELS or means.min() == means.max():
        raise _no_white_matter()
    even = means[spreads <= np.quantile(spreads, EVEN)]
    low, high = np.quantile(even, [0.002, 0.998]).tolist()
    counts, edges = np.histogram(even, BINS, (low, high if high > low else low + 1))
    centres = (edges[1:] + edges[:-1]) / 2
    mass = np.concatenate([[0], np.cumsum(counts)]).astype(float)
    total = np.concatenate([[0], np.cumsum(counts * centres)])
    first, second = np.triu_indices(BINS + 1)
    score = np.zeros(len(first))
    for start, end in ((0, first), (first, second), (second, BINS)):
        size = mass[end] - mass[start]
        score += np.divide((total[end] - total[start]) ** 2, size, out=np.zeros(len(first)), where=size > 0)
    best = int(score.argmax())
    cuts = [0, int(first[best]), int(second[best]), BINS]

    def mean(start: int, end: int) -> float:
        return float((total[end] - total[start]) / max(mass[end] - mass[start], 1))

    dark, grey, white = (mean(*pair) for pair in itertools.pairwise(cuts))
    if white - grey < LEAST_CONTRAST * (white - float(means.min())):  # two parts of the white matter
        white, grey = mean(cuts[1], BINS), dark
    return white, NEARER * (white - grey) / 2


def _no_white_matter() -> DataError:
    return DataError("no white matter is near the lesions: do the mask and the T1w match?")


def _weighted(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the sum of values (X, Y, Z) around each voxel, in which near voxels weigh most."""
    total = np.full(values.shape, 1e-30, np.float32)
    for sigma_mm, weight in KERNEL_MM:
        total += weight * _smooth(values, sigma_mm / spacing)
    return total


def _smooth(values: np.ndarray, sigma: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return values (X, Y, Z) smoothed by a Gaussian, which three moving means replace where it is wide."""
    smooth = values.astype(np.float32)
    for axis, width in enumerate(sigma):
        if width <= WIDE:
            smooth = ndimage.gaussian_filter1d(smooth, width, axis, mode="constant") if width > 0 else smooth
            continue
        for _ in range(3):
            smooth = ndimage.uniform_filter1d(smooth, 2 * round(width) + 1, axis, mode="constant")
    return smooth


def _noise(residual: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Return noise (X, Y, Z) of variance 1 with the correlation of neighbouring voxels along each axis.

    Args:
        residual: differences from the local mean in some voxels (booleans), (X, Y, Z).
    """
    sigma = [_sigma(_correlation(residual, voxels, axis)) for axis in range(3)]
    noise = np.random.default_rng(SEED).standard_normal(residual.shape, np.float32)
    smooth = _smooth(noise, sigma)
    return smooth / max(float(smooth.std()), 1e-6)


def _correlation(residual: np.ndarray, voxels: np.ndarray, axis: int) -> float:
    """Return the correlation of neighbours along an axis, 0 to 1."""
    one, other = (np.moveaxis(residual, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
    both = np.logical_and(*(np.moveaxis(voxels, axis, 0)[part] for part in (slice(1, None), slice(None, -1))))
    square = float((one[both] ** 2 + other[both] ** 2).sum(dtype=np.float64)) / 2
    return max(float((one[both] * other[both]).sum(dtype=np.float64)) / square, 0.0) if square > 0 else 0.0


def _sigma(correlation: float) -> float:
    """Return the standard deviation (voxels) of the Gaussian after which neighbours of noise are so correlated."""
    return 0.0 if correlation < 0.01 else float(np.sqrt(-0.25 / np.log(min(correlation, 0.95))))
