"""Agreement of label maps against MONAI, closed forms and plain formulas."""

import numpy as np
import pytest
import torch
from label_maps import REGIONS, blobs

from bidsseg.errors import DataError
from bidsseg.evaluation.agreement import brain_means, compare, counted, surface_distances, voxel_error
from bidsseg.evaluation.bootstrap import estimate
from bidsseg.labels import Protocol, Region


def protocol(*indices: int, unscored: tuple[int, ...] = ()) -> Protocol:
    """Return a protocol with the background and regions with these indices."""
    rows = [Region(i, f"region {i}", f"r{i}", "#808080", None, i not in unscored) for i in (0, *indices)]
    return Protocol("test", tuple(rows))


def one_hot(labels: np.ndarray, regions: int = REGIONS) -> torch.Tensor:
    """Return a label map as one-hot array (1, R + 1, X, Y, Z)."""
    return torch.from_numpy(np.stack([labels == i for i in range(regions + 1)])[None].astype(np.float32))


def cube(
    start: tuple[int, int, int], side: int, value: int = 1, shape: tuple[int, int, int] = (20, 20, 20)
) -> np.ndarray:
    """Return a label map with one cube."""
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(s, s + side) for s in start)] = value
    return labels


# -- MONAI -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.8, 1.3, 3.0)])
@pytest.mark.parametrize("seed", range(3))
def test_measures_equal_monai(seed: int, spacing_mm: tuple[float, float, float]) -> None:
    from monai.metrics import DiceMetric, compute_average_surface_distance, compute_hausdorff_distance

    found, reference = blobs(seed), blobs(seed + 100)
    ours = compare(found, reference, protocol(1, 2, 3, 4), affine=np.diag([*spacing_mm, 1]))
    y_pred, y = one_hot(found), one_hot(reference)
    overlap = DiceMetric(include_background=False, reduction="none")(y_pred, y)[0]
    hausdorff = compute_hausdorff_distance(y_pred, y, percentile=95, spacing=spacing_mm)[0]
    mean = compute_average_surface_distance(y_pred, y, symmetric=True, spacing=spacing_mm)[0]
    np.testing.assert_allclose(ours.dice, overlap, rtol=1e-5)
    np.testing.assert_allclose(ours.hausdorff95_mm, hausdorff, rtol=1e-5)
    np.testing.assert_allclose(ours.surface_distance_mm, mean, rtol=1e-5)
    assert (ours.hausdorff95_mm > ours.surface_distance_mm).all()


def test_labels_need_not_be_consecutive() -> None:
    found, reference = blobs(5), blobs(6)
    table = np.array([0, 7, 200, 1035, 12])
    indices = [7, 12, 200, 1035]
    far = compare(table[found], table[reference], protocol(*indices), affine=np.diag([1, 1, 1, 1]))
    near = compare(found, reference, protocol(1, 4, 2, 3), affine=np.diag([1, 1, 1, 1]))
    np.testing.assert_array_equal(far.dice, near.dice)
    np.testing.assert_array_equal(far.hausdorff95_mm, near.hausdorff95_mm)


def test_large_values_need_no_memory() -> None:
    """Atlases of the Allen Institute have values of nine digits, for each of which a box would need 48 bytes."""
    found, reference, value = cube((5, 5, 5), 6), cube((5, 5, 6), 6), 614_454_277
    large = found * np.uint32(value), reference * np.uint32(value)
    far = compare(large[0], large[1], protocol(value), affine=np.eye(4))
    near = compare(found, reference, protocol(1), affine=np.eye(4))
    np.testing.assert_array_equal(far.dice, near.dice)
    np.testing.assert_array_equal(far.hausdorff95_mm, near.hausdorff95_mm)


# -- closed forms ------------------------------------------------------------------------------------------------------


