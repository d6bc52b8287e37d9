"""Alignment of the images of one scan to the grid of its T1w."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from moved_heads import FIXED, FLAIR, SHAPE, T1W, blobs, motion
from nibabel.affines import from_matvec
from nibabel.orientations import axcodes2ornt, ornt_transform
from scipy import ndimage

from bidsseg.errors import DataError, UsageError
from bidsseg.image.grid import Grid
from bidsseg.image.nifti import read_image
from bidsseg.image.resampling import stack
from bidsseg.image.volume import Volume
from bidsseg.registration.align import Motion, align, read_aligned
from bidsseg.registration.label_files import on_same_grid

THICK = phantoms.grid((3, 3, 6), "PSR", (72, 60, 32), 4), (72, 60, 32)


def left_over(found: Motion, truth: np.ndarray) -> Motion:
    """Return the error of a motion that should undo the true one."""
    return Motion.of(found.matrix @ truth, blobs(FIXED, SHAPE, T1W))


@pytest.mark.parametrize(
    "where, distance_mm, angle_degrees", [("affine", 4, 3), ("affine", 60, 0), ("voxels", 15, 10), ("voxels", 0, 0)]
)
def test_a_known_motion_is_found(where: str, distance_mm: float, angle_degrees: float) -> None:
    truth = motion(distance_mm, angle_degrees)
    affine, shape = THICK
    if where == "affine":
        moved = Volume(blobs(affine, shape, FLAIR).data, truth @ affine)
    else:  # the same head, elsewhere in the scanner
        moved = Volume(blobs(np.linalg.inv(truth) @ affine, shape, FLAIR).data, affine)
    fixed = blobs(FIXED, SHAPE, T1W, 1)
    aligned, found = align(moved, fixed)
    assert found is not None
    wrong = left_over(found, truth)
    assert wrong.distance_mm < 1 and wrong.angle_degrees < 1
    assert found.distance_mm == pytest.approx(distance_mm, abs=1)
    assert found.angle_degrees == pytest.approx(angle_degrees, abs=1)
    assert found.far == (distance_mm > 20)
    assert np.array_equal(aligned.affine, fixed.affine)
    assert aligned.data.dtype == np.float32 and aligned.shape == SHAPE
    if distance_mm < 60:  # the whole head was in the field of view
        assert np.corrcoef(aligned.data.ravel(), blobs(FIXED, SHAPE, FLAIR).data.ravel())[0, 1] > 0.9


def test_the_same_images_give_the_same_bytes() -> None:
    affine, shape = THICK
    fixed, moving = blobs(FIXED, SHAPE, T1W), blobs(motion(5, 4) @ affine, shape, FLAIR)
    one, other = (align(moving, fixed) for _ in range(2))
    assert one[0].data.tobytes() == other[0].data.tobytes()
    assert one[1] is not None and other[1] is not None
    assert np.array_equal(one[1].matrix, other[1].matrix)


@pytest.fixture
def without_simpleitk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate an environment without SimpleITK."""
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    monkeypatch.delitem(sys.modules, "bidsseg.registration.linear", raising=False)


@pytest.mark.usefixtures("without_simpleitk")
def test_images_on_the_same_grid_are_taken_as_aligned() -> None:
    fixed = blobs(FIXED, SHAPE, T1W)
    moving = blobs(motion(5, 4) @ FIXED, SHAPE, FLAIR)
    assert align(Volume(moving.data, FIXED + 1e-5), fixed)[1] is None
    aligned, found = align(Volume(moving.data, FIXED), fixed)
    assert found is None and aligned.data is moving.data
    with pytest.raises(UsageError, match=r'pip install "bidsseg\[flair\]"'):
        align(moving, fixed)


@pytest.mark.parametrize("axes", ["RAS", "PSR", "ILA"])
def test_the_same_voxels_in_another_order_are_not_moved(axes: str) -> None:
    fixed, moving = blobs(FIXED, SHAPE, T1W), blobs(FIXED, SHAPE, FLAIR)
    image = nib.Nifti1Image(moving.data, FIXED)
    turn = ornt_transform(nib.io_orientation(FIXED), axcodes2ornt(axes))
    stored = image.as_reoriented(turn)
    aligned, found = align(Volume(np.asarray(stored.dataobj), stored.affine), fixed)
    assert found is None and np.array_equal(aligned.data, moving.data) and np.array_equal(aligned.affine, FIXED)


