"""The samples of a run: drawn on the device of the network, in the order of their numbers."""

import itertools
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretend_gpu import pretended_gpu

from bidsseg.labels import load_protocol
from bidsseg.learning import samples
from bidsseg.learning.augment import Spatial
from bidsseg.learning.cases import Annotation, Case, Sample, Sampling
from bidsseg.learning.objective import Relations, losses
from bidsseg.learning.processes import Processes
from bidsseg.learning.recipe import load_recipe
from bidsseg.learning.registration import Mover, placed
from bidsseg.learning.samples import Plan, draw
from bidsseg.networks.dfnet import DFNet
from bidsseg.networks.subpixel_unet import SubpixelUNet

FREESURFER, FAST = load_protocol("FreeSurfer"), load_protocol("FAST")
HEADS = (FREESURFER, FAST)
SHAPE = (40, 40, 40)
SAMPLING = Sampling((32, 32, 32), points=500, cut=0.5, noise_around=0.5, missing=0.5)


def case(name: str, *, images: int = 1) -> Case:
    """A scan with two annotations, or, without an image, with the one of structures."""
    values = torch.zeros(SHAPE, dtype=torch.uint8)
    values[8:32, 8:32, 8:32] = torch.randint(1, 20, (24, 24, 24), dtype=torch.uint8)
    maps = [Annotation(FREESURFER, values)] + [Annotation(FAST, values.clamp(max=3))] * (images > 0)
    image = (torch.rand(images, *SHAPE) + 0.1) * (values > 0) if images else None
    return Case(name, image, tuple(maps), values > 0, torch.rand(3, 10, 10, 10) - 0.5)


def plan(*, inputs: tuple[str, ...] = ("T1w",), spatial: dict[str, Any] | None = None, **sampling: Any) -> Plan:
    recipe = replace(
        load_recipe("wholebrain"),
        heads={"FreeSurfer": 1.0, "FAST": 1.0},
        inputs=inputs,
        sampling=replace(SAMPLING, **sampling),
        spatial=replace(Spatial(), **(spatial or {})),
        synthetic_share=0.5,
    )
    return Plan(recipe, HEADS)


def arrays(sample: Sample) -> list[torch.Tensor]:
    some = [] if sample.coordinates is None else [sample.coordinates]
    return [sample.image, sample.points, *some, *(values for _, values in sample.values)]


@pytest.mark.parametrize(
    "wanted",
    [
        plan(),
        plan(whole_head=True, stripped=0.5),
        plan(anywhere=True, points=0),
        plan(inputs=("T1w", "FLAIR")),
        plan(spatial={"elastic_order": 3}),
    ],
)
def test_samples_are_drawn_on_the_device(wanted: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    cases = [case("bids/sub-1", images=len(wanted.recipe.inputs)), case("heads/sub-2", images=0)]
    with pretended_gpu(monkeypatch) as gpu:
        for number in range(12):
            assert all(gpu.is_there(array) for array in arrays(draw(cases, wanted, number, device="cuda")))


def test_the_pretended_gpu_refuses_arrays_on_two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu(monkeypatch):
        there = torch.ones(3, device="cuda")
        assert there.device.type == "cuda" and (there + 1).to("cpu").device.type == "cpu"
        with pytest.raises(AssertionError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(AssertionError, match="NumPy"):
            there.numpy()


def test_registration_and_loss_stay_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    one, other = case("bids/sub-1"), case("bids/sub-2")
    network = SubpixelUNet({"FreeSurfer": len(FREESURFER.regions), "FAST": len(FAST.regions)}, widths=(4, 8))
    with pretended_gpu(monkeypatch) as gpu:
        dfnet = DFNet().to("cuda")
        mover = Mover(dfnet, [placed(other, (32, 32, 32), 1.0)], share=1.0)
        wanted = replace(plan(), mover=mover)
        sample = draw([one], wanted, 0, device="cuda")
        assert all(gpu.is_there(array) for array in arrays(sample))
        network = network.to("cuda")
        relations = Relations(HEADS, "cuda")
        total, _ = losses(network, sample, wanted, relations=relations, precision=torch.float32)
        assert gpu.is_there(total) and torch.isfinite(total)


def test_samples_drawn_ahead_are_those_drawn_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    cases, wanted = [case("bids/sub-1"), case("heads/sub-2", images=0)], plan()
    used: list[Sample] = []
    fake = SimpleNamespace(
        Stream=lambda device: SimpleNamespace(synchronize=lambda: None),
        stream=lambda stream: nullcontext(),
        current_stream=lambda device: None,
    )
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(Sample, "used_by", lambda sample, stream: used.append(sample))
    ahead = samples.drawn_ahead(partial(draw, cases, wanted), itertools.count(3), device="cpu")
    in_turn = samples.drawn(cases, wanted, 3, processes=Processes())
    for _ in range(5):
        one, other = next(ahead), next(in_turn)
        assert used[-1] is one
        assert all(torch.equal(a, b) for a, b in zip(arrays(one), arrays(other), strict=True))
    ahead.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("free, moved", [(10**9, True), (10**5, False)])
def test_cases_stay_on_the_gpu_if_they_leave_room(free: int, moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case("bids/sub-1")]
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(mem_get_info=lambda device: (free, free)))
    with pretended_gpu(monkeypatch) as gpu:
        (kept,) = samples.resident(cases, "cuda")
        assert (kept is cases[0]) != moved
        image = kept.opened().image
        assert image is not None and gpu.is_there(image) == moved
