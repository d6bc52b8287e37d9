"""From a scan to label maps on its native grid, with networks that segment by brightness or by position."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
import torch
from tiny_model import CLASSES, FAST_HEADS, Brightness, SecondImage
from torch import Tensor

from bidsseg.errors import DataError
from bidsseg.image.volume import Volume
from bidsseg.labels import load_protocol
from bidsseg.models import library
from bidsseg.models.card import Card
from bidsseg.models.library import Model, build, load_model, save_model
from bidsseg.networks.subpixel_unet import fold
from bidsseg.segmentation import windows
from bidsseg.segmentation.predict import segment
from bidsseg.segmentation.result import Probabilities

LEFT, RIGHT = 2, 41
SHAPE = (32, 36, 32)


class Side(Brightness):
    """A network whose class is 1 on the left and 2 on the right of the brain, in voxels with brightness."""

    def forward(self, image: Tensor, position: Tensor | None = None) -> Tensor:
        assert position is not None
        left = (position[:, :1] < 0).float().repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
        inside = (image > 0.15).float()
        return torch.cat([1 - inside, inside * left, inside * (1 - left), 0 * inside], 1)


class Blocks(Brightness):
    """A network whose rows store the brightness of 2³ voxels."""

    cell = 2

    def rows(self, image: Tensor, position: Tensor | None, cells: Tensor) -> Tensor:
        return fold(self(image))[0].permute(1, 2, 3, 0)[cells]

    def expand(self, rows: Tensor) -> Tensor:
        return rows.view(len(rows), self.cell**3, CLASSES)


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the networks of this file by name."""
    monkeypatch.setitem(library.NETWORKS, "brightness", Brightness)
    monkeypatch.setitem(library.NETWORKS, "side", Side)
    monkeypatch.setitem(library.NETWORKS, "second", SecondImage)
    monkeypatch.setitem(library.NETWORKS, "blocks", Blocks)


Make = Callable[..., Model]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes and loads a model: ``make(name="tissue", meaning=..., network=..., **card)``."""

    def write(name: str = "tissue", meaning: Any = None, network: str = "brightness", **values: Any) -> Model:
        meaning = meaning or FAST_HEADS
        values = {"spacing_mm": 6.0, "heads": tuple(meaning), **values}
        values = {"inputs": ("T1w",), **values}
        card = Card(name=name, title="By hand", sha256="",
                    network={"name": network, "meaning": meaning}, **values)  # fmt: skip
        save_model(card, build(card).state_dict(), tmp_path / name)
        return load_model(str(tmp_path / name))

    return write


def grid(orientation: str = "RAS", degrees: float = 0) -> np.ndarray:
    """Return the affine of a grid of SHAPE with voxels of 6 mm."""
    return phantoms.grid(6.0, orientation, SHAPE, degrees)


def tissue(affine: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Return FAST labels; the lesion of the phantom is grey matter."""
    table = np.array([0, 1, 2, 3, 2], np.uint8)
    labels: np.ndarray = table[phantoms.head(affine, shape, phantoms.LABEL)]
    return labels


def image_of(labels: np.ndarray, affine: np.ndarray) -> Volume:
    """Return an image whose normalised brightness gives the labels, with noise in air as in a scan."""
    noise = np.random.default_rng(0).uniform(-1, 1, labels.shape) * (labels == 0)
    return Volume((100 + 200.0 * labels + noise).astype(np.float32), affine)


def stacked(probabilities: Probabilities) -> np.ndarray:
    """Return all maps in one array (X, Y, Z, R)."""
    return np.stack(list(probabilities.maps()), -1)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


# -- where labels land -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "LPS", "LIA", "PSR", "ASL"])
def test_on_a_grid_like_the_models_labels_land_in_their_voxels(orientation: str, make: Make) -> None:
    affine = grid(orientation)
    truth = tissue(affine)
    result = segment({"T1w": image_of(truth, affine)}, make())
    assert set(result.labels) == {"FAST"}
    assert result.labels["FAST"].dtype == np.uint8
    assert np.array_equal(result.labels["FAST"], truth)
    assert np.array_equal(result.brain, truth > 0)
    assert result.brain.dtype == bool
    assert result.lesion is None
    assert result.probabilities == {} == result.entropy
    assert (result.device, result.precision, result.notes) == ("cpu", "fp32", [])
    assert 0.9 < result.quality <= 1


