"""Normalised brightness does not depend on units, background or padding."""

import numpy as np
import phantoms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidsseg.image.brightness import background, rescaled
from bidsseg.image.volume import Volume

SHAPE = (24, 26, 22)
AFFINE = phantoms.grid(8.0, "LAS", SHAPE)


def noisy() -> np.ndarray:
    """A whole head in air, as integers of a 12-bit scanner."""
    return np.round(phantoms.noisy_head(AFFINE, SHAPE, seed=1)).astype(np.float32)


def stripped() -> np.ndarray:
    """The whole head without everything outside the brain."""
    return np.where(phantoms.head(AFFINE, SHAPE, phantoms.LABEL) > 0, noisy() + 50, 0).astype(np.float32)


def scaled(data: np.ndarray) -> np.ndarray:
    return rescaled(Volume(np.asarray(data, np.float32), AFFINE)).data


def test_air_is_no_constant_and_a_mask_leaves_one() -> None:
    assert background(noisy() + np.random.default_rng(0).uniform(0, 1, SHAPE)) is None
    assert background(stripped()) == 0
    assert background(np.where(stripped() > 0, stripped(), -1024)) == -1024


@settings(max_examples=40, deadline=None)
@given(st.floats(-12, 9), st.floats(-1000, 1000), st.booleans())
def test_units_change_nothing(exponent: float, offset: float, whole: bool) -> None:
    data = noisy() if whole else stripped()
    changed = (data + offset) * 10.0**exponent
    assert scaled(changed) == pytest.approx(scaled(data), abs=2e-3)


def test_units_of_a_power_of_two_change_no_bit() -> None:
    assert np.array_equal(scaled(noisy() * 2.0**-30), scaled(noisy()))
    assert np.array_equal(scaled(noisy() * 3 - 500), scaled(noisy()))


@pytest.mark.parametrize("value", [-1024.0, -1.0, 7.0, "brightest"])
def test_a_constant_background_of_any_value_is_nothing(value: float | str) -> None:
    data = stripped()
    brain = data > 0
    other = np.where(brain, data, data.max() if value == "brightest" else value)
    found = scaled(other)
    assert (found[~brain] == 0).all()
    same = other != other.max() if value == "brightest" else brain
    assert found[brain & same] == pytest.approx(scaled(data)[brain & same], abs=1e-4)
    assert (found[brain & same] > 0).all()


@pytest.mark.parametrize("value", [-1024.0, "brightest"])
def test_a_second_background_is_nothing_either(value: float | str) -> None:
    """As when a skull-stripped scan is padded, or masked again with a larger mask."""
    data = stripped()
    inner = np.pad(data[4:-4, 4:-4, 4:-4], 4, constant_values=data.max() if value == "brightest" else value)
    assert (inner == 0).any() and background(inner) != 0
    expected = scaled(np.where(inner == background(inner), 0, inner))
    same = inner != data.max()
    assert scaled(inner)[same] == pytest.approx(expected[same], abs=1e-4)


def test_the_darkest_tissue_is_no_background() -> None:
    """Integers begin with a value that some voxels have."""
    assert (scaled(stripped())[stripped() > 0] > 0).all()
    whole = np.where(noisy() < 3, 0, noisy())
    assert ((scaled(whole) > 0) == (whole > 0)).all()
    clipped = np.where(stripped() > 0, stripped() + np.random.default_rng(0).uniform(0, 1, SHAPE), 0)
    clipped[10:14, 11:15, 9:13] = 20  # fluid within the brain
    assert ((scaled(clipped) > 0) == (clipped > 0)).all()
    uniform = phantoms.head(AFFINE, SHAPE, phantoms.LABEL).astype(np.float32)
    uniform[tuple(np.argwhere(uniform == uniform[uniform > 0].min())[0])] += 0.5  # the second lowest value is rare
    assert ((scaled(uniform) > 0) == (uniform > 0)).all()


def test_normalised_scans_are_as_others() -> None:
    data = stripped()
    brain = data > 0
    z = np.where(brain, (data - data[brain].mean()) / data[brain].std(), 0)
    assert scaled(z) == pytest.approx(scaled(data), abs=1e-3)


def test_the_room_around_a_head_changes_nothing() -> None:
    data = noisy()
    wide = rescaled(Volume(np.pad(data, 40), AFFINE)).data
    assert wide[40:-40, 40:-40, 40:-40] == pytest.approx(scaled(data), abs=0.02)
    assert (wide[:40] == 0).all()


def test_an_image_without_contrast_does_not_divide_by_nothing() -> None:
    assert np.isfinite(scaled(np.zeros(SHAPE))).all()
    assert np.isfinite(scaled(np.full(SHAPE, 5.0))).all()
