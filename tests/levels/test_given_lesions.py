"""Lesions that are given (``--lesions``), and the T1w in which they are filled (``--filled``)."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import phantoms
import pytest
from fake_model import App, make_app, save_card
from nifti import load_nifti
from tiny_model import Brightness, save_tiny

from bidsseg.app import cli
from bidsseg.errors import DataError

SHAPE = (24, 28, 24)
STEM = "sub-01/anat/sub-01"
MASK, FILLED = f"{STEM}_label-lesion_desc-wholebrain_mask.nii.gz", f"{STEM}_desc-filled_T1w.nii.gz"
FREESURFER = f"{STEM}_seg-FreeSurfer_desc-wholebrain_dseg.nii.gz"
LESION_TABLE = f"{STEM}_label-lesion_desc-wholebrain_morph.tsv"
VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., App]:
    """Return a function that makes an app with some participants, whose model finds no lesions."""

    def make(people: int = 1, *, heads: tuple[str, ...] = ("FAST", "FreeSurfer"), flair: bool = False) -> App:
        size: dict[str, Any] = {} if flair else {"spacing_mm": 8.0, "shape": SHAPE}
        bids = phantoms.make_bids(tmp_path / "bids", people, flair=flair, **size)
        app = make_app(tmp_path, bids, monkeypatch)
        save_card(app.card, heads=("brain", *heads))
        return app

    return make


def folder(app: App) -> Path:
    return app.output.parent / "drawn"


def words(app: App, *more: str) -> list[str]:
    return ["--lesions", str(folder(app)), "--skip-bids-validation", *more]


def draw(app: App, name: str = f"{STEM}_label-lesion_mask.nii.gz", shift: int = 0) -> np.ndarray:
    """Write a mask of lesions on the grid of the T1w, and return its voxels: two lesions in the white matter."""
    grid = load_nifti(app.bids / f"{STEM}_T1w.nii.gz").affine
    mask = np.zeros(SHAPE, bool)
    mask[15:18, 15 + shift : 17 + shift, 14:16] = mask[7, 12:14, 15] = True
    assert (phantoms.head(grid, SHAPE, phantoms.LABEL)[mask] > 2).all()
    phantoms.save(folder(app) / name, mask.astype(np.uint8), grid)
    return mask


def test_a_given_mask_is_in_masks_label_maps_tables_and_pages(make: Callable[..., App]) -> None:
    app = make(2, heads=("BrainCOLOR", "FAST", "FreeSurfer"))
    mask = draw(app)
    (folder(app) / f"{STEM}_label-lesion_mask.json").write_text('{"Manual": true}')
    assert app(*words(app)) == app(*words(app), level="group") == 0
    assert (app.voxels(MASK) > 0).tolist() == mask.tolist()
    lesions = app.table(LESION_TABLE)
    assert list(lesions["voxels"]) == [12, 2] and set(lesions["probability"]) == {"n/a"}
    assert set(lesions["place"]) != {"n/a"}  # the BrainCOLOR label map of the model has the anatomy
    assert (app.voxels(FREESURFER) == 77).tolist() == mask.tolist()
    lookup = app.table(FREESURFER.replace(".nii.gz", ".tsv"))
    assert "White Matter Hypointensities" in list(lookup["name"])
    for protocol in ("FreeSurfer", "FAST"):
        found = app.table(f"{STEM}_seg-{protocol}_desc-wholebrain_morph.tsv")
        counts = np.bincount(app.voxels(FREESURFER.replace("FreeSurfer", protocol)).ravel(), minlength=2036)
        assert [int(n) for n in found["voxels"][:-2]] == [counts[int(index)] for index in found["index"][:-2]]
    assert float(found["voxels"].iloc[-2]) == (app.voxels(f"{STEM}_desc-brain_mask.nii.gz") > 0).sum()
    soft = app.table(FREESURFER.replace("dseg.nii.gz", "morph.tsv")).set_index("abbreviation")["softvolume-mm3"]
    assert float(soft["WMH"]) == mask.sum() * 512
    about, of_mask = app.sidecar(FREESURFER), app.sidecar(MASK)
    sources = ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz", f"bids:lesions:{STEM}_label-lesion_mask.nii.gz"]
    assert about["Sources"] == of_mask["Sources"] == sources and about["LesionMaskFingerprint"]
    assert (about["Manual"], of_mask["Manual"], of_mask["LesionsGiven"]) == (False, True, True)
    assert "LesionsGiven" not in about and "Quality" not in of_mask and about["Quality"] == 0.875
    links = json.loads((app.output / "dataset_description.json").read_text())["DatasetLinks"]
    assert links["lesions"] == folder(app).as_uri()
    page = (app.output / "sub-01.html").read_text()
    assert "Lesions: 2," in page and "Lesions are those of given masks." in page and "hbm.21344" in page
    cohort = app.table("group_label-lesion_desc-wholebrain_morph.tsv")
    assert list(cohort["status"]) == ["given", "no mask"] and list(cohort["lesions"]) == ["2", "n/a"]
    assert "or given" in app.sidecar("group_label-lesion_desc-wholebrain_morph.tsv")["Description"]
    volumes = app.table("group_seg-FreeSurfer_desc-wholebrain_morph.tsv")
    assert list(volumes["WMH"]) == [str(mask.sum() * 512), "n/a"]


def test_the_anatomy_is_that_of_the_filled_t1w(make: Callable[..., App]) -> None:
    app = make()
    mask = draw(app)
    t1w = load_nifti(app.bids / f"{STEM}_T1w.nii.gz")
    dark = np.where(mask, 60, np.asarray(t1w.dataobj)).astype(np.int16)
    nib.save(nib.Nifti1Image(dark, t1w.affine, t1w.header), app.bids / f"{STEM}_T1w.nii.gz")
    fast = FREESURFER.replace("FreeSurfer", "FAST")
    assert app("--skip-bids-validation") == 0
    before = app.voxels(fast)
    assert app(*words(app, "--filled")) == 0
    filled = load_nifti(app.output / FILLED)
    assert filled.get_data_dtype() == np.int16
    assert (np.asarray(filled.dataobj)[~mask] == dark[~mask]).all()
    assert (np.abs(np.asarray(filled.dataobj)[mask] - 150.0) < 20).all()
    # the brightest voxel may be another one: compare with the classes of the filled image
    share = np.asarray(filled.dataobj, float) / np.asarray(filled.dataobj).max()
    assert (app.voxels(fast) == np.digitize(share, (0.2, 0.4, 0.7)))[mask].all()
    assert (app.voxels(fast)[mask] == 3).all() and (before[mask] < 3).all()
    about = app.sidecar(FILLED)
    assert about["FilledVoxels"] == 14 and about["SkullStripped"]  # the brain of this model is the whole head
    assert about["Sources"][1] == f"bids:lesions:{STEM}_label-lesion_mask.nii.gz"


def test_a_scan_is_recomputed_when_its_mask_changes(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(heads=("FreeSurfer",))
    assert app("--skip-bids-validation") == 0
    before = app.files("sub-*/anat/*")
    draw(app)
    assert app(*words(app, "--filled")) == app(*words(app, "--filled")) == 0
    assert app.fake.segmented == 2 and app.fates == {"sub-01": "skipped"}
    mask = draw(app, shift=1)
    assert app(*words(app, "--filled")) == 0
    assert app.fake.segmented == 3 and (app.voxels(MASK) == mask).all()
    capsys.readouterr()
    assert app("--skip-bids-validation") == 0
    assert "sub-01: recomputed without the given mask of lesions (see --lesions)" in capsys.readouterr().err
    assert app.fake.segmented == 4 and app.files("sub-*/anat/*") == before
    assert "Lesions:" not in (app.output / "sub-01.html").read_text()


def test_a_filled_t1w_that_is_not_written_again_is_removed_and_named(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(heads=("FreeSurfer",))
    draw(app)
    assert app(*words(app, "--filled")) == app(*words(app, "--overwrite")) == 0
    assert (app.output / FILLED).exists() and "recomputed without" not in capsys.readouterr().err
    draw(app, shift=1)
    assert app(*words(app)) == 0
    assert "sub-01: recomputed without --filled: the files that it made" in capsys.readouterr().err
    assert not app.files(f"{STEM}_desc-filled_*")


def test_a_t1w_that_another_model_has_filled_is_filled_again(make: Callable[..., App]) -> None:
    app = make(heads=("FreeSurfer",))
    draw(app)
    two = save_card(app.output.parent / "two", name="two", heads=("brain", "FreeSurfer"))
    assert app(*words(app, "--filled")) == app(*words(app, "--filled"), model=two) == 0
    assert app(*words(app)) == 0 and app.fake.segmented == 2
    assert app.sidecar(FILLED)["Models"][0]["Name"] == "two"
    assert app(*words(app, "--filled")) == app(*words(app, "--filled")) == 0 and app.fake.segmented == 3
    assert app.sidecar(FILLED)["Models"][0]["Name"] == "wholebrain"


def test_filled_is_explained_for_one_file(make: Callable[..., App], capsys: pytest.CaptureFixture[str]) -> None:
    app = make(heads=("FreeSurfer",))
    t1w, model = app.bids / f"{STEM}_T1w.nii.gz", app.card
    assert cli.main(["file", str(t1w), str(app.output), "--model", str(model), "--filled"]) == 0
    assert "wholebrain finds no lesions: --filled has no effect\n" in capsys.readouterr().err


def test_label_maps_with_given_lesions_do_not_say_where_lesions_are(make: Callable[..., App]) -> None:
    app = make(2, heads=("BrainCOLOR", "FAST", "FreeSurfer"))
    draw(app)
    two = app.output.parent / "two"
    two.mkdir()
    save_card(two, name="two", heads=("brain", "FreeSurfer"))
    assert app("--model", str(two), *words(app)) == app(*words(app)) == 0
    tables = app.files("**/*_label-lesion_*_morph.tsv").keys()
    assert not any("_seg-FreeSurfer_" in path for path in tables)
    assert f"{STEM}_seg-FAST_label-lesion_desc-two+wholebrain_morph.tsv" in tables
    assert app(*words(app), level="group") == 0
    assert app.files("sub-*/**/*_label-lesion_*_morph.tsv").keys() == tables


def test_tables_by_region_follow_the_label_maps(make: Callable[..., App]) -> None:
    app = make(2, heads=("BrainCOLOR", "FreeSurfer"))
    two = app.output.parent / "two"
    two.mkdir()
    save_card(two, name="two", heads=("brain", "FreeSurfer"))
    draw(app)
    of_regions = "*seg-FreeSurfer_label-lesion_desc-wholebrain+two_morph.*"
    assert app(*words(app)) == app("--model", str(two), "--skip-bids-validation") == 0
    assert app("--participant-label", "01", level="group") == 0
    assert len(app.files(f"sub-01/anat/{of_regions}")) == len(app.files(f"group_{of_regions[1:]}")) == 2
    assert app("--participant-label", "02", level="group") == 0
    assert len(app.files(f"group_{of_regions[1:]}")) == 2  # those of sub-01 are as before
    assert app("--model", str(two), *words(app)) == app(level="group") == 0
    assert not app.files(f"sub-01/anat/{of_regions}") and not app.files(f"group_{of_regions[1:]}")
    assert app("--skip-bids-validation") == app(level="group") == 0
    assert not app.files("group_label-lesion_desc-wholebrain_morph.*")
    assert len(app.files("group_label-lesion_desc-two_morph.*")) == 2


def test_an_unreadable_map_of_lesions_is_a_warning(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(heads=("BrainCOLOR",))
    draw(app)
    two = save_card(app.output.parent / "two", name="two", heads=("brain", "FAST"))
    assert app(*words(app)) == 0
    lesions = app.output / f"{STEM}_desc-wholebrainlesions_dseg.nii.gz"
    lesions.write_bytes(lesions.read_bytes()[:100])
    assert app("--skip-bids-validation", model=two) == app(level="group") == 0
    assert f"lesions of sub-01 without places and regions: {lesions}: is damaged" in capsys.readouterr().err


def test_an_empty_table_of_lesions_is_not_one_without_lesions(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make()
    draw(app)
    assert app(*words(app)) == 0
    (app.output / LESION_TABLE).write_text("")
    assert app(level="group") == 0
    (row,) = app.table("group_label-lesion_desc-wholebrain_morph.tsv").to_dict("records")
    assert (row["status"], row["lesions"]) == ("unreadable", "n/a")
    assert f"{Path(LESION_TABLE).name}: not a table of lesions: it has no columns" in capsys.readouterr().err


@pytest.mark.parametrize("beside", ["", '{"Manual": true}'])
def test_a_table_of_others_with_the_name_of_a_table_by_region_is_kept(
    beside: str, make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(heads=("BrainCOLOR",))
    draw(app)
    table = app.output / f"{STEM}_seg-BrainCOLOR_label-lesion_desc-wholebrain+wholebrain_morph.tsv"
    sidecar = table.with_suffix(".json")
    table.parent.mkdir(parents=True)
    table.write_text("theirs")
    if beside:
        sidecar.write_text(beside)
    assert app(*words(app)) == 73
    assert table.name.removesuffix(".tsv") in capsys.readouterr().err and app.fake.segmented == 0
    table.unlink()
    sidecar.unlink(missing_ok=True)
    assert app(*words(app)) == 0
    table.write_text("theirs")
    sidecar.write_text('{"Manual": true}')
    assert app("--skip-bids-validation", level="group") == 0
    assert "was not written by bidsseg: it is kept" in capsys.readouterr().err
    assert app("--skip-bids-validation") == 0, "it removes what an earlier run with --lesions has written"
    assert table.read_text() == "theirs" and sidecar.is_file()


def test_a_table_by_region_without_a_sidecar_is_that_of_a_killed_run(make: Callable[..., App]) -> None:
    app = make(heads=("BrainCOLOR",))
    draw(app)
    assert app(*words(app)) == 0
    sidecar = app.output / f"{STEM}_seg-BrainCOLOR_label-lesion_desc-wholebrain+wholebrain_morph.json"
    sidecar.unlink()
    assert app(*words(app, "--overwrite")) == 0 and sidecar.is_file()


@pytest.mark.parametrize("flags", [(), ("--lesions",)])
def test_a_dry_run_lists_all_files_of_a_scan(
    flags: tuple[str, ...], make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(heads=("BrainCOLOR", "FreeSurfer"))
    draw(app)
    given = words(app) if flags else ["--skip-bids-validation"]
    assert app(*given, "--dry-run") == 0
    listed = {Path(line.strip()) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert app(*given) == 0
    written = {path for path in app.output.glob("sub-*/**/*") if path.is_file()} | set(app.output.glob("sub-*.html"))
    assert listed == written


def test_a_bad_mask_only_fails_its_scan(make: Callable[..., App], capsys: pytest.CaptureFixture[str]) -> None:
    app = make(6, heads=("FreeSurfer",))
    names = [f"{STEM}_label-lesion_mask.nii.gz".replace("01", f"0{number}") for number in range(1, 7)]
    for name in names:
        mask = draw(app, name)
    grid = load_nifti(folder(app) / names[0]).affine
    phantoms.save(folder(app) / names[0], mask[1:].astype(np.uint8), grid)
    corner = np.zeros(SHAPE, np.uint8)
    corner[0, 0, 0] = 1
    phantoms.save(folder(app) / names[1], corner, grid)
    phantoms.save(folder(app) / names[2], 0 * corner, grid)
    draw(app, names[3].replace("label-lesion", "label-lesion_desc-a"))
    (folder(app) / names[3]).rename(folder(app) / names[3].replace("label-lesion", "label-lesion_desc-b"))
    (folder(app) / names[4]).unlink()
    assert app(*words(app)) == 1
    err = capsys.readouterr().err
    assert "not on the grid of sub-01_T1w.nii.gz" in next(line for line in err.splitlines() if "sub-01 failed" in line)
    assert any(f"{names[1]}: no" in line for line in err.splitlines() if "sub-02 failed" in line), err
    assert "both show lesions of sub-04: keep only one" in err
    assert f"sub-05: no mask of lesions in {folder(app)}, segmented as without --lesions" in err
    assert {scan for scan, fate in app.fates.items() if fate == "done"} == {"sub-03", "sub-05", "sub-06"}
    assert not app.voxels(MASK.replace("01", "03")).any()
    assert len(app.table(LESION_TABLE.replace("01", "03"))) == 0
    assert not (app.output / MASK.replace("01", "05")).exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (f"{STEM}_space-orig_label-lesions_dseg.nii.gz", 3),
        (f"{STEM}_space-T1w_label-lesion_desc-lst_probseg.nii.gz", 0.7),
        (f"{STEM}_desc-lesion_roi.nii.gz", 255),
    ],
)
def test_names_and_values_of_other_tools(make: Callable[..., App], name: str, value: float) -> None:
    app = make(heads=("FreeSurfer",))
    mask = draw(app, name)
    grid = load_nifti(folder(app) / name).affine
    data = np.where(mask, value, 0).astype(np.float32 if value < 1 else np.uint8)
    phantoms.save(folder(app) / name, data, grid)
    assert app(*words(app)) == 0
    assert (app.voxels(MASK) == mask).all()


def test_a_mask_on_the_grid_of_the_flair_is_moved_as_the_flair(make: Callable[..., App]) -> None:
    app = make(flair=True)
    flair = load_nifti(app.bids / f"{STEM}_FLAIR.nii.gz")
    labels = phantoms.head(flair.affine, (48, 56, 24), phantoms.LABEL)
    phantoms.save(folder(app) / f"{STEM}_label-lesion_mask.nii.gz", (labels == 4).astype(np.uint8), flair.affine)
    assert app(*words(app)) == 0
    found = app.voxels(MASK) > 0
    grid = load_nifti(app.bids / f"{STEM}_T1w.nii.gz").affine
    true = phantoms.head(grid, phantoms.SHAPE, phantoms.LABEL) == 4
    assert (found & true).sum() > 0.5 * true.sum() and found.sum() < 3 * true.sum()
    assert "drawn on the grid of the FLAIR" in " ".join(app.sidecar(MASK)["Notes"])
    uris = ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz", "bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz"]
    assert app.sidecar(MASK)["Sources"][:2] == uris
    page = (app.output / "sub-01.html").read_text()
    assert "T1w images were segmented" in page and "FLAIR images were segmented" not in page


def test_a_scan_is_recomputed_when_the_flair_of_its_mask_changes(make: Callable[..., App]) -> None:
    app = make(flair=True)
    path = app.bids / f"{STEM}_FLAIR.nii.gz"
    flair = load_nifti(path)
    labels = phantoms.head(flair.affine, (48, 56, 24), phantoms.LABEL)
    phantoms.save(folder(app) / f"{STEM}_label-lesion_mask.nii.gz", (labels == 4).astype(np.uint8), flair.affine)
    assert app(*words(app)) == app(*words(app)) == 0 and app.fake.segmented == 1
    phantoms.save(path, np.asarray(flair.dataobj) + 1, flair.affine)
    assert app(*words(app)) == 0 and app.fake.segmented == 2
    path.unlink()
    assert app(*words(app)) == 65, "the mask is on no known grid now"


def test_a_flair_that_a_mask_does_not_need_changes_nothing(make: Callable[..., App]) -> None:
    app = make(flair=True)
    grid = load_nifti(app.bids / f"{STEM}_T1w.nii.gz").affine
    labels = phantoms.head(grid, phantoms.SHAPE, phantoms.LABEL)
    phantoms.save(folder(app) / f"{STEM}_label-lesion_mask.nii.gz", (labels == 4).astype(np.uint8), grid)
    assert app(*words(app)) == 0 and len(app.sidecar(MASK)["Sources"]) == 2
    (app.bids / f"{STEM}_FLAIR.nii.gz").unlink()
    assert app(*words(app)) == 0 and app.fake.segmented == 1


def test_usage_errors(make: Callable[..., App], capsys: pytest.CaptureFixture[str]) -> None:
    app = make()
    assert app("--lesions", str(app.output.parent / "nowhere")) == 66
    draw(app, f"{STEM}_run-9_label-lesion_mask.nii.gz")
    assert app(*words(app)) == 64
    assert "no mask fits a scan: looked for sub-*/[ses-*/]anat/<T1w>_label-lesion_mask" in capsys.readouterr().err
    draw(app)
    assert app(*words(app, "--dry-run")) == 0
    out = capsys.readouterr().out
    assert "sub-01: to do, lesions: sub-01_label-lesion_mask.nii.gz" in out and MASK in out
    assert app("--filled", "--dry-run", "--skip-bids-validation") == 0
    assert "--filled has no effect without --lesions" in capsys.readouterr().err
    assert app.fake.segmented == 0


def test_a_corrected_label_map_may_have_given_lesions(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(heads=("FreeSurfer",))
    mask = draw(app)
    assert app(*words(app)) == 0
    copy = app.output.parent / "corrected" / FREESURFER
    labels = app.voxels(FREESURFER)
    labels[0, 0, 0] = 2
    phantoms.save(copy, labels, load_nifti(app.output / FREESURFER).affine)
    assert app(*words(app, "--corrections", str(app.output.parent / "corrected"))) == 0
    assert (app.voxels(FREESURFER) == labels).all() and (labels == 77).sum() == mask.sum()
    assert app.sidecar(FREESURFER)["Manual"] is True
    capsys.readouterr()
    assert app("--skip-bids-validation", "--corrections", str(app.output.parent / "corrected")) == 65
    assert "the values [77] are lesions, which the model does not label: give --lesions" in capsys.readouterr().err


def test_a_given_mask_may_be_corrected(make: Callable[..., App], capsys: pytest.CaptureFixture[str]) -> None:
    app = make(heads=("FreeSurfer",))
    mask = draw(app)
    corrected = mask.copy()
    corrected[7] = False
    copy = app.output.parent / "corrected" / MASK
    phantoms.save(copy, corrected.astype(np.uint8), load_nifti(app.bids / f"{STEM}_T1w.nii.gz").affine)
    given = ("--corrections", str(app.output.parent / "corrected"))
    assert app(*given, "--skip-bids-validation") == 64, "the model finds no lesions"
    assert app(*words(app, *given)) == 0
    assert (app.voxels(MASK) == corrected).all() and list(app.table(LESION_TABLE)["voxels"]) == [12]
    about = app.sidecar(MASK)
    assert about["Manual"] is True and "LesionsGiven" not in about
    assert "sub-01: the lesion mask was corrected by hand" in capsys.readouterr().err
    assert (app.voxels(FREESURFER) == 77).sum() == corrected.sum(), "the label map follows from the corrected mask"
    around = app.voxels(FREESURFER)[5:10, 10:16, 13:18][app.voxels(MASK)[5:10, 10:16, 13:18] == 0]
    assert set(app.voxels(FREESURFER)[7, 12:14, 15]) <= set(around)


def test_exports_have_the_lesions(make: Callable[..., App], tmp_path: Path) -> None:
    app = make(heads=("FreeSurfer",))
    mask = draw(app)
    assert app(*words(app, "--freesurfer", str(tmp_path / "subjects"), "--measure", "T1w")) == 0
    measured = app.table(f"{STEM}_meas-T1w_seg-FreeSurfer_desc-wholebrain_stats.tsv").set_index("abbreviation")
    assert measured.loc["WMH", "voxels"] == mask.sum()
    stats = (tmp_path / "subjects" / "sub-01" / "stats" / "aseg.stats").read_text()
    assert "WM-hypointensities" in stats


# -- with a small real network -----------------------------------------------------------------------------------------

HEADS = {"brain": [0, 1, 1, 1], "FASTlesion": [0, 4, 2, 3], "FreeSurfer": [0, 4, 2, 2]}
"""Regions of the four classes of brightness: nothing, lesion, grey matter, white matter."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_bids: Callable[..., Path]) -> Callable[..., Path]:
    model = save_tiny(tmp_path / "model", monkeypatch, Brightness, HEADS, lesion="FASTlesion", spacing_mm=4.0)
    bids, affine = make_bids(1), phantoms.grid()
    labels = phantoms.head(affine, phantoms.SHAPE, phantoms.LABEL)
    image = np.array([0, 5, 100, 150, 60])[labels].astype(np.float32)
    phantoms.save(bids / f"{STEM}_T1w.nii.gz", image, affine)

    def command(*words: str) -> Path:
        given = [str(bids), str(tmp_path / "out"), "participant", "--model", str(model), "--skip-bids-validation"]
        assert cli.main([*given, "--n-cpus", "1", *words]) == 0
        return tmp_path / "out" / STEM

    return command


