"""Samples registered to unlabelled scans, and the DFNet that registers them."""

import errno
import itertools
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import phantoms
import pytest
import torch
from labelled import interrupt_after, leave_curves_undrawn
from listed_once import list_once
from recording_console import RecordingConsole
from safetensors.torch import load_file
from torch import Tensor

from bidsseg.errors import DataError, IOFailure, TemporaryFailure, UsageError
from bidsseg.image.grid import whole_grid
from bidsseg.image.volume import Volume
from bidsseg.labels import load_protocol
from bidsseg.learning import case_reading as reading
from bidsseg.learning import clock, registration_loop, training
from bidsseg.learning.augment import Intensity, Spatial, Warp, sample_image, sample_labels
from bidsseg.learning.cases import Annotation, Case, Sampling
from bidsseg.learning.datasets import load_cases
from bidsseg.learning.recipe import Recipe, load_recipe
from bidsseg.learning.registration import Mover, Registration, displace, placed
from bidsseg.learning.registration_loop import DFNET, fit_mover, pair
from bidsseg.learning.samples import Plan, draw
from bidsseg.learning.state import Conditions
from bidsseg.levels.train import train_level
from bidsseg.models import card, library
from bidsseg.networks.dfnet import DFNet, similarity_loss, warp
from bidsseg.segmentation.locate import Brain
from bidsseg.settings import Settings, Training

SHAPE = (32, 16, 16)
"""Shape of a sample; the normalisations of DFNet need more than one voxel at the coarsest level."""
FAST = load_protocol("FAST")


class Constant(DFNet):
    """A network with the same displacement everywhere."""

    def __init__(self, *shift: float) -> None:
        super().__init__()
        self.shift = torch.tensor(shift).view(1, 3, 1, 1, 1)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self.shift.expand(1, 3, *moving.shape[2:])


def ellipsoid(*half: float, shape: tuple[int, ...] = (40, 40, 40), shift: float = 0.0) -> Tensor:
    """Return a mask of an ellipsoid at the centre of a volume, shifted along the first axis."""
    axes = [torch.arange(n) - (n - 1) / 2 for n in shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return ((x - shift) / half[0]) ** 2 + (y / half[1]) ** 2 + (z / half[2]) ** 2 <= 1


def case(name: str, *half: float) -> Case:
    """Return a brain of three nested tissue shells with some texture."""
    values = sum(ellipsoid(*(share * h for h in half)).to(torch.uint8) for share in (1.0, 0.8, 0.6))
    assert isinstance(values, Tensor)
    texture = 5 * torch.rand(values.shape, generator=torch.Generator().manual_seed(len(name)))
    return Case(name, (60.0 * values + texture)[None], (Annotation(FAST, values),), values > 0)


CASES = [case("a", 14, 16, 12), case("bb", 12, 17, 14), case("ccc", 16, 13, 13)]
LEARNING = Registration(0.5, 2, rate=1e-3, kernel_rate=2e-2, schedule="cosine", smoothness=0.05, norm="pair")
RECIPE = Recipe(
    "tiny",
    "Tissue",
    {"FAST": 1.0},
    {},
    sampling=Sampling(SHAPE, 0),
    spacing_mm=2.0,
    registration=LEARNING,
    spatial=Spatial(still=0.5),
    intensity=Intensity(0, 0, 0, 0),
)
PLAN = Plan(RECIPE, (FAST,))


def mover(network: DFNet, share: float = 1.0) -> Mover:
    targets = [placed(target, SHAPE, 2.0) for target in CASES[1:]]
    return Mover(network.eval().requires_grad_(False), targets, share, torch.float32)


def wild() -> DFNet:
    """Return an untrained DFNet that displaces by some voxels."""
    torch.manual_seed(0)
    network = DFNet()
    network.displacement.weight.data *= 8
    return network


def centred(shift: float = 0.0) -> Warp:
    axes = [2 * (torch.arange(n) - (n - 1) / 2) + 19.0 for n in SHAPE]
    return Warp(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) + shift, False)