@pytest.mark.parametrize(
    "spacing, orientation, shape, degrees",
    [
        (4.0, "LAS", (48, 56, 48), 17),
        ((3, 3, 5), "LPS", (64, 72, 38), 0),
        ((3, 3, 5), "LPS", (64, 72, 38), 5),
        ((6, 2.5, 2.5), "PSR", (36, 72, 72), 25),
        (2.5, "RAS", (72, 84, 70), 8),
    ],
)
@pytest.mark.parametrize("model_mm", [2.4, 4.1])
def test_on_any_grid_labels_land_where_they_belong(
    spacing: Any, orientation: str, shape: tuple[int, int, int], degrees: float, model_mm: float, make: Make
) -> None:
    affine = phantoms.grid(spacing, orientation, shape, degrees)
    truth = tissue(affine, shape)
    result = segment({"T1w": image_of(truth, affine)}, make(spacing_mm=model_mm))
    found = result.labels["FAST"]
    assert found.shape == truth.shape
    assert dice(found > 0, truth > 0) > 0.97
    assert dice(found == 3, truth == 3) > 0.94
    assert dice(found == 2, truth == 2) > 0.8
    for label in (2, 3):
        centres = [nib.affines.apply_affine(affine, np.argwhere(values == label).mean(0)) for values in (found, truth)]
        assert np.allclose(centres[0], centres[1], atol=0.5)


def test_regions_have_the_values_of_their_protocol(make: Make) -> None:
    affine = grid("LAS")
    truth = tissue(affine)
    indices = load_protocol("BrainCOLOR").scored().indices
    model = make(meaning={"brain": [0, 1, 1, 1], "BrainCOLOR": [0, 3, 70, 134]})
    labels = segment({"T1w": image_of(truth, affine)}, model).labels["BrainCOLOR"]
    assert np.array_equal(labels, np.array([0, indices[3], indices[70], indices[134]])[truth])
    assert labels.dtype == np.uint8


def test_a_flipped_scan_has_flipped_labels(make: Make) -> None:
    affine = grid()
    truth = tissue(affine)
    model = make(spacing_mm=5.0)
    straight = segment({"T1w": image_of(truth, affine)}, model)
    for axis in range(3):
        flipped = segment({"T1w": image_of(np.flip(truth, axis), affine)}, model)
        assert np.array_equal(np.flip(flipped.labels["FAST"], axis), straight.labels["FAST"])


@pytest.mark.parametrize("orientation", ["RAS", "LIA"])
def test_the_mean_with_the_mirror_image_exchanges_left_and_right(orientation: str, tmp_path: Path) -> None:
    """The network has random weights, so that only the mean makes the result symmetrical."""
    torch.manual_seed(0)
    network = {"name": "subpixel-unet", "coordinates": 0, "widths": [4, 8], "features": 8, "last": 8}
    card = Card("random", "", ("T1w",), network, 6.0, ("FreeSurfer",), "", mirror=True)
    made = build(card)
    torch.nn.init.normal_(made.get_parameter("heads.FreeSurfer.weight"))
    save_model(card, made.state_dict(), tmp_path)
    model = load_model(str(tmp_path))
    affine = grid(orientation)
    across = orientation.index("R" if "R" in orientation else "L")
    scan = phantoms.noisy_head(affine, SHAPE)
    partner = np.zeros(256, np.uint8)
    head = model.heads["FreeSurfer"]
    partner[list(head.indices)] = np.array(head.indices)[list(head.partners())]
    straight, mirrored = (
        segment({"T1w": Volume(data, affine)}, model, want_probabilities=True)
        for data in (scan, np.flip(scan, across).copy())
    )
    exchanged = np.flip(stacked(mirrored.probabilities["FreeSurfer"])[..., list(head.partners())], across)
    assert np.allclose(exchanged, stacked(straight.probabilities["FreeSurfer"]), atol=2e-3)
    found, expected = (np.flip(partner[mirrored.labels["FreeSurfer"]], across), straight.labels["FreeSurfer"])
    assert (found == expected).mean() > 0.99
    assert len(np.unique(expected)) > 3