def test_the_rule_for_lesions_has_no_effect_on_given_ones(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = (phantoms.head(phantoms.grid(), phantoms.SHAPE, phantoms.LABEL) == 4).astype(np.uint8)
    phantoms.save(tmp_path / "drawn" / f"{STEM}_label-lesion_mask.nii.gz", mask, phantoms.grid())
    run("--lesion-threshold", "0.4", "--dry-run")
    assert "no effect" not in capsys.readouterr().err
    run("--lesion-threshold", "0.4", "--lesions", str(tmp_path / "drawn"), "--dry-run")
    flags = "--lesion-threshold, --min-lesion-volume and --min-lesion-peak"
    expected = f"sub-01: the lesions are given: {flags} have no effect"
    assert expected in capsys.readouterr().err


def test_a_scan_with_given_lesions_has_one_quality_in_all_protocols(run: Callable[..., Path], tmp_path: Path) -> None:
    mask = (phantoms.head(phantoms.grid(), phantoms.SHAPE, phantoms.LABEL) == 4).astype(np.uint8)
    phantoms.save(tmp_path / "drawn" / f"{STEM}_label-lesion_mask.nii.gz", mask, phantoms.grid())
    place = run("--lesions", str(tmp_path / "drawn"))
    about = [
        json.loads(Path(f"{place}_{name}.json").read_text())
        for name in ("seg-FASTlesion_desc-tiny_dseg", "seg-FreeSurfer_desc-tiny_dseg", "label-lesion_desc-tiny_mask")
    ]
    assert about[0]["Quality"] == about[1]["Quality"] and "Quality" not in about[2]


def test_a_model_with_lesions_has_the_given_lesions_alone(run: Callable[..., Path], tmp_path: Path) -> None:
    labels = phantoms.head(phantoms.grid(), phantoms.SHAPE, phantoms.LABEL)
    place = run()

    def end(name: str) -> np.ndarray:
        return np.asarray(nib.Nifti1Image.from_filename(f"{place}_{name}.nii.gz").dataobj)

    assert (end("seg-FASTlesion_desc-tiny_dseg")[labels == 4] == 4).mean() > 0.9
    mask = np.zeros(labels.shape, bool)
    mask[30:33, 34:38, 26:29] = True
    assert (labels[mask] == 3).all()
    phantoms.save(tmp_path / "drawn" / f"{STEM}_label-lesion_mask.nii.gz", mask.astype(np.uint8), phantoms.grid())
    run("--lesions", str(tmp_path / "drawn"), "--probseg", "--min-lesion-volume", "1e6")
    found = end("seg-FASTlesion_desc-tiny_dseg")
    assert ((found == 4) == mask).all() and ((end("label-lesion_desc-tiny_mask") > 0) == mask).all()
    assert (found[(labels == 4) & ~mask] > 0).all()  # what the model had called a lesion has a healthy region
    chance = end("seg-FASTlesion_desc-tiny_probseg")
    assert chance.shape[-1] == 5 and ((chance[..., 4] > 0.5) == mask).all()
    volumes = pd.read_csv(f"{place}_seg-FASTlesion_desc-tiny_morph.tsv", sep="\t").set_index("index")
    assert volumes.loc[4, "softvolume-mm3"] == pytest.approx(mask.sum() * 64, rel=1e-3)
    of_head = pd.read_csv(f"{place}_seg-FreeSurfer_desc-tiny_morph.tsv", sep="\t").set_index("index")
    assert of_head.loc[77, "voxels"] == mask.sum() and of_head.loc[77, "softvolume-mm3"] == mask.sum() * 64
    assert of_head["softvolume-mm3"][:-2].sum() == pytest.approx(of_head["volume-mm3"][:-2].sum(), rel=0.02)
    about = json.loads(Path(f"{place}_seg-FASTlesion_desc-tiny_dseg.json").read_text())
    assert about["LesionsGiven"] is True and about["Manual"] is False and "LesionThreshold" not in about


def test_a_scan_whose_lesions_cannot_be_filled_keeps_all_other_results(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_white_matter(*_: object) -> None:
        raise DataError("no white matter is near the lesions")

    place = run("--filled")
    filled = [Path(f"{place}_desc-filled_T1w{extension}") for extension in (".nii.gz", ".json")]
    assert all(path.is_file() for path in filled)
    monkeypatch.setattr("bidsseg.segmentation.filling.fill_lesions", without_white_matter)
    run("--filled", "--fast")
    assert "sub-01: --filled: " in (error := capsys.readouterr().err) and "no white matter is near" in error
    assert json.loads(Path(f"{place}_label-lesion_desc-tiny_mask.json").read_text())["Fast"] is True
    assert not any(path.exists() for path in filled), "they are those of the earlier result"


@pytest.mark.skipif(not VALIDATOR.is_file(), reason="the BIDS validator is not installed")
def test_lesions_of_the_model_are_filled_and_the_outputs_are_valid(run: Callable[..., Path], tmp_path: Path) -> None:
    place = run("--filled")
    filled = np.asarray(nib.Nifti1Image.from_filename(f"{place}_desc-filled_T1w.nii.gz").dataobj)
    lesion = np.asarray(nib.Nifti1Image.from_filename(f"{place}_label-lesion_desc-tiny_mask.nii.gz").dataobj) > 0
    assert lesion.any() and np.abs(filled[lesion] - 150).max() < 20
    assert json.loads(Path(f"{place}_desc-filled_T1w.json").read_text())["FilledVoxels"] == lesion.sum()
    done = subprocess.run([VALIDATOR, tmp_path / "out", "--format", "json"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
