"""Brightness of several images of one head: matched, compared, and tied where nothing changed."""

import numpy as np
import pytest
from scipy import ndimage

from bidsseg.image.matching import changes, matched, ties

SHAPE = (60, 60, 60)
X, Y, Z = np.indices(SHAPE) - 30
BRAIN = X**2 + Y**2 + Z**2 < 25**2
TISSUE = ndimage.gaussian_filter(np.where(BRAIN, np.where(X < 0, 1.0, 0.6), 0.0), 1)
LESION = (X - 12) ** 2 + Y**2 + Z**2 < 4**2


def scans(*, lesion: float = 0.0, noise: float = 0.03) -> list[np.ndarray]:
    """Return two images, of which only the second has a lesion of some brightness."""
    draw = np.random.default_rng(0)
    pair = [TISSUE, TISSUE + lesion * LESION]
    return [(image + draw.normal(0, noise, SHAPE) * BRAIN).astype(np.float32) for image in pair]


def test_scale_and_shading_are_matched() -> None:
    one, _ = scans(noise=0)
    shaded = (700 * one * (1 + 0.004 * Y)).astype(np.float32)
    pair = matched([one, shaded], BRAIN, 1.0)
    core = ndimage.binary_erosion(BRAIN, iterations=4)
    left = np.abs(pair[0][core] / pair[1][core] - 1).mean()
    assert left < 0.4 * np.abs(0.004 * Y[core]).mean()


def test_equal_images_stay_equal() -> None:
    one, _ = scans()
    pair = matched([one, one.copy()], BRAIN, 1.0)
    assert (pair[0] == pair[1]).all()
    assert not np.any(changes(pair, BRAIN, 1.0))
    assert not ties(pair, BRAIN, 1.0).any()


def test_flat_tissue_is_tied_but_neither_edges_nor_changes() -> None:
    tie = ties(scans(lesion=0.3), BRAIN, 1.0)
    core = ndimage.binary_erosion(BRAIN, iterations=5) & ~ndimage.binary_dilation(LESION, iterations=4)
    assert np.median(tie[core & (np.abs(X) > 5)]) > 0.8
    assert tie[core & (X == 0)].max() < 0.05  # the border of two tissues
    assert tie[ndimage.binary_erosion(LESION)].max() < 0.05


def test_changes_are_in_units_of_the_noise() -> None:
    quiet = changes(scans(), BRAIN, 1.0)
    core = ndimage.binary_erosion(BRAIN, iterations=5)
    assert quiet[1][core].std() == pytest.approx(1, abs=0.2)
    assert np.allclose(quiet[0], -quiet[1], atol=0.5)
    clear = changes(scans(lesion=0.3), BRAIN, 1.0)
    assert clear[1][ndimage.binary_erosion(LESION)].min() > 5
