"""The level train: from a labelled dataset to a model that can be used."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import phantoms
import pytest
import torch
from labelled import GRID, HALF, RECIPE, SHAPE, make_labelled
from told import Told

from bidsseg.cli import main
from bidsseg.errors import DataError, NothingSelected, OutputNotWritable, TemporaryFailure, UsageError
from bidsseg.image.volume import Volume
from bidsseg.labels import load_protocol, load_relation
from bidsseg.learning import loop, validation
from bidsseg.learning.cases import Sample, Sampling
from bidsseg.learning.datasets import load_cases
from bidsseg.learning.loop import Plan, draw
from bidsseg.learning.optimiser import Optimiser
from bidsseg.learning.recipe import Recipe, load_recipe, shipped_recipes
from bidsseg.learning.state import Conditions, time_left
from bidsseg.models.card import CARD, WEIGHTS, Card, read_card
from bidsseg.models.library import Model, build, load_model
from bidsseg.networks.network import Network
from bidsseg.segmentation.native import Segmentation
from bidsseg.settings import Settings, Training
from bidsseg.train import Interruption, start_from, train_level

RUN = Path(__file__).parent.parent / "run.py"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """See `labelled.make_labelled`."""
    return make_labelled(tmp_path_factory.mktemp("labelled"))


Ask = Callable[..., Settings]


@pytest.fixture
def ask(dataset: tuple[Path, Path], tmp_path: Path) -> Ask:
    """Settings of a run: ``ask(recipe, overwrite=..., resume=..., ...)``; nobody is held out unless asked for."""

    def settings(recipe: str = RECIPE, *, output: str = "out", overwrite: bool = False, **training: Any) -> Settings:
        path = tmp_path / "recipe.toml"
        path.write_text(recipe)
        training = {"recipe": str(path), "labels": {"FAST": [dataset[1]]}, "fold": 4, **training}
        return Settings(
            dataset[0],
            tmp_path / output,
            precision="fp32",
            n_cpus=1,
            overwrite=overwrite,
            training=Training(**training),
            report=Told(),
        )

    return settings


def told(settings: Settings) -> Told:
    assert isinstance(settings.report, Told)
    return settings.report


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(str(folder)).network.state_dict()


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training be asked to stop once it has done so many steps; it looks once before the first."""
    asked = []

    def once_more(self: Interruption) -> bool:
        asked.append(1)
        return len(asked) > steps + 1

    monkeypatch.setattr(Interruption, "asked", once_more)


# -- a model folder ----------------------------------------------------------------------------------------------------


def test_training_leaves_a_model_with_its_record(ask: Ask) -> None:
    settings = ask(folds=2, fold=0)
    folder = train_level(settings)
    assert folder == settings.output_dir / "models" / "tiny"
    assert {path.name for path in folder.iterdir()} == {CARD, WEIGHTS, "curve.tsv", "curve.png", "validation.tsv"}

    card = load_model(str(folder)).card
    assert (card.name, card.title, card.inputs) == ("tiny", "Tissue from next to nothing", ("T1w",))
    assert (card.spacing_mm, card.heads, card.lesion, card.locator) == (3.0, ("brain", "FAST"), None, None)
    assert card.network == load_recipe(settings.training.recipe).network
    assert card.data == ["bids: 2 scans"]
    assert card.recipe["steps_done"] == card.recipe["steps"] == 3
    assert card.recipe["optimiser"]["warm_up"] == Optimiser().warm_up
    assert card.recipe["seed"] == 0
    assert card.code_version
    assert card.metrics["held_out"] == ["bids/sub-01", "bids/sub-03"]
    assert set(card.dice) == {"brain", "FAST"}

    curve = pd.read_csv(folder / "curve.tsv", sep="\t")
    assert {"step", "elapsed_s", "FAST>FAST", "dice FAST>FAST", "dice FAST>brain"} <= set(curve.columns)
    assert curve.step.is_monotonic_increasing
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")

    table = pd.read_csv(folder / "validation.tsv", sep="\t")
    assert list(table.columns) == ["case", "head", "annotation", "region", "dice"]
    assert set(table.case) == {"bids/sub-01", "bids/sub-03"}
    assert set(table["head"]) == {"brain", "FAST"}
    assert table.dice.between(0, 1).all()
    regions = table[(table["head"] == "FAST") & (table.region != validation.ERROR)]
    assert card.dice["FAST"] == pytest.approx(regions.groupby("case").dice.mean().mean(), abs=1e-4)

    said = told(settings).said
    assert said[0] == "2 scans to learn from, 2 held out: bids/sub-01, bids/sub-03"
    assert said[-1].startswith(f"model: {folder}")


