"""Honest cards and pages of trained models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from labelled import RECIPE, Ask, console
from recording_console import RecordingConsole

from bidsseg.image.volume import Volume
from bidsseg.labels import load_protocol
from bidsseg.learning.card_texts import texts_of
from bidsseg.learning.label_sources import LabelSource
from bidsseg.learning.processes import Processes
from bidsseg.learning.recipe import load_recipe
from bidsseg.learning.training_setup import Setup, set_up
from bidsseg.learning.validation import ERROR
from bidsseg.levels.train import train_level
from bidsseg.models.card import CARD, Card, find_card, read_card
from bidsseg.models.library import save_card
from bidsseg.models.participants import participants, shortened, with_others
from bidsseg.report import Compared, Pictures, training_page
from bidsseg.settings import Report, Settings, Training


@pytest.fixture(scope="module")
def trained(dataset: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model with two held-out participants."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.toml").write_text(RECIPE)
    options = Training(recipe=str(folder / "recipe.toml"), folds=2)
    return train_level(
        Settings(
            *(dataset[0], folder / "out"),
            precision="fp32",
            n_cpus=1,
            labels={"FAST": [dataset[1]]},
            training=options,
            report=RecordingConsole(),
        )
    )


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


# -- descriptions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [False, True])
def test_a_recipe_of_ones_own_does_not_describe_its_base(small: bool, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "eneuronet"\nname = "mine"\nheads = { FAST = 1.0 }\n')
    mine = load_recipe(str(path), small=small)
    assert (mine.description, mine.licence, list(mine.citation)) == ("", "unknown", [])
    assert mine.title == "mine, with the settings of the recipe eneuronet"
    path.write_text(path.read_text() + 'title = "Mine"\nlicence = "CC0-1.0"\ncitation = ["Me 2026"]\n')
    mine = load_recipe(str(path), small=small)
    assert (mine.title, mine.licence, list(mine.citation)) == ("Mine", "CC0-1.0", ["Me 2026"])
    assert load_recipe("ace-naive-ce").citation == load_recipe("ace").citation != []


@pytest.fixture
def licensed(dataset: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A labelled dataset whose description has a name and a licence."""
    bids, labels = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in dataset)
    (bids / "dataset_description.json").write_text('{"Name": "Fifty brains", "License": "PDDL\\n1.0"}')
    return bids, labels


@pytest.mark.parametrize("recipe", ["wholebrain", "neuronet", "locator"])
def test_the_texts_of_a_shipped_recipe_are_those_of_the_users_data(
    recipe: str, licensed: tuple[Path, Path], tmp_path: Path
) -> None:
    bids, labels = licensed
    known = load_recipe(recipe)
    assert "OASIS" not in f"{known.title} {known.description} {known.licence} {known.citation}"
    settings = Settings(bids, tmp_path / "out", labels={"FAST": [labels]}, training=Training(recipe=recipe))
    setup = set_up(settings, "cpu", "fp32", threads=1)
    cases = [f"bids/sub-0{number}" for number in range(1, 4)]
    texts = texts_of(setup, cases, None)
    assert texts["licence"] == "PDDL 1.0"
    assert texts["description"].endswith("Trained on Fifty brains (3 scans).")
    assert texts["description"].startswith(setup.recipe.description)
    (labels / "dataset_description.json").write_text('{"Name": "Tissue", "License": "CC BY 4.0"}')
    texts = texts_of(setup, [*cases, "other/sub-01"], find_card("wholebrain"))
    assert texts["description"].endswith(
        "Trained on Fifty brains (3 scans), other (1 scan), starting from the model wholebrain."
    )
    start = f"{find_card('wholebrain').licence} (the initial model wholebrain)"
    assert texts["licence"] == f"CC BY 4.0 (Tissue); PDDL 1.0 (Fifty brains); unknown (other); {start}"


