"""Lesions of known shape: number, volume, centre and diameter in scanner millimetres, on any grid."""

import numpy as np
import phantoms
import pytest
from nibabel.affines import apply_affine

from bidsseg.image.volume import places
from bidsseg.models.lesion_rule import LesionRule
from bidsseg.segmentation.lesions import describe, diameter_mm, numbered, selected

GRIDS = {
    "isotropic": phantoms.grid(1.0, shape=(60, 60, 60)),
    "stored otherwise": phantoms.grid(1.0, "LPS", (60, 60, 60)),
    "oblique": phantoms.grid(1.0, "RAS", (60, 60, 60), 17),
    "thick slices": phantoms.grid((1.0, 1.0, 3.0), "PSR", (60, 60, 30), 11),
}
LARGE, SMALL = ((9.3, 5.2, 4.1), (5.2, -8.3, 3.1)), ((3.6, 3.4, 3.3), (-14.3, 10.2, 0.4))


def ellipsoids(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the mask of both lesions, by half axes and centre in RAS+ mm."""
    where = places(shape, affine)
    mask: np.ndarray = np.any([(((where - centre) / half) ** 2).sum(-1) <= 1 for half, centre in (LARGE, SMALL)], 0)
    return mask


@pytest.mark.parametrize("name", GRIDS)
def test_known_ellipsoids_on_any_grid(name: str) -> None:
    affine, shape = GRIDS[name], (60, 60, 30 if name == "thick slices" else 60)
    mask = ellipsoids(affine, shape)
    probability = np.where(apply_affine(affine, np.argwhere(mask))[:, 0] > -8, 0.9, 0.6)
    chance = np.zeros(shape, np.float16)
    chance[mask] = probability
    lesions = numbered(mask)
    large, small = describe(lesions, affine, chance)
    assert (large.index, small.index, large.voxels + small.voxels) == (1, 2, mask.sum())
    for found, (half, centre) in ((large, LARGE), (small, SMALL)):
        assert found.volume_mm3 == pytest.approx(4 / 3 * np.pi * np.prod(half), rel=0.13)
        assert np.abs(np.subtract(found.centre_mm, centre)).max() < 0.5
        assert found.diameter_mm == pytest.approx(2 * max(half), abs=1.4)
    assert [large.probability, small.probability] == pytest.approx([0.9, 0.6], abs=1e-3)


@pytest.mark.parametrize("name", GRIDS)
def test_the_position_of_the_head_changes_no_size(name: str) -> None:
    affine = GRIDS[name]
    shape = (60, 60, 30 if name == "thick slices" else 60)
    mask = ellipsoids(affine, shape)
    moved = phantoms.grid(1.0, shape=(1, 1, 1), rotation_degrees=40) @ affine
    for one, other in zip(describe(numbered(mask), affine), describe(numbered(mask), moved), strict=True):
        assert other.volume_mm3 == pytest.approx(one.volume_mm3)
        assert other.diameter_mm == pytest.approx(one.diameter_mm)
        turned = apply_affine(moved @ np.linalg.inv(affine), one.centre_mm)
        assert np.allclose(other.centre_mm, turned)


def test_the_diameter_is_the_longest_line_through_two_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    affine = phantoms.grid((0.8, 1.0, 2.5), "LAS", rotation_degrees=23)
    voxels = np.argwhere(random.random((9, 12, 7)) < 0.7)
    assert len(voxels) > 400
    points = apply_affine(affine, voxels)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    steps = np.abs(voxels[:, None] - voxels[None]).max(-1)
    expected = (distances * (1 + 1 / np.maximum(steps, 1))).max()
    assert diameter_mm(voxels, affine) == pytest.approx(expected)
    monkeypatch.setattr("bidsseg.segmentation.lesions.FEW", 100)
    assert diameter_mm(voxels, affine) == pytest.approx(expected, rel=0.02)


def test_no_voxel_makes_a_lesion_smaller() -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    voxels = np.array([[2, 0, 0], [1, 0, 0], [2, 0, 1], [3, 0, 0], [4, 0, 0], [0, 0, 0]])
    found = [diameter_mm(voxels[:count], affine) for count in range(1, 7)]
    assert found == pytest.approx([3, 3, *[2 * np.hypot(1, 3)] * 4])  # from one slice to the other


def test_diameters_of_flat_thin_and_single_lesions() -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    assert diameter_mm(np.array([[4, 4, 4]]), affine) == 3  # the longest edge of the voxel
    line = np.stack([np.arange(10), np.zeros(10, int), np.zeros(10, int)], 1)
    assert diameter_mm(line, affine) == pytest.approx(10)  # from face to face
    plane = np.argwhere(np.ones((20, 20, 1)))
    assert diameter_mm(plane, affine) == pytest.approx(np.hypot(20, 40))


def test_lesions_are_numbered_by_volume_and_touch_by_corners() -> None:
    mask = np.zeros((12, 12, 12), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True  # one lesion: both voxels share a corner
    mask[5:8, 5:8, 5:8] = True
    mask[10, 10, 10] = True
    lesions = numbered(mask)
    assert lesions.dtype == np.uint16
    assert (lesions[6, 6, 6], lesions[1, 1, 1], lesions[2, 2, 2], lesions[10, 10, 10]) == (1, 2, 2, 3)
    assert [lesion.voxels for lesion in describe(lesions, np.eye(4))] == [27, 2, 1]
    assert not numbered(np.zeros_like(mask)).any()
    assert describe(numbered(np.zeros_like(mask)), np.eye(4)) == []


def test_small_lesions_are_removed_by_volume() -> None:
    mask = np.zeros((12, 12, 12), bool)
    mask[1:3, 1, 1] = True
    mask[5:8, 5, 5] = True
    probability = mask.astype(np.float16)
    for least_mm3, voxels in ((0.0, 5), (0.3, 3), (0.31, 0)):
        assert selected(mask, probability, LesionRule(least_mm3=least_mm3), voxel_mm3=0.1).sum() == voxels


def test_lesions_without_a_probable_voxel_are_removed_whole() -> None:
    probability = np.zeros((12, 12, 12), np.float16)
    probability[1:3, 1, 1] = 0.6, 0.95
    probability[5:8, 5, 5] = 0.8
    mask = probability > 0.5
    for least_peak, voxels in ((0.0, 5), (0.8, 5), (0.9, 2), (0.97, 0)):
        assert selected(mask, probability, LesionRule(least_peak=least_peak), voxel_mm3=1.0).sum() == voxels