def test_equal_maps() -> None:
    labels = blobs(0)
    same = compare(labels, labels, protocol(1, 2, 3, 4), affine=np.diag([1, 2, 3, 1]))
    np.testing.assert_array_equal(same.dice, 1)
    for zero in (
        same.hausdorff95_mm,
        same.surface_distance_mm,
        same.volume_difference_mm3,
        same.volume_difference_percent,
    ):
        np.testing.assert_array_equal(zero, 0)
    assert same.voxel_error == 0


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_shifted_cubes(axis: int, shift: int) -> None:
    side, spacing_mm = 8, np.array([1.5, 1.5, 1.5])
    spacing_mm[axis] = 0.5
    start = [4, 4, 4]
    reference = cube((4, 4, 4), side)
    start[axis] += shift
    found = cube((start[0], start[1], start[2]), side)
    result = compare(found, reference, protocol(1), affine=np.diag([*spacing_mm, 1]))
    assert result.dice[0] == pytest.approx((side - shift) / side)
    assert result.voxel_error == pytest.approx(shift / side)
    # A sixth of the surface, the trailing face, has the distance of the shift; no voxel has a larger distance.
    assert result.hausdorff95_mm[0] == pytest.approx(0.5 * shift)
    assert result.volume_difference_mm3[0] == 0


def test_mean_surface_distance_of_cubes_one_voxel_apart() -> None:
    side, step_mm = 8, 0.7
    surface = side**3 - (side - 2) ** 3
    # At a distance of one voxel: the whole trailing face, and the leading face without its rim.
    expected = step_mm * (side**2 + (side - 2) ** 2) / surface
    _, mean = surface_distances(cube((5, 4, 4), side), cube((4, 4, 4), side), [1], affine=np.diag([step_mm, 1, 2, 1]))
    assert mean[0] == pytest.approx(expected)


def test_distance_of_single_voxels_is_in_millimetres() -> None:
    found, reference = cube((2, 3, 4), 1), cube((5, 7, 4), 1)
    hausdorff95, mean = surface_distances(found, reference, [1], affine=np.diag([2, 3, 5, 1]))
    assert hausdorff95[0] == mean[0] == pytest.approx(np.hypot(3 * 2, 4 * 3))


def test_five_percent_of_the_surface_may_be_anywhere() -> None:
    reference = cube((2, 2, 2), 6, shape=(60, 20, 20))
    found = reference.copy()
    found[55, 10, 10] = 1
    assert surface_distances(found, reference, [1], affine=np.diag([1, 1, 1, 1]))[0][0] == 0
    found[50:55, 8:12, 8:12] = 1
    assert surface_distances(found, reference, [1], affine=np.diag([1, 1, 1, 1]))[0][0] > 40


def test_hausdorff_distance_is_the_worse_direction() -> None:
    small, large = cube((8, 8, 8), 2), cube((4, 4, 4), 10)
    one, other = (
        surface_distances(a, b, [1], affine=np.diag([1, 1, 1, 1])) for a, b in ((small, large), (large, small))
    )
    assert one == other
    assert one[0][0] > 4  # no voxel of the small cube is farther than 4 from the surface of the large one


def test_volumes() -> None:
    result = compare(cube((4, 4, 4), 4), cube((4, 4, 4), 8), protocol(1), affine=np.diag([1, 0.5, 2, 1]))
    assert (result.found_mm3[0], result.reference_mm3[0]) == (64, 512)
    assert result.volume_difference_mm3[0] == 64 - 512
    assert result.volume_difference_percent[0] == pytest.approx(-87.5)


# -- what counts -------------------------------------------------------------------------------------------------------


def test_absent_regions() -> None:
    found, reference = cube((2, 2, 2), 3, 1), cube((10, 10, 10), 3, 2)
    result = compare(found, reference, protocol(1, 2, 3), affine=np.diag([1, 1, 1, 1]))
    np.testing.assert_array_equal(result.dice, [0, 0, np.nan])
    assert np.isnan(result.hausdorff95_mm).all()
    assert np.isnan(result.surface_distance_mm).all()
    np.testing.assert_array_equal(result.volume_difference_mm3, [27, -27, np.nan])
    np.testing.assert_array_equal(result.volume_difference_percent, [np.nan, -100, np.nan])
    assert brain_means(result.dice[None])[0] == 0
    assert result.voxel_error == 1


def test_an_empty_reference_has_no_voxel_error() -> None:
    assert np.isnan(voxel_error(cube((0, 0, 0), 2), np.zeros((20, 20, 20), np.uint8)))


