"""Label maps that were corrected by hand, in the place of the model's (``--corrections``)."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
from fake_model import INTRACRANIAL_MM3, App, make_app, save_card
from nifti import load_nifti

from bidsseg.derivative.sidecar_keys import read_sidecar, sources
from bidsseg.learning.label_sources import label_sources

Change = Callable[[np.ndarray], np.ndarray]
SHAPE = (24, 28, 24)
STEM = "sub-01/anat/sub-01"
FAST = f"{STEM}_seg-FAST_desc-wholebrain_dseg.nii.gz"
FREESURFER = f"{STEM}_seg-FreeSurfer_desc-wholebrain_dseg.nii.gz"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., App]:
    """Return a function that makes an app with some participants, whose model has some heads."""

    def make(people: int = 1, sessions: int = 0, **card: Any) -> App:
        bids = phantoms.make_bids(tmp_path / "bids", people, sessions=sessions, spacing_mm=8.0, shape=SHAPE)
        app = make_app(tmp_path, bids, monkeypatch)
        save_card(app.card, **{"heads": ("brain", "FAST"), **card})
        return app

    return make


def correct(app: App, name: str = FAST, change: Change = lambda labels: labels) -> np.ndarray:
    """Write a label map that differs from those of the model, on the grid of the T1w, and return its voxels."""
    grid = load_nifti(app.bids / f"{STEM}_T1w.nii.gz").affine
    drawn = phantoms.head(grid, SHAPE, phantoms.LABEL)
    values = change(np.array([0, 1, 2, 3, 2], np.uint8)[drawn]).astype(np.uint8)
    phantoms.save(folder(app) / name, values, grid)
    return values


def folder(app: App) -> Path:
    return app.output.parent / "corrected"


def words(app: App) -> list[str]:
    return ["--corrections", str(folder(app)), "--skip-bids-validation"]


def manual(app: App) -> set[str]:
    """Return the ends of the names of the sidecars of sub-01 that are marked as corrected."""
    sidecars = {path: json.loads(path.read_text()) for path in app.output.glob("sub-01/anat/*.json")}
    return {path.name.removeprefix("sub-01_") for path, content in sidecars.items() if content.get("Manual")}


def test_a_corrected_label_map_takes_the_place_of_the_model_s(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(2, heads=("brain", "FAST", "FreeSurfer"))
    assert app("--skip-bids-validation") == 0
    before, volumes, drawn = app.files(), FAST.replace("dseg.nii.gz", "morph.tsv"), correct(app)
    whole = list(app.table(volumes)["voxels"])[-2:]
    assert app(*words(app)) == 0
    assert app(*words(app), level="group") == 0
    err = capsys.readouterr().err
    assert "is not in the tables" not in err and f"the label map FAST was corrected by hand ({Path(FAST).name})" in err
    assert (app.voxels(FAST) == drawn).all()
    assert list(app.table(volumes)["voxels"]) == [*map(str, np.bincount(drawn.ravel())[1:]), *whole]
    assert list(app.table(volumes)["softvolume-mm3"]) == ["n/a"] * 5
    about, of_table = app.sidecar(FAST), app.sidecar(volumes)
    assert manual(app) == {"seg-FAST_desc-wholebrain_dseg.json", "seg-FAST_desc-wholebrain_morph.json"}
    assert about["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz", f"bids:corrections:{FAST}"]
    assert about["SpatialReference"] == about["Sources"][0] and of_table["Sources"] == about["Sources"]
    assert "Quality" not in about and app.sidecar(FREESURFER)["Quality"] == 0.875
    assert of_table["softvolume-mm3"]["Description"].startswith("n/a")
    links = json.loads((app.output / "dataset_description.json").read_text())["DatasetLinks"]
    assert links["corrections"] == folder(app).as_uri() and "raw" in links
    # All other label maps, tables and pictures are as before, and all files of the other scan.
    after = app.files()
    changed = {name for name in before if before[name] != after[name]}
    picture = "sub-01/figures/sub-01_seg-FAST_desc-wholebrain_dseg.png"
    assert {name for name in changed if not name.endswith(".json")} == {FAST, volumes, picture}
    assert {name for name in changed if name.startswith("sub-02")} == set()
    cohort = app.table("group_seg-FAST_desc-wholebrain_morph.tsv")
    assert list(cohort["status"]) == ["corrected", "done"] and list(cohort["quality"]) == ["n/a", "0.875"]
    assert cohort["GM"].iloc[0] == 512 * (drawn == 2).sum()
    assert "corrected by hand" in (app.output / "group.html").read_text()
    page = (app.output / "sub-01.html").read_text()
    assert "The label maps of FAST were corrected by hand." in page
    assert "mean confidence in the brain, before the correction<" in page


def test_a_scan_with_a_corrected_brain_mask_has_that_status(make: Callable[..., App]) -> None:
    app = make(2)
    correct(app, f"{STEM}_desc-brain_mask.nii.gz", lambda labels: labels > 1)
    assert app(*words(app)) == 0
    assert app(*words(app), level="group") == 0
    assert manual(app) == {"desc-brain_mask.json"}
    for kind in ("morph", "fraction", "softvolume"):
        cohort = app.table(f"group_seg-FAST_desc-wholebrain_{kind}.tsv")
        assert list(cohort["status"]) == ["corrected", "done"] and list(cohort["quality"]) == [0.875, 0.875]


def test_a_scan_is_recomputed_when_its_correction_changes(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make()
    assert app("--skip-bids-validation") == 0
    before = app.files("sub-*/anat/*")
    correct(app)
    assert app(*words(app), level="group") == 0
    assert f"{Path(FAST).name} is not in the tables of wholebrain: run participant" in capsys.readouterr().err
    assert app(*words(app)) == app(*words(app)) == 0
    assert app.fake.segmented == 2 and app.fates == {"sub-01": "skipped"}
    correct(app, change=lambda labels: np.where(labels == 1, 3, labels))
    assert app(*words(app)) == 0
    assert app.fake.segmented == 3 and 1 not in app.voxels(FAST)
    capsys.readouterr()
    assert app("--skip-bids-validation") == 0
    assert "sub-01: recomputed without the correction of FAST" in capsys.readouterr().err
    assert app.fake.segmented == 4 and app.files("sub-*/anat/*") == before


def test_masks_are_corrected_too(make: Callable[..., App]) -> None:
    app = make(name="lesions", heads=("FASTlesion",), lesion="FASTlesion")
    mask, brain = f"{STEM}_label-lesion_desc-lesions_mask.nii.gz", f"{STEM}_desc-brain_mask.nii.gz"
    labels, volumes = (f"{STEM}_seg-FASTlesion_desc-lesions_{end}" for end in ("dseg.nii.gz", "morph.tsv"))
    lesion = correct(app, f"{STEM}_label-lesion_mask.nii.gz", lambda labels: 255 * (labels == 1)) > 0
    inside = correct(app, brain, lambda labels: labels == 3)
    assert app(*words(app)) == 0
    assert (app.voxels(mask) == lesion).all() and (app.voxels(brain) == inside).all()
    found = app.table(volumes)
    in_mask, in_skull = found.iloc[-2], found.iloc[-1]
    assert int(in_mask["voxels"]) == inside.sum()
    assert in_skull["volume-mm3"] == INTRACRANIAL_MM3, "it is that of the model"
    # Label maps with lesions follow from the mask: a voxel that is no lesion any more has the region beside it.
    assert ((app.voxels(labels) == 4) == lesion).all() and list(found["softvolume-mm3"]) == ["n/a"] * 6
    assert int(found["voxels"].iloc[3]) == lesion.sum()
    about = {f"{name}.json" for name in ("label-lesion_desc-lesions_mask", "desc-lesionslesions_dseg")}
    about |= {f"seg-FASTlesion_desc-lesions_{end}.json" for end in ("dseg", "morph")}
    assert manual(app) == about | {"label-lesion_desc-lesions_morph.json", "desc-brain_mask.json"}
    assert app(*words(app), level="group") == 0
    assert list(app.table("group_label-lesion_desc-lesions_morph.tsv")["status"]) == ["corrected"]
    assert "the value 255 of the mask is read as 1" in " ".join(app.sidecar(mask)["Notes"])
    assert app.sidecar(volumes)["Sources"][-1] == f"bids:corrections:{brain}"
    assert app.sidecar(labels)["Sources"][-1] == f"bids:corrections:{STEM}_label-lesion_mask.nii.gz"
    # Without a mask of its own, the lesion mask follows from the corrected label map.
    (folder(app) / f"{STEM}_label-lesion_mask.nii.gz").unlink()
    drawn = correct(app, labels, lambda labels: np.where(labels == 3, 4, labels))
    assert app(*words(app)) == 0
    assert (app.voxels(mask) == (drawn == 4)).all()
    assert app.sidecar(mask)["Manual"] and app.sidecar(mask)["Sources"][-1] == f"bids:corrections:{labels}"


def test_an_unchanged_copy_follows_what_was_corrected(make: Callable[..., App]) -> None:
    app = make(name="lesions", heads=("FASTlesion",), lesion="FASTlesion")
    mask, labels = f"{STEM}_label-lesion_desc-lesions_mask.nii.gz", f"{STEM}_seg-FASTlesion_desc-lesions_dseg.nii.gz"
    assert app("--skip-bids-validation") == 0
    shutil.copytree(app.output / "sub-01", folder(app) / "sub-01")
    unchanged = (folder(app) / mask).read_bytes()
    lesion = correct(app, mask, lambda labels: labels == 1) > 0
    assert app(*words(app)) == 0
    assert ((app.voxels(labels) == 4) == lesion).all()
    assert app.sidecar(labels)["Sources"][-1] == f"bids:corrections:{mask}"
    assert f"{Path(labels).name} is equal to the model's label map FASTlesion" in app.sidecar(labels)["Notes"]
    (folder(app) / mask).write_bytes(unchanged)
    drawn = correct(app, labels, lambda labels: np.where(labels == 3, 4, labels))
    assert app(*words(app)) == 0
    assert (app.voxels(mask) == (drawn == 4)).all() and (app.voxels(labels) == drawn).all()


def test_the_axes_may_be_stored_in_another_order(make: Callable[..., App]) -> None:
    app = make()
    drawn = correct(app, f"{STEM}_seg-FAST_dseg.nii.gz")
    path = folder(app) / f"{STEM}_seg-FAST_dseg.nii.gz"
    nib.save(nib.as_closest_canonical(load_nifti(path)), path)
    assert app(*words(app)) == 0
    assert load_nifti(path).affine[0, 0] > 0 > load_nifti(app.output / FAST).affine[0, 0]
    assert (app.voxels(FAST) == drawn).all()
    assert "stored as RAS and not as LAS" in app.sidecar(FAST)["Notes"][0]


def test_an_unchanged_copy_is_no_correction(make: Callable[..., App], capsys: pytest.CaptureFixture[str]) -> None:
    app = make(heads=("brain", "FAST", "FreeSurfer"))
    assert app("--skip-bids-validation", "--entropy", "--probseg") == 0
    for path in app.output.glob("sub-01/anat/*"):
        target = folder(app) / path.relative_to(app.output)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    correct(app)
    assert app(*words(app), "--entropy", "--probseg") == 0
    assert manual(app) == {"seg-FAST_desc-wholebrain_dseg.json", "seg-FAST_desc-wholebrain_morph.json"}
    assert "n/a" not in list(app.table(FREESURFER.replace("dseg.nii.gz", "morph.tsv"))["softvolume-mm3"])[:-2]
    assert "is equal to the model's brain mask" in " ".join(app.sidecar(FAST)["Notes"])
    assert "not used" not in capsys.readouterr().err


def test_a_bad_correction_only_fails_its_scan(make: Callable[..., App], capsys: pytest.CaptureFixture[str]) -> None:
    app = make(6)
    names = [FAST.replace("01", f"0{number}") for number in range(1, 7)]
    values = correct(app)
    for name in names:
        correct(app, name)
    grid = load_nifti(folder(app) / FAST).affine
    phantoms.save(folder(app) / names[0], values[1:], grid)
    phantoms.save(folder(app) / names[1], np.where(values == 1, 7, values).astype(np.uint8), grid)
    phantoms.save(folder(app) / names[2], 0 * values, grid)
    phantoms.save(folder(app) / names[3], (values * 0.5).astype(np.float32), grid)
    (folder(app) / names[4]).unlink()
    for desc in ("a", "b"):
        phantoms.save(folder(app) / names[4].replace("wholebrain", desc), values, grid)
    assert app(*words(app)) == 1
    err = capsys.readouterr().err
    for number, message in enumerate(
        [
            "not on the grid of sub-01_T1w.nii.gz",
            "the values [7] are not in the protocol FAST",
            "is empty: every voxel is background",
            "LABELS_NOT_INTEGERS",
            "both correct sub-05: keep only one",
        ],
        1,
    ):
        assert message in next(line for line in err.splitlines() if f"sub-0{number} failed" in line), err
    assert "not used" not in err
    assert app.fake.segmented == 1 and app.fates["sub-06"] == "done"


def test_files_that_are_not_used_are_named(make: Callable[..., App], capsys: pytest.CaptureFixture[str]) -> None:
    app = make(2)
    correct(app, f"{STEM}_seg-Mine_dseg.nii.gz")
    correct(app, "sub-09/anat/sub-09_seg-FAST_dseg.nii.gz")
    assert app(*words(app)) == 64
    err = capsys.readouterr().err
    assert "looked for sub-*/[ses-*/]anat/<T1w>_X.nii.gz, where <T1w> is e.g. sub-01 and X is seg-FAST_*dseg" in err
    assert "found sub-09_seg-FAST_dseg.nii.gz, sub-01_seg-Mine_dseg.nii.gz" in err
    correct(app)
    correct(app, f"{STEM}_seg-FAST_desc-ace_dseg.nii.gz")
    assert app(*words(app), "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "sub-01: to do, corrected: FAST" in out and "sub-02: to do\n" in out
    assert "sub-09_seg-FAST_dseg.nii.gz not used: there is no scan of this name" in err
    assert "sub-01_seg-Mine_dseg.nii.gz not used: the model wholebrain writes no such label map" in err
    assert "sub-01_seg-FAST_desc-ace_dseg.nii.gz not used: it is a label map of another model than wholebrain" in err


def test_a_second_folder_of_corrections_has_its_own_name(make: Callable[..., App]) -> None:
    app = make(2)
    correct(app)
    assert app(*words(app)) == 0
    second = app.bids / "derivatives" / "second"
    for path in folder(app).rglob("*.nii.gz"):
        target = second / str(path.relative_to(folder(app))).replace("sub-01", "sub-02")
        target.parent.mkdir(parents=True)
        shutil.copy(path, target)
    assert app("--corrections", str(second), "--participant-label", "02", "--skip-bids-validation") == 0
    links = json.loads((app.output / "dataset_description.json").read_text())["DatasetLinks"]
    assert (links["corrections"], links["corrections2"]) == (folder(app).as_uri(), second.as_uri())
    assert app.sidecar(FAST)["Sources"][1].startswith("bids:corrections:sub-01/")
    about = read_sidecar(app.output / FAST.replace("sub-01", "sub-02").replace(".nii.gz", ".json"))
    assert about["Sources"][1].startswith("bids:corrections2:sub-02/")
    assert sources(about) == ["bids:raw:sub-02/anat/sub-02_T1w.nii.gz"]


def test_a_file_outside_of_the_folder_of_its_session_is_named(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(sessions=2)
    t1w = load_nifti(next(app.bids.rglob("sub-01_ses-1_T1w.nii.gz")))
    for place, session in (("sub-01/ses-1", 1), ("sub-01", 2)):
        path = folder(app) / place / "anat" / f"sub-01_ses-{session}_seg-FAST_dseg.nii.gz"
        phantoms.save(path, np.ones(t1w.shape, np.uint8), t1w.affine)
    assert app(*words(app), "--dry-run") == 0
    err = capsys.readouterr().err
    assert "sub-01_ses-2_seg-FAST_dseg.nii.gz not used: it is not in the folder of its scan" in err


@pytest.mark.parametrize("selected", [["--participant-label", "02"], ["--shard", "2/2"]])
def test_corrections_of_scans_that_are_not_selected_are_no_mistakes(
    selected: Sequence[str], make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(2)
    correct(app)
    assert app(*words(app), *selected, "--dry-run") == 0
    assert "not used" not in capsys.readouterr().err


def test_the_output_is_no_folder_of_corrections(make: Callable[..., App], capsys: pytest.CaptureFixture[str]) -> None:
    app = make()
    app.output.mkdir()
    assert app("--corrections", str(app.output)) == 64
    assert "copy them to another folder" in capsys.readouterr().err
    assert app("--corrections", str(app.output.parent / "nowhere")) == 66


def test_evaluate_does_not_take_a_corrected_label_map_for_the_model_s(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(2)
    correct(app)
    assert app(*words(app)) == 0
    correct(app, FAST.replace("01", "02"))
    assert app("--labels", f"FAST={folder(app)}", level="evaluate") == 0
    err = capsys.readouterr().err
    assert "FAST: sub-01 not compared: its label map was corrected by hand, or its lesions" in err
    compared = app.table("group_seg-FAST_desc-wholebrain_ref-corrected_agreement.tsv")
    assert set(compared["participant_id"]) == {"sub-02"}


def test_train_takes_the_same_folder(make: Callable[..., App]) -> None:
    app = make()
    correct(app)
    (source,) = label_sources({"": [folder(app)]})
    assert source.protocol.name == "FAST" and source.label_maps()[0].key == "sub-01"


def test_label_maps_of_another_shipped_model_are_no_corrections(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make()
    correct(app)
    correct(app, FAST.replace("desc-wholebrain", "desc-open"), lambda labels: labels // 2)
    assert app(*words(app)) == 0
    err = capsys.readouterr().err
    assert "sub-01_seg-FAST_desc-open_dseg.nii.gz not used: it is a label map of another model" in err
    assert app.sidecar(FAST)["Sources"][-1].endswith("desc-wholebrain_dseg.nii.gz")


@pytest.mark.parametrize("other", ["open", "mine"])
def test_the_tables_need_no_corrections_of_another_model(
    other: str, make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    """A shipped model, or one whose results are in the same folder."""
    app = make()
    correct(app)
    assert app(*words(app)) == 0
    save_card(app.card, name=other, heads=("brain", "FAST"))
    assert app("--skip-bids-validation") == 0
    assert app(*words(app), level="group") == 0
    assert "is not in the tables" not in capsys.readouterr().err
    correct(app, FAST.replace("wholebrain", other))
    assert app(*words(app), level="group") == 0
    err = capsys.readouterr().err
    assert f"desc-{other}_dseg.nii.gz is not in the tables of {other}: run participant with this model" in err
    assert err.count("is not in the tables") == 1


def test_corrections_of_participants_that_are_not_selected_are_left_alone(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(people=2)
    correct(app)
    assert app("--participant-label", "02", *words(app)) == 0
    assert "not used" not in capsys.readouterr().err and not manual(app)


def test_a_dry_run_lists_exports_and_warns_of_nothing_that_the_run_will_do(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(heads=("brain", "FAST", "FreeSurfer"))
    correct(app)
    subjects = app.output.parent / "subjects"
    given = [*words(app), "group", "--dry-run", "--freesurfer", str(subjects), "--measure", "T1w", "--long"]
    assert app(*given) == 0, "there are no results yet"
    listed, err = capsys.readouterr()
    assert f"  {subjects / 'sub-01'}\n" in listed and f"{STEM}_desc-aseg_dseg.nii.gz" in listed
    assert f"{STEM}_meas-T1w_seg-FAST_desc-wholebrain_stats.tsv" in listed
    assert "group: of the results of participant" in listed and not app.output.exists() and err == ""
    assert app("--skip-bids-validation") == 0
    capsys.readouterr()
    assert app(*given) == 0
    listed, err = capsys.readouterr()
    assert "group_seg-FAST_desc-wholebrain_long.tsv" in listed and "is not in the tables" not in err
    assert app(*words(app), level="group") == 0
    assert "is not in the tables" in capsys.readouterr().err


def test_outputs_on_request_of_the_earlier_result_are_removed_and_named(
    make: Callable[..., App], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bidsseg.image.conformed.SIZE", 64)
    app = make(2, heads=("brain", "FAST", "FreeSurfer"))
    grid = load_nifti(app.bids / f"{STEM}_T1w.nii.gz").affine
    phantoms.save(app.bids / f"{STEM}_T2map.nii.gz", phantoms.head(grid, SHAPE), grid)
    given = ("--freesurfer", str(app.output.parent / "subjects"), "--measure", "T2=T2map")
    more = ("--probseg", "--entropy", "--viewer")
    assert app("--skip-bids-validation", "--participant-label", "01", *given, *more) == 0
    of_space = app.output / f"{STEM}_space-MNI152NLin6Asym_seg-FAST_res-2_desc-wholebrain_dseg.json"
    of_space.write_text((app.output / FAST.replace(".nii.gz", ".json")).read_text())
    for extension in (".tsv", ".nii.gz"):
        of_space.with_suffix(extension).write_text("")
    on_request = ("_meas-", "desc-aseg", "_probseg.", "_viewer.html", "_space-")
    before = {name for name in app.files() if any(part in name for part in on_request)}
    assert len(before) == 4 + 3 + 8 + 1 + 3
    assert app("--skip-bids-validation", "--participant-label", "01", "--overwrite", *given) == 0
    assert "recomputed without" not in capsys.readouterr().err
    assert before <= set(app.files()), "the label maps are the same"

    correct(app)
    assert app(*words(app), "--dry-run") == 0
    assert before <= set(app.files())
    assert app(*words(app), "--entropy", "--measure", "T2=T2map") == 0
    left = {name for name in before if "_meas-T2" in name or "entropy" in name}
    assert before & set(app.files()) == left
    warnings = capsys.readouterr().err
    for flag in ("--freesurfer", "--probseg", "--viewer", "--output-spaces MNI152NLin6Asym:res-2"):
        assert f"sub-01: recomputed without {flag}: the files" in warnings, flag
    assert warnings.count("without --measure T2:") == warnings.count("without --entropy:") == 1, "in the dry run alone"
    assert "SUBJECTS_DIR remains" in warnings
    measured = app.sidecar(f"{STEM}_meas-T2_seg-FAST_desc-wholebrain_stats.tsv")
    assert measured["Manual"] is True and "by hand" not in measured["Description"], "the brain mask is the model's"
    assert "Manual" not in app.sidecar(f"{STEM}_meas-T2_seg-FreeSurfer_desc-wholebrain_stats.tsv")
    assert app("--skip-bids-validation") == 0
    assert "sub-01: recomputed without --measure T2" in capsys.readouterr().err
