"""The model grid: orientation and resampling, with nibabel and closed forms as oracles."""

import itertools

import nibabel as nib
import numpy as np
import phantoms
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from nibabel.orientations import aff2axcodes
from scipy.spatial.transform import Rotation

from bidsseg.image.brightness import NORMALISATIONS, normalise, percentiles
from bidsseg.image.grid import (
    Grid,
    Turn,
    box_grid,
    brain_frame,
    canonical_frame,
    canonical_spacing,
    content_box,
    coordinates,
    dilate,
    first_voxel,
    whole_grid,
    within_content,
)
from bidsseg.image.resampling import between, hat_weights, labels_to_grid, to_grid
from bidsseg.image.volume import Volume, canonical, from_canonical

ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(["RL", "AP", "SI"])
    for codes in itertools.product(*axes)
]  # fmt: skip
SHAPE = (7, 8, 9)


def grid_points(volume: Volume, grid: Grid) -> np.ndarray:
    """Return world coordinates (D, H, W, 3), RAS+ mm, of a grid, from nibabel's canonical image."""
    affine = nib.as_closest_canonical(nib.Nifti1Image(volume.data, volume.affine)).affine
    axes = [(grid.origin_mm[i] + grid.spacing_mm * np.arange(grid.shape[i])) for i in range(3)]
    voxels = np.stack(np.meshgrid(*axes, indexing="ij"), -1) / canonical_spacing(volume)
    found: np.ndarray = apply_affine(affine, voxels)
    return found


def ramp(shape: tuple[int, int, int], affine: np.ndarray, slope: np.ndarray, offset: float = 0.0) -> Volume:
    """Return a linear function of the world coordinates."""
    points = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return Volume((points @ slope + offset).astype(np.float32), affine)


# -- orientation -------------------------------------------------------------------------------------------------------


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_canonical_is_that_of_nibabel_and_can_be_undone(orientation: str) -> None:
    affine = phantoms.grid((1, 2, 3), orientation, SHAPE, rotation_degrees=10)
    data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    theirs = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    ours = canonical(data, affine)
    assert np.array_equal(ours, theirs.get_fdata())
    assert aff2axcodes(theirs.affine) == ("R", "A", "S")
    assert np.allclose(canonical_spacing(Volume(data, affine)), theirs.header.get_zooms())
    assert np.array_equal(from_canonical(ours, affine), data)


@pytest.mark.parametrize("orientation", ["RAS", "LIA", "PSR"])
def test_further_axes_are_kept(orientation: str) -> None:
    affine = phantoms.grid(1.0, orientation, SHAPE)
    data = np.random.default_rng(0).integers(0, 9, (*SHAPE, 5))
    assert np.array_equal(from_canonical(canonical(data, affine), affine), data)


# -- linear interpolation ----------------------------------------------------------------------------------------------

sizes, spacings = st.integers(2, 40), st.floats(0.3, 5)


@given(n=sizes, spacing=spacings, m=sizes, target=spacings, origin=st.floats(-20, 20))
def test_weights_sum_to_one_inside_and_to_none_outside(
    n: int, spacing: float, m: int, target: float, origin: float
) -> None:
    weights = hat_weights(n, spacing, m, spacing_out=target, origin_out=origin)
    position = origin + target * np.arange(m)
    assert weights.shape == (m, n)
    assert weights.dtype == np.float32
    assert (weights >= 0).all()
    outside = (position < -0.501 * spacing) | (position > (n - 0.499) * spacing)
    inside = (position > -0.499 * spacing) & (position < (n - 0.501) * spacing)
    assert not weights[outside].any()
    assert np.allclose(weights[inside].sum(1), 1, atol=1e-5)


@given(n=sizes, spacing=spacings, m=sizes, share=st.floats(0.05, 1), origin=st.floats(-5, 20))
def test_finer_weights_reproduce_linear_functions(n: int, spacing: float, m: int, share: float, origin: float) -> None:
    weights = hat_weights(n, spacing, m, spacing_out=share * spacing, origin_out=origin)
    position = origin + share * spacing * np.arange(m)
    field = (position >= 0) & (position <= (n - 1) * spacing)
    assert np.allclose((weights @ (spacing * np.arange(n)))[field], position[field], atol=1e-4 * n * spacing)