def test_the_command_line_trains_and_uses_the_model(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    given = ask()
    words = [str(given.bids_dir), str(given.output_dir), "train", "--recipe", given.training.recipe,
             "--labels", f"FAST={given.training.labels['FAST'][0]}", "--folds", "2", "--n-cpus", "1"]  # fmt: skip
    assert main(words) == 0
    assert "2 scans to learn from" in capsys.readouterr().out
    assert main(words) == 64
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_finished_model_is_not_lost(ask: Ask) -> None:
    folder = train_level(ask())
    before = (folder / CARD).read_bytes(), (folder / WEIGHTS).read_bytes()
    with pytest.raises(UsageError, match="holds a finished model: give --overwrite"):
        train_level(ask())
    resumed = ask(resume=True)
    assert train_level(resumed) == folder
    assert "is finished" in told(resumed).said[-1]
    assert before == ((folder / CARD).read_bytes(), (folder / WEIGHTS).read_bytes())
    train_level(ask(overwrite=True, seed=1))
    assert before[1] != (folder / WEIGHTS).read_bytes()


def test_a_model_learns_from_t1w_and_flair(ask: Ask, dataset: tuple[Path, Path]) -> None:
    """One of three scans has a FLAIR, on another grid; a fourth is synthesised."""
    thick = phantoms.grid((4, 8, 8), "PSR", (56, 24, 24))
    flair = dataset[0] / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz"
    image = phantoms.noisy_head(thick, (56, 24, 24), phantoms.FLAIR_INTENSITY)
    phantoms.save(flair, image, np.diag([0.5, 0.5, 0.5, 1]) @ thick)
    try:
        recipe = RECIPE.replace("steps = 3", 'steps = 3\ninputs = ["T1w", "FLAIR"]') + "missing = 0.3\n"
        folder = train_level(ask(recipe, folds=4, fold=3))
    finally:
        flair.unlink()
    model = load_model(str(folder))
    assert model.card.inputs == ("T1w", "FLAIR")
    assert "images" not in model.card.network
    assert model.card.recipe["sampling"]["missing"] == 0.3
    assert len(pd.read_csv(folder / "validation.tsv", sep="\t"))
    assert model.network(torch.zeros(1, 2, 16, 16, 16)).shape == (1, 4, 16, 16, 16)


@pytest.mark.parametrize("inputs", ['["FLAIR"]', '["FLAIR", "T1w"]', '["T1w", "T2w"]', "[]"])
def test_inputs_that_no_model_reads_are_refused(inputs: str, ask: Ask) -> None:
    with pytest.raises(DataError, match=r'tiny: inputs must be \["T1w"\] or \["T1w", "FLAIR"\]'):
        train_level(ask(RECIPE.replace("steps = 3", f"steps = 3\ninputs = {inputs}")))


def test_a_network_reads_as_many_images_as_there_are_inputs(ask: Ask) -> None:
    both = RECIPE.replace("steps = 3", 'steps = 3\ninputs = ["T1w", "FLAIR"]')
    for recipe, images in ((RECIPE, 2), (both, 1)):
        recipe = recipe.replace("last = 4", f"last = 4\nimages = {images}")
        with pytest.raises(DataError, match=r"images = \d does not fit its inputs"):
            train_level(ask(recipe))
    card = Card("one", "", ("T1w", "FLAIR"), {"name": "segnet"}, 1.0, ("FAST",), "")
    with pytest.raises(DataError, match="segnet reads one image, and inputs names T1w and FLAIR"):
        build(card)


def test_the_seed_decides(ask: Ask) -> None:
    found = [weights(train_level(ask(output=f"out{n}", seed=seed))) for n, seed in enumerate((3, 3, 4))]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_samples_differ_by_seed_and_step(ask: Ask) -> None:
    given = ask()
    cases = load_cases(given, given.report)
    sampling = Sampling((16, 16, 16), 50, whole_head=True)
    recipe = Recipe("tiny", "Tissue", {"FAST": 1.0}, {}, sampling=sampling, spacing_mm=5.0)
    plan = Plan(recipe, (load_protocol("FAST"),))
    images = [
        draw(cases, replace(plan, seed=seed), step).image for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert torch.equal(images[0], images[1])
    assert all(not torch.equal(images[i], images[j]) for i in range(2, 5) for j in range(i))


def test_a_run_may_begin_on_a_coarser_grid(ask: Ask) -> None:
    coarse = "\n[coarse]\nsteps = 2\nspacing_mm = 6.0\nshape = [16, 16, 16]\npoints = 200\n"
    settings = ask(RECIPE + coarse)
    recipe = load_recipe(settings.training.recipe)
    cases = load_cases(settings, Told(), synthetic=False)
    heads = tuple(load_protocol(name) for name in recipe.heads)
    samples = [draw(cases, Plan(replace(recipe, batch=2), heads), number) for number in range(6)]
    seen = [(tuple(sample.image.shape[2:]), len(sample.points)) for sample in samples]
    assert seen == [((16, 16, 16), 200)] * 4 + [((32, 32, 32), 500)] * 2
    card = read_card(train_level(settings))
    assert (card.spacing_mm, card.recipe["coarse"]["spacing_mm"], card.recipe["steps_done"]) == (3.0, 6.0, 3)
    with pytest.raises(DataError, match="multiple of"):
        train_level(ask(RECIPE + coarse.replace("16, 16, 16", "16, 16, 15"), output="other"))


def test_weights_of_another_model_are_a_start(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit before the first step, as fine-tuning on full annotations starts from partial ones."""
    started: list[dict[str, torch.Tensor]] = []
    plain = loop.losses

    def losses(network: Network, *given: Any) -> Any:
        started.append({name: value.clone() for name, value in network.state_dict().items()})
        return plain(network, *given)

    first = train_level(ask(RECIPE.replace("{ brain = 0.5, FAST = 1.0 }", "{ brain = 1.0 }")))
    again = ask(RECIPE.replace("tiny", "second"), init=str(first))
    monkeypatch.setattr(loop, "losses", losses)
    card = read_card(train_level(again))
    shared = weights(first)
    assert all(torch.equal(started[0][name], value) for name, value in shared.items())
    assert any(f"{len(shared)} of {len(shared) + 2} tensors taken from" in line for line in told(again).said)
    assert card.recipe["init"] == {"name": "tiny", "sha256": read_card(first).sha256}
    assert card.data == ["bids: 4 scans", "bids: 4 scans (of tiny, the start)"]


def test_a_start_of_which_nothing_fits_is_refused(ask: Ask) -> None:
    with pytest.raises(UsageError, match="--init neuronet: nothing of it fits the network of the recipe tiny"):
        train_level(ask(init="neuronet"))


def test_what_reads_regions_is_not_taken_for_other_regions() -> None:
    options = {"name": "segnet", "hidden": [8], "cube_neurons": 4}
    given = Card("one", "", ("T1w",), options, 1.0, ("FAST",), "", normalisation="zscore")
    other = replace(given, heads=("Atropos",))
    for card in (given, other):
        torch.manual_seed(1)
        first = Model(given, build(given))
        torch.manual_seed(2)
        network = build(card)
        fresh = copy.deepcopy(network.state_dict())
        start_from(network, first, card.heads)
        same = {name for name, value in network.state_dict().items() if torch.equal(value, fresh[name])}
        weights = {name for name in same if "weight" in name}
        assert weights == (
            set() if card is given else {"first.joint.2.weight", "second.joint.2.weight", "second.joint.0.weight"}
        )
        assert torch.equal(
            network.state_dict()["first.first.fine.weight"], first.network.state_dict()["first.first.fine.weight"]
        )


def test_a_protocol_of_ones_own_is_learned_and_spoken(ask: Ask, dataset: tuple[Path, Path], tmp_path: Path) -> None:
    table = tmp_path / "seg-Mine_dseg.tsv"
    table.write_text("index\tname\tscored\n0\tBackground\t1\n7\tInside\t1\n9\tUnsure\t0\n")
    for number in range(1, 4):
        name = f"sub-{number:02}"
        labels = nib.load(dataset[1] / name / "anat" / f"{name}_seg-FAST_dseg.nii.gz")
        values = np.where(np.asarray(labels.dataobj) > 1, 7, 0).astype(np.uint8)
        phantoms.save(tmp_path / "mine" / name / "anat" / f"{name}_seg-Mine_dseg.nii.gz", values, labels.affine)
    heads = f'{{ brain = 0.5, "{table}" = 1.0 }}'
    recipe = RECIPE.replace("{ brain = 0.5, FAST = 1.0 }", heads)
    labels = {"FAST": [dataset[1]], str(table): [tmp_path / "mine"]}
    folder = train_level(ask(recipe, labels=labels, fold=0))
    table.unlink()
    model = load_model(str(folder))
    assert model.card.heads == ("brain", "Mine") and model.heads["Mine"].indices == (0, 7)
    assert set(pd.read_csv(folder / "validation.tsv", sep="\t").query("head == 'Mine'").region) == {
        "Inside",
        validation.ERROR,
    }


def test_nothing_is_held_out_of_a_fold_without_people(ask: Ask) -> None:
    settings = ask()
    folder = train_level(settings)
    assert not (folder / "validation.tsv").exists()
    assert read_card(folder).metrics == {}
    assert "FAST>FAST" in pd.read_csv(folder / "curve.tsv", sep="\t").columns
    assert (folder / "curve.png").exists()


def test_participants_can_be_held_out_by_name(ask: Ask) -> None:
    folder = train_level(ask(hold_out=("02",)))
    assert read_card(folder).metrics["held_out"] == ["bids/sub-02"]
    folder = train_level(ask(hold_out=("*[13]",), output="pattern"))
    assert read_card(folder).metrics["held_out"] == ["bids/sub-01", "bids/sub-03"]
    with pytest.raises(UsageError, match="--hold-out 07: no participant"):
        train_level(ask(hold_out=("02", "07"), output="other"))


def test_one_fold_holds_nobody_out(ask: Ask) -> None:
    card = read_card(train_level(ask(folds=1, fold=0)))
    assert card.data == ["bids: 4 scans"]
    assert card.recipe["held_out"] == [] and card.metrics == {}


@pytest.mark.parametrize("head", ["lesion", "FASTlesion"])
def test_lesions_learned_are_lesions_on_the_card(
    head: str, ask: Ask, dataset: tuple[Path, Path], tmp_path: Path
) -> None:
    lesions = (phantoms.head(GRID, SHAPE, phantoms.LABEL) == 4).astype(np.uint8)
    for number in range(1, 4):
        name = f"sub-{number:02}"
        phantoms.save(tmp_path / "lesions" / name / "anat" / f"{name}_label-lesion_mask.nii.gz", lesions, HALF)
    recipe = RECIPE.replace("{ brain = 0.5, FAST = 1.0 }", f"{{ brain = 0.5, {head} = 1.0 }}")
    settings = ask(recipe, labels={"FAST": [dataset[1]], "lesion": [tmp_path / "lesions"]}, fold=0)
    folder = train_level(settings)
    card = read_card(folder)
    assert card.lesion == head
    assert card.protocols == tuple({head} - {"lesion"})
    assert head in set(pd.read_csv(folder / "validation.tsv", sep="\t")["head"])


# -- stopping and going on ---------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_to_the_very_same_weights(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    long = RECIPE.replace("steps = 3", "steps = 5")
    whole = train_level(ask(long, output="whole"))
    with monkeypatch.context() as patched:
        interrupt_after(2, patched)
        with pytest.raises(TemporaryFailure, match=r"stopped after 2 steps.*--resume") as caught:
            train_level(ask(long, output="parts"))
    assert caught.value.code == 75
    folder = ask(output="parts").output_dir / "models" / "tiny"
    assert {path.name for path in folder.iterdir()} == {"checkpoint.pt", "curve.tsv", "curve.png"}
    with pytest.raises(
        UsageError, match=r"checkpoint\.pt is there: give --resume to go on, --overwrite to start again"
    ):
        train_level(ask(long, output="parts"))
    assert train_level(ask(long, output="parts", resume=True)) == folder
    one, other = weights(whole), weights(folder)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (whole / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert not (folder / "checkpoint.pt").exists()
    assert read_card(folder).recipe["steps_done"] == 5
    curves = [pd.read_csv(place / "curve.tsv", sep="\t").drop(columns="elapsed_s") for place in (whole, folder)]
    assert curves[0].step.tolist() == curves[1].step.tolist()
    pd.testing.assert_frame_equal(*curves)


def test_overwriting_starts_again(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        interrupt_after(2, patched)
        with pytest.raises(TemporaryFailure):
            train_level(ask())
    settings = ask(overwrite=True)
    whole = train_level(ask(output="whole"))
    assert (train_level(settings) / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


@pytest.mark.parametrize("spoil", ["another network", "damaged"])
def test_a_checkpoint_that_cannot_be_continued_is_named(spoil: str, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        with pytest.raises(TemporaryFailure):
            train_level(ask())
    recipe = RECIPE
    if spoil == "damaged":
        (checkpoint,) = ask().output_dir.glob("models/tiny/checkpoint.pt")
        checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    else:
        recipe = RECIPE.replace("widths = [4, 8]", "widths = [4, 12]")
    reason = "damaged" if spoil == "damaged" else r"of another run \(network differ\).*"
    with pytest.raises(DataError, match=rf"checkpoint\.pt: {reason}.*give .*--overwrite"):
        train_level(ask(recipe, resume=True))


@pytest.mark.parametrize("changes, named", [({"seed": 5}, "seed"), ({"hold_out": ("02",)}, "held_out.*holds out")])
def test_a_run_of_other_people_or_another_seed_is_not_continued(
    changes: dict[str, Any], named: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whom it is measured on, it must not have learnt from."""
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        with pytest.raises(TemporaryFailure):
            train_level(ask())
    with pytest.raises(DataError, match=rf"of another run \(.*{named}.* differ\)"):
        train_level(ask(resume=True, **changes))
    train_level(ask(resume=True))
    with pytest.raises(DataError, match=rf"models/tiny: of another run \({named.split('.')[0]} differ\)"):
        train_level(ask(resume=True, **changes))


def test_what_a_network_draws_by_itself_is_drawn_again(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, of which a run that was stopped must not see other draws."""
    network = RECIPE[RECIPE.index("[network]") : RECIPE.index("[sampling]")]
    recipe = RECIPE.replace(network, '[network]\nname = "eneuronet"\ndropout = "keep_0.8"\n\n')
    whole = weights(train_level(ask(recipe, output="whole")))
    with monkeypatch.context() as patched:
        interrupt_after(2, patched)
        with pytest.raises(TemporaryFailure):
            train_level(ask(recipe))
    torch.manual_seed(99)
    again = weights(train_level(ask(recipe, resume=True)))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_who_stops_before_the_first_step_or_while_it_is_measured_loses_nothing(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps, told in ((-1, "before the training began"), (4, "while the model was measured")):
        with monkeypatch.context() as patched:
            interrupt_after(steps, patched)
            with pytest.raises(TemporaryFailure, match=told):
                train_level(ask(fold=0, resume=steps > 0))
    folder = train_level(ask(fold=0, resume=True))
    assert read_card(folder).recipe["steps_done"] == 3 and read_card(folder).dice


@pytest.mark.parametrize("keep, kept", [("best", 1), ("last", 3)])
def test_the_weights_kept_are_those_that_the_recipe_asks_for(
    keep: str, kept: int, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ask()
    recipe = replace(load_recipe(settings.training.recipe), keep=keep, steps=4)
    scores, seen = [0.2, 0.6, 0.4, 0.5], []

    def evaluate(network: Network, *_: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return {"dice one": scores[len(seen) - 1], "dice two": 0.1}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    cases = load_cases(settings, settings.report)
    heads = tuple(load_protocol(name).scored() for name in recipe.heads)
    network = build(Card("tiny", "Tissue", ("T1w",), recipe.network, 3.0, tuple(recipe.heads), ""))
    never = partial(bool, False)  # type: ignore[var-annotated]
    conditions = Conditions(tmp_path, 600, never, lambda _: None)
    loop.fit(network, cases, cases[:1], loop.Plan(recipe, heads), conditions, check_every=0.2)
    if keep == "last":
        seen.append(network.state_dict())
    assert len(seen) == 4
    assert not torch.equal(next(iter(seen[0].values())), next(iter(seen[1].values())))
    for name, value in network.state_dict().items():
        assert torch.equal(value, seen[kept][name]), name


def test_fewer_than_five_participants_are_all_learned_from(ask: Ask) -> None:
    settings = ask(RECIPE.replace("steps = 3", 'steps = 1\nkeep = "best"'))
    assert read_card(train_level(settings)).data == ["bids: 4 scans"]


def test_a_signal_stops_between_two_steps(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loop.losses

    def losses(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*given)

    monkeypatch.setattr(loop, "losses", losses)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TemporaryFailure, match="after 1 steps"):
        train_level(ask())
    assert signal.getsignal(signal.SIGTERM) is before


def test_interruption_remembers_and_gives_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Interruption() as interruption:
        assert not interruption.asked()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert interruption.asked()
    assert interruption.asked()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_may_come_twice_but_a_key_pressed_again_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster signals all processes of a job, and torchrun those that it started."""
    killed: list[int] = []
    with Interruption() as interruption:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert interruption.asked()
        monkeypatch.setattr("os.kill", lambda _, number: killed.append(number))
        monkeypatch.setattr(Interruption, "ONE_KEY_S", 0.0)
        signal.raise_signal(signal.SIGTERM)
        assert killed == []
        signal.raise_signal(signal.SIGINT)
    assert killed == [signal.SIGINT]


def test_the_time_budget_ends_a_run_with_a_model(ask: Ask) -> None:
    settings = ask(RECIPE.replace("steps = 3", "steps = 100000"), time_budget_min=1 / 60)
    folder = train_level(settings)
    assert 1 <= read_card(folder).recipe["steps_done"] < 10_000
    assert not (folder / "checkpoint.pt").exists()


def test_a_broken_loss_does_not_spoil_the_weights(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = loop.losses, []

    def losses(*given: Any) -> Any:
        loss, parts = plain(*given)
        calls.append(1)
        return (loss * float("nan") if len(calls) == 2 else loss), parts

    monkeypatch.setattr(loop, "losses", losses)
    assert all(torch.isfinite(value).all() for value in weights(train_level(ask())).values())


def test_a_model_that_finds_no_brain_scores_zero(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def segment(*_: Any, **__: Any) -> None:
        raise DataError("the segmentation is empty")

    monkeypatch.setattr(validation, "segment", segment)
    settings = ask(fold=0)
    card = read_card(train_level(settings))
    assert card.dice == {"brain": 0, "FAST": 0}
    assert any("the segmentation is empty" in line for line in told(settings).said)


def test_dry_run_writes_nothing(ask: Ask) -> None:
    settings = replace(ask(folds=2, fold=0), dry_run=True)
    train_level(settings)
    assert not settings.output_dir.exists()
    assert "2 held out" in told(settings).said[0]


# -- what cannot be trained --------------------------------------------------------------------------------------------


def test_labels_are_needed(ask: Ask) -> None:
    with pytest.raises(UsageError, match="--labels PROTOCOL=DERIVATIVES_DIR"):
        train_level(ask(labels={}))


def test_labels_that_say_nothing_of_any_head_are_refused(ask: Ask, dataset: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=r"--labels FAST=.*nothing of the heads BrainCOLOR"):
        train_level(ask(RECIPE.replace("{ brain = 0.5, FAST = 1.0 }", "{ BrainCOLOR = 1.0 }")))


def test_a_head_that_nothing_teaches_is_named(ask: Ask) -> None:
    settings = replace(ask(RECIPE.replace("FAST = 1.0", "FAST = 1.0, BrainCOLOR = 1.0")), dry_run=True)
    train_level(settings)
    assert told(settings).warned == ["no --labels say anything of the head BrainCOLOR, which learns nothing"]


def test_label_maps_without_images_are_left_to_recipes_that_make_some(ask: Ask) -> None:
    settings = ask("synthetic_share = 0.0" + RECIPE)
    train_level(replace(settings, dry_run=True))
    assert ["no image belongs to it" in line for line in told(settings).warned].count(True) == 1
    settings = ask()
    train_level(replace(settings, dry_run=True))
    assert not any("no image belongs to it" in line for line in told(settings).warned)


def test_somebody_must_be_left_to_learn_from(ask: Ask) -> None:
    with pytest.raises(NothingSelected, match="fewer --folds or more data"):
        train_level(replace(ask(fold=0), participants=("01",)))


@pytest.mark.parametrize(
    "change, reason",
    [
        (("steps = 3", "stepz = 3"), "unknown key 'stepz'; known are .*steps"),
        (("points = 500", "dots = 500"), r"\[sampling\]: unknown key 'dots'"),
        (("steps = 3", "steps = 'many'"), "steps = 'many' is of the wrong kind"),
        (("heads = { brain = 0.5, FAST = 1.0 }", "heads = ['brain']"), "heads = .* is of the wrong kind"),
        (("steps = 3", "optimiser = 3"), r"\[optimiser\]: must be a table"),
        (('title = "Tissue from next to nothing"', ""), "title"),
        (("shape = [32, 32, 32]", ""), r"\[sampling\]: .*shape"),
        (("steps = 3", "steps = "), "not a TOML file"),
        (("[32, 32, 32]", "[32, 30, 32]"), "every size in shape must be a multiple of 4"),
        (('"subpixel-unet"', '"perceptron"'), "no network 'perceptron'"),
        (("features = 4", "depth = 4"), "options do not fit"),
        (('name = "tiny"', 'name = "very-tiny"'), "letters and digits only"),
        (("FAST = 1.0", "Brodmann = 1.0"), "no protocol 'Brodmann'"),
    ],
)
def test_a_faulty_recipe_is_named(change: tuple[str, str], reason: str, ask: Ask) -> None:
    settings = ask(RECIPE.replace(*change, 1))
    with pytest.raises(DataError, match=reason):
        train_level(settings)
    assert not list(settings.output_dir.glob("models/*/*"))


def test_recipe_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.replace("steps", "stepz"))
    with pytest.raises(DataError) as caught:
        load_recipe(str(path))
    assert str(caught.value).startswith(f"{path}: unknown key 'stepz'")
    with pytest.raises(DataError, match=r"no recipe 'nosuch': .*wholebrain"):
        load_recipe("nosuch")


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_can_be_read_and_stored(name: str) -> None:
    recipe = load_recipe(name)
    assert name.replace("-", "").startswith(recipe.name)
    stored = json.loads(json.dumps(recipe.as_dict()))
    assert stored["sampling"]["shape"] == list(recipe.sampling.shape)
    assert all(load_protocol(head) for head in recipe.heads)


def test_no_two_recipes_make_models_of_one_name() -> None:
    names = [load_recipe(name).name for name in shipped_recipes()]
    assert len(set(names)) == len(names)


PUBLISHED = [name for name in shipped_recipes() if load_recipe(name).network["name"] != "subpixel-unet"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_small_scale_of_a_published_recipe_is_smaller(name: str) -> None:
    full, small = load_recipe(name), load_recipe(name, small=True)
    if full.voxels is not None and small.voxels is not None:
        assert small.voxels.per_scan * small.voxels.epochs < full.voxels.per_scan * full.voxels.epochs
        return
    assert small.steps < full.steps
    assert np.prod(small.sampling.shape) < np.prod(full.sampling.shape)
    for recipe in full, small:
        card = Card(recipe.name, recipe.title, ("T1w",), recipe.network, recipe.spacing_mm, tuple(recipe.heads), "")
        for shape in recipe.sampling.shape, recipe.view_at(0).sampling.shape:
            assert all(n % build(card).multiple == 0 for n in shape)
    assert replace(small.loss, entropy=full.loss.entropy, dice=full.loss.dice) == full.loss


def test_a_small_scale_is_laid_over_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE + "[small]\nsteps = 2\n[small.sampling]\npoints = 9\n[small.loss]\ndice = 0.0\n")
    plain, small = load_recipe(str(path)), load_recipe(str(path), small=True)
    assert (plain.steps, plain.sampling.points, plain.loss.dice) == (3, 500, 0.5)
    assert (small.steps, small.sampling.points, small.loss.dice) == (2, 9, 0.0)
    assert small.sampling.shape == plain.sampling.shape
    path.write_text(RECIPE)
    with pytest.raises(DataError, match="has no small scale"):
        load_recipe(str(path), small=True)


def test_a_recipe_says_only_what_differs_from_its_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "neuronet"\nname = "mine"\nheads = { FAST = 1.0 }\n[sampling]\npoints = 7\n')
    mine, base = load_recipe(str(path)), load_recipe("neuronet")
    assert mine.heads == {"FAST": 1.0}
    assert mine.sampling == replace(base.sampling, points=7)
    assert replace(mine, name=base.name, heads=base.heads, sampling=base.sampling) == base
    path.write_text('base = "nosuch"\nname = "mine"\n')
    with pytest.raises(DataError, match=r"base = 'nosuch' is not another of .*neuronet"):
        load_recipe(str(path))


def test_an_output_that_cannot_be_made(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritable, match="choose another"):
        train_level(replace(ask(), output_dir=tmp_path / "file" / "out"))


VOXEL_WISE = """
name = "tiny"
title = "Tissue, voxel by voxel"
heads = { FAST = 1.0 }
normalisation = "none"
synthetic_share = 0.0

[network]
name = "segnet"
groups = ["coordinates"]
hidden = [16]
noise = 0.0

[voxels]
per_scan = 301
validation = 50
batch = 25
epochs = 2
"""


@pytest.mark.parametrize("content", [RECIPE.replace("steps = 3", "steps = 3\nbatch = 4"), VOXEL_WISE])
def test_two_processes_train_what_one_trains(content: str, dataset: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(content)
    found = []
    for count in (1, 2):
        out = tmp_path / f"out{count}"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        what = ["--recipe", recipe, "--labels", f"FAST={dataset[1]}", "--fold", "4"]
        how = ["--precision", "fp32", "--device", "cpu", "--n-cpus", "1", "--overwrite"]
        command = [*torchrun, RUN, dataset[0], out, "train", *what, *how]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("scans to learn from") + done.stderr.count("scans to learn from") == 1
        found.append(weights(out / "models" / "tiny"))
    one, two = found
    assert all(torch.allclose(one[name], two[name], atol=2e-3) for name in one)
    assert any(value.abs().max() > 0.1 for value in one.values())
    if content == VOXEL_WISE:
        return
    recipe.write_text(RECIPE)
    done = subprocess.run([*(str(word) for word in command), "--dry-run"], capture_output=True, text=True)
    assert "a step has 2 samples in place of 1: one of each process" in done.stdout


def test_processes_share_the_mean_of_what_is_no_integer(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nfrom bidsseg.learning.processes import Processes\nthey = Processes.join()\n"
        "values = [torch.tensor([2.0 * they.rank]), torch.tensor([they.rank])]\nthey.average(values)\n"
        "from pathlib import Path\ntold = ' '.join(str(value.item()) for value in values)\n"
        "Path(f'{they.rank}.txt').write_text(told)\nthey.leave()\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["1.0 0", "1.0 1"]


def test_segnet_has_one_grid(ask: Ask) -> None:
    with pytest.raises(DataError, match="segnet learns on a grid of 1 mm: leave out spacing_mm"):
        train_level(ask(VOXEL_WISE.replace("[network]", "spacing_mm = 2.0\n\n[network]", 1)))


# -- parts of the loop -------------------------------------------------------------------------------------------------


def test_what_is_kept_is_the_running_mean_of_the_weights(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[dict[str, torch.Tensor]] = []
    plain_losses, plain_save = loop.losses, loop.save_checkpoint

    def keep(network: Network) -> None:
        passed.append({name: value.clone() for name, value in network.state_dict().items()})

    def losses(network: Network, *given: Any) -> Any:
        keep(network)
        return plain_losses(network, *given)

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


def test_batch_normalisations_learn_anew_from_images_alone(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over samples, of the weights that are kept, whatever was seen before."""
    network = 'name = "neuronet"\nwidths = [4, 6]\n'
    recipe = RECIPE.split("[network]")[0] + "synthetic_share = 0.9\nstatistics = 3\n[network]\n" + network
    recipe += "[sampling]" + RECIPE.split("[sampling]")[1]
    shown: list[bool] = []
    inputs: list[torch.Tensor] = []
    plain_draw, plain_learn = loop.draw_sample, loop.learn_statistics

    def draw_sample(case: Any, *given: Any) -> Any:
        shown.append(case.image is not None)
        return plain_draw(case, *given)

    def learn_statistics(net: Any, *given: Any) -> None:
        shown.clear()
        first = net.scales[0][0].first[0]
        first.register_forward_hook(lambda module, seen, found: inputs.append(seen[0]))
        plain_learn(net, *given)
        assert first.momentum == 0.01
        assert shown == [True] * 3

    monkeypatch.setattr(loop, "draw_sample", draw_sample)
    monkeypatch.setattr(loop, "learn_statistics", learn_statistics)
    found = weights(train_level(ask(recipe)))
    expected = torch.stack([x.mean((0, 2, 3, 4)) for x in inputs[:3]]).mean(0)
    assert torch.allclose(found["scales.0.0.first.0.running_mean"], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("elapsed_s", "progress", "told"),
    [(600, 0.25, "30 min left"), (60, 0.75, "20 s left"), (7200, 0.1, "18.0 h left"), (1, 0.0, "time left unknown")],
)
def test_the_time_left_is_told(elapsed_s: float, progress: float, told: str) -> None:
    assert time_left(elapsed_s, progress) == told


def test_learning_lowers_the_loss(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    plain = loop.losses

    def losses(*given: Any) -> Any:
        loss, parts = plain(*given)
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


def test_a_head_is_watched_by_what_an_annotation_fixes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """BrainCOLOR leaves open most of FreeSurfer's table: white matter, of which it has none, does not count."""
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
    case: Any = None
    assert loop.evaluate(network, [case], plan, torch.float32) == {"dice BrainCOLOR>FreeSurfer": 1.0}  # type: ignore[arg-type]
    truth[relation.allowed.sum(1) == 1] = 0
    assert loop.evaluate(network, [case], plan, torch.float32) == {"dice BrainCOLOR>FreeSurfer": 0.0}  # type: ignore[arg-type]