# -- samples -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(0, 0, 0), (2, 0, -1), (-3, 1, 0), (0.4, -0.4, 1.6)])
def test_image_and_labels_are_moved_alike_by_whole_voxels(shift: tuple[float, ...]) -> None:
    before, given = centred(), CASES[0]
    after = mover(Constant(*shift)).move(given, before, torch.Generator())
    assert given.image is not None
    whole = [round(s) for s in shift]
    inside = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(whole, SHAPE, strict=True))
    image, values = given.image, given.annotations[0].values
    views: list[Callable[[Warp], Tensor]] = [
        lambda placement: sample_image(image, placement)[0],
        lambda placement: sample_labels(values, placement.source),
    ]
    for take in views:
        rolled = take(before).roll([-s for s in whole], (0, 1, 2))
        assert torch.equal(take(after)[inside], rolled[inside])
    last = mover(Constant(100, 0, 0)).move(given, before, torch.Generator()).source
    assert torch.equal(last, before.source[-1:].expand_as(last))


def test_a_moved_sample_has_no_new_values_and_takes_no_brightness_of_the_target() -> None:
    moving = mover(wild())
    plan = replace(PLAN, mover=moving)
    bright = replace(plan, mover=replace(moving, targets=[5 * target for target in moving.targets]))
    image = CASES[0].image
    assert image is not None
    texture = set(image[0, CASES[0].brain].tolist())
    place = mover(wild()).move(CASES[0], centred(), torch.Generator().manual_seed(0))
    assert not torch.equal(place.source, centred().source)
    shown = sample_image(image, place)[0, sample_labels(CASES[0].brain, place.source)]
    assert min(min(abs(value - known) for known in texture) for value in shown[::50].tolist()) < 1e-3
    for number in range(4):
        sample, other = draw(CASES[:1], plan, number), draw(CASES[:1], bright, number)
        still = draw(CASES[:1], replace(PLAN, recipe=replace(RECIPE, spatial=Spatial(still=1.0))), number)
        assert set(sample.values[0][1].tolist()) <= set(CASES[0].annotations[0].values.unique().tolist())
        assert not torch.equal(sample.values[0][1], still.values[0][1])
        assert sample.image.max() <= 1.5 and other.image.max() <= 1.5