@given(n=sizes, m=sizes, factor=st.integers(1, 4), origin=st.floats(0, 5))
def test_coarser_weights_by_a_whole_factor_reproduce_linear_functions(
    n: int, m: int, factor: int, origin: float
) -> None:
    weights = hat_weights(n, 1.0, m, spacing_out=float(factor), origin_out=origin)
    position = origin + factor * np.arange(m)
    field = (position >= factor - 1) & (position <= n - factor)
    assert np.allclose((weights @ np.arange(n))[field], position[field], atol=1e-4 * n)


@given(n=sizes, m=sizes, factor=st.floats(1, 4), origin=st.floats(0, 5))
def test_coarser_weights_stay_within_a_sixth_of_a_voxel(n: int, m: int, factor: float, origin: float) -> None:
    weights = hat_weights(n, 1.0, m, spacing_out=factor, origin_out=origin)
    position = origin + factor * np.arange(m)
    field = (position >= factor) & (position <= n - 1 - factor)
    assert (np.abs((weights @ np.arange(n))[field] - position[field]) < 1 / 6).all()


def test_a_coarser_grid_averages_what_it_skips() -> None:
    weights = hat_weights(40, 1.0, 9, spacing_out=4.0, origin_out=4.0)
    assert ((weights > 0).sum(1) == 7).all()
    assert np.allclose(weights[3, 13:20], [1 / 16, 2 / 16, 3 / 16, 4 / 16, 3 / 16, 2 / 16, 1 / 16])


def test_weights_of_the_same_grid_are_the_identity() -> None:
    assert np.allclose(hat_weights(6, 1.3, 6, spacing_out=1.3, origin_out=0.0), np.eye(6))


# -- grids -------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    spacing=st.tuples(*[st.floats(1, 3)] * 3),
    degrees=st.floats(-30, 30),
    share=st.floats(0.4, 1),
)
def test_a_ramp_in_the_world_stays_one_on_the_grid(
    orientation: str, spacing: tuple[float, float, float], degrees: float, share: float
) -> None:
    slope = np.array([0.3, -0.7, 0.5])
    volume = ramp(SHAPE, phantoms.grid(spacing, orientation, SHAPE, degrees), slope, 2.0)
    grid = whole_grid(volume, share * min(spacing))
    points = grid_points(volume, grid)
    found = to_grid(volume, grid).numpy()
    extent = (np.array(canonical(volume.data, volume.affine).shape) - 1) * canonical_spacing(volume)
    inside = np.ones(grid.shape, bool)
    for axis in range(3):
        position = grid.origin_mm[axis] + grid.spacing_mm * np.arange(grid.shape[axis])
        kept = (position >= 0) & (position <= extent[axis])
        inside &= kept.reshape([-1 if i == axis else 1 for i in range(3)])
    assert inside.any()
    assert np.allclose(found[inside], (points @ slope + 2)[inside], atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 5)] * 3),
    target=st.floats(2, 4),
    multiple=st.sampled_from([1, 4, 16]),
)
def test_the_whole_grid_covers_the_field_of_view_and_is_centred(
    orientation: str, shape: tuple[int, int, int], spacing: tuple[float, float, float], target: float, multiple: int
) -> None:
    volume = Volume(np.zeros(shape, np.uint8), phantoms.grid(spacing, orientation, shape))
    grid = whole_grid(volume, target, multiple)
    size = np.array(canonical(volume.data, volume.affine).shape)
    covered, extent = np.array(grid.shape) * target, size * canonical_spacing(volume)
    assert all(n % multiple == 0 for n in grid.shape)
    assert (covered >= extent - 1e-4).all()
    assert (covered < extent + multiple * target).all()
    centre = np.array(grid.origin_mm) + (np.array(grid.shape) - 1) * target / 2
    assert np.allclose(centre, (extent - canonical_spacing(volume)) / 2)
    assert np.allclose(grid_points(volume, grid).mean((0, 1, 2)), 0, atol=1e-6)


