"""Labelled scans, random samples of them, and held-out participants."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator

from bidsseg.errors import DataError
from bidsseg.image.brightness import NORMALISATIONS
from bidsseg.labels import Protocol, Region, load_protocol
from bidsseg.learning import augment, synthesis
from bidsseg.learning.annotation_files import positions
from bidsseg.learning.augment import Intensity, Spatial
from bidsseg.learning.case_reading import brain_of, towards_ventricles
from bidsseg.learning.cases import (
    Annotation,
    Case,
    Sample,
    Sampling,
    View,
    draw_sample,
    field_of_view,
)
from bidsseg.learning.segnet import draw_case
from bidsseg.learning.synthesis import noise_around

STRUCTURES = load_protocol("FreeSurfer")
FAST = load_protocol("FAST")
SHAPE = (40, 44, 36)
STILL = Spatial(rotation_deg=0, scale=0, shear=0, shift_mm=0, elastic_mm=0, ventricles_mm=0, flip=0, still=0)
CALM = Intensity(gamma=0, bias=0, noise=0, blur=0)
BOTH = ("T1w", "FLAIR")
SAMPLING = Sampling(shape=(32, 32, 32), points=3000)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def labels() -> np.ndarray:
    """White matter of both hemispheres with cortex around it, and a ventricle in the left hemisphere."""
    values = np.zeros(SHAPE, np.uint8)
    values[6:20, 6:38, 6:30], values[20:34, 6:38, 6:30] = 3, 42
    values[9:20, 9:35, 9:27], values[20:31, 9:35, 9:27] = 2, 41
    values[12:18, 14:26, 12:22] = 4
    return values


def case(image: bool = True, *, head: bool = False) -> Case:
    """A case with two annotations; its brightness in the brain is the position along the first axis."""
    values = labels()
    annotations = [Annotation(STRUCTURES, positions(values, STRUCTURES, "here"))]
    if not head:
        tissue = np.array([0, 1, 2, 3])[np.select([values == 0, values == 4, np.isin(values, (3, 42))], [0, 1, 2], 3)]
        annotations.append(Annotation(FAST, positions(tissue, FAST, "here")))
    ramp = torch.arange(float(SHAPE[0])).reshape(-1, 1, 1).expand(SHAPE) + 10
    brain = torch.from_numpy(values > 0)
    widening = towards_ventricles(annotations[0])
    return Case("data/sub-01", (ramp * brain)[None] if image else None, tuple(annotations), brain, widening)


def same(one: Sample, other: Sample) -> bool:
    tensors = [(s.image, s.points, s.coordinates, *(values for _, values in s.values)) for s in (one, other)]
    return all(a is b is None or torch.equal(a, b) for a, b in zip(*tensors, strict=True))


# -- scans that are moved as a whole -----------------------------------------------------------------------------------


def in_its_box(values: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    where = torch.nonzero(brain)
    return values[tuple(slice(int(a), int(b) + 1) for a, b in zip(where.amin(0), where.amax(0), strict=True))]


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_scan_that_is_only_mirrored_keeps_its_labels_and_its_brightness(flip: float) -> None:
    known = case()
    assert known.image is not None
    drawn = draw_case(known, View(SAMPLING, replace(augment.UNMOVED, flip=flip), CALM, 1.0), seeded())
    assert drawn.image is not None and drawn.name == known.name
    axes = [0] if flip else []
    for before, after in zip(known.annotations, drawn.annotations, strict=True):
        expected = in_its_box(before.values, known.brain).flip(axes).long()
        if flip:
            expected = torch.tensor(before.protocol.partners())[expected]
        assert torch.equal(in_its_box(after.values, drawn.brain).long(), expected)
        assert after.values.dtype == before.values.dtype and not after.values[~drawn.brain].any()
    brightness = in_its_box(known.image[0], known.brain).flip(axes)
    shares = in_its_box(drawn.image[0], drawn.brain)[brightness > 0] / brightness[brightness > 0]
    assert shares.max() / shares.min() < 1.0001


@pytest.mark.parametrize("image", [True, False])
def test_a_scan_that_is_moved_as_a_whole_is_decided_by_its_seed(image: bool) -> None:
    view = View(SAMPLING, Spatial(), Intensity(), 1.0)
    one, again, other = (draw_case(case(image), view, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(one.brain, again.brain) and not torch.equal(one.brain, other.brain)
    assert torch.equal(one.annotations[0].values, again.annotations[0].values)
    assert (one.annotations[0].values[one.brain] > 0).all()
    if image:
        assert one.image is not None and again.image is not None and torch.equal(one.image, again.image)
        assert not one.image[0][~one.brain].any() and one.image[0][one.brain].std() > 0
    else:
        assert one.image is None


# -- samples -----------------------------------------------------------------------------------------------------------


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


# -- where voxels come from --------------------------------------------------------------------------------------------


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


# -- brightness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FreeSurfer", "BrainCOLOR", "head", "FAST"])
@pytest.mark.parametrize("realistic", [True, False])
def test_left_and_right_are_equally_bright(name: str, realistic: bool) -> None:
    protocol = load_protocol(name)
    means, spread = synthesis.brightness(protocol, realistic=realistic, generator=seeded())
    partners = torch.tensor(protocol.partners())
    assert torch.equal(means, means[partners])
    assert torch.equal(spread, spread[partners])
    assert len(means.unique()) > len(means) / 3
    assert (means >= 0).all()


def test_a_synthetic_t1w_has_its_contrast() -> None:
    at = {region.name: i for i, region in enumerate(STRUCTURES.regions)}
    means = torch.stack(
        [synthesis.brightness(STRUCTURES, realistic=True, generator=seeded(seed))[0] for seed in range(50)]
    ).mean(0)
    white, grey, fluid = (
        means[at[name]] for name in ("Left Cerebral White Matter", "Left Cerebral Cortex", "Left Lateral Ventricle")
    )
    assert white > grey + 0.2 > fluid + 0.5


def test_a_synthetic_image_shows_the_regions() -> None:
    values = case().annotations[0].values
    image = synthesis.synthesise(values, STRUCTURES, realistic=True, generator=seeded())
    means, _ = synthesis.brightness(STRUCTURES, realistic=True, generator=seeded())
    inner = image[12:17, 30:33, 12:24].mean()
    assert image.shape == values.shape
    assert inner == pytest.approx(means[STRUCTURES.indices.index(2)].item(), abs=0.03)


def test_smoothing_keeps_what_is_even() -> None:
    found = synthesis.smooth(torch.ones(8, 9, 10), 0.7)
    assert torch.allclose(found[1:-1, 1:-1, 1:-1], torch.ones(6, 7, 8))


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


def test_an_imperfect_strip_widens_the_brain_at_least_and_at_most_so_much() -> None:
    brain = torch.zeros(12, 12, 12, dtype=torch.bool)
    brain[5:7, 5:7, 5:7] = True

    def widened(voxels: int) -> torch.Tensor:
        expected = torch.zeros(24, 24, 24, dtype=torch.bool)
        inside = slice(2 * (5 - voxels), 2 * (7 + voxels))
        expected[inside, inside, inside] = True
        return expected

    for inner_mm, least in ((0.0, 0), (2.0, 1), (5.0, 2), (8.0, 4)):
        assert torch.equal(synthesis.strip(brain, inner_mm, 0.0, spacing_mm=2.0, generator=seeded()), widened(least))
    found = [synthesis.strip(brain, 2.0, 4.0, spacing_mm=2.0, generator=seeded(seed)) for seed in range(8)]
    for mask in found:
        assert not (widened(1) & ~mask).any() and not (mask & ~widened(3)).any()
    assert len({int(mask.sum()) for mask in found}) > 4


def test_a_still_draw_interpolates_nothing() -> None:
    for seed, shape in enumerate([(8, 10, 12), (7, 9, 10)]):
        warp = augment.draw_warp(
            Spatial(still=1), shape, 1.0, centre=torch.tensor([6.3, 5.5, 4.1]), widening=None, generator=seeded(seed)
        )
        assert torch.equal(warp.source, warp.source.round())
        assert warp.source.shape == (*shape, 3)
        assert (warp.source[1:, :, :, 0] - warp.source[:-1, :, :, 0]).unique().tolist() == [-1 if warp.mirrored else 1]


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


# -- several images ----------------------------------------------------------------------------------------------------


def two_images(flair: bool = True) -> Case:
    """Return a case whose second image is ten times as bright with a gradient along another axis, or is missing."""
    known = case()
    assert known.image is not None
    ramp = torch.arange(float(SHAPE[2])).expand(SHAPE) + 10
    return replace(known, image=torch.cat([known.image, 10 * flair * ramp[None] * known.brain]))


@pytest.mark.parametrize("changes", [{}, {"whole_head": True}, {"whole_head": True, "anywhere": True}])
@pytest.mark.parametrize("normalisation", ["percentile", "zscore"])
def test_each_image_is_normalised_by_itself(changes: dict[str, bool], normalisation: str) -> None:
    """Both channels equal the samples of the single images."""
    sampling, given = replace(SAMPLING, **changes, stripped=0, cut=0), two_images()  # type: ignore[arg-type]
    assert given.image is not None
    sample = draw_sample(given, View(sampling, STILL, CALM, 1.0, normalisation, BOTH), seeded())
    assert sample.image.shape == (1, 2, 32, 32, 32)
    for i in range(2):
        single = replace(given, image=given.image[i : i + 1])
        alone = draw_sample(single, View(sampling, STILL, CALM, 1.0, normalisation), seeded())
        assert torch.allclose(sample.image[0, i], alone.image[0, 0], atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"whole_head": True}, {"whole_head": True, "anywhere": True}])
@pytest.mark.parametrize("normalisation", ["percentile", "zscore", "byte"])
def test_a_missing_image_stays_zero(changes: dict[str, bool], normalisation: str) -> None:
    sampling = replace(SAMPLING, **changes, noise_around=1.0)  # type: ignore[arg-type]
    for given, share in ((two_images(flair=False), 0.0), (two_images(), 1.0), (case(image=False), 1.0)):
        asked = replace(sampling, missing=share)
        image = draw_sample(given, View(asked, Spatial(), Intensity(), 1.0, normalisation, BOTH), seeded()).image
        assert image.shape == (1, 2, 32, 32, 32)
        assert image[0, 0].any() and not image[0, 1].any()


def test_images_are_hidden_as_often_as_asked() -> None:
    sampling = replace(SAMPLING, shape=(16, 16, 16), points=100, missing=0.3)
    view = View(sampling, STILL, CALM, 2.0, inputs=BOTH)
    drawn = (draw_sample(two_images(), view, seeded(seed)) for seed in range(100))
    assert 20 <= sum(not sample.image[0, 1].any() for sample in drawn) <= 40


def test_synthetic_images_of_the_same_labels_have_the_contrasts_of_their_kinds() -> None:
    values = case().annotations[0].values
    t1w, flair = synthesis.synthesise_each(values, STRUCTURES, realistic=True, inputs=BOTH, generator=seeded())
    assert torch.equal(t1w, synthesis.synthesise(values, STRUCTURES, realistic=True, generator=seeded()))
    white, grey = (values == [r.name for r in STRUCTURES.regions].index(f"Left Cerebral {x}") for x in (
        "White Matter", "Cortex"))  # fmt: skip
    assert t1w[white].mean() > t1w[grey].mean() + 0.1
    assert flair[grey].mean() > flair[white].mean()


# -- annotations -------------------------------------------------------------------------------------------------------


def test_positions_count_the_rows_of_the_table() -> None:
    values = np.array([[[0, 41, 4]]], np.uint8)
    found = positions(values, STRUCTURES, "here")
    assert [STRUCTURES.regions[i].name for i in found.flatten().tolist()] == [
        "Background", "Right Cerebral White Matter", "Left Lateral Ventricle",
    ]  # fmt: skip


@pytest.mark.parametrize("value, kind", [(200, np.uint8), (-1, np.int16), (40_000, np.uint16), (10**9, np.int32)])
def test_a_value_that_the_protocol_lacks_is_named_with_its_file(value: int, kind: type) -> None:
    with pytest.raises(DataError, match=rf"sub-01_dseg\.nii\.gz: the values \[{value}\] .* FAST"):
        positions(np.array([[[0, 1, value]]], kind), FAST, "sub-01_dseg.nii.gz")


def test_protocols_may_have_more_regions_than_fit_into_a_byte() -> None:
    many = Protocol("many", tuple(Region(2 * i, f"r{i}", f"r{i}", "#000000", None) for i in range(400)))
    found = positions(np.array([[[0, 2, 520, 798]]], np.uint16), many, "here")
    assert found.flatten().tolist() == [0, 1, 260, 399]
    at = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in found.shape), indexing="ij"), -1)
    assert torch.equal(augment.sample_labels(found, at), found)


def test_the_brain_is_what_is_surely_in_it() -> None:
    cortex = Annotation(
        load_protocol("BrainCOLOR"), positions(np.array([[[0, 63, 100, 4]]]), load_protocol("BrainCOLOR"), "")
    )
    tissue = Annotation(FAST, positions(np.array([[[0, 1, 2, 1]]]), FAST, ""))
    lesion = Annotation(load_protocol("lesion"), positions(np.array([[[0, 0, 1, 0]]]), load_protocol("lesion"), ""))
    for annotations, expected in (
        ([cortex], [False, False, True, True]),
        ([cortex, tissue, lesion], [False, True, True, True]),
    ):
        brain = brain_of(annotations)
        assert brain is not None
        assert brain.flatten().tolist() == expected
    assert brain_of([lesion]) is None


def test_the_direction_of_the_ventricles() -> None:
    found = towards_ventricles(case().annotations[0])
    assert found is not None
    assert found.shape == (3, 10, 11, 9)
    assert found.norm(dim=0).max().item() == pytest.approx(1)
    middle = found[:, :, 5, 4]
    assert middle[0, 1] > 0.1 > -0.1 > middle[0, 7]
    assert towards_ventricles(case().annotations[1]) is None


# -- elastic changes ---------------------------------------------------------------------------------------------------


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


def test_noise_takes_the_place_of_air_alone() -> None:
    head = torch.zeros((12, 12, 12), dtype=torch.bool)
    head[3:9, 3:9, 3:9] = True
    images = torch.where(head, 0.7, 0.0).expand(2, -1, -1, -1)
    found = noise_around(images, head, seeded(1))
    assert torch.equal(found[:, head], images[:, head])
    assert (found[:, ~head] > 0).all() and found[:, ~head].std() > 0.02
    assert not torch.equal(found, noise_around(images, head, seeded(2)))
