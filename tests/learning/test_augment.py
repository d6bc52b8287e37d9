"""Random changes: where voxels come from, elastic changes, and brightness."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from known_case import CALM, STILL, STRUCTURES, case, seeded

from bidsseg.image.grid import Grid
from bidsseg.image.resampling import to_grid
from bidsseg.image.volume import Volume
from bidsseg.learning import augment
from bidsseg.learning.augment import Spatial


def test_rotations_keep_lengths_and_sides() -> None:
    turn = augment.rotation([0.3, -0.2, 0.5])
    assert torch.allclose(turn @ turn.T, torch.eye(3), atol=1e-6)
    assert torch.det(turn).item() == pytest.approx(1)
    assert torch.allclose(augment.rotation([np.pi / 2, 0, 0]) @ torch.tensor([0.0, 1, 0]), torch.eye(3)[2], atol=1e-6)


def test_the_middle_of_the_sample_is_the_centre_it_is_given() -> None:
    centre = torch.tensor([20.0, 15.0, 30.0])
    spatial = replace(STILL, rotation_deg=20, scale=0.2, shear=0.1)
    warp = augment.draw_warp(spatial, (33, 41, 37), 1.5, centre=centre, widening=None, generator=seeded())
    assert torch.allclose(warp.source[16, 20, 18], centre, atol=1e-3)


def test_ventricles_widen_away_from_the_sampled_image() -> None:
    """A sample shows a larger ventricle where the source moves towards it."""
    known = case()

    def size(spatial: Spatial, seed: int) -> int:
        warp = augment.draw_warp(
            spatial, (32, 32, 32), 1.0, centre=known.centre, widening=known.widening, generator=seeded(seed)
        )
        values = augment.sample_labels(known.annotations[0].values, warp.source)
        return int((values == STRUCTURES.indices.index(4)).sum())

    plain = size(STILL, 0)
    sizes = [size(replace(STILL, ventricles_mm=6.0), seed) for seed in range(30)]
    assert 10 <= sizes.count(plain) <= 25
    assert max(sizes) > 1.5 * plain
    assert min(sizes) > 0.7 * plain


def test_looking_up_is_linear_between_voxels() -> None:
    values = torch.stack([torch.arange(5.0).reshape(5, 1, 1).expand(5, 4, 3), 7 * torch.ones(5, 4, 3)])
    found = augment.look_up(values, torch.tensor([[0.5, 3.25], [1.0, 2.9], [0.0, 1.5]]))
    assert torch.allclose(found, torch.tensor([[0.5, 3.25], [7.0, 7.0]]))


def test_an_image_sampled_at_its_own_voxels_is_itself() -> None:
    image = torch.rand(5, 6, 7, generator=seeded())
    at = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in image.shape), indexing="ij"), -1)
    channels = torch.stack([image, 1 - image])
    assert torch.allclose(augment.sample_image(channels, augment.Warp(at, False)), channels, atol=1e-6)
    whole = (100 * image).to(torch.uint8)
    assert torch.equal(augment.sample_labels(whole, at + 0.3), whole)
    assert not augment.sample_labels(whole, at + 10).any()
    assert not augment.sample_labels(whole, at - 10).any()


def test_a_still_draw_interpolates_nothing() -> None:
    for seed, shape in enumerate([(8, 10, 12), (7, 9, 10)]):
        warp = augment.draw_warp(
            Spatial(still=1), shape, 1.0, centre=torch.tensor([6.3, 5.5, 4.1]), widening=None, generator=seeded(seed)
        )
        assert torch.equal(warp.source, warp.source.round())
        assert warp.source.shape == (*shape, 3)
        assert (warp.source[1:, :, :, 0] - warp.source[:-1, :, :, 0]).unique().tolist() == [-1 if warp.mirrored else 1]


@pytest.mark.parametrize("thickest", [1.0, 6.0])
def test_coarse_images_keep_shape_and_mean(thickest: float) -> None:
    image = torch.rand(40, 30, 20, generator=seeded())
    for seed in range(8):
        found = augment.coarsen(image, thickest, 1.0, generator=seeded(seed))
        assert found.shape == image.shape
        assert found.mean().item() == pytest.approx(0.5, abs=0.02)


def test_intensity_without_strength_changes_nothing() -> None:
    image = torch.rand(16, 16, 16, generator=seeded())
    assert torch.allclose(augment.change_intensity(image, CALM, 1.0, generator=seeded()), image)


def test_the_published_elastic_change_has_its_deviation_at_two_control_points_of_each_axis() -> None:
    """Oberoi et al. 2021: cubic B-splines between two points, with zero slope there and a deviation of 15."""
    spatial = Spatial(elastic_mm=15.0, elastic_varies=False, elastic_points=2, elastic_order=3)
    drawn = torch.stack([augment.elastic(spatial, (9, 11, 7), seeded(seed)) for seed in range(400)])
    corners = drawn[:, :, ::8, ::10, ::6]
    assert corners.std().item() == pytest.approx(15, rel=0.03)
    assert corners.mean().abs() < 1
    share = torch.linspace(0, 1, 9)
    along = (3 * share**2 - 2 * share**3)[None, None] * (drawn[:, :, -1, 0, 0] - drawn[:, :, 0, 0, 0])[..., None]
    assert torch.allclose(drawn[:, :, :, 0, 0], drawn[:, :, :1, 0, 0] + along, atol=1e-3)


def test_elastic_changes_of_our_own_vary_and_are_linear_between_points() -> None:
    spatial = Spatial(elastic_mm=4.0, elastic_points=3)
    drawn = torch.stack([augment.elastic(spatial, (9, 9, 9), seeded(seed)) for seed in range(400)])
    deviations = drawn[:, :, ::4, ::4, ::4].flatten(1).std(1)
    assert deviations.max() < 6 and deviations.min() < 0.2
    middle = (drawn[:, :, 0] + drawn[:, :, 4]) / 2
    assert torch.allclose(drawn[:, :, 2], middle, atol=1e-5)


def test_an_elastic_change_moves_image_and_labels_together() -> None:
    spatial = Spatial(0, 0, 0, 0, elastic_mm=6.0, elastic_points=3, ventricles_mm=0, flip=0, still=0)
    shape = (24, 28, 20)
    labels = (torch.arange(24 * 28 * 20) // 40 % 5).view(shape).to(torch.uint8)
    warp = augment.draw_warp(
        spatial, shape, 1.0, centre=torch.tensor([11.5, 13.5, 9.5]), widening=None, generator=seeded(3)
    )
    moved = augment.sample_labels(labels, warp.source)
    near = augment.sample_image(labels.float()[None], augment.Warp(warp.source.round(), False))[0]
    inside = ((warp.source >= 0) & (warp.source <= torch.tensor(shape) - 1)).all(-1)
    assert not torch.equal(moved, labels) and set(moved.unique().tolist()) <= set(labels.unique().tolist())
    assert torch.allclose(moved[inside].float(), near[inside], atol=1e-3)


@pytest.mark.parametrize("spacing", [1.0, 2.0, 3.0])
def test_images_are_as_blurred_as_those_to_be_segmented(spacing: float) -> None:
    """At voxels of the image, both are the same mean; beyond the edges, too."""
    image = torch.rand(2, 31, 28, 34, generator=seeded())
    wanted = [to_grid(Volume(one.numpy(), np.eye(4)), Grid(spacing, (0.0, 0.0, 0.0), (10, 9, 11))) for one in image]
    step = int(spacing)
    found = augment.blurred_for(image, spacing)[:, ::step, ::step, ::step]
    assert torch.allclose(found[:, :10, :9, :11], torch.stack(wanted), atol=1e-5)
