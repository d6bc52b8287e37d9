"""``bidsseg recipe show NAME`` and ``bidsseg recipe check FILE``."""

import json
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from labelled import RECIPE

from bidsseg.app.cli import main
from bidsseg.app.parser import is_command
from bidsseg.errors import DataError
from bidsseg.learning.recipe import Recipe, has_small, load_recipe, shipped_recipes
from bidsseg.learning.recipe_text import recipe_text
from bidsseg.learning.training import pose_on_card
from bidsseg.learning.training_setup import set_up
from bidsseg.models.card import FOLDER
from bidsseg.settings import Settings, Training

NETWORK = RECIPE.partition("[network]\n")[2].partition("\n[sampling]")[0]


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_printed_recipe_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    for small in {False, has_small(name)}:
        recipe, path = load_recipe(name, small=small), tmp_path / "printed.toml"
        path.write_text(recipe_text(recipe), encoding="utf-8")
        printed = load_recipe(str(path))
        assert {**printed.network, **recipe.network} == dict(printed.network)
        one, other = (replace(each, network={}) for each in (printed, recipe))
        assert json.dumps(asdict(one)) == json.dumps(asdict(other))  # lists and tuples are equal


def test_every_key_is_printed_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", "wholebrain"]) == 0
    text = capsys.readouterr().out
    keys = [entry.name for entry in fields(Recipe)]
    assert all(f"\n{key} =" in f"\n{text}" or f"\n# {key} =" in text or f"[{key}]\n" in text for key in keys)
    assert "# share of these voxels drawn inside the brain.\ninside = 0.85\n" in text
    assert "# [voxels]\n" in text and "# per_scan = 20000\n" in text
    assert set(tomllib.loads(text)["network"]) == {"name", "images", "coordinates", "widths", "features", "last"}


def test_the_small_scale_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", "ace", "--small"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["spacing_mm"] == 2.0


def test_a_correct_recipe_is_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    assert main(["recipe", "check", str(path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("ok: tiny: brain (1 regions), FAST (3 regions) from T1w; subpixel-unet with ")
    path.write_text(RECIPE + "\n[small]\nsteps = 2\n")
    assert main(["recipe", "check", str(path)]) == 0
    assert [line.partition(" brain")[0] for line in capsys.readouterr().out.splitlines()] == [
        "ok: tiny:",
        "ok: tiny with --small:",
    ]


def test_the_table_of_a_head_may_tell_the_pose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, own = tmp_path / "mine.toml", tmp_path / "seg-Mine_dseg.tsv"
    own.write_text("index\tname\n0\tBackground\n1\tInside\n")
    path.write_text(f'pose_head = "{own}"\n' + RECIPE.replace("FAST", f'"{own}"'))
    assert main(["recipe", "check", str(path)]) == 0
    labels = tmp_path / "labels" / "sub-01" / "anat"
    labels.mkdir(parents=True)
    (labels / "sub-01_seg-Mine_dseg.nii.gz").write_bytes(b"")
    named, options = {str(own): [tmp_path / "labels"]}, Training(recipe=str(path))
    settings = Settings(tmp_path / "bids", tmp_path / "out", labels=named, training=options)
    with pytest.raises(DataError, match="no annotation knows the regions of Mine"):
        pose_on_card(set_up(settings, "cpu", "fp32", threads=1), [])


def test_a_model_finds_its_locator_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is that of the folder in which the model is trained."""
    (tmp_path / "bids").mkdir()
    path = tmp_path / "mine.toml"
    settings = Settings(tmp_path / "bids", tmp_path / "out", labels={"FAST": [tmp_path]}, training=Training(str(path)))
    monkeypatch.chdir(FOLDER.parent)
    for given, kept in (("wholebrain", "wholebrain"), (f"{FOLDER.name}/wholebrain", str(FOLDER / "wholebrain"))):
        path.write_text(f'base = "wholebrain"\nname = "mine"\nlocator = "{given}"\n')
        assert set_up(settings, "cpu", "fp32", threads=1).recipe.locator == kept


def test_heads_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, own = tmp_path / "mine.toml", tmp_path / "seg-FAST_dseg.tsv"
    own.write_text("index\tname\n0\tBackground\n1\tInside\n")
    path.write_text(RECIPE.replace("FAST = 1.0", f'FAST = 1.0, "{own}" = 1.0'))
    assert main(["recipe", "check", str(path)]) == 65
    assert f"recipe tiny: heads: FAST and {own} have the same name, FAST" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("steps = 3", "steps = true"), "steps = true: must be an integer"),
        (("steps = 3", "stepz = 3"), "unknown key 'stepz': did you mean steps?"),
        (("[32, 32, 32]", "[32, 32, 33]"), "every size in shape must be a multiple of"),
        (("steps = 3", 'steps = 3\nlocator = "nosuch"'), "locator: no model 'nosuch'"),
        (("steps = 3", 'steps = 3\nlocator = "neuronet"'), "locator: the model neuronet has no head brain"),
        (("coordinates = 0", "coordinates = 3"), "coordinates = 3 requires a locator and whole_head = false"),
        (("steps = 3", 'steps = 3\nlocator = "locator"'), "coordinates = 0 requires whole_head = true and no locator"),
        (("whole_head = true", ""), "coordinates = 0 requires whole_head = true and no locator"),
        (
            ("whole_head = true", "whole_head = true\n[small]\nsteps = -1"),
            "with [small]: steps = -1: must be at least 1",
        ),
        ((NETWORK, 'name = "neuronet"\nwidths = [4]\n'), "network.widths = [4]: must have at least 2"),
        (("subpixel-unet", "nosuch"), "no network 'nosuch'"),
        (("FAST = 1.0", "Nosuch = 1.0"), "heads: no protocol 'Nosuch': choose one of "),
        (("FAST = 1.0", '"a/seg-Mine_dseg.tsv" = 1.0'), f"heads: no file {Path.cwd() / 'a/seg-Mine_dseg.tsv'}"),
    ],
)
def test_a_mistake_is_named(
    change: tuple[str, str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.replace(*change, 1))
    assert main(["recipe", "check", str(path)]) == 65
    assert reason in capsys.readouterr().err


def test_wrong_words_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "print", "ace"]) == 64
    assert main(["recipe"]) == 64
    assert main(["recipe", "show", "nosuch"]) == 65
    assert "give a TOML file or one of" in capsys.readouterr().err


def test_a_dataset_may_be_called_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_command("recipe", ["recipe", "out", "train"])
    (tmp_path / "recipe").mkdir()
    assert not is_command("recipe", ["recipe", "out", "train"])
    assert is_command("recipe", ["recipe", "show", "ace"])