def test_voxel_error_is_inside_the_reference_brain() -> None:
    reference = np.array([[[0, 0, 1, 1, 2, 2, 2, 2]]])
    found = np.array([[[1, 2, 1, 0, 1, 2, 2, 2]]])
    assert voxel_error(found, reference) == pytest.approx(2 / 6)


def test_outside_the_reference_brain_only_the_own_mask_counts() -> None:
    reference, found = cube((4, 4, 4), 4), cube((4, 4, 4), 8)
    own, inside = (
        compare(found, reference, protocol(1), affine=np.diag([1, 1, 1, 1]), mask=mask) for mask in ("own", "reference")
    )
    assert own.dice[0] == pytest.approx(2 * 64 / (64 + 512))
    assert inside.dice[0] == 1
    assert inside.hausdorff95_mm[0] == 0
    assert own.voxel_error == inside.voxel_error == 0


def test_a_hole_in_the_brain_counts_under_both_masks() -> None:
    reference = cube((4, 4, 4), 8)
    found = reference.copy()
    found[4:8] = 0
    for mask in ("own", "reference"):
        result = compare(found, reference, protocol(1), affine=np.diag([1, 1, 1, 1]), mask=mask)
        assert result.dice[0] == pytest.approx(2 / 3)
        assert result.voxel_error == pytest.approx(1 / 2)


def test_regions_that_are_not_scored() -> None:
    reference = np.array([[[0, 9, 9, 1, 1]]])
    found = np.array([[[0, 1, 9, 1, 9]]])
    kept, truth = counted(found, reference, protocol(1, 9, unscored=(9,)))
    assert truth.tolist() == [[[0, 0, 0, 1, 1]]]
    assert kept.tolist() == [[[0, 0, 0, 1, 0]]], "what is never scored is as good as no label"
    result = compare(found, reference, protocol(1, 9, unscored=(9,)), affine=np.diag([1, 1, 1, 1]))
    assert result.dice.tolist() == [pytest.approx(2 / 3)]
    assert result.voxel_error == 1 / 2


def test_maps_that_cannot_be_compared() -> None:
    labels = cube((0, 0, 0), 2)
    with pytest.raises(DataError, match="reference has the values \\[5\\]"):
        compare(labels, cube((0, 0, 0), 2, 5), protocol(1), affine=np.diag([1, 1, 1, 1]))
    with pytest.raises(DataError, match="label map has the values \\[-1\\]"):
        compare(-labels.astype(int), labels, protocol(1), affine=np.diag([1, 1, 1, 1]))
    with pytest.raises(ValueError, match="different grids"):
        compare(labels[1:], labels, protocol(1), affine=np.diag([1, 1, 1, 1]))


# -- means -------------------------------------------------------------------------------------------------------------


def test_the_mean_is_over_regions_and_then_over_brains() -> None:
    values = np.array([[1.0, np.nan, np.nan], [0.0, 0.3, 0.6], [np.nan] * 3])
    means = brain_means(values)
    np.testing.assert_allclose(means, [1, 0.3, np.nan])
    found = estimate(means)
    assert found.mean == pytest.approx(0.65)
    assert found.brains == 2


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(3).normal(0.7, 0.1, 400)
    found = estimate(values)
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    np.testing.assert_allclose([found.mean - found.low, found.high - found.mean], half, rtol=0.05)


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    values = np.random.default_rng(0).random(12)
    assert estimate(values) == estimate(values)
    assert estimate(values, seed=1) == estimate(values, seed=1) != estimate(values, seed=2)


def test_the_interval_of_two_brains_reaches_from_one_to_the_other() -> None:
    found = estimate(np.array([0.2, 0.8]))
    assert (found.low, found.high) == (0.2, 0.8)


def test_one_brain_or_none_has_no_interval() -> None:
    one, none = estimate(np.array([0.5, np.nan])), estimate(np.array([np.nan]))
    assert (one.mean, one.brains, none.brains) == (0.5, 1, 0)
    assert np.isnan([one.low, one.high, none.mean, none.low]).all()
