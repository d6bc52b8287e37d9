"""The level train: from a labelled dataset to a usable model."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import phantoms
import pytest
import torch
import two_ranks
from labelled import GRID, HALF, RECIPE, SHAPE, Ask, console, weights
from nifti import load_nifti
from PIL import Image
from recording_console import RecordingConsole

from bidsseg.app.cli import main
from bidsseg.errors import DataError, NothingSelected, OutputNotWritable, UsageError
from bidsseg.labels import load_protocol
from bidsseg.learning import training, validation
from bidsseg.learning.cases import Sampling
from bidsseg.learning.datasets import load_cases
from bidsseg.learning.optimiser import Optimiser
from bidsseg.learning.processes import Processes
from bidsseg.learning.recipe import Recipe, load_recipe
from bidsseg.learning.samples import Plan, draw
from bidsseg.learning.training_outputs import hardly_learned
from bidsseg.learning.training_setup import set_up
from bidsseg.levels.train import train_level
from bidsseg.models.card import CARD, WEIGHTS, Card, read_card
from bidsseg.models.library import build, load_model

RUN = Path(__file__).parents[2] / "run.py"


# -- a model folder ----------------------------------------------------------------------------------------------------


def test_training_leaves_a_model_with_its_record(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ask(folds=2, fold=0)
    monkeypatch.undo()  # the curve is drawn
    folder = train_level(settings)
    assert folder == settings.output_dir / "models" / "tiny"
    files = {CARD, WEIGHTS, "curve.tsv", "curve.png", "validation.tsv", "training.html"}
    assert {path.name for path in folder.iterdir()} == files

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
    with Image.open(folder / "curve.png") as picture:
        assert picture.format == "PNG" and picture.size == (1080, 480)

    table = pd.read_csv(folder / "validation.tsv", sep="\t")
    measures = ["dice", "hausdorff95-mm", "found-mm3", "reference-mm3"]
    assert list(table.columns) == ["case", "head", "annotation", "region", *measures]
    assert set(table.case) == {"bids/sub-01", "bids/sub-03"}
    assert set(table["head"]) == {"brain", "FAST"}
    assert table.dice.between(0, 1).all()
    regions = table[(table["head"] == "FAST") & (table.region != validation.ERROR)]
    assert card.dice["FAST"] == pytest.approx(regions.groupby("case").dice.mean().mean(), abs=1e-4)

    messages = console(settings).messages
    assert messages[0].startswith("4 scans are read and kept in ")
    assert messages[1] == "2 training scans, 2 held out: bids/sub-01, bids/sub-03"
    assert messages[-1].startswith(f"model: {folder}")


def test_the_command_line_trains_and_uses_the_model(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    given = ask()
    words = [str(given.bids_dir), str(given.output_dir), "train", "--recipe", given.training.recipe,
             "--labels", f"FAST={given.labels['FAST'][0]}", "--folds", "2", "--n-cpus", "1"]  # fmt: skip
    assert main(words) == 0
    assert "2 training scans" in capsys.readouterr().out
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
    assert "is finished" in console(resumed).messages[-1]
    assert before == ((folder / CARD).read_bytes(), (folder / WEIGHTS).read_bytes())
    train_level(ask(overwrite=True, seed=1))
    assert before[1] != (folder / WEIGHTS).read_bytes()


def test_a_model_is_trained_on_t1w_and_flair(ask: Ask, dataset: tuple[Path, Path]) -> None:
    """One of three scans has a FLAIR, on another grid; a fourth image is synthesised."""
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
    with pytest.raises(DataError, match=r'inputs = .*: must be \["T1w"\] or \["T1w", "FLAIR"\]'):
        train_level(ask(RECIPE.replace("steps = 3", f"steps = 3\ninputs = {inputs}")))


def test_a_network_reads_as_many_images_as_there_are_inputs(ask: Ask) -> None:
    both = RECIPE.replace("steps = 3", 'steps = 3\ninputs = ["T1w", "FLAIR"]')
    for recipe, images in ((RECIPE, 2), (both, 1)):
        recipe = recipe.replace("last = 4", f"last = 4\nimages = {images}")
        with pytest.raises(DataError, match=r"images = \d does not fit its inputs"):
            train_level(ask(recipe))
    card = Card("one", "", ("T1w", "FLAIR"), {"name": "segnet"}, 1.0, ("FAST",), "")
    with pytest.raises(DataError, match="segnet reads one image, but inputs lists T1w and FLAIR"):
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
    cases = load_cases(settings, RecordingConsole(), synthetic=False)
    heads = tuple(load_protocol(name) for name in recipe.heads)
    samples = [draw(cases, Plan(replace(recipe, batch=2), heads), number) for number in range(6)]
    seen = [(tuple(sample.image.shape[2:]), len(sample.points)) for sample in samples]
    assert seen == [((16, 16, 16), 200)] * 4 + [((32, 32, 32), 500)] * 2
    card = read_card(train_level(settings))
    assert (card.spacing_mm, card.recipe["coarse"]["spacing_mm"], card.recipe["steps_done"]) == (3.0, 6.0, 3)
    with pytest.raises(DataError, match="multiple of"):
        train_level(ask(RECIPE + coarse.replace("16, 16, 16", "16, 16, 15"), output="other"))
    with pytest.raises(DataError, match=r"all 3 steps would be on the grid of \[coarse\]"):
        train_level(ask(RECIPE + coarse.replace("steps = 2", "steps = 3"), output="other"))


def test_a_protocol_of_ones_own_is_learned_and_spoken(ask: Ask, dataset: tuple[Path, Path], tmp_path: Path) -> None:
    table = tmp_path / "seg-Mine_dseg.tsv"
    table.write_text("index\tname\tscored\n0\tBackground\t1\n7\tInside\t1\n9\tUnsure\t0\n")
    for number in range(1, 4):
        name = f"sub-{number:02}"
        tissue = load_nifti(dataset[1] / name / "anat" / f"{name}_seg-FAST_dseg.nii.gz")
        values = np.where(np.asarray(tissue.dataobj) > 1, 7, 0).astype(np.uint8)
        phantoms.save(tmp_path / "mine" / name / "anat" / f"{name}_seg-Mine_dseg.nii.gz", values, tissue.affine)
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
    settings = ask(folds=1, fold=0)
    card = read_card(train_level(settings))
    assert card.data == ["bids: 4 scans"]
    assert card.recipe["held_out"] == [] and card.metrics == {}
    assert "4 training scans, 0 held out: nobody" in console(settings).messages


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


def test_held_out_scans_without_any_region_leave_a_model_without_figures(
    ask: Ask, dataset: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out participant has no lesion, and none is found."""
    for number in range(1, 4):
        name = f"sub-{number:02}"
        lesions = (phantoms.head(GRID, SHAPE, phantoms.LABEL) == 4).astype(np.uint8) * (number > 1)
        phantoms.save(tmp_path / "lesions" / name / "anat" / f"{name}_label-lesion_mask.nii.gz", lesions, HALF)
    empty = validation.empty_segmentation([], (96, 112, 96))
    monkeypatch.setattr(validation, "segment", lambda *_, **__: empty)
    recipe = RECIPE.replace("{ brain = 0.5, FAST = 1.0 }", "{ lesion = 1.0 }")
    settings = ask(recipe, labels={"lesion": [tmp_path / "lesions"]}, hold_out=("01",))
    folder = train_level(settings)
    assert read_card(folder).metrics["heads"] == {}
    assert (folder / WEIGHTS).is_file() and (folder / "training.html").is_file()
    assert "bids/sub-01: lesion is rightly empty" in console(settings).messages


