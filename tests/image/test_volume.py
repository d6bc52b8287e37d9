"""The geometry of a volume; nibabel is the oracle."""

import nibabel as nib
import numpy as np
import phantoms
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes

from bidsseg.image.volume import Volume


def test_geometry_of_an_anisotropic_grid() -> None:
    volume = Volume(np.zeros((4, 5, 6)), np.diag([-2.0, 3.0, 0.5, 1.0]))
    assert volume.shape == (4, 5, 6)
    assert volume.orientation == "LAS"
    assert volume.spacing_mm.tolist() == [2.0, 3.0, 0.5]
    assert volume.voxel_volume_mm3 == pytest.approx(3.0)
    assert volume.header is None


@given(
    orientation=st.sampled_from(["RAS", "LAS", "LPS", "LIA", "PSR", "SPL"]),
    spacing=st.tuples(*[st.floats(0.2, 6)] * 3),
    degrees=st.floats(-30, 30),
)
def test_geometry_agrees_with_nibabel(orientation: str, spacing: tuple[float, float, float], degrees: float) -> None:
    affine = phantoms.grid(spacing, orientation, rotation_degrees=degrees)
    volume = Volume(np.zeros(phantoms.SHAPE, np.uint8), affine)
    assert volume.orientation == "".join(aff2axcodes(affine)) == orientation
    assert np.allclose(volume.spacing_mm, spacing)
    assert np.array_equal(volume.spacing_mm, nib.affines.voxel_sizes(affine))
    assert volume.voxel_volume_mm3 == pytest.approx(np.prod(spacing))


def test_the_affine_is_its_own_copy_in_double_precision() -> None:
    affine = np.eye(4, dtype=np.float32)
    volume = Volume(np.zeros((2, 2, 2)), affine)
    affine[0, 0] = 7
    assert volume.affine.dtype == np.float64
    assert np.array_equal(volume.affine, np.eye(4))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 axes"):
        Volume(np.zeros((2, 2, 2, 1)), np.eye(4))
    with pytest.raises(ValueError, match="affine"):
        Volume(np.zeros((2, 2, 2)), np.eye(3))


@pytest.mark.parametrize(
    ("spacing", "degrees", "shift", "same"),
    [
        (1.0, 0.0, 0.009, True),
        (1.0, 0.0, 0.011, False),
        (1.0, 0.57, 0.0, False),
        (1.009, 0.0, 0.0, False),
        (1.0 + 1e-6, 1e-5, 0.0, True),
    ],
)
def test_grids_are_the_same_if_all_voxels_are_close(spacing: float, degrees: float, shift: float, same: bool) -> None:
    shape = (200, 220, 180)
    fixed, moved = phantoms.grid(1.0, shape=shape), phantoms.grid(spacing, shape=shape, rotation_degrees=degrees)
    moved[:3, 3] = fixed[:3, 3] + shift
    data = np.zeros(shape, np.uint8)
    assert Volume(data, moved).on_grid_of(Volume(data, fixed)) is same
