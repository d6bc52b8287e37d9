"""Images of another contrast in the place of the T1w: selection, models that read them, and training on them."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest
from fake_model import App, make_app, save_card
from labelled import Ask, console

from bidsseg.bids.outputs import output_paths
from bidsseg.bids.scan import Image, Scan
from bidsseg.derivative import measures
from bidsseg.errors import DataError, NothingSelected, UsageError
from bidsseg.image.volume import Volume
from bidsseg.learning.training_setup import set_up
from bidsseg.levels.train import train_level
from bidsseg.models.card import ANY, Card, find_card, read_card
from bidsseg.registration.spaces import Space
from bidsseg.report.methods import methods


@pytest.fixture
def app(tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> App:
    """Two participants with T1w, of whom the first has a T2w too, and a third who has a T2w alone."""
    bids = make_bids(3)
    for label in ("01", "03"):
        t1w = bids / f"sub-{label}/anat/sub-{label}_T1w.nii.gz"
        t2w = t1w.with_name(f"sub-{label}_T2w.nii.gz")
        phantoms.save(t2w, phantoms.noisy_head(phantoms.grid(), seed=7), phantoms.grid())
    t1w.unlink()
    return make_app(tmp_path, bids, monkeypatch)


def sources(app: App, model: str = "wholebrain") -> dict[str, list[str]]:
    names = sorted(path.name for path in app.output.glob(f"sub-*/anat/*_seg-FAST_desc-{model}_dseg.json"))
    return {name[:6]: app.sidecar(f"{name[:6]}/anat/{name}")["Sources"] for name in names}


def test_a_model_of_any_contrast(app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = save_card(tmp_path / "some", name="some", modality=ANY)
    assert app("--anat-modality", "T2w", model=some) == 0
    assert sources(app, "some") == {
        label: [f"bids:raw:{label}/anat/{label}_T2w.nii.gz"] for label in ("sub-01", "sub-03")
    }
    assert "sub-02: no T2w image matches; found sub-02_T1w.nii.gz (select it by" in capsys.readouterr().err
    assert "on the grid of the T2w" in (app.output / "sub-01.html").read_text()
    assert app("--anat-modality", "T2w", level="group", model=some) == 0
    table = app.table("group_seg-FAST_desc-some_morph.tsv")
    assert dict(zip(table["participant_id"], table["status"], strict=True)) == {"sub-01": "done", "sub-03": "done"}


def test_results_of_two_contrasts_are_kept_apart(app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = save_card(tmp_path / "some", name="some", modality=ANY)
    assert app("--participant-label", "01", model=some) == 0
    assert sources(app, "some") == {"sub-01": ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]}
    assert app("--anat-modality", "T2w", model=some) == 73
    assert "contains results of sub-01/anat/sub-01_T1w.nii.gz, not of sub-01_T2w.nii.gz" in capsys.readouterr().err
    assert app("--anat-modality", "T2w", "--overwrite", model=some) == 0
    assert sources(app, "some")["sub-01"] == ["bids:raw:sub-01/anat/sub-01_T2w.nii.gz"]


def test_a_model_of_t1w_refuses_other_contrasts(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("--anat-modality", "_T2w.nii.gz") == 64
    told = "--anat-modality T2w: the model wholebrain reads T1w images; --model open reads images of any contrast"
    assert told in capsys.readouterr().err
    assert app("--anat-modality", "T*") == 64
    assert app() == 0
    note = "sub-03: no T1w image matches; found sub-03_T2w.nii.gz (segment it with --model open --anat-modality T2w)"
    assert note in capsys.readouterr().err


def test_a_filter_for_another_contrast_is_warned_about(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "filter.json").write_text('{"t1w": {"suffix": "T2w"}}')
    assert app("--bids-filter-file", str(tmp_path / "filter.json")) == 0
    told = "sub-01_T2w.nii.gz, sub-03_T2w.nii.gz: wholebrain was trained on T1w images"
    assert told in " ".join(capsys.readouterr().err.split())


def test_which_images_a_model_reads() -> None:
    assert (find_card("open").modality, find_card("wholebrain").modality) == (ANY, "T1w")
    card: Card = find_card("wholebrain")
    assert [card.reads(suffix) for suffix in ("T1w", "UNIT1", "T2w")] == [True, True, False]
    assert [replace(card, modality="T2w").reads(suffix) for suffix in ("T1w", "T2w")] == [False, True]
    assert replace(card, modality=ANY).reads("PDw")
    assert (find_card("open").needs, find_card("lesions").needs) == ("image of any contrast", "T1w + FLAIR")


@pytest.mark.parametrize("by_filter", [True, False])
def test_a_model_trained_on_t2w_selects_t2w(by_filter: bool, ask: Ask, tmp_path: Path) -> None:
    settings = ask()
    bids = tmp_path / "t2w"
    shutil.copytree(settings.bids_dir, bids)
    for t1w in sorted(bids.glob("sub-*/anat/*_T1w.nii.gz")):
        t1w.rename(t1w.with_name(t1w.name.replace("T1w", "T2w")))
    t1w.write_bytes(b"must not be read")
    chosen = {"filters": {"t1w": {"suffix": "T2w"}}} if by_filter else {"modality": "T2w"}
    folder = train_level(replace(settings, bids_dir=bids, **chosen))
    card = read_card(folder)
    assert (card.modality, card.suffix) == ("T2w", "T2w")
    assert card.data == ["t2w: 4 scans"]  # one is a label map without an image


def test_a_deformable_registration_needs_a_t1w(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    template = Space("MNI", "1", tmp_path / "T1w.nii.gz", tmp_path / "mask.nii.gz")
    some = save_card(tmp_path / "some", name="some", modality=ANY)
    monkeypatch.setattr("bidsseg.execution.agenda.find_space", lambda word: template)
    assert app("--anat-modality", "T2w", "--output-spaces", "MNI", "--dry-run", model=some) == 64
    assert "give MNI:affine" in capsys.readouterr().err
    monkeypatch.setattr("bidsseg.execution.agenda.find_space", lambda word: replace(template, affine=True))
    assert app("--anat-modality", "T2w", "--output-spaces", "MNI:affine", "--dry-run", model=some) == 0


def test_files_are_named_after_the_contrast(tmp_path: Path) -> None:
    names = {}
    for suffix in ("T1w", "UNIT1", "T2w"):
        scan = Scan({"subject": "01"}, tmp_path / f"sub-01_{suffix}.nii.gz")
        paths = output_paths(scan, "M", [], filled=True, spaces=[{"space": "MNI", "res": "1", "transform": ".txt"}])
        assert paths.filled is not None
        names[suffix] = paths.filled.name, paths.spaces[0].transform.name
    t1w = "sub-01_desc-filled_T1w.nii.gz", "sub-01_from-T1w_to-MNI_mode-image_desc-M_xfm.txt"
    t2w = "sub-01_desc-filled_T2w.nii.gz", "sub-01_from-T2w_to-MNI_mode-image_desc-M_xfm.txt"
    assert names == {"T1w": t1w, "UNIT1": t1w, "T2w": t2w}


def test_longitudinal_compares_t1w(app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = save_card(tmp_path / "some", name="some", modality=ANY)
    assert app("--anat-modality", "T2w", level="longitudinal", model=some) == 64
    assert "compares T1w images, not sub-01_T2w.nii.gz, sub-03_T2w.nii.gz" in capsys.readouterr().err


def test_lesions_are_filled_in_a_t1w_alone(app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = save_card(tmp_path / "some", name="some", modality=ANY)
    assert app("--anat-modality", "T2w", "--filled", model=some) == 64
    assert "lesions are filled with the brightness of white matter in a T1w" in capsys.readouterr().err
    mask = tmp_path / "masks/sub-01/anat/sub-01_label-lesion_mask.nii.gz"
    drawn = np.zeros(phantoms.SHAPE, np.uint8)
    drawn[20:23, 30:33, 24:27] = 1
    phantoms.save(mask, drawn, phantoms.grid())
    words = ("--anat-modality", "T2w", "--lesions", str(tmp_path / "masks"))
    assert app(*words, model=some) == 64
    assert app("--participant-label", "03", *words, model=some) == 0  # has no mask


def test_a_flag_and_a_filter_select_alike(app: App, tmp_path: Path) -> None:
    some = save_card(tmp_path / "some", name="some", modality=ANY)
    (tmp_path / "filter.json").write_text('{"t1w": {"suffix": "T2w"}}')
    copy = tmp_path / "corrected/sub-02/anat/sub-02_seg-FAST_dseg.nii.gz"
    phantoms.save(copy, np.ones(phantoms.SHAPE, np.uint8), phantoms.grid())
    corrections = ("--corrections", str(tmp_path / "corrected"))
    assert app("--bids-filter-file", str(tmp_path / "filter.json"), *corrections, model=some) == 0
    assert app("--anat-modality", "T2w", *corrections, "--overwrite", model=some) == 0


def test_exports_are_not_made_of_two_contrasts(app: App, tmp_path: Path) -> None:
    some = save_card(tmp_path / "some", name="some", modality=ANY)
    only = ("--participant-label", "01")
    assert app(*only, "--anat-modality", "T2w", model=some) == 0
    assert app(*only, "--overwrite") == 0  # the brain mask, which models share, is now that of the T1w
    assert app(*only, "--anat-modality", "T2w", "--measure", "T1w", model=some) == 73


def test_training_needs_images_of_the_contrast(ask: Ask) -> None:
    with pytest.raises(NothingSelected, match="no T2w image has an annotation"):
        train_level(replace(ask(), modality="T2w"))
    with pytest.raises(UsageError, match="images of one contrast"):
        train_level(replace(ask(), filters={"t1w": {"suffix": ["T1w", "T2w"]}}))


def test_names_that_are_no_bids_names() -> None:
    methods_of = [
        methods({"Models": [{"Name": "some"}], "Sources": [f"bids:raw:{name}"]}, ["FAST"])
        for name in ("my_T2w_scan.nii.gz", "sub-01_T2w_brain.nii.gz", "sub-01_T2w.nii.gz", "sub-01_UNIT1.nii.gz")
    ]
    assert [found.text.partition(" ")[0] for found in methods_of if found] == ["T1w", "T1w", "T2w", "UNIT1"]


def test_a_model_of_t2w_has_the_cohort_of_the_t2w(app: App, tmp_path: Path) -> None:
    some = save_card(tmp_path / "some", name="some", modality="T2w")
    assert app(model=some) == app(level="group", model=some) == 0
    assert list(app.table("group_seg-FAST_desc-some_morph.tsv")["participant_id"]) == ["sub-01", "sub-03"]


def test_outputs_of_another_contrast_do_not_stay(app: App, tmp_path: Path) -> None:
    some = save_card(tmp_path / "some", name="some", modality=ANY)
    only = ("--participant-label", "01")
    assert app(*only, "--probseg", model=some) == 0 and app.files("sub-01/anat/*_probseg.*")
    assert app(*only, "--anat-modality", "T2w", "--overwrite", model=some) == 0
    assert not app.files("sub-01/anat/*_probseg.*")


def test_an_image_in_the_space_of_a_t1w_is_aligned_to_a_t2w(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    aligned = []

    def align(moving: Volume, fixed: Volume) -> tuple[Volume, None]:
        aligned.append(moving)
        return moving, None

    monkeypatch.setattr(measures, "align", align)
    t2w, inside = app.bids / "sub-01/anat/sub-01_T2w.nii.gz", np.ones(phantoms.SHAPE, bool)
    path = phantoms.save(
        app.bids / "map.nii.gz", np.arange(8000, dtype=np.float32).reshape(20, 20, 20), phantoms.grid(8.0)
    )
    for space, count in (("T2w", 0), ("T1w", 1)):
        measures.sampled(Image(path, {"space": space}, "map"), t2w, inside)
        assert len(aligned) == count


def test_a_finished_model_of_another_contrast_is_not_resumed(ask: Ask) -> None:
    train_level(ask())
    with pytest.raises(DataError, match="modality"):
        train_level(replace(ask(resume=True), modality="T2w"))


def test_results_of_t2w_are_compared_on_the_t2w(app: App, tmp_path: Path) -> None:
    some = save_card(tmp_path / "some", name="some", modality=ANY)
    t2w = app.bids / "sub-03/anat/sub-03_T2w.nii.gz"
    t2w.rename(t2w.with_name("sub-03_UNIT1.nii.gz"))
    (tmp_path / "filter.json").write_text('{"t1w": {"suffix": ["T2w", "UNIT1"]}}')
    assert app("--bids-filter-file", str(tmp_path / "filter.json"), model=some) == 0
    shutil.copytree(app.output, tmp_path / "mine")
    words = ("--bids-filter-file", str(tmp_path / "filter.json"), "--labels", f"FAST={tmp_path / 'mine'}")
    assert app(*words, level="evaluate", model=some) == 0
    page = (app.output / "group_seg-FAST_desc-some_ref-mine_agreement.html").read_text()
    assert page.count("data:image/png") == 2 and "no image on this grid" not in page


def test_a_cohort_of_two_contrasts_is_warned_about(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = save_card(tmp_path / "some", name="some", modality=ANY)
    assert app("--participant-label", "01", "02", model=some) == app("group", model=some) == 0
    assert "other contrasts" not in capsys.readouterr().err
    assert app("--anat-modality", "T2w", "--participant-label", "03", model=some) == 0
    assert app("group", model=some) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "some, FAST: images of other contrasts than most were segmented: sub-03 (T2w); volumes differ" in told


@pytest.mark.parametrize(("modality", "warned"), [("T1w", False), ("UNIT1", False), ("T2w", True)])
def test_a_locator_for_another_contrast_is_warned_about(ask: Ask, modality: str, warned: bool) -> None:
    given = replace(ask('base = "wholebrain"\nname = "mine"\n'), modality=modality)
    setup = set_up(given, "cpu", "fp32", threads=1)
    assert (setup.recipe.modality == "T2w") == warned
    message = 'its locator, locator, was trained for T1w, not for T2w: write locator = "openlocator"'
    assert any(message in line for line in console(given).warnings) == warned