def test_nothing_lies_outside_of_the_field_of_view() -> None:
    volume = Volume(np.ones(SHAPE, np.float32), np.eye(4))
    found = to_grid(volume, Grid(1.0, (-3.0, 2.0, 4.0), (20, 20, 20))).numpy()
    expected = np.zeros((20, 20, 20))
    expected[3:10, :6, :5] = 1
    assert np.allclose(found, expected)


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "LIA", "PSR"])
def test_labels_are_those_of_the_nearest_voxel(orientation: str) -> None:
    affine = phantoms.grid((1.0, 1.5, 2.0), orientation, SHAPE)
    data = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.uint8)
    volume = Volume(data, affine)
    grid = Grid(0.7, (-1.31, 0.41, 0.23), (14, 15, 16))
    found = labels_to_grid(data, affine, grid, spacing=canonical_spacing(volume))
    voxels = apply_affine(np.linalg.inv(affine), grid_points(volume, grid))
    nearest = np.rint(voxels).astype(int)
    inside = ((nearest >= 0) & (nearest < SHAPE)).all(-1)
    expected = np.where(inside, data[tuple(np.moveaxis(np.where(inside[..., None], nearest, 0), -1, 0))], 0)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)
    assert 0 < inside.mean() < 1


def test_labels_on_their_own_grid_are_themselves_and_a_copy() -> None:
    data = np.random.default_rng(0).integers(0, 9, SHAPE).astype(np.uint8)
    found = labels_to_grid(data, np.eye(4), whole_grid(Volume(data, np.eye(4)), 1.0), spacing=np.ones(3))
    assert np.array_equal(found, data)
    found[:] = 9
    assert not (data == 9).any()


@settings(max_examples=40, deadline=None)
@given(
    corners=st.tuples(*[st.tuples(st.integers(0, 19), st.integers(0, 19))] * 3),
    spacing=st.floats(0.5, 3),
    margin=st.floats(0, 10),
    multiple=st.sampled_from([1, 8, 16]),
    native=st.floats(0.3, 3),
)
def test_the_box_covers_the_mask_and_its_margin(
    corners: tuple[tuple[int, int], ...], spacing: float, margin: float, multiple: int, native: float
) -> None:
    whole = Grid(3.0, (-4.0, 2.5, 0.0), (20, 20, 20))
    mask = np.zeros(whole.shape, bool)
    mask[tuple(slice(min(pair), max(pair) + 1) for pair in corners)] = True
    box = box_grid(whole, mask, spacing, margin_mm=margin, multiple=multiple, native_mm=np.full(3, native))
    shift = spacing / 2 + 1e-4
    assert all(n % multiple == 0 for n in box.shape)
    middle = np.asarray(whole.origin_mm) + 3.0 * np.argwhere(mask).mean(0)
    for axis, pair in enumerate(corners):
        low = whole.origin_mm[axis] + (min(pair) - 0.5) * 3.0 - margin
        high = whole.origin_mm[axis] + (max(pair) + 0.5) * 3.0 + margin
        first, last = box.origin_mm[axis] - spacing / 2, box.origin_mm[axis] + (box.shape[axis] - 0.5) * spacing
        assert first <= low + shift
        assert last >= high - shift
        assert last - first < high - low + multiple * spacing + 1e-6
        steps = (round(middle[axis] / native) * native - box.origin_mm[axis]) / spacing
        assert steps == pytest.approx(round(steps), abs=1e-4), "a voxel of the scan is one of the grid"


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("side", [-1, 1])
def test_a_voxel_more_hardly_moves_the_box(axis: int, side: int) -> None:
    """The box moves by multiples of the folding factor, or as little as possible within the image."""
    whole = Grid(3.0, (-4.0, 2.4, 0.0), (60, 60, 60))
    ball = ((np.indices(whole.shape) - 30) ** 2).sum(0) <= 22**2
    more = ball.copy()
    more[tuple(30 + 23 * side if i == axis else 30 for i in range(3))] = True
    one, other = (box_grid(whole, mask, 1.0, margin_mm=6.0, multiple=16, native_mm=np.ones(3)) for mask in (ball, more))
    moved = np.subtract(other.origin_mm, one.origin_mm)
    assert moved == pytest.approx(8 * np.rint(moved / 8), abs=1e-6)


@pytest.mark.parametrize(
    "low, high, size, multiple, first",
    [(-70, 79, 160, 16, -80), (-70, 80, 160, 16, -72), (-81, 62, 144, 16, -81), (-3, 3.4, 8, 8, -3), (0.2, 3, 4, 1, 0)],
)
def test_a_box_begins_at_the_roundest_voxel(low: float, high: float, size: int, multiple: int, first: int) -> None:
    assert first_voxel(low, high, size, multiple=multiple) == first


