"""Lesions filled in a T1w: brightness, noise and limits."""

import numpy as np
import phantoms
import pytest

from bidsseg.errors import DataError
from bidsseg.image.volume import Volume
from bidsseg.segmentation.filling import fill_lesions

SHAPE, AFFINE = (80, 96, 80), phantoms.grid(2.0, "LAS", (80, 96, 80))
LABELS = phantoms.head(AFFINE, SHAPE, phantoms.LABEL)
LESION = LABELS == 4
WHITE = 150.0


def textured(*, noise: float = 6.0, shading: float = 0.0) -> np.ndarray:
    """Return a head whose noise is smooth along the first axis alone, and brighter to the front."""
    from scipy import ndimage

    texture = ndimage.gaussian_filter1d(np.random.default_rng(7).standard_normal(SHAPE), 1.0, 0)
    image = phantoms.head(AFFINE, SHAPE) + noise * texture / texture.std()
    return np.asarray(image * np.linspace(1 - shading, 1 + shading, SHAPE[1])[:, None], np.float32)


def correlation(values: np.ndarray, mask: np.ndarray, axis: int) -> float:
    one, other = (np.moveaxis(values, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
    both = np.moveaxis(mask, axis, 0)[1:] & np.moveaxis(mask, axis, 0)[:-1]
    return float(np.corrcoef(one[both], other[both])[0, 1])


def test_a_lesion_gets_brightness_and_noise_of_the_white_matter() -> None:
    image = Volume(textured(), AFFINE)
    filled = fill_lesions(image, LESION).data
    assert (filled[~LESION] == image.data[~LESION]).all()
    assert filled[LESION].mean() == pytest.approx(WHITE, abs=3)
    assert filled[LESION].std() == pytest.approx(6, rel=0.25)
    along, across = (correlation(filled, LESION, axis) for axis in (0, 1))
    assert along > 0.6 and abs(across) < 0.25  # as in the white matter: 0.78 and 0
    assert (fill_lesions(image, LESION).data == filled).all()


def test_the_filling_follows_the_shading() -> None:
    image = Volume(textured(shading=0.2), AFFINE)
    inside = LESION | np.roll(LESION, 15, 1)
    filled = fill_lesions(Volume(np.where(inside, 80, image.data), AFFINE), inside).data
    true = WHITE * np.broadcast_to(np.linspace(0.8, 1.2, SHAPE[1])[:, None], SHAPE)
    assert np.ptp(true[inside]) > 15
    assert np.abs(filled - true)[inside].mean() < 8
    assert np.abs((filled - true)[LESION].mean()) < 4


def test_a_lesion_beside_a_ventricle_and_a_constant_image() -> None:
    beside = (LABELS == 3) & (np.abs(np.indices(SHAPE)[0] - 31) < 3) & (np.abs(np.indices(SHAPE)[1] - 48) < 6)
    ill = np.where(beside, 70, phantoms.head(AFFINE, SHAPE)).astype(np.float32)  # without noise
    filled = fill_lesions(Volume(ill, AFFINE), beside).data
    assert np.abs(filled[beside] - WHITE).max() < 5


def test_units_do_not_matter() -> None:
    image = textured()
    one, other = (fill_lesions(Volume(data, AFFINE), LESION).data for data in (image, image / 1000 - 5))
    np.testing.assert_allclose(one[LESION], (other[LESION] + 5) * 1000, atol=0.5)


def test_no_white_matter_and_no_lesion() -> None:
    image = Volume(textured(), AFFINE)
    assert fill_lesions(image, np.zeros(SHAPE, bool)) is image
    outside = np.zeros(SHAPE, bool)
    outside[:2, :2, :2] = True
    with pytest.raises(DataError, match="no white matter is near the lesions"):
        fill_lesions(Volume(np.where(LABELS > 0, image.data, 0), AFFINE), outside)
