"""Parts of the training loop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled import RECIPE, Ask, weights

from bidsseg.image.volume import Volume
from bidsseg.labels import load_protocol, load_relation
from bidsseg.learning import cases, loop, objective, samples, state, validation
from bidsseg.learning.cases import Annotation, Case, Sample
from bidsseg.learning.clock import time_left
from bidsseg.learning.datasets import load_cases
from bidsseg.learning.recipe import load_recipe
from bidsseg.learning.samples import Plan
from bidsseg.learning.state import Conditions
from bidsseg.levels.train import train_level
from bidsseg.models.library import build_network, load_model
from bidsseg.networks.network import Network
from bidsseg.segmentation.result import Segmentation


def test_what_is_kept_is_the_running_mean_of_the_weights(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[dict[str, torch.Tensor]] = []
    plain_losses, plain_save = objective.losses, state.save_checkpoint

    def keep(network: Network) -> None:
        passed.append({name: value.clone() for name, value in network.state_dict().items()})

    def losses(network: Network, *given: Any, **named: Any) -> Any:
        keep(network)
        return plain_losses(network, *given, **named)

    def save_checkpoint(conditions: Conditions, network: Network, *given: Any, **others: Any) -> None:
        keep(network)
        plain_save(conditions, network, *given, **others)

    monkeypatch.setattr(loop, "losses", losses)
    monkeypatch.setattr(loop, "save_checkpoint", save_checkpoint)
    found = weights(train_level(ask(RECIPE.replace("steps = 3", "steps = 4"))))
    assert len(passed) == 5
    mean = passed[0]
    for step, now in enumerate(passed[1:]):
        decay = (1 + step) / (10 + step)
        mean = {name: decay * value + (1 - decay) * now[name] for name, value in mean.items()}
    assert all(torch.allclose(found[name], value, atol=2e-3) for name, value in mean.items())
    assert any(not torch.allclose(found[name], value, atol=2e-3) for name, value in passed[0].items())


def test_batch_normalisations_are_recomputed_from_images_only(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics are the mean over image samples for the final weights, whatever came before."""
    network = 'name = "neuronet"\nwidths = [4, 6]\n'
    recipe = RECIPE.split("[network]")[0] + "synthetic_share = 0.9\nstatistics = 3\n[network]\n" + network
    recipe += "[sampling]" + RECIPE.split("[sampling]")[1]
    shown: list[bool] = []
    inputs: list[torch.Tensor] = []
    plain_draw, plain_learn = cases.draw_sample, loop.learn_statistics

    def draw_sample(case: Any, *given: Any, **named: Any) -> Any:
        shown.append(case.image is not None)
        return plain_draw(case, *given, **named)

    def learn_statistics(net: Any, *given: Any, **named: Any) -> None:
        shown.clear()
        first = net.scales[0][0].first[0]
        first.register_forward_hook(lambda module, seen, found: inputs.append(seen[0]))
        plain_learn(net, *given, **named)
        assert first.momentum == 0.01
        assert shown == [True] * 3

    monkeypatch.setattr(samples, "draw_sample", draw_sample)
    monkeypatch.setattr(loop, "learn_statistics", learn_statistics)
    found = weights(train_level(ask(recipe)))
    expected = torch.stack([x.mean((0, 2, 3, 4)) for x in inputs[:3]]).mean(0)
    assert torch.allclose(found["scales.0.0.first.0.running_mean"], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("elapsed_s", "progress", "told"),
    [(600, 0.25, "30 min left"), (60, 0.75, "20 s left"), (7200, 0.1, "18.0 h left"), (1, 0.0, "time left unknown")],
)
def test_the_remaining_time_is_printed(elapsed_s: float, progress: float, told: str) -> None:
    assert time_left(elapsed_s, progress) == told


COARSE = "\n[coarse]\nsteps = 500\nspacing_mm = 6.0\nshape = [16, 16, 16]\npoints = 200\n"
"""Half of the steps of a recipe of 1000 steps."""


