"""The level train with labels of a stranger: one command, without a recipe."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest
from labelled import HALF, SHAPE, Ask, console
from nifti import load_nifti

from bidsseg.app.cli import main
from bidsseg.errors import DataError, UsageError
from bidsseg.learning.training_setup import set_up
from bidsseg.levels.train import train_level
from bidsseg.models.library import load_model
from bidsseg.settings import Training

TABLE = "index;name\n1;Left-Half\n2;Right-Half\n"


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """The hemispheres of two participants."""
    brain = phantoms.head(2 * HALF, SHAPE, phantoms.LABEL) > 0
    values = np.where(np.arange(SHAPE[0]) < SHAPE[0] // 2, 2, 1)[:, None, None].astype(np.uint8) * brain
    for number in (1, 2):
        name = f"sub-0{number}"
        phantoms.save(tmp_path / "halves" / name / "anat" / f"{name}_desc-halves_dseg.nii.gz", values, HALF)
    (tmp_path / "halves" / "desc-halves_dseg.tsv").write_text(TABLE)
    return tmp_path / "halves"


def test_own_labels_become_a_head_of_the_model(ask: Ask, halves: Path) -> None:
    """The brain comes from the labels of another folder."""
    settings = ask(folds=1, fold=0)
    folder = train_level(replace(settings, labels={**settings.labels, "": [halves]}))
    model = load_model(str(folder))
    assert list(model.heads) == ["brain", "FAST", "halves"]
    assert [region.name for region in model.heads["halves"].regions] == ["Background", "Left-Half", "Right-Half"]
    assert (folder / "seg-halves_dseg.tsv").is_file()
    assert any("the columns are separated by ';'" in line for line in console(settings).messages)


def test_the_default_recipe_is_named_after_own_labels(ask: Ask, halves: Path) -> None:
    setup = set_up(replace(ask(), labels={"": [halves]}, training=Training(small=True)), "cpu", "fp32", threads=1)
    assert setup.folder.name == "halves"
    assert [head.name for head in setup.heads] == ["brain", "halves"]
    assert setup.recipe.spacing_mm == 2.0


def test_two_regions_of_one_name_are_refused(ask: Ask, halves: Path) -> None:
    (halves / "desc-halves_dseg.tsv").write_text(TABLE.replace("Right-Half", "Left-Half"))
    with pytest.raises(DataError, match="halves: the values 1, 2 have the same name, 'Left-Half'"):
        train_level(ask(labels={"": [halves]}))


def test_sides_that_the_names_do_not_say_are_refused(ask: Ask, halves: Path) -> None:
    """Mirrored samples would show the left half as the right one, and the other way round."""
    spoken = TABLE.replace("Left-Half", "Mitad izquierda").replace("Right-Half", "Mitad derecha")
    (halves / "desc-halves_dseg.tsv").write_text(spoken)
    settings = ask()
    settings = replace(settings, labels={**settings.labels, "": [halves]})
    with pytest.raises(UsageError, match="'Mitad izquierda' is on the left and 'Mitad derecha' on the right"):
        train_level(settings)
    rows = ["index;name;partner", "1;Mitad izquierda;2", "2;Mitad derecha;1"]
    (halves / "desc-halves_dseg.tsv").write_text("\n".join(rows))
    train_level(settings)


def test_regions_that_no_label_map_has_are_named(ask: Ask, halves: Path) -> None:
    for path in halves.rglob("*.nii.gz"):
        image = load_nifti(path)
        phantoms.save(path, np.asarray(image.dataobj) % 2, image.affine)  # the left half alone
    settings = ask()
    train_level(replace(settings, labels={**settings.labels, "": [halves]}))
    (warning,) = [line for line in console(settings).warnings if "no label map has" in line]
    assert warning.startswith("protocol halves: no label map has Right-Half: if the label maps show one side alone")


def test_the_first_error_asks_for_labels(ask: Ask) -> None:
    with pytest.raises(UsageError, match="train needs --labels DIR, the folder"):
        train_level(ask(labels={}))


def test_marks_do_not_select_scans_for_training(ask: Ask) -> None:
    with pytest.raises(UsageError, match="--where does not select scans for training"):
        train_level(replace(ask(), where=["use=1"]))


def test_one_command(ask: Ask, halves: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ask()
    words = [str(settings.bids_dir), str(settings.output_dir), "train", "--labels", str(halves), "--dry-run"]
    assert main([*words, "--small"]) == 0
    assert "takes the files *_desc-halves_dseg" in capsys.readouterr().out
    assert main([*words[:-2], f"{halves}/nowhere"]) == 64
    assert "there is no such folder; give the folder of a derivative dataset" in capsys.readouterr().err