def test_datasets_of_one_name_keep_their_licences(tmp_path: Path) -> None:
    """Here the descriptions have one name, and so have the folders of datasets and of labels."""
    folders = [tmp_path / place / "bids" for place in "ab"]
    labels = [folder / "derivatives" / "manual" for folder in folders]
    for number, folder in enumerate((*folders, *labels)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dataset_description.json").write_text(f'{{"Name": "Brains", "License": "L{number}"}}')
    settings = Settings(folders[0], tmp_path / "out", labels={"": labels}, training=Training(also=folders[1:]))
    sources = [LabelSource("", load_protocol("FAST"), folder, "FAST") for folder in labels]
    parts = (replace(load_recipe("locator"), licence="unknown"), (), (), "fp32", 1, Processes(), Report(), sources)
    texts = texts_of(Setup(settings, *parts), ["bids/sub-01"], None)
    assert texts["licence"] == "L2 (Brains); L3 (Brains); L0 (Brains); L1 (Brains)"


def test_a_recipe_of_ones_own_keeps_its_texts(licensed: tuple[Path, Path], tmp_path: Path) -> None:
    bids, labels = licensed
    path = tmp_path / "recipe.toml"
    own = 'description = "Mine."\nlicence = "CC0-1.0"\n'
    for given, described, licence in (
        (own, "Mine.", "CC0-1.0"),
        ("", "Trained on Fifty brains (4 scans).", "PDDL 1.0"),
    ):
        path.write_text(given + RECIPE)
        training = Training(recipe=str(path), folds=1)
        folder = train_level(
            Settings(bids, tmp_path / "out", n_cpus=1, overwrite=True, labels={"FAST": [labels]}, training=training)
        )
        card = read_card(folder)
        assert (card.description, card.licence) == (described, licence)


# -- participants ------------------------------------------------------------------------------------------------------


def test_participants_on_a_card_are_short() -> None:
    many = {f"one/sub-{number:04}" for number in range(1, 1001)} | {"two/sub-A9", "two/sub-A10", "two/sub-x"}
    short = shortened(many)
    assert short == {"one": "0001-1000", "two": "A10 A9 x"}
    assert participants(short) == many
    short = shortened(["one/sub-1"], others=["one", "two"])
    assert (short, participants(short), with_others(short)) == (
        {"one": "1 ?", "two": "?"},
        {"one/sub-1"},
        {"one", "two"},
    )


def test_leakage_through_the_initial_model_is_warned_about(trained: Path, ask: Ask, tmp_path: Path) -> None:
    assert read_card(trained).trained_on == {"bids": "02 04"}
    recipe = RECIPE.replace("tiny", "second")
    same = replace(ask(recipe, folds=2, fold=0, init=str(trained)), dry_run=True)
    train_level(same)
    assert not [line for line in console(same).warnings if "--init" in line]

    other = ask(recipe, folds=2, fold=1, init=str(trained))
    folder = train_level(other)
    card = read_card(folder)
    assert card.metrics["seen_by_initial_model"] == ["bids/sub-02", "bids/sub-04"]
    assert card.trained_on == {"bids": "01-04"}
    (warning,) = [line for line in console(other).warnings if "--init" in line]
    assert "trained on 2 of the 2 held-out participants (bids/sub-02, bids/sub-04)" in warning
    assert "The initial model was trained on 2 of the held-out participants" in (folder / "training.html").read_text()

    older = Path(shutil.copytree(trained, tmp_path / "older"))
    save_card(replace(read_card(older), trained_on={}))
    doubtful = replace(ask(recipe, folds=2, fold=1, init=str(older), output="more"), dry_run=True)
    train_level(doubtful)
    (warning,) = [line for line in console(doubtful).warnings if "--init" in line]
    assert "only if it was not trained on bids/sub-02, bids/sub-04" in warning


# -- figures -----------------------------------------------------------------------------------------------------------


def test_a_card_is_json_without_nan(tmp_path: Path) -> None:
    unknown = {"dice": float("nan"), "voxel_error": float("inf"), "annotation": "FAST", "scans": 1}
    card = Card("one", "", ("T1w",), {"name": "unet"}, 1.0, ("FAST", "brain"), "", folder=tmp_path)
    known = {**unknown, "dice": 0.5}
    save_card(replace(card, metrics={"heads": {"FAST": unknown, "brain": known}}))
    content = json.loads((tmp_path / CARD).read_text(), parse_constant=refuse)
    assert content["metrics"]["heads"]["FAST"]["dice"] is None
    assert read_card(tmp_path).dice == {"brain": 0.5}


def test_curve_card_and_table_agree(trained: Path) -> None:
    card = json.loads((trained / CARD).read_text(), parse_constant=refuse)
    last = pd.read_csv(trained / "curve.tsv", sep="\t").iloc[-1]
    assert last["step"] == card["recipe"]["steps_done"]
    table = pd.read_csv(trained / "validation.tsv", sep="\t")
    regions = table[table.region != ERROR]
    for head in ("FAST", "brain"):
        dice = regions[regions["head"] == head].groupby("case").dice.mean().mean()
        assert card["metrics"]["heads"][head]["dice"] == pytest.approx(last[f"dice FAST>{head}"], abs=1e-4)
        assert card["metrics"]["heads"][head]["dice"] == pytest.approx(dice, abs=1e-3)


def test_distances_and_volumes_are_in_the_table(trained: Path) -> None:
    table = pd.read_csv(trained / "validation.tsv", sep="\t")
    regions = table[table.region != ERROR]
    assert (regions["reference-mm3"] > 0).all() and (regions["found-mm3"] >= 0).all()
    found = regions[regions["found-mm3"] > 0]
    assert len(found) and (found["hausdorff95-mm"] >= 0).all()
    assert regions[regions["found-mm3"] == 0]["hausdorff95-mm"].isna().all()
    assert table[table.region == ERROR]["hausdorff95-mm"].isna().all()


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_shows_curves_results_and_pictures(trained: Path) -> None:
    page = (trained / "training.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + 4  # the curves, and two heads of two scans
    for text in ("bids/sub-01", "Held-out participants: bids/sub-01, bids/sub-03", "WM", "95 % Hausdorff"):
        assert text in page
    assert "nan" not in page.split("<main>")[1].split("base64")[0]
    assert len(page) < 1_000_000


def test_a_page_without_held_out_participants_says_so(ask: Ask) -> None:
    page = (train_level(ask()) / "training.html").read_text()
    assert "No participant was held out" in page


def test_names_of_regions_and_scans_are_no_html(tmp_path: Path) -> None:
    card = Card("one", "<i>", ("T1w",), {"name": "unet"}, 1.0, ("FAST",), "", folder=tmp_path)
    row = {"case": "a/sub-1", "head": "FAST", "annotation": "FAST", "region": "<b>x", "dice": 0.5}
    table = pd.DataFrame([row | dict.fromkeys(("hausdorff95-mm", "found-mm3", "reference-mm3"), np.nan)])
    page = training_page(card, table, ()).read_text()
    assert "&lt;b&gt;x" in page and "<b>x" not in page and "&lt;i&gt;" in page
    assert "0.500" in page and ">nan<" not in page


def test_the_lowest_scans_are_pictured() -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    image = Volume(np.random.default_rng(0).random((8, 8, 8), np.float32), np.eye(4))
    pictures = Pictures()
    for number, dice in enumerate((0.9, 0.2, 0.8, 0.3, 0.95, 0.1, float("nan"))):
        pictures.add(Compared(f"a/sub-{number}", "FAST", "FAST", dice, labels, labels, image))
    for number, dice in enumerate((0.9, 0.7, 0.9, 0.8)):  # one of two equal scans leaves
        pictures.add(Compared(f"a/sub-{number}", "brain", "FAST", dice, labels, labels, image))
    found = {head: [each.mean_dice for each in pictures.lowest() if each.head == head] for head in ("FAST", "brain")}
    assert found == {"FAST": [0.1, 0.2, 0.3], "brain": [0.7, 0.8, 0.9]}
    assert [each.head for each in pictures.lowest()] == ["FAST"] * 3 + ["brain"] * 3
