"""Labelled scans, random samples of them, and who is held out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest
import torch
from torch import Generator

from bidsseg.errors import DataError, InputMissing, NothingSelected
from bidsseg.image.grid import NORMALISATIONS, Grid, whole_grid
from bidsseg.image.volume import Volume
from bidsseg.labels import Protocol, Region, load_protocol
from bidsseg.learning import augment, datasets, synthesis
from bidsseg.learning.augment import Intensity, Spatial
from bidsseg.learning.cases import (
    Annotation,
    Case,
    Sample,
    Sampling,
    draw_centre,
    draw_sample,
    field_of_view,
    positions,
    towards_ventricles,
)
from bidsseg.learning.datasets import brain_of, load_cases, person, split
from bidsseg.settings import Settings, Training

STRUCTURES = load_protocol("FreeSurfer")
FAST = load_protocol("FAST")
SHAPE = (40, 44, 36)
STILL = Spatial(rotation_deg=0, scale=0, shear=0, shift_mm=0, elastic_mm=0, ventricles_mm=0, flip=0, still=0)
CALM = Intensity(gamma=0, bias=0, noise=0, blur=0)
SAMPLING = Sampling(shape=(32, 32, 32), points=3000)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def labels() -> np.ndarray:
    """White matter of both hemispheres, with cortex around it and a ventricle in it on the left."""
    values = np.zeros(SHAPE, np.uint8)
    values[6:20, 6:38, 6:30], values[20:34, 6:38, 6:30] = 3, 42
    values[9:20, 9:35, 9:27], values[20:31, 9:35, 9:27] = 2, 41
    values[12:18, 14:26, 12:22] = 4
    return values


def case(image: bool = True, *, head: bool = False) -> Case:
    """A case with two annotations; its brightness is the position on the first axis where there is brain."""
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


# -- samples -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("whole_head", [True, False])
def test_a_sample_is_decided_by_its_seed(image: bool, whole_head: bool) -> None:
    sampling = replace(SAMPLING, whole_head=whole_head)
    drawn = [draw_sample(case(image), sampling, Spatial(), Intensity(), 1.0, seeded(seed)) for seed in (5, 5, 6)]
    assert same(drawn[0], drawn[1])
    assert not same(drawn[0], drawn[2])


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("spacing", [0.8, 2.0])
@pytest.mark.parametrize("whole_head", [True, False])
def test_what_a_sample_holds(image: bool, spacing: float, whole_head: bool) -> None:
    sampling = replace(SAMPLING, shape=(32, 48, 16), whole_head=whole_head)
    sample = draw_sample(case(image), sampling, Spatial(), Intensity(), spacing, seeded())
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
    sample = draw_sample(known, SAMPLING, replace(STILL, flip=flip), CALM, spacing, seeded())
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
    sample = draw_sample(case(), SAMPLING, replace(STILL, flip=flip), CALM, 1.0, seeded())
    brightness = sample.image[0, 0][tuple(sample.points.T)]
    sides = [[r.name.startswith(side) for r in STRUCTURES.regions] for side in ("Left", "Right")]
    left, right = (brightness[torch.tensor(side)[sample.values[0][1]]].mean() for side in sides)
    assert (left < right) == (flip == 0)


def test_outside_of_the_scan_is_background() -> None:
    sample = draw_sample(case(), replace(SAMPLING, shape=(96, 96, 96)), STILL, CALM, 1.0, seeded())
    outside = ((sample.points < 20) | (sample.points >= 76)).any(1)
    assert outside.any()
    assert not any(values[outside].any() for _, values in sample.values)


def test_rare_regions_are_drawn_more_often_than_by_their_size() -> None:
    def share(balance: float) -> float:
        sampling = replace(SAMPLING, inside=1.0, balance=balance)
        values = draw_sample(case(), sampling, STILL, CALM, 1.0, seeded()).values[0][1]
        ventricle = STRUCTURES.indices.index(4)
        return float((values == ventricle).float().mean())

    by_size = (labels() == 4).sum() / (labels() > 0).sum()
    assert share(0.0) == pytest.approx(by_size, abs=0.02)
    assert share(0.0) + 0.03 < share(0.5) < share(1.0)


def test_points_are_in_the_brain_as_often_as_asked() -> None:
    for inside in (0.0, 0.5, 1.0):
        sampling = replace(SAMPLING, shape=(64, 64, 64), inside=inside)
        sample = draw_sample(case(), sampling, STILL, CALM, 1.0, seeded())
        found = (sample.values[0][1] > 0).float().mean().item()
        elsewhere = (labels() > 0).sum() / 64**3
        assert found == pytest.approx(inside + (1 - inside) * elsewhere, abs=0.08)


def test_a_sample_without_brain_still_has_points() -> None:
    empty = replace(case(), brain=torch.zeros(SHAPE, dtype=torch.bool))
    sample = draw_sample(empty, SAMPLING, STILL, CALM, 1.0, seeded())
    assert len(sample.points) > 0
    assert all(values.shape == (len(sample.points),) for _, values in sample.values)


def test_the_field_of_view_is_cut_at_one_side() -> None:
    sides = set()
    for seed in range(40):
        seen = field_of_view((40, 60, 20), seeded(seed)).numpy()
        cut = [~seen.any(tuple(i for i in range(3) if i != axis)) for axis in range(3)]
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
    warp = augment.draw_warp(spatial, (33, 41, 37), 1.5, centre, None, seeded())
    assert torch.allclose(warp.source[16, 20, 18], centre, atol=1e-3)


def test_ventricles_widen_away_from_the_sampled_image() -> None:
    """Where the source moves towards the ventricle, the sample shows more of it."""
    known = case()

    def size(spatial: Spatial, seed: int) -> int:
        warp = augment.draw_warp(spatial, (32, 32, 32), 1.0, known.centre, known.widening, seeded(seed))
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
@pytest.mark.parametrize("t1w_like", [True, False])
def test_left_and_right_are_equally_bright(name: str, t1w_like: bool) -> None:
    protocol = load_protocol(name)
    means, spread = synthesis.brightness(protocol, t1w_like, seeded())
    partners = torch.tensor(protocol.partners())
    assert torch.equal(means, means[partners])
    assert torch.equal(spread, spread[partners])
    assert len(means.unique()) > len(means) / 3
    assert (means >= 0).all()


def test_a_synthetic_t1w_has_its_contrast() -> None:
    at = {region.name: i for i, region in enumerate(STRUCTURES.regions)}
    means = torch.stack([synthesis.brightness(STRUCTURES, True, seeded(seed))[0] for seed in range(50)]).mean(0)
    white, grey, fluid = (
        means[at[name]] for name in ("Left Cerebral White Matter", "Left Cerebral Cortex", "Left Lateral Ventricle")
    )
    assert white > grey + 0.2 > fluid + 0.5


def test_a_synthetic_image_shows_the_regions() -> None:
    values = case().annotations[0].values
    image = synthesis.synthesise(values, STRUCTURES, True, seeded())
    means, _ = synthesis.brightness(STRUCTURES, True, seeded())
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
        found = augment.coarsen(image, thickest, 1.0, seeded(seed))
        assert found.shape == image.shape
        assert found.mean().item() == pytest.approx(0.5, abs=0.02)


def test_intensity_without_strength_changes_nothing() -> None:
    image = torch.rand(16, 16, 16, generator=seeded())
    assert torch.allclose(augment.change_intensity(image, CALM, 1.0, seeded()), image)


def test_an_imperfect_strip_widens_the_brain_at_least_and_at_most_so_much() -> None:
    brain = torch.zeros(12, 12, 12, dtype=torch.bool)
    brain[5:7, 5:7, 5:7] = True

    def widened(voxels: int) -> torch.Tensor:
        expected = torch.zeros(24, 24, 24, dtype=torch.bool)
        inside = slice(2 * (5 - voxels), 2 * (7 + voxels))
        expected[inside, inside, inside] = True
        return expected

    for inner_mm, least in ((0.0, 0), (2.0, 1), (5.0, 2), (8.0, 4)):
        assert torch.equal(synthesis.strip(brain, inner_mm, 0.0, 2.0, seeded()), widened(least))
    found = [synthesis.strip(brain, 2.0, 4.0, 2.0, seeded(seed)) for seed in range(8)]
    for mask in found:
        assert not (widened(1) & ~mask).any() and not (mask & ~widened(3)).any()
    assert len({int(mask.sum()) for mask in found}) > 4


def test_a_still_draw_interpolates_nothing() -> None:
    for seed, shape in enumerate([(8, 10, 12), (7, 9, 10)]):
        warp = augment.draw_warp(Spatial(still=1), shape, 1.0, torch.tensor([6.3, 5.5, 4.1]), None, seeded(seed))
        assert torch.equal(warp.source, warp.source.round())
        assert warp.source.shape == (*shape, 3)
        assert (warp.source[1:, :, :, 0] - warp.source[:-1, :, :, 0]).unique().tolist() == [-1 if warp.mirrored else 1]


def test_every_voxel_may_be_read() -> None:
    sampling = replace(SAMPLING, shape=(16, 20, 24), points=0)
    sample = draw_sample(case(), sampling, STILL, CALM, 1.0, seeded())
    assert len(sample.points) == 16 * 20 * 24 == len(sample.points.unique(dim=0))
    assert all(len(values) == len(sample.points) for _, values in sample.values)


def test_a_sample_from_anywhere_lies_in_the_scan() -> None:
    sampling = replace(SAMPLING, shape=(16, 16, 16), points=0, whole_head=True, anywhere=True)
    still, given = replace(STILL, still=1), case()
    assert given.image is not None
    whole = NORMALISATIONS["zscore"](given.image[0], None)
    counts = set()
    for seed in range(12):
        sample = draw_sample(given, sampling, still, Intensity(), 1.0, seeded(seed), "zscore")
        assert (sample.image.reshape(-1, 1) - whole.unique()).abs().amin(1).max() < 1e-3
        counts.add(int((sample.values[0][1] > 0).sum()))
    assert len(counts) > 6


def test_a_sample_lies_around_any_region_equally_often() -> None:
    given = case()
    values = given.finest.values.clone()
    values[12:15, 14:17, 12:15] = STRUCTURES.indices.index(25)  # a lesion of 27 voxels
    given = replace(given, annotations=(Annotation(STRUCTURES, values),))
    drawn = [draw_centre(given, seeded(seed)).long() for seed in range(600)]
    assert all(given.brain[tuple(place)] for place in drawn)
    count = torch.bincount(torch.stack([values[tuple(place)] for place in drawn]).long())
    assert (count[count > 0] > 80).all() and (count > 0).sum() == 6  # of 100 each
    sampling = replace(SAMPLING, centre="region", points=0)
    for seed in range(6):
        sample = draw_sample(given, sampling, replace(STILL, still=1), CALM, 1.0, seeded(seed))
        at_centre = sample.values[0][1].reshape(sampling.shape)[15:17, 15:17, 15:17]
        assert values[tuple(draw_centre(given, seeded(seed)).long())] in at_centre


def test_only_known_centres() -> None:
    with pytest.raises(ValueError, match="no centre 'lesion': brain or region"):
        replace(SAMPLING, centre="lesion")


# -- several images ----------------------------------------------------------------------------------------------------


def two_images(flair: bool = True) -> Case:
    """A case whose second image is ten times as bright and grows along another axis, or is missing."""
    known = case()
    assert known.image is not None
    ramp = torch.arange(float(SHAPE[2])).expand(SHAPE) + 10
    return replace(known, image=torch.cat([known.image, 10 * flair * ramp[None] * known.brain]))


@pytest.mark.parametrize("changes", [{}, {"whole_head": True}, {"whole_head": True, "anywhere": True}])
@pytest.mark.parametrize("normalisation", ["percentile", "zscore"])
def test_each_image_is_normalised_by_itself(changes: dict[str, bool], normalisation: str) -> None:
    """Both are those of the single images, in the same place."""
    sampling, given = replace(SAMPLING, **changes, stripped=0, cut=0), two_images()  # type: ignore[arg-type]
    assert given.image is not None
    sample = draw_sample(given, sampling, STILL, CALM, 1.0, seeded(), normalisation, 2)
    assert sample.image.shape == (1, 2, 32, 32, 32)
    for i in range(2):
        single = replace(given, image=given.image[i : i + 1])
        alone = draw_sample(single, sampling, STILL, CALM, 1.0, seeded(), normalisation)
        assert torch.allclose(sample.image[0, i], alone.image[0, 0], atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"whole_head": True}, {"whole_head": True, "anywhere": True}])
@pytest.mark.parametrize("normalisation", ["percentile", "zscore", "byte"])
def test_a_missing_image_stays_zero(changes: dict[str, bool], normalisation: str) -> None:
    sampling = replace(SAMPLING, **changes)  # type: ignore[arg-type]
    for given, share in ((two_images(flair=False), 0.0), (two_images(), 1.0), (case(image=False), 1.0)):
        asked = replace(sampling, missing=share)
        image = draw_sample(given, asked, Spatial(), Intensity(), 1.0, seeded(), normalisation, 2).image
        assert image.shape == (1, 2, 32, 32, 32)
        assert image[0, 0].any() and not image[0, 1].any()


def test_images_are_hidden_as_often_as_asked() -> None:
    sampling = replace(SAMPLING, shape=(16, 16, 16), points=100, missing=0.3)
    drawn = (draw_sample(two_images(), sampling, STILL, CALM, 2.0, seeded(seed), images=2) for seed in range(100))
    assert 20 <= sum(not sample.image[0, 1].any() for sample in drawn) <= 40


def test_synthetic_images_of_the_same_labels_have_contrasts_of_their_own() -> None:
    values = case().annotations[0].values
    one, other = synthesis.synthesise_each(values, STRUCTURES, True, 2, seeded())
    assert torch.equal(one, synthesis.synthesise(values, STRUCTURES, True, seeded()))
    assert (one - other).abs()[values > 0].mean() > 0.05


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


# -- datasets ----------------------------------------------------------------------------------------------------------


def named(names: Sequence[str]) -> list[Case]:
    any_case = case()
    return [replace(any_case, name=name) for name in names]


def test_a_participant_is_never_on_both_sides() -> None:
    names = [
        f"{dataset}/sub-{person:02}_ses-{session}"
        for dataset in ("one", "an_other", "a-third_set")
        for person in range(11)
        for session in (1, 2)
    ]
    held_once: list[str] = []
    for fold in range(4):
        seen, unseen = split(named(names), 4, fold)
        assert sorted(c.name for c in [*seen, *unseen]) == sorted(names)
        assert not {person(c) for c in seen} & {person(c) for c in unseen}
        assert len({person(c).split("/")[0] for c in unseen}) == 3
        held_once += [c.name for c in unseen]
    assert sorted(held_once) == sorted(names)


def test_people_of_different_datasets_are_different() -> None:
    assert [person(c) for c in named(["a_b/sub-01_ses-1", "a/sub-01", "heads/sub-01_run-2"])] == [
        "a_b/sub-01", "a/sub-01", "heads/sub-01",
    ]  # fmt: skip


def save_labels(folder: Path, stem: str, spacing_mm: float = 4.0, shape: tuple[int, int, int] = (24, 28, 24)) -> Path:
    """Tissue of the phantom on the grid of `phantoms.make_bids`, its lesion as grey matter."""
    affine = phantoms.grid(spacing_mm, "LAS", shape)
    tissue = np.array([0, 1, 2, 3, 2], np.uint8)[phantoms.head(affine, shape, phantoms.LABEL)]
    place = folder.joinpath(*(part for part in stem.split("_") if part.startswith(("sub-", "ses-"))), "anat")
    return phantoms.save(place / f"{stem}_seg-FAST_dseg.nii.gz", tissue, affine)


@pytest.fixture
def tissues(tmp_path: Path) -> Settings:
    """Three participants with T1w and tissue, one without annotation, one with an annotation alone."""
    bids = phantoms.make_bids(tmp_path / "my_data", 4, spacing_mm=8.0, shape=(24, 28, 24))
    folder = tmp_path / "derivatives" / "fast"
    for number in (1, 2, 3, 5):
        save_labels(folder, f"sub-{number:02}", 8.0)
    return Settings(bids, tmp_path / "out", training=Training(labels={"FAST": folder}))


def test_cases_of_a_dataset(tissues: Settings) -> None:
    warnings: list[str] = []
    report = tissues.report
    report.warn = warnings.append  # type: ignore[method-assign]
    cases = load_cases(tissues, report)
    assert [(c.name, c.image is not None) for c in cases] == [
        ("my_data/sub-01", True), ("my_data/sub-02", True), ("my_data/sub-03", True), ("my_data/sub-05", False),
    ]  # fmt: skip
    assert warnings == ["my_data/sub-04: no annotation, passed over"]
    first = cases[0]
    assert first.image is not None
    assert first.image.shape[1:] == first.brain.shape == first.annotations[0].values.shape
    assert all(n in (192, 224) for n in first.brain.shape)
    (image,) = first.image
    assert image[first.brain].mean() > 2 * image[~first.brain].mean()
    assert torch.equal(first.brain, first.annotations[0].values > 0)


def test_the_flair_is_read_with_the_t1w(tissues: Settings) -> None:
    """One on the grid of the T1w, one on another grid, and none."""
    anat = {number: tissues.bids_dir / f"sub-0{number}" / "anat" for number in (1, 2, 3)}
    affine, thick = phantoms.grid(8.0, "LAS", (24, 28, 24)), phantoms.grid((8, 4, 8), "PSR", (28, 50, 24))
    for number, where, shape in ((1, affine, (24, 28, 24)), (2, thick, (28, 50, 24))):
        bright = phantoms.head(where, shape, phantoms.FLAIR_INTENSITY)
        phantoms.save(anat[number] / f"sub-0{number}_FLAIR.nii.gz", bright, where)
    told: list[str] = []
    tissues.report.detail = told.append  # type: ignore[method-assign]
    cases = load_cases(tissues, tissues.report, ("T1w", "FLAIR"))
    assert [None if c.image is None else len(c.image) for c in cases] == [2, 2, 2, None]
    for known in cases[:2]:
        assert known.image is not None
        grey, white = (known.image[:, known.annotations[0].values == value].mean(1) for value in (2, 3))
        assert grey[0] < white[0] and grey[1] > white[1]
    assert cases[2].image is not None and not cases[2].image[1].any()
    assert any(line.startswith("my_data/sub-02: FLAIR moved by") for line in told)
    assert "my_data/sub-03: has no FLAIR" in told
    assert not any(line.startswith("my_data/sub-01: ") for line in told)


def test_participants_that_are_not_asked_for_are_not_synthesised(tissues: Settings) -> None:
    found = {}
    for labels_asked in (("01",), ("02", "05")):
        asked = replace(tissues, participants=labels_asked)
        found[labels_asked] = [(c.name, c.image is not None) for c in load_cases(asked, asked.report)]
    assert found == {
        ("01",): [("my_data/sub-01", True)],
        ("02", "05"): [("my_data/sub-02", True), ("my_data/sub-05", False)],
    }


def test_scans_that_a_filter_leaves_out_are_not_synthesised(tissues: Settings) -> None:
    folder = tissues.training.labels["FAST"]
    raw = tissues.bids_dir / "sub-01" / "anat"
    (raw / "sub-01_T1w.nii.gz").rename(raw / "sub-01_acq-fast_T1w.nii.gz")
    save_labels(folder, "sub-01_acq-fast", 8.0)
    (folder / "sub-01" / "anat" / "sub-01_seg-FAST_dseg.nii.gz").unlink()
    asked = replace(tissues, filters={"t1w": {"acquisition": "fast"}})
    assert [(c.name, c.image is not None) for c in load_cases(asked, asked.report)] == [
        ("my_data/sub-01_acq-fast", True), ("my_data/sub-05", False),
    ]  # fmt: skip


def test_label_maps_alone_are_cases(tissues: Settings, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    save_labels(heads, "sub-07", 8.0)
    empty = tmp_path / "empty"
    empty.mkdir()
    asked = replace(tissues, bids_dir=empty, training=Training(labels={"FAST": heads}))
    (found,) = load_cases(asked, asked.report)
    assert found.name == "heads/sub-07"
    assert found.image is None


def test_an_annotation_on_another_grid_is_named(tissues: Settings) -> None:
    path = save_labels(tissues.training.labels["FAST"], "sub-01", 7.9)
    with pytest.raises(
        DataError, match=r"sub-01_seg-FAST_dseg\.nii\.gz: not on the grid of sub-01_T1w\.nii\.gz"
    ) as caught:
        load_cases(tissues, tissues.report)
    assert str(path) in str(caught.value)


def test_an_annotation_with_foreign_values_is_named(tissues: Settings) -> None:
    affine = phantoms.grid(8.0, "LAS", (24, 28, 24))
    path = tissues.training.labels["FAST"] / "sub-02" / "anat" / "sub-02_seg-FAST_dseg.nii.gz"
    phantoms.save(path, phantoms.head(affine, (24, 28, 24), phantoms.LABEL), affine)
    with pytest.raises(DataError, match=r"\[4\] are not in the protocol FAST") as caught:
        load_cases(tissues, tissues.report)
    assert str(path) in str(caught.value)


def test_nothing_to_learn_from(tissues: Settings, tmp_path: Path) -> None:
    other = replace(tissues, training=Training(labels={"FreeSurfer": tissues.training.labels["FAST"]}))
    with pytest.raises(NothingSelected, match="--labels"):
        load_cases(other, other.report)
    lost = replace(tissues, training=Training(labels={"FAST": tmp_path / "lost"}))
    with pytest.raises(InputMissing, match="lost"):
        load_cases(lost, lost.report)


@pytest.fixture
def lesions(tissues: Settings, tmp_path: Path) -> Settings:
    """One of the participants with the lesions alone."""
    affine = phantoms.grid(8.0, "LAS", (24, 28, 24))
    values = (phantoms.head(affine, (24, 28, 24), phantoms.LABEL) == 4).astype(np.uint8)
    phantoms.save(tmp_path / "manual" / "sub-01" / "anat" / "sub-01_label-lesion_mask.nii.gz", values, affine)
    return replace(tissues, training=Training(labels={"lesion": tmp_path / "manual"}))


def test_the_brain_of_a_stripped_scan_with_lesions_alone_is_what_is_left_of_it(lesions: Settings) -> None:
    affine = np.diag([0.5, 0.5, 0.5, 1]) @ phantoms.grid(8.0, "LAS", (24, 28, 24))
    values = phantoms.head(2 * affine, (24, 28, 24), phantoms.LABEL)
    anat = lesions.bids_dir / "sub-01" / "anat"
    phantoms.save(anat / "sub-01_T1w.nii.gz", values.astype(np.int16) * 100, affine)
    mask = lesions.training.labels["lesion"] / "sub-01" / "anat" / "sub-01_label-lesion_mask.nii.gz"
    phantoms.save(mask, (values == 4).astype(np.uint8), affine)
    (found,) = load_cases(lesions, lesions.report)
    assert found.image is not None
    assert torch.equal(found.brain, found.image[0] != 0)
    assert 1 < found.brain.sum().item() / (64 * (values > 0).sum()) < 1.3  # 4 mm voxels are interpolated
    assert [a.protocol.name for a in found.annotations] == ["lesion", "brain"]
    assert torch.equal(found.annotations[1].values > 0, found.brain)
    assert found.finest is found.annotations[0]


@pytest.mark.parametrize("empty, litres, stripped", [(0.8, 1.3, True), (0.6, 2.5, False), (0.1, 1.3, False)])
def test_a_head_without_air_is_not_taken_for_a_brain(empty: float, litres: float, stripped: bool) -> None:
    image = torch.zeros(round(litres * 1e6 / (1 - empty)))
    image[: round(litres * 1e6)] = 1
    assert datasets.is_stripped(image) == stripped


def test_the_locator_finds_the_brain_of_a_head_with_lesions_alone(
    lesions: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(images: dict[str, Volume], model: object, engine: object) -> tuple[Grid, torch.Tensor]:
        grid = whole_grid(images["T1w"], 4.0)
        return grid, torch.ones(grid.shape) * (torch.arange(grid.shape[0]) < grid.shape[0] // 2)[:, None, None]

    monkeypatch.setattr(datasets, "find_brain", find)
    (found,) = load_cases(lesions, lesions.report)
    half = len(found.brain) // 2
    assert found.brain[: half - 4].all() and not found.brain[half + 4 :].any()


def test_lesions_alone_do_not_say_where_the_brain_is(lesions: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(*_: object) -> None:
        raise DataError("no brain found in the image")

    monkeypatch.setattr(datasets, "find_brain", find)
    with pytest.raises(DataError, match=r"my_data/sub-01: no brain found"):
        load_cases(lesions, lesions.report)
    (lesions.bids_dir / "sub-01" / "anat" / "sub-01_T1w.nii.gz").unlink()
    with pytest.raises(DataError, match=r"my_data/sub-01: no annotation|manual/sub-01: no annotation"):
        load_cases(lesions, lesions.report)