def test_a_time_budget_leaves_coarse_samples_their_share(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock advances by a second at each look: after half of the budget, samples have the grid of the model."""
    given = ask(RECIPE.replace("steps = 3", "steps = 1000") + COARSE)
    recipe = load_recipe(given.training.recipe)
    plan = Plan(recipe, tuple(load_protocol(name).scored() for name in recipe.heads))
    seen = load_cases(given, given.report)
    regions = {head.name: len(head.regions) for head in plan.heads}
    network = build_network(recipe.network, recipe.inputs, regions, where="here")
    seconds = iter(range(10_000))
    monkeypatch.setattr("bidsseg.learning.clock.time.monotonic", lambda: next(seconds))
    shapes: list[int] = []
    plain = objective.losses

    def losses(network: Network, sample: Sample, *given: Any, **named: Any) -> Any:
        shapes.append(sample.image.shape[2])
        return plain(network, sample, *given, **named)

    monkeypatch.setattr(loop, "losses", losses)
    torch.set_num_threads(1)
    conditions = Conditions(tmp_path, 100.0, lambda: False, lambda line: None)
    done = loop.fit(network, seen, [], plan=plan, conditions=conditions)
    assert done.step < 100
    assert shapes == sorted(shapes)
    assert 0.4 < np.mean([size == 16 for size in shapes]) < 0.6


def test_learning_lowers_the_loss(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    plain = objective.losses

    def losses(*given: Any, **named: Any) -> Any:
        loss, parts = plain(*given, **named)
        seen.append(loss.item())
        return loss, parts

    monkeypatch.setattr(loop, "losses", losses)
    train_level(ask(RECIPE.replace("steps = 3", "steps = 40") + "\n[optimiser]\nrate = 0.03\n"))
    assert np.mean(seen[-8:]) < 0.93 * np.mean(seen[:4])


def test_validation_measures_against_the_annotation(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ask()
    first = load_cases(given, given.report)[0]
    truth = np.array(load_protocol("FAST").indices)[first.annotations[0].values.numpy()]
    found = np.where(truth == 1, 2, truth).astype(np.uint8)

    def segment(images: dict[str, Volume], *_: Any, **__: Any) -> Segmentation:
        assert images["T1w"].shape == truth.shape
        return Segmentation({"FAST": found}, {}, truth > 0, None, 1.0)

    monkeypatch.setattr(validation, "segment", segment)
    model = load_model(str(train_level(ask())))
    table = validation.validate(model, [first], lambda _: None).set_index(["head", "region"]).dice
    fluid, grey = (truth == 1).sum(), (truth == 2).sum()
    assert table["brain", "Brain"] == 1
    assert table["FAST", "White Matter"] == 1
    assert table["FAST", "Cerebrospinal Fluid"] == 0
    assert table["FAST", "Gray Matter"] == pytest.approx(2 * grey / (2 * grey + fluid))
    assert table["FAST", validation.ERROR] == pytest.approx(fluid / (truth > 0).sum())


def test_a_head_is_validated_only_on_regions_that_an_annotation_determines(monkeypatch: pytest.MonkeyPatch) -> None:
    """BrainCOLOR does not determine most regions of FreeSurfer: white matter, which it lacks, does not count."""
    manual, head = load_protocol("BrainCOLOR"), load_protocol("FreeSurfer").scored()
    relation = load_relation(manual, head)
    assert relation is not None
    values = torch.arange(len(manual.regions))
    truth = torch.from_numpy(relation.allowed).int().argmax(1)

    class Knowing(torch.nn.Linear):
        def at(self, *_: Any) -> torch.Tensor:
            return torch.nn.functional.one_hot(truth, len(head.regions)).float()

        def head(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.eye(len(head.regions)), self.bias

    network = Knowing(1, 1)
    sample = Sample(torch.zeros(1), None, torch.zeros(0, 3), [(manual, values)])
    monkeypatch.setattr(loop, "draw_sample", lambda *_: sample)
    recipe = load_recipe("eneuronet", small=True)
    plan = Plan(replace(recipe, heads={"FreeSurfer": 1.0}), (head,))
    torch.nn.init.zeros_(network.bias)
    case = Case("bids/sub-01", None, (), torch.zeros(1, 1, 1, dtype=torch.bool))
    assert loop.evaluate(network, [case], plan, precision=torch.float32) == {"dice BrainCOLOR>FreeSurfer": 1.0}  # type: ignore[arg-type]
    truth[relation.allowed.sum(1) == 1] = 0
    assert loop.evaluate(network, [case], plan, precision=torch.float32) == {"dice BrainCOLOR>FreeSurfer": 0.0}  # type: ignore[arg-type]


def test_partial_labels_are_measured_on_the_structures_that_were_drawn(tmp_path: Path) -> None:
    path = tmp_path / "seg-Hippo_dseg.tsv"
    hippocampi = "Left Hippocampus", "Right Hippocampus"
    path.write_text("index\tname\n0\tBackground\n1\t{}\n2\t{}\n".format(*hippocampi))
    drawn, head = load_protocol(str(path)), load_protocol("BrainCOLOR").scored()
    left, right = (next(r.index for r in head.regions if r.name == name) for name in hippocampi)
    values = torch.zeros(8, 8, 8, dtype=torch.uint8)
    values[:4, :4, :4], values[4:, :4, :4] = 1, 2
    annotation = Annotation(drawn, values)
    ((_, relation),) = validation.comparable([annotation], head)
    found = np.full((8, 8, 8), head.regions[5].index)  # another region of the brain, which nobody has drawn
    found[:4, :4, :8], found[4:, :4, :4] = left, right
    scores = validation.compare(found, head, annotation, relation=relation)
    assert scores == {"Left Hippocampus": pytest.approx(2 / 3), "Right Hippocampus": 1.0, validation.ERROR: 0.0}