def test_between_takes_a_mask_to_where_it_is() -> None:
    coarse = Grid(3.0, (-1.0, 0.0, 2.0), (12, 12, 12))
    fine = Grid(1.0, (5.0, 7.0, 9.0), (16, 16, 16))
    ball = [np.indices(g.shape) * g.spacing_mm + np.reshape(g.origin_mm, (3, 1, 1, 1)) for g in (coarse, fine)]
    inside = [((points - 16) ** 2).sum(0) < 10**2 for points in ball]
    found = between(torch.from_numpy(inside[0]), coarse, fine).numpy() > 0.5
    assert 2 * (found & inside[1]).sum() / (found.sum() + inside[1].sum()) > 0.95


# -- brightness and frame ----------------------------------------------------------------------------------------------


def test_percentiles_leave_zeros_aside() -> None:
    image = torch.zeros(10, 10, 10)
    image[5:] = torch.linspace(1, 101, 500).reshape(5, 10, 10)
    assert percentiles(image, None, (0.0, 0.5, 1.0)) == pytest.approx([1, 51, 101])
    mask = image > 51
    assert percentiles(image, mask, (0.0, 1.0))[0] > 51
    assert percentiles(torch.zeros(4, 4, 4), None, (0.1, 0.9)) == [0, 0]


def test_percentiles_of_a_large_image_are_about_those_of_a_small_one() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(128, 128, 128, generator=generator)
    assert percentiles(image, None, (0.01, 0.5, 0.99)) == pytest.approx([-2.326, 0, 2.326], abs=0.03)


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (250.0, 0.0), (1e-3, 0.0), (3.0, -40.0)])
def test_normalised_brightness_does_not_know_the_unit(scale: float, shift: float) -> None:
    image = torch.rand(20, 20, 20, generator=torch.Generator().manual_seed(0)) + 0.5
    mask = torch.zeros(20, 20, 20, dtype=torch.bool)
    mask[4:15] = True
    plain, other = normalise(image, mask), normalise(scale * image + shift, mask)
    assert torch.allclose(plain, other, atol=1e-4)
    assert not plain[~mask].any()
    assert plain.min() == 0
    assert 1 < plain.max() <= 1.5
    assert (plain[mask] == 0).float().mean() == pytest.approx(0.01, abs=0.003)


