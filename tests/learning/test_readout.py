"""The last layers, trained alone for heads that the initial model lacks."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled import RECIPE, Ask, console, interrupt_after, weights

from bidsseg.errors import TemporaryFailure
from bidsseg.labels import load_protocol
from bidsseg.learning import loop, training
from bidsseg.learning.clock import Clock
from bidsseg.learning.datasets import load_cases
from bidsseg.learning.optimiser import Readout
from bidsseg.learning.processes import Processes
from bidsseg.learning.readout import fit_readout
from bidsseg.learning.recipe import Coarse, load_recipe
from bidsseg.learning.samples import Plan, drawn
from bidsseg.learning.state import Conditions
from bidsseg.learning.teacher import Teacher
from bidsseg.levels.train import train_level
from bidsseg.models.library import NETWORKS, build_network
from bidsseg.networks.network import Network

ONE_HEAD = RECIPE.replace("{ brain = 0.5, FAST = 1.0 }", "{ brain = 1.0 }").replace("tiny", "first")


def ready(ask: Ask, **settings: Any) -> tuple[Network, Any, Plan]:
    given = ask()
    recipe = replace(load_recipe(given.training.recipe), readout=replace(Readout(samples=3, points=300), **settings))
    heads = tuple(load_protocol(name).scored() for name in recipe.heads)
    torch.manual_seed(0)
    network = build_network(recipe.network, ("T1w",), {head.name: len(head.regions) for head in heads}, where="here")
    return network, load_cases(given, given.report), Plan(recipe, heads)


def conditions(folder: Path, said: list[str], *, stop: bool = False, budget_s: float = math.inf) -> Conditions:
    return Conditions(folder, budget_s, partial(bool, stop), said.append)


def test_only_the_last_layers_learn(ask: Ask, tmp_path: Path) -> None:
    network, cases, plan = ready(ask, steps=200)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    said: list[str] = []
    assert fit_readout(network, cases, plan, conditions=conditions(tmp_path, said)) > 0
    changed = {
        name.split(".")[0] for name, value in network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"unfold", "heads"}
    first, last = (float(line.rpartition(" ")[2]) for line in said[1:])
    assert last < first
    assert all(parameter.grad is None for parameter in network.parameters())


def test_it_reads_samples_of_the_final_grid(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, cases, plan = ready(ask, steps=2)
    coarse = Coarse(steps=2, spacing_mm=6.0, shape=(16, 16, 16), points=200)
    shapes: list[int] = []
    plain = network.cells_at

    def cells_at(image: torch.Tensor, *rest: torch.Tensor) -> Any:
        shapes.append(image.shape[2])
        return plain(image, *rest)

    monkeypatch.setattr(network, "cells_at", cells_at)
    begun = replace(plan, recipe=replace(plan.recipe, coarse=coarse))
    fit_readout(network, cases, begun, conditions=conditions(tmp_path, []))
    assert shapes == [plan.recipe.sampling.shape[0]] * 3


def test_the_teacher_says_the_same_from_stored_features(ask: Ask) -> None:
    network, cases, plan = ready(ask)
    sample = next(drawn(cases, plan, 0, processes=Processes()))
    teacher = Teacher.of(network, ["brain"], "cpu")
    rows, within = network.cells_at(sample.image, sample.coordinates, sample.points)
    stored, direct = teacher.at_voxels(rows, within)["brain"], teacher.at_points(sample)["brain"]
    assert torch.allclose(stored, direct, atol=1e-5) and stored.shape == (len(sample.points), 2)
    logits = network.logits(sample.image, sample.coordinates)["brain"][0].permute(1, 2, 3, 0)
    x, y, z = sample.points.T
    assert torch.allclose(direct, torch.softmax(logits[x, y, z], 1), atol=1e-5)


def test_the_time_budget_ends_it(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances by a second at each look: one sample takes half of the two seconds."""
    network, cases, plan = ready(ask, steps=100_000, share=0.5)
    seconds = iter(range(10_000))
    monkeypatch.setattr("bidsseg.learning.clock.time.monotonic", lambda: next(seconds))
    assert fit_readout(network, cases, plan, conditions=conditions(tmp_path, [], budget_s=20.0)) < 20


def test_an_interruption_ends_it_before_the_training(ask: Ask, tmp_path: Path) -> None:
    network, cases, plan = ready(ask)
    with pytest.raises(TemporaryFailure, match="interrupted before the training began"):
        fit_readout(network, cases, plan, conditions=conditions(tmp_path, [], stop=True))


def test_it_precedes_the_training_of_a_new_head_only(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_level(ask(ONE_HEAD))
    calls: list[Plan] = []

    def counted(network: Network, cases: Any, plan: Plan, *, conditions: Conditions) -> float:
        calls.append(plan)
        return fit_readout(network, cases, plan, conditions=conditions)

    monkeypatch.setattr(training, "fit_readout", counted)
    short = "[readout]\nsamples = 2\nsteps = 100\npoints = 200\n"
    train_level(ask(ONE_HEAD.replace("first", "same") + short, init=str(first)))
    assert not calls
    new = ask(RECIPE + short, init=str(first))
    folder = train_level(new)
    assert [plan.recipe.readout.steps for plan in calls] == [100]
    assert any("last layers: step 100 of 100" in line for line in console(new).messages)
    assert set(weights(folder)) > set(weights(first))


def test_its_seconds_count_after_an_interruption_too(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_level(ask(ONE_HEAD))
    monkeypatch.setattr(training, "fit_readout", lambda *_, **__: 1800.0)
    clocks: list[Clock] = []

    class Watched(Clock):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            clocks.append(self)

    monkeypatch.setattr(loop, "Clock", Watched)
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        with pytest.raises(TemporaryFailure):
            train_level(ask(init=str(first), time_budget_min=60.0))
    train_level(ask(init=str(first), time_budget_min=60.0, resume=True))
    assert [1700 < clock.learning_s < 1800 for clock in clocks] == [True, True]


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"segnet"}))  # it has a training loop of its own
def test_features_from_stored_rows_are_those_of_the_network(name: str) -> None:
    torch.manual_seed(0)
    network = build_network({"name": name}, ("T1w",), {"FAST": 4, "FreeSurfer": 33}, where="here").eval()
    assert all(any(each.startswith(layer) for each in network.state_dict()) for layer in network.last_layers)
    if not network.last_layers:
        return
    size = max(16, network.multiple)
    image, points = torch.rand(1, 1, size, size, size), torch.randint(size, (50, 3))
    frame = torch.rand(1, 3, size // 2, size // 2, size // 2) if name == "subpixel-unet" else None
    with torch.no_grad():
        rows, within = network.cells_at(image, frame, points)
        x, y, z = points.T
        expected = network(image, frame)[0].permute(1, 2, 3, 0)[x, y, z]
        assert torch.allclose(network.voxels(rows, within), expected, atol=1e-5)
