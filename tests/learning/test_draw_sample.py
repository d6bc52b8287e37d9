"""Random samples of a scan: their grid, points, values and brightness."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from known_case import CALM, SAMPLING, SHAPE, STILL, STRUCTURES, case, labels, seeded

from bidsseg.image.brightness import NORMALISATIONS
from bidsseg.labels import load_protocol
from bidsseg.learning.augment import Intensity, Spatial
from bidsseg.learning.cases import Annotation, Sample, View, draw_sample, field_of_view


def same(one: Sample, other: Sample) -> bool:
    tensors = [(s.image, s.points, s.coordinates, *(values for _, values in s.values)) for s in (one, other)]
    return all(a is b is None or torch.equal(a, b) for a, b in zip(*tensors, strict=True))


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("whole_head", [True, False])
def test_a_sample_is_decided_by_its_seed(image: bool, whole_head: bool) -> None:
    sampling = replace(SAMPLING, whole_head=whole_head)
    drawn = [draw_sample(case(image), View(sampling, Spatial(), Intensity(), 1.0), seeded(seed)) for seed in (5, 5, 6)]
    assert same(drawn[0], drawn[1])
    assert not same(drawn[0], drawn[2])


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("spacing", [0.8, 2.0])
@pytest.mark.parametrize("whole_head", [True, False])
def test_what_a_sample_holds(image: bool, spacing: float, whole_head: bool) -> None:
    sampling = replace(SAMPLING, shape=(32, 48, 16), whole_head=whole_head)
    sample = draw_sample(case(image), View(sampling, Spatial(), Intensity(), spacing), seeded())
    assert sample.image.shape == (1, 1, 32, 48, 16)
    assert torch.isfinite(sample.image).all()
    assert (sample.image >= 0).all() and (sample.image <= 1.5).all()
    assert sample.points.shape == (3000, 3)
    assert (sample.points >= 0).all() and (sample.points < torch.tensor([32, 48, 16])).all()
    assert [protocol.name for protocol, _ in sample.values] == ["FreeSurfer", "FAST"]
    assert all(values.shape == (3000,) and values.dtype == torch.long for _, values in sample.values)
    assert (sample.coordinates is None) == whole_head
    assert sample.coordinates is None or sample.coordinates.shape == (1, 3, 16, 24, 8)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("spacing", [1.0, 0.5, 1.7])
def test_values_are_those_of_the_annotation_at_the_points(flip: float, spacing: float) -> None:
    known = case()
    sample = draw_sample(known, View(SAMPLING, replace(STILL, flip=flip), CALM, spacing), seeded())
    offset = (sample.points - (torch.tensor(SAMPLING.shape) - 1) / 2) * spacing
    offset[:, 0] *= 1 - 2 * flip
    source = known.centre + offset
    nearest = source.round().long()
    clear = ((source - nearest).abs() < 0.45).all(1) & (nearest >= 0).all(1) & (nearest < torch.tensor(SHAPE)).all(1)
    assert clear.float().mean() > 0.3
    for annotation, (protocol, values) in zip(known.annotations, sample.values, strict=True):
        expected = annotation.values[tuple(nearest[clear].T)].long()
        if flip:
            expected = torch.tensor(protocol.partners())[expected]
        assert torch.equal(values[clear], expected)
    assert len(sample.values[0][1].unique()) >= 3


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_image_lies_where_its_values_lie(flip: float) -> None:
    sample = draw_sample(case(), View(SAMPLING, replace(STILL, flip=flip), CALM, 1.0), seeded())
    brightness = sample.image[0, 0][tuple(sample.points.T)]
    sides = [[r.name.startswith(side) for r in STRUCTURES.regions] for side in ("Left", "Right")]
    left, right = (brightness[torch.tensor(side)[sample.values[0][1]]].mean() for side in sides)
    assert (left < right) == (flip == 0)


def test_outside_of_the_scan_is_background() -> None:
    sample = draw_sample(case(), View(replace(SAMPLING, shape=(96, 96, 96)), STILL, CALM, 1.0), seeded())
    outside = ((sample.points < 20) | (sample.points >= 76)).any(1)
    assert outside.any()
    assert not any(values[outside].any() for _, values in sample.values)


def test_rare_regions_are_drawn_more_often_than_by_their_size() -> None:
    def share(balance: float) -> float:
        sampling = replace(SAMPLING, inside=1.0, balance=balance)
        values = draw_sample(case(), View(sampling, STILL, CALM, 1.0), seeded()).values[0][1]
        ventricle = STRUCTURES.indices.index(4)
        return float((values == ventricle).float().mean())

    by_size = (labels() == 4).sum() / (labels() > 0).sum()
    assert share(0.0) == pytest.approx(by_size, abs=0.02)
    assert share(0.0) + 0.03 < share(0.5) < share(1.0)


def test_rare_regions_of_every_annotation_are_drawn_more_often() -> None:
    values = torch.zeros(SHAPE, dtype=torch.int16)
    values[18:22, 20:24, 16:20] = 1
    both = replace(case(), annotations=(*case().annotations, Annotation(load_protocol("lesion"), values)))

    def share(balance: float) -> float:
        sampling = replace(SAMPLING, inside=1.0, balance=balance)
        return float(draw_sample(both, View(sampling, STILL, CALM, 1.0), seeded()).values[-1][1].float().mean())

    assert share(0.5) > 2 * share(0.0)


def test_points_are_in_the_brain_as_often_as_asked() -> None:
    for inside in (0.0, 0.5, 1.0):
        sampling = replace(SAMPLING, shape=(64, 64, 64), inside=inside)
        sample = draw_sample(case(), View(sampling, STILL, CALM, 1.0), seeded())
        found = (sample.values[0][1] > 0).float().mean().item()
        elsewhere = (labels() > 0).sum() / 64**3
        assert found == pytest.approx(inside + (1 - inside) * elsewhere, abs=0.08)


def test_a_sample_without_brain_still_has_points() -> None:
    empty = replace(case(), brain=torch.zeros(SHAPE, dtype=torch.bool))
    sample = draw_sample(empty, View(SAMPLING, STILL, CALM, 1.0), seeded())
    assert len(sample.points) > 0
    assert all(values.shape == (len(sample.points),) for _, values in sample.values)


def test_every_voxel_may_be_read() -> None:
    sampling = replace(SAMPLING, shape=(16, 20, 24), points=0)
    sample = draw_sample(case(), View(sampling, STILL, CALM, 1.0), seeded())
    assert len(sample.points) == 16 * 20 * 24 == len(sample.points.unique(dim=0))
    assert all(len(values) == len(sample.points) for _, values in sample.values)


def test_a_sample_from_anywhere_lies_in_the_scan() -> None:
    sampling = replace(SAMPLING, shape=(16, 16, 16), points=0, whole_head=True, anywhere=True)
    still, given = replace(STILL, still=1), case()
    assert given.image is not None
    whole = NORMALISATIONS["zscore"](given.image[0], None)
    counts = set()
    for seed in range(12):
        sample = draw_sample(given, View(sampling, still, Intensity(), 1.0, "zscore"), seeded(seed))
        assert (sample.image.reshape(-1, 1) - whole.unique()).abs().amin(1).max() < 1e-3
        counts.add(int((sample.values[0][1] > 0).sum()))
    assert len(counts) > 6


def test_the_field_of_view_is_cut_at_one_side() -> None:
    sides = set()
    for seed in range(40):
        seen = field_of_view((40, 60, 20), 0.35, seeded(seed)).numpy()
        cut = [~np.any(seen, tuple(i for i in range(3) if i != axis)) for axis in range(3)]
        assert sum(part.any() for part in cut) == 1
        axis = [part.any() for part in cut].index(True)
        assert 0.04 * len(cut[axis]) - 1 < cut[axis].sum() <= 0.35 * len(cut[axis])
        assert cut[axis][0] != cut[axis][-1]
        sides.add((axis, bool(cut[axis][0])))
    assert len(sides) == 6


def test_a_stripped_brain_may_be_cut_and_surrounded_by_noise() -> None:
    """The cut part is empty, no region of the brain is a target there, and the frame is less certain."""
    still = View(replace(SAMPLING, inside=1.0), STILL, CALM, 1.0)
    cut = replace(still, sampling=replace(still.sampling, cut=1.0, deepest_cut=0.5))
    noisy = replace(still, sampling=replace(still.sampling, noise_around=1.0))
    errors: dict[str, list[float]] = {"whole": [], "cut": []}
    hidden = 0
    for seed in range(20):
        whole, part, around = (draw_sample(case(), view, seeded(seed)) for view in (still, cut, noisy))
        hidden += int(((whole.image[0, 0] > 0) & (part.image[0, 0] == 0)).sum() > 100)
        x, y, z = part.points.T
        assert part.image[0, 0][x, y, z].ne(0).float().mean() > 0.85  # the darkest voxels are 0 too
        dark = whole.image[0, 0] == 0
        assert around.image[0, 0][dark].std() > whole.image[0, 0][dark].std()
        for name, sample in (("whole", whole), ("cut", part)):
            assert sample.coordinates is not None
            middle = sample.coordinates[0, :, 8, 8, 8]
            errors[name].append(float(middle.norm()))
    assert hidden > 10
    assert np.std(errors["cut"]) > 1.5 * np.std(errors["whole"])


def test_synthetic_images_have_the_contrasts_of_the_recipe() -> None:
    """Fluid is darker than white matter in a T1w, and brighter in a T2w."""
    sampling = replace(SAMPLING, realistic=1.0, stripped=0.0)

    def fluid_is_brighter(view: View, seed: int) -> bool:
        sample = draw_sample(case(image=False), view, seeded(seed))
        values = sample.values[0][1]
        x, y, z = sample.points.T
        brightness = sample.image[0, 0, x, y, z]
        fluid, white = (STRUCTURES.indices.index(index) for index in (4, 2))
        return bool(brightness[values == fluid].mean() > brightness[values == white].mean())

    view = View(sampling, STILL, CALM, 1.0)
    assert not any(fluid_is_brighter(view, seed) for seed in range(5))
    assert all(fluid_is_brighter(replace(view, contrasts=("T2w",)), seed) for seed in range(5))
    both = replace(view, sampling=replace(sampling, contrasts=("T1w", "T2w")))
    assert {fluid_is_brighter(both, seed) for seed in range(12)} == {False, True}