def test_a_sample_shows_what_its_labels_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tissue has a separate brightness, so that the image, if it is not blurred, gives the labels."""
    monkeypatch.setattr("bidsseg.learning.cases.blurred_for", lambda image, _: image)
    case = replace(CASES[0], image=60.0 * CASES[0].annotations[0].values[None])
    unstripped = replace(RECIPE, sampling=Sampling(SHAPE, 0, whole_head=True, stripped=0.0, cut=0.0))
    sample = draw([case], replace(PLAN, recipe=unstripped, mover=mover(wild())), 0)
    brightness, values = sample.image.flatten(), sample.values[0][1]
    levels = [brightness[values == value] for value in range(1, 4)]
    assert all(len(level) > 20 for level in levels)
    assert all(level.max() - level.min() < 1e-4 for level in levels)
    assert levels[0][0] < levels[1][0] < levels[2][0]


def test_samples_that_are_not_moved_are_those_of_a_run_without_registration() -> None:
    numbers = range(18)
    plain = [draw(CASES, PLAN, number).image for number in numbers]
    never = [draw(CASES, replace(PLAN, mover=mover(wild(), 0.0)), number).image for number in numbers]
    assert all(torch.equal(a, b) for a, b in zip(plain, never, strict=True))
    third = [draw(CASES, replace(PLAN, mover=mover(wild(), 1 / 3)), number).image for number in numbers]
    again = [draw(CASES, replace(PLAN, mover=mover(wild(), 1 / 3)), number).image for number in numbers]
    assert all(torch.equal(a, b) for a, b in zip(third, again, strict=True))
    moved = sum(not torch.equal(a, b) for a, b in zip(plain, third, strict=True))
    assert 2 <= moved <= 10


def test_a_placed_brain_is_all_that_is_seen_of_a_scan() -> None:
    plain = CASES[0].image
    assert plain is not None
    whole = replace(CASES[0], image=plain + 40)
    image = placed(whole, SHAPE, 2.0)
    assert image.shape == (1, 1, *SHAPE)
    brain = sample_labels(whole.brain, centred(-0.5).source) | sample_labels(whole.brain, centred(0.5).source)
    assert image.max() <= 1.5 and not image[0, 0][~brain].any()
    assert torch.equal(image, placed(whole, SHAPE, 2.0))


# -- DFNet -------------------------------------------------------------------------------------------------------------


def test_pairs_are_two_brains_by_number() -> None:
    brains = [torch.full((1, 1, 1, 1, 1), float(i)) for i in range(4)]
    drawn = [tuple(int(brain) for brain in pair(brains, 0, number)) for number in range(60)]
    assert set(drawn) == {(i, j) for i in range(4) for j in range(4) if i != j}
    assert drawn == [tuple(int(brain) for brain in pair(brains, 0, number)) for number in range(60)]
    assert drawn != [tuple(int(brain) for brain in pair(brains, 1, number)) for number in range(60)]


def test_dfnet_learns_to_make_brains_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = replace(RECIPE, registration=replace(LEARNING, share=0.3, steps=20))
    messages: list[str] = []
    fit = partial(
        fit_mover,
        CASES,
        CASES[1:],
        replace(PLAN, recipe=recipe),
        conditions=Conditions(tmp_path, math.inf, lambda: False, messages.append),
    )
    found, spent_s = fit()
    assert (tmp_path / DFNET).is_file() and not (tmp_path / "checkpoint.pt").exists()
    assert found.share == 0.3 and len(found.targets) == 2 and spent_s > 0
    assert messages[0].startswith("registration step 20")
    brains = [placed(case, RECIPE.sampling.shape, 2.0) for case in CASES]
    pairs = [(a, b) for a in brains for b in brains if a is not b]
    for a, b in pairs:
        assert similarity_loss(
            warp(a, displace(found.network, a, b, precision=torch.float32)), b
        ) < 0.95 * similarity_loss(a, b)
    _, again_s = fit()
    assert abs(again_s - spent_s) < 0.1 and len(messages) == 1


def test_muon_moves_every_kernel_of_dfnet(tmp_path: Path) -> None:
    """With Muon, all weights of DFNet are stepped, also kernels of more than one voxel."""
    torch.manual_seed(0)
    before = DFNet(LEARNING.norm).state_dict()
    torch.manual_seed(0)
    found, _ = fit_mover(
        CASES, CASES[1:], PLAN, conditions=Conditions(tmp_path, math.inf, lambda: False, lambda _: None)
    )
    still = [name for name, value in found.network.state_dict().items() if torch.equal(value, before[name])]
    assert [name for name in still if "num_batches" not in name] == []


def test_the_published_dfnet_is_trained_by_adam_and_normalises_over_batches(tmp_path: Path) -> None:
    asked = Registration(0.3, steps=2)
    assert (asked.optimiser.kernel_rate, asked.optimiser.rate_factor(0.0), asked.optimiser.rate_factor(1.0)) == (
        0,
        1,
        1,
    )
    plan = replace(PLAN, recipe=replace(RECIPE, registration=asked))
    found, _ = fit_mover(
        CASES, CASES[1:], plan, conditions=Conditions(tmp_path, math.inf, lambda: False, lambda _: None)
    )
    means = [module.running_mean for module in found.network.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    assert len(means) == 32 and all(mean is not None and mean.abs().max() > 0 for mean in means)


def test_dfnet_takes_a_part_of_the_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances by a twentieth of a second each time it is read."""
    ticks = itertools.count()
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 20))
    messages: list[str] = []
    recipe = replace(RECIPE, registration=Registration(steps=100_000))
    budget_s = 4.0
    conditions = Conditions(tmp_path, budget_s, lambda: False, messages.append)
    _, spent_s = fit_mover(CASES, CASES, replace(PLAN, recipe=recipe), conditions=conditions)
    assert 0.25 * budget_s <= spent_s < 0.25 * budget_s + 0.2


def test_a_checkpoint_of_dfnet_is_kept_until_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = Conditions(tmp_path, math.inf, lambda: False, lambda _: None)
    plan = replace(PLAN, recipe=replace(RECIPE, registration=Registration(steps=2)))
    fit = partial(fit_mover, CASES, CASES[1:], plan, conditions=conditions)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(clock, "CHECKPOINT_EVERY_S", -1)
        patched.setattr(registration_loop, "save", full)
        with pytest.raises(IOFailure, match="no space left"):
            fit()
    kept = conditions.checkpoint.read_bytes()
    fit()
    assert not conditions.checkpoint.exists()
    conditions.checkpoint.write_bytes(kept)  # as if the run had been killed before it removed the checkpoint
    fit()
    assert not conditions.checkpoint.exists()