def test_heads_that_were_hardly_learned_are_named() -> None:
    figures = {"FAST": {"dice": 0.6}, "brain (FAST)": {"dice": 0.02}, "brain (head)": {"dice": 0.9}}
    card = Card("one", "", ("T1w",), {}, 1.0, ("FAST", "brain", "lesion"), "", metrics={"heads": figures})
    assert hardly_learned(card) == ["brain"]
    assert hardly_learned(replace(card, metrics={})) == []


# -- what cannot be trained --------------------------------------------------------------------------------------------


def test_labels_are_needed(ask: Ask) -> None:
    with pytest.raises(UsageError, match="train needs --labels DIR"):
        train_level(ask(labels={}))


def test_labels_that_say_nothing_of_any_head_are_refused(ask: Ask, dataset: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=r"labels of FAST have no relation to the heads BrainCOLOR: add FAST"):
        train_level(ask(RECIPE.replace("{ brain = 0.5, FAST = 1.0 }", "{ BrainCOLOR = 1.0 }")))


def test_a_head_that_nothing_teaches_is_named(ask: Ask) -> None:
    settings = replace(ask(RECIPE.replace("FAST = 1.0", "FAST = 1.0, BrainCOLOR = 1.0")), dry_run=True)
    train_level(settings)
    assert console(settings).warnings == ["no --labels has a relation to the head BrainCOLOR, so it cannot be trained"]


def test_label_maps_without_images_are_left_to_recipes_that_make_some(ask: Ask) -> None:
    settings = ask("synthetic_share = 0.0" + RECIPE)
    train_level(replace(settings, dry_run=True))
    assert ["no matching image" in line for line in console(settings).warnings].count(True) == 1
    settings = ask()
    train_level(replace(settings, dry_run=True))
    assert not any("no matching image" in line for line in console(settings).warnings)


def test_at_least_one_participant_must_be_left_for_training(ask: Ask) -> None:
    with pytest.raises(NothingSelected, match="fewer --folds or more data"):
        train_level(replace(ask(fold=0), participants=("01",)))