def test_an_image_that_shows_nothing_is_refused() -> None:
    affine, shape = THICK
    with pytest.raises(DataError, match="CANNOT_BE_ALIGNED"):
        align(Volume(np.zeros(shape, np.float32), affine), blobs(FIXED, SHAPE, T1W))


def test_images_elsewhere_are_never_stacked() -> None:
    fixed = blobs(FIXED, SHAPE, T1W)
    grid = Grid(4.0, (0.0, 0.0, 0.0), SHAPE)
    with pytest.raises(DataError, match="the FLAIR is not on the grid of the T1w"):
        stack({"T1w": fixed, "FLAIR": blobs(FIXED + 0.1, SHAPE, FLAIR)}, ("T1w", "FLAIR"), grid)
    t1w, flair = stack({"T1w": fixed}, ("T1w", "FLAIR"), grid)
    assert t1w.any() and not flair.any()


@pytest.mark.parametrize("distance_mm", [0.0, 40.0])
def test_aligned_images_have_notes_about_their_motion(distance_mm: float, tmp_path: Path) -> None:
    affine, shape = THICK
    flair = blobs(affine, shape, FLAIR).data
    flair[0, 0, 0] = np.nan
    paths = {
        "T1w": phantoms.save(tmp_path / "T1w.nii.gz", blobs(FIXED, SHAPE, T1W).data, FIXED),
        "FLAIR": phantoms.save(tmp_path / "FLAIR.nii.gz", flair, motion(distance_mm, 0) @ affine),
    }
    images = read_aligned(paths)
    assert list(images.volumes) == ["T1w", "FLAIR"]
    assert images.volumes["FLAIR"].on_grid_of(images.volumes["T1w"])
    (note,) = images.notes
    assert note.startswith(f"FLAIR moved by {distance_mm:.0f}.") and note.endswith("° to match the T1w")
    found = {finding.code: finding.message for finding in images.findings}
    assert found["NAN_VALUES"].startswith("FLAIR: ")
    assert ("MOVED_FAR" in found) == (distance_mm > 20)
    assert read_aligned({"T1w": paths["T1w"]}).notes == []


def information(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mutual information of two images of thick slices, where both have values.

    Both images are smoothed, because an image whose slices match exactly is not interpolated and would score better for
    its sharpness alone.
    """
    one, other = (ndimage.gaussian_filter(image, (3, 3, 1)) for image in (one, other))
    both = (one > 0) & (other > 0)
    joint = np.histogram2d(one[both], other[both], 48)[0] / both.sum()
    alone = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint[joint > 0] * np.log(joint[joint > 0] / alone[joint > 0])).sum())


@pytest.mark.data
def test_the_flair_of_a_patient_fits_better_than_its_header_says(testdata: Path) -> None:
    t1ws = sorted((testdata / "clinical").glob("sub-*/ses-*/anat/*_T1w.nii.gz"))
    assert t1ws
    for path in t1ws[:2]:
        t1w, flair = (read_image(path.with_name(path.name.replace("T1w", name)))[0] for name in ("T1w", "FLAIR"))
        aligned, found = align(flair, t1w)
        assert found is not None and not found.far and found.distance_mm < 5 and found.angle_degrees < 3
        as_header_says = np.linalg.inv(flair.affine) @ t1w.affine
        before = ndimage.affine_transform(flair.data, as_header_says, output_shape=t1w.shape, order=1)
        assert information(t1w.data, aligned.data) > information(t1w.data, before)


def test_images_on_the_same_oblique_grid_have_the_same_nearest_axes() -> None:
    """At 45°, a rounding error decides which direction is nearest to an axis."""

    def turned(radians: float) -> Volume:
        cosine, sine = np.cos(radians), np.sin(radians)
        return Volume(np.zeros((4, 5, 6), np.uint8), from_matvec([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]))

    image, other = turned(np.pi / 4 - 1e-7), turned(np.pi / 4 + 1e-7)
    assert image.orientation != other.orientation
    found, motion = align(other, image)
    assert motion is None and found.orientation == image.orientation
    same = on_same_grid(other, image)
    assert same is not None and same.orientation == image.orientation