def test_one_labelled_scan_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two labelled training scans"):
        fit_mover(CASES[:1], CASES, PLAN, conditions=Conditions(tmp_path, 10.0, lambda: False, lambda _: None))


# -- the level ---------------------------------------------------------------------------------------------------------

HEAD = (24, 28, 24)
HALF = np.diag([0.5, 0.5, 0.5, 1]) @ phantoms.grid(8.0, "LAS", HEAD)
TEXT = """
base = "eneuronet-registration"
name = "tiny"
spacing_mm = 3.0
heads = { FAST = 1.0 }
steps = 3
[sampling]
shape = [32, 16, 16]
[registration]
share = 0.5
steps = 2
"""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two labelled participants, their FAST labels, and a dataset of two unlabelled participants."""
    folder = tmp_path_factory.mktemp("datasets")
    labelled = phantoms.make_bids(folder / "bids", 2, spacing_mm=8.0, shape=HEAD)
    other = phantoms.make_bids(folder / "other", 4, spacing_mm=8.0, shape=HEAD)
    tissue = np.array([0, 1, 2, 3, 2], np.uint8)[phantoms.head(phantoms.grid(8.0, "LAS", HEAD), HEAD, phantoms.LABEL)]
    for number in (1, 2):
        name = f"sub-{number:02}"
        phantoms.save(folder / "fast" / name / "anat" / f"{name}_seg-FAST_dseg.nii.gz", tissue, HALF)
        shutil.rmtree(other / name)  # it would be treated as the labelled participant of that name
        for bids, seed in ((labelled, number), (other, number + 2)):
            image = phantoms.noisy_head(phantoms.grid(8.0, "LAS", HEAD), HEAD, seed=seed)
            phantoms.save(bids / f"sub-{seed:02}" / "anat" / f"sub-{seed:02}_T1w.nii.gz", image, HALF)
    return labelled, folder / "fast", other


def find_brain(images: Mapping[str, Volume], locator: Any, engine: Any) -> Brain:
    """Return an ellipsoid of the size of the phantom's brain instead of running the locator."""
    assert locator.card.name == "locator"
    grid = whole_grid(images["T1w"], 2.0)
    return Brain(grid, 0.9 * ellipsoid(18, 23, 20, shape=grid.shape).float())


Ask = Callable[..., Settings]


