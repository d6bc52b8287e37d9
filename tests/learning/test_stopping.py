"""An interrupted training is resumed or restarted without loss."""

import itertools
import math
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pandas as pd
import phantoms
import pytest
import torch
from fake_model import save_card
from labelled import RECIPE, Ask, console, interrupt_after, weights

from bidsseg.errors import DataError, InputMissing, TemporaryFailure, UsageError
from bidsseg.labels import load_protocol
from bidsseg.learning import (
    clock,
    loop,
    objective,
    prepared,
    samples,
    training,
    training_outputs,
    training_setup,
    validation,
)
from bidsseg.learning.case_reading import Source
from bidsseg.learning.data_files import check_finished, check_unchanged, digest, files_of, fingerprints
from bidsseg.learning.datasets import load_cases
from bidsseg.learning.interruption import Interruption
from bidsseg.learning.recipe import load_recipe
from bidsseg.learning.state import Conditions
from bidsseg.levels.train import train_level
from bidsseg.models.card import WEIGHTS, Card, read_card
from bidsseg.models.library import build
from bidsseg.networks.network import Network
from bidsseg.settings import Settings


def test_a_stopped_run_goes_on_to_the_very_same_weights(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    long = RECIPE.replace("steps = 3", "steps = 5")
    whole = train_level(ask(long, output="whole"))
    with monkeypatch.context() as patched:
        interrupt_after(2, patched)
        with pytest.raises(TemporaryFailure, match=r"interrupted after 2 steps.*--resume") as caught:
            train_level(ask(long, output="parts"))
    assert caught.value.code == 75
    folder = ask(output="parts").output_dir / "models" / "tiny"
    assert {path.name for path in folder.iterdir()} == {"checkpoint.pt", "curve.tsv", "curve.png"}
    with pytest.raises(
        UsageError, match=r"checkpoint\.pt exists: give --resume to resume the training, --overwrite to start again"
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
    pd.testing.assert_frame_equal(curves[0], curves[1])


def test_overwriting_starts_again(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        interrupt_after(2, patched)
        with pytest.raises(TemporaryFailure):
            train_level(ask())
    settings = ask(overwrite=True)
    with pytest.raises(UsageError, match=r"--overwrite .* --resume .*: give one of the two"):
        train_level(ask(overwrite=True, resume=True))
    whole = train_level(ask(output="whole"))
    assert (train_level(settings) / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_overwriting_leaves_no_part_of_the_old_model(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old weights must not get new names of regions, nor a new model the results of the old one."""
    folder = train_level(ask(hold_out=("02",)))
    with pytest.raises(UsageError, match=r"--init .*: --overwrite removes this model first"):
        train_level(ask(overwrite=True, init=str(folder)))
    with monkeypatch.context() as patched:
        interrupt_after(2, patched)
        with pytest.raises(TemporaryFailure):
            train_level(ask(overwrite=True))
    assert {path.name for path in folder.iterdir()} == {"checkpoint.pt", "curve.tsv", "curve.png"}


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


def test_every_integer_is_a_seed(ask: Ask) -> None:
    train_level(ask(seed=99_999_999_999_999_999_999))


def test_a_run_with_other_participants_or_another_seed_is_not_resumed(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model must not be evaluated on participants that it was trained on."""
    changes: dict[str, dict[str, Any]] = {"seed": {"seed": 5}, "held_out.*holds out": {"hold_out": ("02",)}}
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        with pytest.raises(TemporaryFailure):
            train_level(ask())
    for named, change in changes.items():
        with pytest.raises(DataError, match=rf"of another run \(.*{named}.* differ\)"):
            train_level(ask(resume=True, **change))
    train_level(ask(resume=True))
    for named, change in changes.items():
        with pytest.raises(DataError, match=rf"models/tiny: of another run \({named.split('.')[0]} differ\)"):
            train_level(ask(resume=True, **change))


def test_a_finished_model_of_another_recipe_is_not_kept(ask: Ask) -> None:
    """Otherwise the folds of a cross-validation could be of different networks."""
    train_level(ask())
    for before, now, named in (
        ("spacing_mm = 3.0", "spacing_mm = 2.0", "spacing_mm"),
        ("widths = [4, 8]", "widths = [4, 12]", "network"),
        ("steps = 3", "steps = 3\nmirror = true", "mirror"),
        ("FAST = 1.0", "FAST = 2.0", "heads"),
    ):
        with pytest.raises(DataError, match=rf"models/tiny: of another run \({named} differ\)"):
            train_level(ask(RECIPE.replace(before, now), resume=True))
    train_level(ask(RECIPE.replace("Tissue from", "From"), resume=True))


@pytest.fixture
def on_copy(ask: Ask, dataset: tuple[Path, Path], tmp_path: Path) -> Ask:
    """``on_copy(resume=True)`` asks for a training on a copy of the dataset, which a test may change."""
    bids, labels = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in dataset)

    def settings(**changes: Any) -> Settings:
        return replace(ask(labels={"FAST": [labels]}, **changes), bids_dir=bids)

    return settings


def test_changed_files_are_not_resumed(on_copy: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label map that was corrected meanwhile is found before any image is read; a copy of the data is no change."""
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        with pytest.raises(TemporaryFailure):
            train_level(on_copy())
    for named in ("seg-FAST_dseg", "T1w"):
        (path,) = tmp_path.glob(f"*/sub-02/anat/sub-02_{named}.nii.gz")
        kept = path.read_bytes()
        image = nib.Nifti1Image.from_filename(path)
        values = np.asanyarray(image.dataobj).copy()
        values[0, 0, 0] = 1
        phantoms.save(path, values, image.affine)
        dry = replace(on_copy(resume=True), dry_run=True)
        for asked in (dry, on_copy(resume=True)):
            with pytest.raises(DataError, match=rf"data changed since: {path}: restore .*or give --overwrite"):
                train_level(asked)
        path.unlink()
        path.write_bytes(kept)
    assert read_card(train_level(on_copy(resume=True))).recipe["steps_done"] == 3


def test_a_finished_model_of_other_data_is_not_kept(on_copy: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    train_level(on_copy(folds=2))
    monkeypatch.setattr(training, "prepared_cases", None)  # nothing is read
    again = on_copy(folds=2, resume=True)
    (labels,) = again.labels["FAST"]

    def is_refused() -> None:
        with pytest.raises(DataError, match=r"models/tiny: participants, images or label maps changed .*--overwrite"):
            train_level(again)

    train_level(again)
    path = labels / "sub-03" / "anat" / "sub-03_seg-FAST_dseg.nii.gz"
    kept = path.read_bytes()
    path.write_bytes(kept + b"changed")
    is_refused()
    path.write_bytes(kept)
    for folder in (again.bids_dir, labels):
        shutil.rmtree(folder / "sub-01")
    is_refused()
    assert len([line for line in console(again).messages if "is finished" in line]) == 1, "said after the comparison"


def test_files_of_datasets_of_one_name_are_all_known(tmp_path: Path) -> None:
    images = [tmp_path / place / "bids" / "sub-01_T1w.nii.gz" for place in "ab"]
    sources = [Source("bids/sub-01", None, {"FAST": path}, {}) for path in images]
    for number, path in enumerate(images):
        path.parent.mkdir(parents=True)
        path.write_text(str(number))
    both, swapped = (files_of(each, ["T1w"]) for each in (sources, sources[::-1]))
    assert both == {"bids/sub-01 FAST": images}
    now = fingerprints(both)
    assert digest(now) == digest(fingerprints(swapped))
    checkpoint = tmp_path / "checkpoint.pt"
    last = fingerprints({name: paths[1:] for name, paths in both.items()})  # as before version 0.22
    for saved in (now, fingerprints(swapped), last):
        torch.save({"files": saved}, checkpoint)
        check_unchanged(checkpoint, both, now)
        check_finished(save_card(tmp_path / "model", recipe={"files": digest(saved)}), now)
    torch.save({"files": now}, checkpoint)
    images[0].write_text("changed")
    with pytest.raises(DataError, match="the data changed"):
        check_unchanged(checkpoint, both, fingerprints(both))
    with pytest.raises(DataError, match="label maps changed"):
        check_finished(save_card(tmp_path / "model", recipe={"files": digest(now)}), fingerprints(both))


def test_a_checkpoint_without_checksums_is_resumed(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        with pytest.raises(TemporaryFailure):
            train_level(ask())
    (checkpoint,) = ask().output_dir.glob("models/tiny/checkpoint.pt")
    saved = torch.load(checkpoint, weights_only=True)
    assert len(saved.pop("files")) == 3 * 2 + 1
    torch.save(saved, checkpoint)
    assert read_card(train_level(ask(resume=True))).recipe["steps_done"] == 3


def test_held_out_scans_never_select_the_weights(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two training participants, nobody is left to select the weights: the last ones are kept."""
    scores = itertools.count(1.0, -0.01)  # the first weights are the best
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"dice one": next(scores)})
    last = weights(train_level(ask(hold_out=("01",), output="last")))
    settings = ask('keep = "best"\n' + RECIPE, hold_out=("01",))
    kept = weights(train_level(settings))
    assert all(torch.equal(value, kept[name]) for name, value in last.items())
    assert any("too few participants are left to select the weights" in line for line in console(settings).messages)


def test_what_a_network_draws_by_itself_is_drawn_again(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run must have the same draws of dropout."""
    network = RECIPE[RECIPE.index("[network]") : RECIPE.index("[sampling]")]
    recipe = RECIPE.replace(network, '[network]\nname = "eneuronet"\ndropout = "keep_0.8"\n\n')
    recipe = recipe.replace("[32, 32, 32]", "[16, 16, 16]")
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
    for steps, moment in ((-1, "before the training began"), (4, "during the validation")):
        with monkeypatch.context() as patched:
            interrupt_after(steps, patched)
            with pytest.raises(TemporaryFailure, match=moment):
                train_level(ask(fold=0, resume=steps > 0))
    folder = train_level(ask(fold=0, resume=True))
    assert read_card(folder).recipe["steps_done"] == 3 and read_card(folder).dice


@pytest.mark.parametrize("keep, kept", [("best", 1), ("last", 3)])
def test_the_weights_kept_are_those_that_the_recipe_asks_for(
    keep: Literal["best", "last"], kept: int, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ask()
    recipe = replace(load_recipe(settings.training.recipe), keep=keep, steps=4)
    scores, seen = [0.2, 0.6, 0.4, 0.5], []

    def evaluate(network: Network, *_: Any, **__: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return {"dice one": scores[len(seen) - 1], "dice two": 0.1}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    cases = load_cases(settings, settings.report)
    heads = tuple(load_protocol(name).scored() for name in recipe.heads)
    network = build(Card("tiny", "Tissue", ("T1w",), recipe.network, 3.0, tuple(recipe.heads), ""))
    never = partial(bool, False)
    conditions = Conditions(tmp_path, math.inf, never, lambda _: None)
    loop.fit(network, cases, cases[:1], plan=samples.Plan(recipe, heads), conditions=conditions, check_every=0.2)
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
    plain = objective.losses

    def losses(*given: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*given, **named)

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
    """A cluster signals all processes of a job, and torchrun signals those that it started."""
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


def test_a_network_with_moments_of_its_last_sample_is_evaluated_early(ask: Ask) -> None:
    network = 'name = "neuronet"\nwidths = [4, 8]\n'
    recipe = RECIPE.replace(RECIPE[RECIPE.index('name = "subpixel') : RECIPE.index("[sampling]")], network)
    settings = ask(recipe, hold_out=("01", "02"), time_budget_min=60)
    train_level(settings)
    assert any("s of the time budget are kept for the evaluation" in line for line in console(settings).messages)


class Watch:
    """A clock that only moves when a test says so, in place of the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("measured_s, steps, used_s", [(4.0, 99, 300), (100.0, 12, 414)])
def test_the_time_budget_has_room_for_reading_and_evaluation(
    measured_s: float, steps: int, used_s: float, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 300 s, reading takes 90 s, and a step 2 s; one scan is evaluated early, then the evaluation gets its time.

    An evaluation that takes longer than the whole budget ends the training at once.
    """
    watch = Watch()
    for module in (clock, training, training_outputs, training_setup):
        monkeypatch.setattr(module, "time", watch)
    plain_read, plain_validate = prepared.prepared_cases, validation.validate

    def prepared_cases(*given: Any, **named: Any) -> Any:
        watch.now += 90
        return plain_read(*given, **named)

    def step(fitting: loop.Fitting, *_: Any) -> None:
        watch.now += 2

    def validate(*given: Any, **named: Any) -> pd.DataFrame:
        watch.now += measured_s * len(given[1])
        return plain_validate(*given, **named)

    monkeypatch.setattr(training, "prepared_cases", prepared_cases)
    monkeypatch.setattr(loop.Fitting, "step", step)
    monkeypatch.setattr(training_outputs, "validate", validate)
    settings = ask(RECIPE.replace("steps = 3", "steps = 1000"), hold_out=("01", "02"), time_budget_min=5)
    folder = train_level(settings)
    assert read_card(folder).recipe["steps_done"] == steps
    assert watch.now - 1000 == pytest.approx(used_s)
    assert any("s of the time budget are kept for the evaluation" in line for line in console(settings).messages)


def test_heads_without_weight_are_refused(ask: Ask) -> None:
    recipe = RECIPE.replace("brain = 0.5, FAST = 1.0", "brain = 0.0, FAST = 0.0")
    with pytest.raises(DataError, match="recipe tiny: heads: at least one weight must be greater than 0"):
        train_level(replace(ask(recipe), dry_run=True))


def test_missing_images_are_known_before_any_is_read(ask: Ask, dataset: tuple[Path, Path], tmp_path: Path) -> None:
    """A network that reads a FLAIR cannot be trained on scans that all lack it; a dry run counts some without one."""
    bids = Path(shutil.copytree(dataset[0], tmp_path / "bids"))
    labels = Path(shutil.copytree(dataset[1], tmp_path / "labels", ignore=shutil.ignore_patterns("sub-04")))
    settings = ask('inputs = ["T1w", "FLAIR"]\n' + RECIPE, labels={"FAST": [labels]})
    settings = replace(settings, bids_dir=bids, dry_run=True)
    with pytest.raises(InputMissing, match="recipe tiny reads T1w and FLAIR, but no scan has a FLAIR: add the images"):
        train_level(settings)
    image = bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    shutil.copy(image, image.with_name("sub-01_FLAIR.nii.gz"))
    train_level(settings)
    assert "2 of 3 scans have no FLAIR (sub-02, sub-03): it is 0 in training" in console(settings).warnings


def test_a_broken_loss_does_not_spoil_the_weights(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = objective.losses, []

    def losses(*given: Any, **named: Any) -> Any:
        loss, parts = plain(*given, **named)
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
    assert any("the segmentation is empty" in line for line in console(settings).messages)


def test_dry_run_writes_nothing(ask: Ask) -> None:
    settings = replace(ask(folds=2, fold=0), dry_run=True)
    train_level(settings)
    assert not settings.output_dir.exists()
    messages = console(settings).messages
    for line in (
        "head FAST: 3 regions, weight 1",
        "bids: 4 participants; scans with FAST: 4",
        "2 training scans, 2 held out: bids/sub-01, bids/sub-03",
        "3 steps of 1 samples",
    ):
        assert line in messages
    assert messages[0].endswith("recipe.toml: Tissue from next to nothing")
    assert messages[-1].startswith(f"model: {settings.output_dir / 'models' / 'tiny'} (about ")