def test_standardised_brightness_has_mean_0_and_deviation_1() -> None:
    image = 40 + 7 * torch.randn(20, 20, 20, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(20, 20, 20, dtype=torch.bool)
    mask[4:15] = True
    found = NORMALISATIONS["zscore"](image, mask)
    assert found[mask].mean().item() == pytest.approx(0, abs=1e-5)
    assert found[mask].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert not found[~mask].any()
    whole = NORMALISATIONS["zscore"](image, None)
    assert torch.allclose(whole, (image - image.mean()) / image.std(correction=0), atol=1e-5)
    assert torch.allclose(NORMALISATIONS["byte"](image, mask), 255 * normalise(image, mask))


def test_normalising_nothing_is_possible() -> None:
    assert torch.isfinite(NORMALISATIONS["zscore"](torch.ones(4, 4, 4), None)).all()
    assert torch.isfinite(normalise(torch.zeros(4, 4, 4), None)).all()
    assert torch.isfinite(normalise(torch.ones(4, 4, 4), torch.zeros(4, 4, 4, dtype=torch.bool))).all()


def test_frame_of_a_box() -> None:
    brain = torch.zeros(40, 50, 60, dtype=torch.bool)
    brain[10:31, 5:46, 20:41] = True
    centre, half = brain_frame(brain)
    assert np.allclose(centre, [20, 25, 30], atol=0.5)
    assert np.allclose(half, [10, 20, 10], atol=0.5)


def test_the_frame_moves_and_mirrors_with_the_brain() -> None:
    volume = phantoms.head(phantoms.grid(), contrast=phantoms.LABEL)
    brain = torch.from_numpy(volume > 0)
    brain[:20, :20] = False
    centre, half = brain_frame(brain)
    moved_centre, moved_half = brain_frame(brain.roll((2, -3, 1), (0, 1, 2)))
    assert np.allclose(moved_centre, centre + np.array([2, -3, 1]))
    assert np.array_equal(moved_half, half)
    assert np.allclose(brain_frame(brain.flip(0))[0], [brain.shape[0] - 1 - centre[0], *centre[1:]], atol=1)


def test_an_empty_brain_has_a_frame() -> None:
    centre, half = brain_frame(torch.zeros(4, 4, 4, dtype=torch.bool))
    assert np.isfinite(centre).all()
    assert (half >= 1).all()


def test_coordinates_are_one_at_the_border_of_the_brain() -> None:
    found = coordinates((40, 60, 20), np.array([19.5, 29.5, 9.5]), np.array([10.0, 10.0, 20.0]))
    assert found.shape == (1, 3, 20, 30, 10)
    for axis, (size, half) in enumerate(((40, 10), (60, 10), (20, 20))):
        line = found[0, axis].movedim(axis, 0)[:, 0, 0].numpy()
        blocks = np.arange(size).reshape(-1, 2).mean(1)
        assert np.allclose(line, np.clip((blocks - (size - 1) / 2) / half, -1.5, 1.5))
        assert np.allclose(found[0, axis].movedim(axis, 0).flatten(1).std(1), 0)


def test_a_point_dilates_to_a_cube() -> None:
    mask = torch.zeros(9, 9, 9, dtype=torch.bool)
    mask[4, 4, 0] = True
    expected = torch.zeros(9, 9, 9, dtype=torch.bool)
    expected[2:7, 2:7, :3] = True
    assert torch.equal(dilate(mask, 2), expected)
    assert torch.equal(dilate(mask, 0), mask)


# -- turned grids ------------------------------------------------------------------------------------------------------


def turn(*degrees: float) -> Turn:
    matrix = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    one, two, three = (tuple(row) for row in matrix.tolist())
    return one, two, three


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (0.5, 1.0, 2.5)])
@pytest.mark.parametrize("orientation", ["RAS", "LIA"])
def test_a_turned_grid_shows_what_lies_at_its_places(spacing: tuple[float, float, float], orientation: str) -> None:
    x, y, z = spacing
    shape = int(60 / x), int(60 / y), int(60 / z)
    affine = phantoms.grid(spacing, orientation, shape, 0)
    slope = np.array([0.3, -0.2, 0.5])
    volume = ramp(shape, affine, slope, 100.0)
    size = np.array(canonical(volume.data, affine).shape) * canonical_spacing(volume)
    axes = np.asarray(turn(20, -35, 10))
    grid = Grid(2.0, tuple((size / 2 - axes @ np.full(3, 9.0)).tolist()), (10, 10, 10), turn(20, -35, 10))
    found = to_grid(volume, grid).numpy()
    closest = nib.as_closest_canonical(nib.Nifti1Image(volume.data, affine)).affine
    voxels = np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3)
    world = apply_affine(closest, grid.places(voxels) / canonical_spacing(volume))
    assert found.reshape(-1) == pytest.approx(world @ slope + 100, abs=0.3)
    assert grid.voxels(grid.places(voxels)) == pytest.approx(voxels, abs=1e-9)


def test_a_turned_grid_is_filled_where_it_is_wanted() -> None:
    volume = ramp((60, 60, 60), np.eye(4), np.array([0.3, -0.2, 0.5]), 100.0)
    grid = Grid(1.0, (12.0, 20.0, 8.0), (37, 30, 28), turn(20, -35, 10))
    wanted = torch.zeros(grid.shape, dtype=torch.bool)
    wanted[19:22, 3:20, 9:28] = True
    assert torch.equal(to_grid(volume, grid, wanted)[wanted], to_grid(volume, grid)[wanted])
    assert to_grid(volume, grid, wanted)[wanted].min() > 0
    assert not to_grid(volume, grid, wanted)[:19].any(), "nothing is computed in vain"


