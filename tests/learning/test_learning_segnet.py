"""SegNet is trained on labelled scans and then used like any model."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bidsseg.errors import DataError
from bidsseg.image.volume import Volume
from bidsseg.labels import load_protocol
from bidsseg.learning import segnet
from bidsseg.learning.annotation_files import positions
from bidsseg.learning.cases import Annotation, Case
from bidsseg.learning.recipe import Recipe, Voxels
from bidsseg.learning.samples import Plan
from bidsseg.learning.segnet import fit_voxels
from bidsseg.learning.state import Conditions, State
from bidsseg.learning.voxel_trainer import labelled_brain
from bidsseg.models.card import Card
from bidsseg.models.library import Model
from bidsseg.networks.segnet.staged import StagedSegNet
from bidsseg.segmentation.predict import segment

FAST = load_protocol("FAST")
SHAPE = (24, 28, 20)


def labels() -> np.ndarray:
    """Fluid around grey matter around white matter, in a box."""
    values = np.zeros(SHAPE, np.uint8)
    for value, margin in ((1, 4), (2, 6), (3, 8)):
        values[margin:-margin, margin:-margin, margin:-margin] = value
    return values


def case(seed: int, image: bool = True) -> Case:
    values = labels()
    brightness = np.array([0.0, 20.0, 50.0, 80.0])[values]
    noise = np.random.default_rng(seed).normal(0, 3, SHAPE) * (values > 0)
    shown = torch.from_numpy((brightness + noise).astype(np.float32))[None] if image else None
    annotation = Annotation(FAST, positions(values, FAST, "here"))
    return Case(f"data/sub-{seed:02}", shown, (annotation,), torch.from_numpy(values > 0))


def network() -> StagedSegNet:
    torch.manual_seed(0)
    return StagedSegNet({"FAST": 4}, groups=("coordinates", "fine"), hidden=(32,), stages=2)


VOXELS = Voxels(per_scan=300, validation=80, batch=20, epochs=4, halve_at=(3,))
PLAN = Plan(Recipe("tiny", "Tissue", {"FAST": 1.0}, {"name": "segnet"}, voxels=VOXELS), (FAST,))
AUGMENTED = replace(PLAN, recipe=replace(PLAN.recipe, voxels=replace(VOXELS, augmented=True)))


def short(plan: Plan) -> Plan:
    """Return the plan with two epochs for each stage."""
    assert plan.recipe.voxels is not None
    voxels = replace(plan.recipe.voxels, per_scan=30, validation=20, batch=2, epochs=2, halve_at=(1,), rate=0.002)
    return replace(plan, recipe=replace(plan.recipe, voxels=voxels))


def fit(net: StagedSegNet, folder: Path, plan: Plan = PLAN, stop: Callable[[], bool] = lambda: False) -> State:
    folder.mkdir(exist_ok=True)
    return fit_voxels(net, [case(1), case(2)], plan, conditions=Conditions(folder, math.inf, stop, lambda _: None))


@pytest.fixture(scope="module", params=[PLAN, AUGMENTED], ids=["as they are", "augmented"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[StagedSegNet, State]:
    """The networks that a plan trains on two scans, which no test changes, and the record of the training."""
    net = network()
    return net, fit(net, tmp_path_factory.mktemp("trained"), request.param)


def test_both_stages_learn(trained: tuple[StagedSegNet, State]) -> None:
    net, state = trained
    for stage in ("stage 1", "stage 2"):
        errors = [row[f"{stage} error"] for row in state.curve if f"{stage} error" in row]
        assert errors[-1] < 0.1
        assert errors[-1] <= errors[0]
    assert net.second.distance_sd.min() > 0.01 and not torch.equal(net.second.distance_sd, torch.ones(3))
    assert state.step == sum(len(range(0, 600, 20)) for _ in state.curve)


def test_each_epoch_learns_from_brains_that_are_augmented_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Case] = []
    plain = segnet.draw_case

    def draw(*given: Any) -> Case:
        drawn.append(plain(*given))
        return drawn[-1]

    def keep(given: Case, *_: object) -> Case:
        return given

    monkeypatch.setattr(segnet, "draw_case", draw)
    changed, as_they_are = network(), network()
    state = fit(changed, tmp_path / "changed", short(AUGMENTED))
    assert len(drawn) == 2 * len(state.curve)
    assert len({float(each.image.sum()) for each in drawn if each.image is not None}) == len(drawn)
    monkeypatch.setattr(segnet, "draw_case", keep)
    fit(as_they_are, tmp_path / "kept", short(AUGMENTED))
    weight = "first.first.fine.weight"
    assert not torch.equal(changed.get_parameter(weight), as_they_are.get_parameter(weight))


def test_logits_are_those_of_its_head() -> None:
    net = network().eval().requires_grad_(False)
    image = F.pad(torch.rand(1, 1, 6, 6, 6), (2,) * 6)
    logits = net.logits(image)
    assert list(logits) == ["FAST"] and logits["FAST"].shape == (1, 4, 10, 10, 10)
    background = logits["FAST"].argmax(1) == 0
    assert background[image[:, 0] == 0].all() and not background[image[:, 0] > 0].all()


@pytest.mark.parametrize("trained", [PLAN], ids=["as they are"], indirect=True)
def test_the_trained_networks_segment_a_scan(trained: tuple[StagedSegNet, State]) -> None:
    net, _ = trained
    card = Card("tiny", "Tissue", ("T1w",), {"name": "segnet"}, 1.0, ("FAST",), "", normalisation="zscore")
    unseen, truth = case(9), labels()
    assert unseen.image is not None
    logits = net.eval()(unseen.image[None])
    assert logits.shape == (1, 4, *SHAPE)
    found = np.array(FAST.indices)[logits[0].argmax(0).numpy()]
    assert (found == truth)[truth > 0].mean() > 0.9
    assert not found[truth == 0].any()
    with torch.autocast("cpu", torch.bfloat16):
        short = net(unseen.image[None])
    assert short.dtype == torch.bfloat16
    assert (short[0].argmax(0) == logits[0].argmax(0)).float().mean() > 0.95
    result = segment({"T1w": Volume(unseen.image[0].numpy(), np.eye(4))}, Model(card, net), memory_mb=1)
    assert not result.notes  # never in windows
    assert result.labels["FAST"].shape == SHAPE


@pytest.fixture(scope="module", params=[short(PLAN), short(AUGMENTED)], ids=["as they are", "augmented"])
def straight(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, StagedSegNet, int]:
    """A plan, the result of an uninterrupted run, and its number of steps."""
    net = network()
    steps = fit(net, tmp_path_factory.mktemp("straight"), request.param).step
    assert all(value.isfinite().all() for value in net.state_dict().values())
    return request.param, net, steps


@pytest.mark.parametrize("chunks", [0, 1, 4, 5])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    chunks: int, straight: tuple[Plan, StagedSegNet, int], tmp_path: Path
) -> None:
    """Interruptions are in the first or second stage, between epochs or within one of two chunks."""
    plan, whole, steps = straight
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > chunks

    broken = fit(network(), tmp_path / "broken", plan, stop)
    assert broken.step == 10 * (chunks // 2) * 3 + 20 * (chunks % 2 == 0) + 30 * (chunks % 2)
    again = network()
    assert fit(again, tmp_path / "broken", plan).step == steps
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_run_of_another_kind_is_not_continued(tmp_path: Path) -> None:
    tmp_path.joinpath("out").mkdir()
    run = {"seed": 1, "recipe": {"rate": 0.1}}
    given = Conditions(tmp_path / "out", math.inf, lambda: True, lambda _: None, run=run)
    fit_voxels(network(), [case(1)], PLAN, conditions=given)
    with pytest.raises(DataError, match=r"checkpoint\.pt: of another run \(seed differ\).*--overwrite"):
        fit_voxels(network(), [case(1)], PLAN, conditions=replace(given, run={**given.run, "seed": 2}))


def test_the_time_is_shared_by_both_stages(tmp_path: Path) -> None:
    net = network()
    (tmp_path / "out").mkdir()
    state = fit_voxels(
        net, [case(1)], PLAN, conditions=Conditions(tmp_path / "out", 1e-3, lambda: False, lambda _: None)
    )
    assert len(state.curve) <= 2


def test_waiting_in_vain_ends_a_stage(tmp_path: Path) -> None:
    voxels = replace(VOXELS, per_scan=75, validation=20, epochs=50, patience=1, rate=0.0)
    plan = replace(PLAN, recipe=replace(PLAN.recipe, voxels=voxels))
    assert len(fit(network(), tmp_path, plan).curve) == 4


def test_cases_that_it_cannot_learn_from_are_named() -> None:
    with pytest.raises(DataError, match="sub-03: has no image"):
        labelled_brain(case(3, image=False), FAST)
    with pytest.raises(DataError, match="sub-04: no annotation in the protocol BrainCOLOR"):
        labelled_brain(case(4), load_protocol("BrainCOLOR").scored())


def test_it_learns_from_the_brain_alone_as_it_is_shown_it_later() -> None:
    given = case(1)
    assert given.image is not None
    whole_head = replace(given, image=torch.where(given.brain, given.image, torch.tensor(500.0)))
    stripped, shown = (labelled_brain(each, FAST).seen for each in (given, whole_head))
    for name, value in vars(stripped).items():
        same = (
            torch.equal(value, getattr(shown, name))
            if isinstance(value, torch.Tensor)
            else value == getattr(shown, name)
        )
        assert same, name