@pytest.mark.parametrize("spacing_mm", [6.0, 4.0])
def test_the_mirror_image_is_cut_into_other_blocks(
    spacing_mm: float, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("locator", {"brain": [0, 0, 1, 1]}, spacing_mm=6.0)
    model = make(network="blocks", spacing_mm=spacing_mm, locator=str(tmp_path / "locator"), mirror=True)
    seen: list[Tensor] = []

    def forward(self: Blocks, image: Tensor, position: Tensor | None = None) -> Tensor:
        seen.append(image)
        return Brightness.forward(self, image)

    monkeypatch.setattr(Blocks, "forward", forward)
    affine = grid("LAS")
    scan = image_of(tissue(affine), affine)
    once, twice = segment({"T1w": scan}, model, fast=True), segment({"T1w": scan}, model)
    _, first, second = seen
    assert torch.equal(second.flip(2)[:, :, :-1, :-1, :-1], first[:, :, 1:, 1:, 1:])
    assert np.array_equal(twice.labels["FAST"], once.labels["FAST"])
    assert twice.quality == pytest.approx(once.quality, abs=1e-4)


# -- finding the brain first -------------------------------------------------------------------------------------------


def whole_head(affine: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> tuple[Volume, np.ndarray]:
    """Return a bright brain with a small dark ring far from it, and the brain mask."""
    brain = tissue(affine, shape) > 0
    scalp = (phantoms.head(affine, shape) > 0) & ~brain
    return Volume((100 + 600.0 * brain + 200.0 * scalp).astype(np.float32), affine), brain


@pytest.fixture
def two_step(make: Make, tmp_path: Path) -> Model:
    """A model that separates left from right in the brain that another model has located."""
    make("locator", {"brain": [0, 0, 1, 1]}, spacing_mm=6.0)
    sides = [load_protocol("FreeSurfer").scored().indices.index(i) for i in (LEFT, RIGHT)]
    meaning = {"brain": [0, 1, 1, 1], "FreeSurfer": [0, *sides, 0]}
    return make("sides", meaning, "side", spacing_mm=3.0, locator=str(tmp_path / "locator"))


@pytest.mark.parametrize("orientation, degrees", [("RAS", 0), ("LAS", 0), ("PSR", 0), ("LIA", 12)])
@pytest.mark.parametrize("mirror", [False, True])
def test_left_is_left_in_the_brain_that_was_found(
    orientation: str, degrees: float, mirror: bool, two_step: Model
) -> None:
    affine = grid(orientation, degrees)
    scan, brain = whole_head(affine)
    stages: list[str] = []
    model = replace(two_step, card=replace(two_step.card, mirror=mirror))
    result = segment({"T1w": scan}, model, progress=stages.append)
    labels = result.labels["FreeSurfer"]
    assert stages == ["finding the brain", "segmenting", "labelling"]
    assert dice(result.brain, brain) > 0.93
    world = nib.affines.apply_affine(affine, np.moveaxis(np.indices(labels.shape), 0, -1))
    x = world[..., 0] if degrees == 0 else world @ np.linalg.inv(affine[:3, :3] / 6)[np.argmax(np.abs(affine[0, :3]))]
    sign = 1 if degrees == 0 else np.sign(affine[0, np.argmax(np.abs(affine[0, :3]))])
    clear = brain & (np.abs(x) > 8)
    assert (labels[clear & (sign * x < 0)] == LEFT).mean() > 0.97
    assert (labels[clear & (sign * x > 0)] == RIGHT).mean() > 0.97


def test_the_network_sees_no_voxels_far_from_the_brain(two_step: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor | None]] = []

    def forward(self: Side, image: Tensor, position: Tensor | None = None) -> Tensor:
        seen.append((image, position))
        return original(self, image, position)

    original = Side.forward
    monkeypatch.setattr(Side, "forward", forward)
    affine = grid()
    scan, brain = whole_head(affine)
    segment({"T1w": scan}, two_step)
    ((image, position),) = seen
    assert position is not None
    assert [2 * n for n in position.shape[2:]] == list(image.shape[2:])
    shown_mm3 = float((image > 0.05).sum()) * 27
    assert shown_mm3 == pytest.approx(brain.sum() * 216, rel=0.15)
    extent = 3 * np.array(image.shape[2:])
    assert (extent >= np.ptp(np.argwhere(brain), axis=0) * 6).all()
    assert (extent <= np.ptp(np.argwhere(brain), axis=0) * 6 + 60).all()
    for axis in range(3):
        line = position[0, axis].movedim(axis, 0)[:, 0, 0]
        assert line[0] < -0.9
        assert line[-1] > 0.9
        assert (line.diff() >= 0).all()


def test_a_scan_without_a_brain_is_refused(two_step: Model, make: Make) -> None:
    affine = grid()
    small = np.linalg.norm(nib.affines.apply_affine(affine, np.moveaxis(np.indices(SHAPE), 0, -1)), axis=-1) < 25
    nothing = np.zeros(SHAPE, np.float32)
    for data in (100 + 600.0 * small, nothing, nothing + 5):
        with pytest.raises(DataError, match="no brain found"):
            segment({"T1w": Volume(data.astype(np.float32), affine)}, two_step)
    with pytest.raises(DataError, match="empty"):
        segment({"T1w": Volume(nothing, affine)}, make())


# -- several images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("memory_mb", [None, 30])
def test_the_second_image_lies_on_the_first(
    mirror: bool, memory_mb: int | None, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The T1w only locates the brain, and the FLAIR may have any brightness."""
    monkeypatch.setattr(windows, "HALO", 8)
    make("locator", {"brain": [0, 0, 1, 1]})
    options = {"inputs": ("T1w", "FLAIR"), "locator": str(tmp_path / "locator"), "spacing_mm": 2.0, "mirror": mirror}
    model = make(network="second", **options)
    affine = grid("LAS")
    scan, brain = whole_head(affine)
    truth = tissue(affine)
    images = {"T1w": scan, "FLAIR": Volume(0.01 * image_of(truth, affine).data * brain, affine)}
    result = segment(images, model, memory_mb=memory_mb)
    assert bool(result.notes) == (memory_mb is not None)
    assert dice(result.labels["FAST"] == 3, truth == 3) > 0.95
    with pytest.raises(DataError, match="the FLAIR is not on the grid of the T1w"):
        segment({**images, "FLAIR": image_of(truth, grid("RAS"))}, model)
    with pytest.raises(DataError, match="empty"):  # a missing image is dark everywhere
        segment({"T1w": scan}, model)


# -- what is said besides labels ---------------------------------------------------------------------------------------


def test_probabilities_and_entropy(make: Make) -> None:
    affine = phantoms.grid((3, 3, 5), "LPS", (64, 72, 38), 5)
    truth = tissue(affine, (64, 72, 38))
    scan, model = image_of(truth, affine), make(spacing_mm=3.0)
    result = segment({"T1w": scan}, model, want_probabilities=True, want_entropy=True)
    chance, doubt = stacked(result.probabilities["FAST"]), result.entropy["FAST"]
    assert chance.shape == (*truth.shape, 4)
    assert chance.dtype == np.float16
    assert doubt.shape == truth.shape
    assert doubt.dtype == np.float32
    assert (chance >= 0).all()
    assert np.allclose(chance.sum(-1, dtype=np.float32), 1, atol=2e-3)
    assert np.array_equal(chance.argmax(-1)[result.brain], result.labels["FAST"][result.brain])
    assert (doubt >= 0).all()
    assert (doubt <= 1).all()
    assert doubt[result.brain].max() > 0.3
    assert np.median(doubt[truth == 3]) < 0.01
    from_chance = -np.where(chance > 0, chance * np.log(np.maximum(chance, 1e-7)), 0).sum(-1) / np.log(4)
    assert np.allclose(doubt, from_chance, atol=0.01)


@pytest.mark.parametrize("orientation", ["RAS", "LIA"])
def test_a_wide_field_of_view_does_not_move_the_labels(orientation: str, make: Make) -> None:
    """The heads are evaluated only in the box of the model grid."""
    affine, room = grid(orientation), ((6, 9), (3, 0), (12, 1))
    labels = tissue(affine)
    image = image_of(labels, affine)
    wide = affine.copy()
    wide[:3, 3] -= affine[:3, :3] @ [before for before, _ in room]
    more = partial(segment, want_probabilities=True, want_entropy=True)
    one = more({"T1w": image}, make())
    other = more({"T1w": Volume(np.pad(image.data, room), wide)}, make())
    pairs = [(one.labels["FAST"], other.labels["FAST"]), (one.brain, other.brain)]
    pairs += [(one.entropy["FAST"], other.entropy["FAST"])]
    pairs += list(zip(one.probabilities["FAST"].maps(), other.probabilities["FAST"].maps(), strict=True))[1:]
    for small, padded in pairs:
        assert np.allclose(np.pad(small, room), padded, atol=1e-3)


def test_total_ignorance_has_entropy_one(make: Make) -> None:
    affine = grid()
    model = make(meaning={"brain": [0, 1, 1, 1], "FAST": [0, 1, 2, 3]})
    model.network.heads["FAST"].weight.data.zero_()  # type: ignore[operator]
    truth = tissue(affine)
    result = segment({"T1w": image_of(truth, affine)}, model, want_entropy=True)
    assert np.allclose(result.entropy["FAST"][truth > 0], 1)
    assert result.entropy["FAST"].max() <= 1
    assert result.quality == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("spacing", [4.0, (3, 3, 5)])
def test_soft_volumes_add_up(spacing: Any, make: Make) -> None:
    shape = (64, 72, 48)
    affine = phantoms.grid(spacing, "LAS", shape)
    truth = tissue(affine, shape)
    scan = image_of(truth, affine)
    result = segment({"T1w": scan}, make(spacing_mm=3.0), want_probabilities=True)
    soft = result.soft_mm3["FAST"]
    assert soft.shape == (4,)
    summed = stacked(result.probabilities["FAST"]).sum((0, 1, 2), dtype=np.float64) * scan.voxel_volume_mm3
    assert np.allclose(soft[1:], summed[1:], rtol=5e-3)
    hard = np.bincount(truth.ravel(), minlength=4) * scan.voxel_volume_mm3
    assert soft[1:].sum() == pytest.approx(hard[1:].sum(), rel=0.02)
    assert soft[3] == pytest.approx(hard[3], rel=0.05)
    assert soft[0] < 0.1 * hard[0]


def test_lesions_have_a_mask_and_no_label_map(make: Make) -> None:
    affine = grid()
    truth = tissue(affine)
    model = make(meaning={**FAST_HEADS, "lesion": [0, 0, 1, 0]}, lesion="lesion")
    result = segment({"T1w": image_of(truth, affine)}, model, want_probabilities=True)
    assert set(result.labels) == set(result.soft_mm3) == set(result.probabilities) == {"FAST"}
    assert result.lesion is not None
    assert result.lesion.dtype == bool
    assert np.array_equal(result.lesion, truth == 2)


def test_lesions_among_tissues_have_a_mask_too(make: Make) -> None:
    affine = grid()
    truth = tissue(affine)
    model = make(meaning={"FASTlesion": [0, 1, 4, 3]}, lesion="FASTlesion")
    result = segment({"T1w": image_of(truth, affine)}, model)
    assert np.array_equal(result.labels["FASTlesion"], np.array([0, 1, 4, 3])[truth])
    assert result.lesion is not None
    assert np.array_equal(result.lesion, truth == 2)


def test_without_a_brain_head_the_labelled_voxels_are_the_brain(make: Make) -> None:
    affine = grid()
    truth = tissue(affine)
    result = segment({"T1w": image_of(truth, affine)}, make(meaning={"FAST": [0, 1, 2, 3]}))
    assert np.array_equal(result.brain, truth > 0)
    assert np.array_equal(result.labels["FAST"], truth)


def test_a_model_of_the_brain_alone_has_a_quality(make: Make) -> None:
    affine = grid()
    truth = tissue(affine)
    result = segment({"T1w": image_of(truth, affine)}, make(meaning={"brain": [0, 1, 1, 1]}))
    assert result.labels == {}
    assert np.array_equal(result.brain, truth > 0)
    assert 0.9 < result.quality <= 1


def test_only_the_largest_piece_is_brain(make: Make) -> None:
    affine = grid()
    truth = tissue(affine)
    with_more = truth.copy()
    with_more[:3, :3, :3] = 3
    result = segment({"T1w": image_of(with_more, affine)}, make())
    assert np.array_equal(result.labels["FAST"], truth)


# -- memory and precision ----------------------------------------------------------------------------------------------


def test_within_little_memory_the_labels_are_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "HALO", 8)
    affine = grid("LAS")
    scan = image_of(tissue(affine, SHAPE), affine)
    model = make(spacing_mm=2.5, mirror=True)
    plenty, little = segment({"T1w": scan}, model), segment({"T1w": scan}, model, memory_mb=220)
    assert plenty.notes == []
    assert len(little.notes) == 1
    assert "windows of 64x64x80 voxels on cpu" in little.notes[0]
    assert np.array_equal(little.labels["FAST"], plenty.labels["FAST"])
    assert np.allclose(little.soft_mm3["FAST"], plenty.soft_mm3["FAST"])


def test_half_precision_changes_next_to_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = {"name": "subpixel-unet", "coordinates": 0, "widths": [4, 8], "features": 8, "last": 8}
    card = Card("random", "", ("T1w",), network, 6.0, ("FAST",), "")
    save_model(card, build(card).state_dict(), tmp_path)
    model = load_model(str(tmp_path))
    affine = grid()
    scan = Volume(phantoms.noisy_head(affine, SHAPE), affine)
    results = [segment({"T1w": scan}, model, precision=precision) for precision in ("fp32", "bf16", "bf16")]
    assert [result.precision for result in results] == ["fp32", "bf16", "bf16"]
    assert (results[0].labels["FAST"] == results[1].labels["FAST"]).mean() > 0.97
    assert np.array_equal(results[1].labels["FAST"], results[2].labels["FAST"])
    assert np.array_equal(results[1].soft_mm3["FAST"], results[2].soft_mm3["FAST"])