@pytest.mark.parametrize(
    "change, reason",
    [
        (("steps = 3", "stepz = 3"), r"recipe\.toml: unknown key 'stepz': did you mean steps\?"),
        (("points = 500", "dots = 500"), r"recipe\.toml: unknown key 'sampling\.dots'"),
        (("steps = 3", "steps = 'many'"), r'recipe\.toml: steps = "many": must be an integer'),
        (("heads = { brain = 0.5, FAST = 1.0 }", "heads = ['brain']"), "heads = .*: must be a table"),
        (("steps = 3", "optimiser = 3"), "optimiser = 3: must be a table"),
        (('title = "Tissue from next to nothing"', ""), "title"),
        (("shape = [32, 32, 32]", ""), r"sampling\.shape is missing"),
        (("steps = 3", "steps = "), "is not TOML"),
        (("[32, 32, 32]", "[32, 30, 32]"), "every size in shape must be a multiple of 4"),
        (('"subpixel-unet"', '"perceptron"'), "no network 'perceptron'"),
        (("features = 4", "depth = 4"), r"unknown key 'network\.depth'"),
        (("steps = 3", "steps = 3\nlocator = 'nowhere'"), "recipe tiny: locator: no model 'nowhere'"),
        (('name = "tiny"', 'name = "very-tiny"'), "letters and digits only"),
        (("FAST = 1.0", "Brodmann = 1.0"), "no protocol 'Brodmann'"),
    ],
)
def test_a_faulty_recipe_is_named(
    change: tuple[str, str], reason: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is raised before any data is read."""
    monkeypatch.setattr(training, "find_data", None)
    settings = ask(RECIPE.replace(*change, 1))
    with pytest.raises(DataError, match=reason):
        train_level(settings)
    assert not list(settings.output_dir.glob("models/*/*"))


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


TRAINING = "bids,matplotlib.figure,torch._dynamo,bidsseg.levels.train,bidsseg.learning.training"
"""Modules that a training imports."""


def test_two_processes_train_the_same_model_as_one(ask: Ask, dataset: tuple[Path, Path], tmp_path: Path) -> None:
    """Recipes for whole volumes and for voxels, with the variables that torchrun sets."""
    commands: list[str | Path] = [two_ranks.__file__, TRAINING]
    single = {}
    for name, content in (("volumes", RECIPE.replace("steps = 3", "steps = 3\nbatch = 4")), ("voxels", VOXEL_WISE)):
        given = ask(content, output=f"one-{name}")
        single[name] = weights(train_level(given))
        recipe = Path(given.training.recipe).rename(tmp_path / f"{name}.toml")
        what = ["--recipe", str(recipe), "--labels", f"FAST={dataset[1]}", "--folds", "1"]
        how = ["--precision", "fp32", "--device", "cpu", "--n-cpus", "1"]
        commands += ["--", RUN, dataset[0], tmp_path / f"two-{name}", "train", *what, *how]
    done = subprocess.run(
        [sys.executable, *commands], cwd=tmp_path, text=True, timeout=300, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("training scans") == 2, "once for each recipe"
    for name, one in single.items():
        two = weights(tmp_path / f"two-{name}" / "models" / "tiny")
        assert all(torch.allclose(one[key], two[key], atol=2e-3) for key in one)
        assert any(value.abs().max() > 0.1 for value in one.values())


@pytest.mark.parametrize(("rank", "said"), [(0, 1), (1, 0)])
def test_a_step_has_a_sample_for_each_process(rank: int, said: int, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "join", lambda device: Processes(rank, 2, device))
    settings = ask()
    setup = set_up(settings, "cpu", "fp32", threads=1)
    assert setup.recipe.batch == 2
    assert console(settings).messages == ["each step has 2 samples instead of 1: one per process"] * said


def test_processes_of_torchrun_share_what_they_have(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nfrom bidsseg.learning.processes import Processes\nthey = Processes.join()\n"
        "values = [torch.tensor([2.0 * they.rank]), torch.tensor([they.rank])]\nthey.average(values)\n"
        "both, one, none = weights = [torch.zeros(1, requires_grad=True) for _ in range(3)]\n"
        "both.grad = torch.ones(1)\n"
        "if they.rank: one.grad = torch.ones(1)\n"
        "they.add_gradients(weights)\n"
        "values += [both.grad, one.grad]\n"
        "assert none.grad is None\n"
        "from pathlib import Path\nfound = [they.count, they.neighbours(), *(value.item() for value in values)]\n"
        "Path(f'{they.rank}.txt').write_text(' '.join(map(str, found)))\nthey.leave()\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["2 2 1.0 0 2.0 1.0", "2 2 1.0 1 2.0 1.0"]


def test_segnet_has_one_grid(ask: Ask) -> None:
    with pytest.raises(DataError, match="segnet is trained on a grid of 1 mm: omit spacing_mm"):
        train_level(ask(VOXEL_WISE.replace("[network]", "spacing_mm = 2.0\n\n[network]", 1)))