def test_masks_go_from_grid_to_turned_grid_and_back() -> None:
    upright = Grid(2.0, (0.0, 0.0, 0.0), (40, 40, 40))
    ball = ((np.indices(upright.shape) - 20) ** 2).sum(0) < 12**2
    box = box_grid(upright, ball, 1.5, margin_mm=4.0, multiple=4, native_mm=np.ones(3), turn=turn(30, 10, -20))
    assert all(n % 4 == 0 for n in box.shape)
    there = between(torch.from_numpy(ball), upright, box)
    assert there.sum() * 1.5**3 == pytest.approx(ball.sum() * 8, rel=0.02)
    edges = [there.movedim(axis, 0)[side].max() for axis in range(3) for side in (0, -1)]
    assert max(edges) == 0
    back = between(there, box, upright) > 0.5
    assert 2 * (back.numpy() & ball).sum() / (back.sum() + ball.sum()) > 0.97
    finer = box_grid(box, there.numpy() > 0.5, 1.0, margin_mm=0.0, multiple=1, native_mm=np.ones(3), turn=box.turn)
    assert between(there, box, finer).sum() == pytest.approx(ball.sum() * 8, rel=0.03)


@given(st.tuples(*[st.integers(0, 6)] * 6))
def test_the_box_of_what_is_there(cut: tuple[int, ...]) -> None:
    data = np.zeros((20, 21, 22))
    window = tuple(slice(a, n - b) for a, b, n in zip(cut[:3], cut[3:], data.shape, strict=True))
    data[window] = 1
    assert content_box(data) == tuple((w.start, w.stop) for w in window)
    assert content_box(np.zeros((3, 4, 5))) == ((0, 3), (0, 4), (0, 5))


def test_room_around_a_scan_moves_no_grid() -> None:
    volume = Volume(np.ones((30, 32, 28), np.float32), np.diag([1.2, 1.2, 1.2, 1]))
    wide = Volume(np.pad(volume.data, 17), np.diag([1.2, 1.2, 1.2, 1]))
    (one, other) = (
        whole_grid(inside["T1w"], 3.0, 4).moved(start_mm)
        for inside, start_mm in (within_content({"T1w": scan}, "T1w") for scan in (volume, wide))
    )
    assert one.shape == other.shape
    assert np.subtract(other.origin_mm, one.origin_mm) == pytest.approx(np.full(3, 17 * 1.2))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSR", "IAL"])
def test_a_grid_stays_in_the_world_in_the_frame_of_another_scan(orientation: str) -> None:
    turn = nib.affines.from_matvec(Rotation.from_rotvec([8, -16, 16], degrees=True).as_matrix(), [3, -4, 5])
    one = Volume(np.zeros(SHAPE), phantoms.grid(1.5, "RAS", SHAPE, 0))
    other = Volume(np.zeros((9, 7, 8)), phantoms.grid(2.0, orientation, (9, 7, 8), 20))
    motion = np.linalg.inv(turn @ canonical_frame(other)) @ canonical_frame(one)
    grid = Grid(2.0, (1.0, -2.0, 3.0), (4, 6, 8))
    found = grid.through(motion)
    voxels = np.array([[0.0, 0, 0], [3, 5, 7], [1, 4, 2]])
    before = apply_affine(canonical_frame(one), grid.places(voxels))
    after = apply_affine(turn @ canonical_frame(other), found.places(voxels))
    assert np.allclose(before, after, atol=1e-9)
    assert np.allclose(found.voxels(found.places(voxels)), voxels)


def test_the_frame_of_a_scan_leads_to_its_voxels() -> None:
    volume = Volume(np.zeros(SHAPE), phantoms.grid(3.0, "PIL", SHAPE, 15))
    index = np.moveaxis(np.indices(SHAPE), 0, -1)
    turned = np.stack([canonical(index[..., i], volume.affine) for i in range(3)], -1)
    places = np.moveaxis(np.indices(turned.shape[:3]), 0, -1) * canonical_spacing(volume)
    assert np.allclose(apply_affine(canonical_frame(volume), places), apply_affine(volume.affine, turned))


def test_sheared_axes_move_a_grid_least_in_its_middle() -> None:
    grid, motion = Grid(1.0, (5.0, 5.0, 5.0), (11, 11, 11)), np.eye(4)
    motion[0, 1] = 0.02
    found, middle = grid.through(motion), np.array([[5.0, 5, 5]])
    assert np.allclose(found.places(middle), apply_affine(motion, grid.places(middle)))
    assert np.allclose(np.asarray(found.turn) @ np.asarray(found.turn).T, np.eye(3))