@pytest.fixture
def ask(datasets: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Return a function that returns settings of a run, by default with the unlabelled dataset."""
    monkeypatch.setattr(reading, "find_brain", find_brain)
    leave_curves_undrawn(monkeypatch)
    list_once(monkeypatch)

    def settings(text: str = TEXT, output: str = "out", **asked: Any) -> Settings:
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        labelled, fast, other = datasets
        asked = {"recipe": str(path), "folds": 1, "also": [other], **asked}
        return Settings(
            labelled,
            tmp_path / output,
            precision="fp32",
            n_cpus=1,
            labels=asked.pop("labels", {"FAST": [fast]}),
            training=Training(**asked),
            report=RecordingConsole(),
        )

    return settings


def test_unlabelled_scans_are_cases_without_annotations(ask: Ask, datasets: tuple[Path, Path, Path]) -> None:
    settings = ask()
    cases = load_cases(settings, settings.report, unlabelled=True)
    assert [case.name for case in cases] == ["bids/sub-01", "bids/sub-02", "other/sub-03", "other/sub-04"]
    assert [len(case.annotations) for case in cases] == [1, 1, 0, 0]
    found, labelled = cases[2], cases[0]
    assert found.image is not None and found.image.shape[1:] == found.brain.shape == labelled.brain.shape
    both = (found.brain & labelled.brain).sum() * 2 / (found.brain.sum() + labelled.brain.sum())
    assert both > 0.8
    plain = load_cases(settings, settings.report)
    assert [case.name for case in plain] == ["bids/sub-01", "bids/sub-02"]
    assert isinstance(settings.report, RecordingConsole)
    assert [line.partition("_T1w")[0][-6:] for line in settings.report.warnings] == ["sub-03", "sub-04"]


def test_a_model_and_its_dfnet(ask: Ask) -> None:
    settings = ask()
    folder = train_level(settings)
    assert {path.name for path in folder.iterdir()} == {
        card.CARD,
        card.WEIGHTS,
        DFNET,
        "curve.tsv",
        "curve.png",
        "training.html",
    }
    stored = card.read_card(folder)
    assert stored.recipe["registration"] == {
        "share": 0.5,
        "steps": 2,
        "rate": 1e-4,
        "kernel_rate": 0.0,
        "schedule": "constant",
        "smoothness": 1.0,
        "norm": "batch",
    }
    assert stored.data == ["bids: 2 scans", "other: 2 scans without annotation"]
    assert library.load_model(str(folder)).network is not None
    assert isinstance(settings.report, RecordingConsole)
    assert "2 scans without annotation as registration targets" in settings.report.messages
    assert [line for line in settings.report.warnings if "at least five" not in line] == []


def test_a_run_stopped_at_any_time_goes_on_to_the_very_same_weights(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_level(ask(output="whole"))
    for steps, done in ((2, "interrupted after 1 steps of registration"), (4, "interrupted after 2 steps,")):
        with monkeypatch.context() as patched:
            interrupt_after(steps - 1, patched)
            with pytest.raises(TemporaryFailure, match=done):
                train_level(ask(output="parts", resume=steps > 2))
        with pytest.raises(UsageError, match="give --resume to resume the training"):
            train_level(ask(output="parts"))
    folder = train_level(ask(output="parts", resume=True))
    for name in (card.WEIGHTS, DFNET):
        one, other = (load_file(place / name) for place in (whole, folder))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_dfnet_of_other_images_is_not_used(
    ask: Ask, datasets: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the end of its training and the first checkpoint, only DFNet knows the files."""
    copy = Path(shutil.copytree(datasets[0], tmp_path / "bids"))

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            train_level(replace(ask(), bids_dir=copy))
    (path,) = copy.glob("sub-01/anat/*_T1w.nii.gz")
    path.write_bytes(path.read_bytes() + b"changed")
    with pytest.raises(DataError, match=rf"dfnet\.safetensors: the data changed since: {path}"):
        train_level(replace(ask(resume=True), bids_dir=copy))


def test_without_an_unlabelled_scan_it_says_what_to_give(ask: Ask) -> None:
    settings = ask(also=[])
    with pytest.raises(UsageError, match="--also BIDS_DIR"):
        train_level(settings)
    assert not settings.output_dir.exists()


def test_grids_on_which_samples_cannot_be_registered_are_refused(ask: Ask) -> None:
    coarse = TEXT + "[coarse]\nsteps = 2\nspacing_mm = 6.0\nshape = [32, 16, 16]\npoints = 9\n"
    with pytest.raises(DataError, match=r"tiny: \[registration\] needs samples of one grid: write steps = 0 under"):
        train_level(ask(coarse))
    train_level(replace(ask(coarse.replace("steps = 2\nspacing", "steps = 0\nspacing")), dry_run=True))
    other = TEXT.replace("[32, 16, 16]", "[32, 16, 24]") + '[network]\nname = "unet"\nwidths = [4, 8]\n'
    with pytest.raises(DataError, match="every size in shape must be a multiple of 16"):
        train_level(ask(other))


def test_an_unlabelled_scan_without_a_brain_is_named(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any, **__: Any) -> None:
        raise DataError("no brain found in the image")

    monkeypatch.setattr(reading, "find_brain", nothing)
    with pytest.raises(DataError, match="other/sub-03: no brain found"):
        train_level(ask())


def test_the_shipped_recipe_is_eneuronets_but_for_registration() -> None:
    """Its small scale begins on the final grid, since a coarser one has no registration."""
    for small in (False, True):
        recipe, base = load_recipe("eneuronet-registration", small=small), load_recipe("eneuronet", small=small)
        assert recipe.view_at(0) == recipe.view
        assert recipe.registration is not None and recipe.registration.share == pytest.approx(1 / 3, abs=1e-3)
        same = {name: getattr(base, name) for name in ("name", "title", "description", "steps", "coarse")}
        assert replace(recipe, registration=None, **same) == base
