"""Label maps that were corrected by hand, in the place of the model's (``--corrections``)."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import phantoms
import pytest
from fake_model import App, make_app, save_card
from nifti import load_nifti

from bidsseg.learning.label_sources import label_sources

Change = Callable[[np.ndarray], np.ndarray]
STEM = "sub-01/anat/sub-01"
FAST = f"{STEM}_seg-FAST_desc-wholebrain_dseg.nii.gz"


def without_grey_matter(labels: np.ndarray) -> np.ndarray:
    return np.where(labels == 2, 3, labels)


def correct(app: App, name: str = FAST, change: Change = without_grey_matter, target: str = "") -> np.ndarray:
    """Write a changed copy of an output to the corrections, and return its voxels."""
    image = load_nifti(app.output / name)
    values = change(np.asarray(image.dataobj)).astype(np.uint8)
    phantoms.save(corrections(app) / (target or name), values, image.affine)
    return values


def corrections(app: App) -> Path:
    return app.output.parent / "corrected"


def words(app: App) -> list[str]:
    return ["--corrections", str(corrections(app)), "--skip-bids-validation"]


def sidecar(app: App, name: str) -> dict[str, Any]:
    return dict(json.loads((app.output / name.replace(".nii.gz", ".json").replace(".tsv", ".json")).read_text()))


def volumes(app: App, protocol: str = "FAST") -> pd.DataFrame:
    path = app.output / f"{STEM}_seg-{protocol}_desc-wholebrain_morph.tsv"
    return pd.read_csv(path, sep="\t", keep_default_na=False)


def manual(app: App) -> set[str]:
    """Return the ends of the names of the images of sub-01 that are marked as corrected."""
    sidecars = {path: json.loads(path.read_text()) for path in app.output.glob("sub-01/anat/*.json")}
    return {path.name.removeprefix("sub-01_") for path, content in sidecars.items() if content.get("Manual")}


def test_a_corrected_label_map_takes_the_place_of_the_model_s(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("--skip-bids-validation") == 0
    before, table = app.files(), volumes(app)
    drawn = correct(app)
    assert app(*words(app)) == 0
    assert app(level="group") == 0
    assert "the label map FAST was corrected by hand (sub-01_seg-FAST_desc-wholebrain_dseg.nii.gz)" in (
        capsys.readouterr().err
    )
    after = app.files()
    assert (np.asarray(load_nifti(app.output / FAST).dataobj) == drawn).all()
    assert list(volumes(app)["voxels"]) == [*np.bincount(drawn.ravel(), minlength=4)[1:], table["voxels"].iloc[-1]]
    assert list(volumes(app)["softvolume-mm3"]) == ["n/a"] * 4
    assert manual(app) == {"seg-FAST_desc-wholebrain_dseg.json", "seg-FAST_desc-wholebrain_morph.json"}
    about, of_table = sidecar(app, FAST), sidecar(app, f"{STEM}_seg-FAST_desc-wholebrain_morph.tsv")
    assert about["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz", f"bids:corrections:{FAST}"]
    assert about["SpatialReference"] == about["Sources"][0] and of_table["Sources"] == about["Sources"]
    assert "Quality" not in about and of_table["softvolume-mm3"]["Description"].startswith("n/a")
    links = json.loads((app.output / "dataset_description.json").read_text())["DatasetLinks"]
    assert links["corrections"] == corrections(app).as_uri() and "raw" in links
    # Everything else is as before: label maps of other heads, pictures, and all files of the other scan.
    changed = {name for name in before if before[name] != after[name] and not name.endswith(".json")}
    figure = "sub-01/figures/sub-01_seg-FAST_desc-wholebrain_dseg.png"
    assert changed == {FAST, f"{STEM}_seg-FAST_desc-wholebrain_morph.tsv", figure}
    assert {name for name in before if name.startswith("sub-02") and before[name] != after[name]} == set()
    assert sidecar(app, f"{STEM}_seg-FreeSurfer_desc-wholebrain_dseg.nii.gz")["Quality"] == 0.875
    cohort = pd.read_csv(app.output / "group_seg-FAST_desc-wholebrain_morph.tsv", sep="\t", keep_default_na=False)
    assert list(cohort["status"]) == ["corrected", "done"] and list(cohort["quality"]) == ["n/a", "0.875"]
    assert cohort["GM"].iloc[0] == 0 and "corrected" in (app.output / "group.html").read_text()
    page = (app.output / "sub-01.html").read_text()
    assert "The label maps of FAST were corrected by hand." in page and "0.875" in page


def test_a_scan_is_recomputed_when_its_correction_changes(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("--skip-bids-validation") == 0
    before = app.files()
    correct(app)
    assert app(*words(app)) == app(*words(app)) == 0
    assert app.fake.segmented == 3 and app.fates == {"sub-01": "skipped", "sub-02": "skipped"}
    correct(app, change=lambda labels: np.where(labels == 1, 3, labels))
    assert app(*words(app)) == 0
    assert app.fake.segmented == 4 and 1 not in np.asarray(load_nifti(app.output / FAST).dataobj)
    capsys.readouterr()
    assert app("--skip-bids-validation") == 0
    assert app.fake.segmented == 5
    assert "sub-01: recomputed without the correction of FAST" in capsys.readouterr().err
    same = {name: content for name, content in app.files().items() if not name.endswith(".html")}
    assert same == {name: content for name, content in before.items() if not name.endswith(".html")}


def test_masks_are_corrected_too(
    tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(tmp_path, make_bids(1, flair=True), monkeypatch)
    save_card(app.card, name="lesions", inputs=("T1w", "FLAIR"), heads=("FASTlesion",), lesion="FASTlesion")
    assert app("--skip-bids-validation") == 0
    mask, brain = f"{STEM}_label-lesion_desc-lesions_mask.nii.gz", f"{STEM}_desc-brain_mask.nii.gz"

    def smaller(labels: np.ndarray) -> np.ndarray:
        return labels * (np.arange(len(labels)) < 24)[:, None, None]

    lesion = correct(app, mask, lambda labels: 255 * smaller(labels), f"{STEM}_label-lesion_mask.nii.gz") > 0
    inside = correct(app, brain, smaller)
    assert app(*words(app)) == 0
    assert (np.asarray(load_nifti(app.output / mask).dataobj) == lesion).all()
    assert (np.asarray(load_nifti(app.output / brain).dataobj) == inside).all()
    table = pd.read_csv(app.output / f"{STEM}_seg-FASTlesion_desc-lesions_morph.tsv", sep="\t")
    assert table["voxels"].iloc[-1] == inside.sum() and table["softvolume-mm3"].notna().sum() == len(table) - 1
    assert manual(app) == {"label-lesion_desc-lesions_mask.json", "desc-brain_mask.json"}
    assert "the value 255 of the mask is read as 1" in " ".join(sidecar(app, mask)["Notes"])
    assert sidecar(app, f"{STEM}_seg-FASTlesion_desc-lesions_morph.tsv")["Sources"][-1] == f"bids:corrections:{brain}"


def test_a_lesion_mask_follows_from_the_corrected_label_map(
    tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(tmp_path, make_bids(1, flair=True), monkeypatch)
    save_card(app.card, name="lesions", inputs=("T1w", "FLAIR"), heads=("FASTlesion",), lesion="FASTlesion")
    assert app("--skip-bids-validation") == 0
    drawn = correct(
        app, f"{STEM}_seg-FASTlesion_desc-lesions_dseg.nii.gz", lambda labels: np.where(labels == 3, 4, labels)
    )
    assert app(*words(app)) == 0
    mask = f"{STEM}_label-lesion_desc-lesions_mask.nii.gz"
    assert (np.asarray(load_nifti(app.output / mask).dataobj) == (drawn == 4)).all() and (drawn == 4).any()
    assert sidecar(app, mask)["Manual"] and "seg-FASTlesion" in sidecar(app, mask)["Sources"][-1]


def test_the_axes_may_be_stored_in_another_order(app: App) -> None:
    assert app("--skip-bids-validation") == 0
    drawn = correct(app, target=f"{STEM}_seg-FAST_dseg.nii.gz")
    path = corrections(app) / f"{STEM}_seg-FAST_dseg.nii.gz"
    nib.save(nib.as_closest_canonical(load_nifti(path)), path)
    assert load_nifti(path).affine[0, 0] > 0 > load_nifti(app.output / FAST).affine[0, 0]
    assert app(*words(app)) == 0
    assert (np.asarray(load_nifti(app.output / FAST).dataobj) == drawn).all()
    assert "stored as RAS and not as LAS" in sidecar(app, FAST)["Notes"][0]


def test_an_unchanged_copy_is_no_correction(app: App) -> None:
    assert app("--skip-bids-validation", "--entropy", "--probseg") == 0
    before = volumes(app, "BrainCOLOR")
    for path in app.output.glob("sub-0*/anat/*"):
        target = corrections(app) / path.relative_to(app.output)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    correct(app)
    assert app(*words(app), "--entropy", "--probseg") == 0
    assert manual(app) == {"seg-FAST_desc-wholebrain_dseg.json", "seg-FAST_desc-wholebrain_morph.json"}
    assert volumes(app, "BrainCOLOR").equals(before)
    assert "is equal to the model's brain mask" in " ".join(sidecar(app, FAST)["Notes"])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("grid", "not on the grid of sub-01_T1w.nii.gz"),
        ("value", "the values [7] are not in the protocol FAST"),
        ("empty", "is empty: every voxel is background"),
        ("half", "labels must be integers"),
        ("several", "both correct sub-01: keep only one"),
    ],
)
def test_a_bad_correction_only_fails_its_scan(
    bad: str, message: str, app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app("--skip-bids-validation") == 0
    segmented = app.fake.segmented
    correct(app, FAST.replace("01", "02"), without_grey_matter)
    correct(app)
    path = corrections(app) / FAST
    image = load_nifti(path)
    values = np.asarray(image.dataobj)
    match bad:
        case "grid":
            phantoms.save(path, values[1:], image.affine)
        case "value":
            phantoms.save(path, np.where(values == 1, 7, values).astype(np.uint8), image.affine)
        case "empty":
            phantoms.save(path, 0 * values, image.affine)
        case "half":
            phantoms.save(path, (values * 0.5).astype(np.float32), image.affine)
        case "several":
            for desc in ("a", "b"):
                phantoms.save(corrections(app) / f"{STEM}_seg-FAST_desc-{desc}_dseg.nii.gz", values, image.affine)
            path.unlink()
    assert app(*words(app)) == 1
    err = capsys.readouterr().err
    assert message in err and "not used" not in err
    assert app.fake.segmented == segmented + 1 and app.fates == {"sub-01": "failed", "sub-02": "done"}


def test_files_that_are_not_used_are_named(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("--skip-bids-validation") == 0
    names = [f"{STEM}_seg-Mine_dseg.nii.gz", "sub-09/anat/sub-09_seg-FAST_dseg.nii.gz"]
    for name in names:
        correct(app, target=name)
    capsys.readouterr()
    assert app(*words(app)) == 64
    err = capsys.readouterr().err
    assert "no file fits a scan: looked for sub-*/[ses-*/]anat/<T1w>_X.nii.gz" in err
    assert "sub-01" in err and "seg-FAST_*dseg" in err and "found sub-01_seg-Mine_dseg.nii.gz, sub-09_seg-FAST_" in err
    correct(app)
    correct(app, target=f"{STEM}_seg-FAST_desc-ace_dseg.nii.gz")
    assert app(*words(app), "--dry-run") == 0
    dry = capsys.readouterr()
    assert "sub-01: to do, corrected: FAST" in dry.out and "sub-02: done\n" in dry.out
    assert app(*words(app)) == 0
    err = capsys.readouterr().err
    assert "sub-09_seg-FAST_dseg.nii.gz not used: there is no scan of this name" in err
    assert "sub-01_seg-Mine_dseg.nii.gz not used: the model wholebrain writes no such label map" in err
    assert "sub-01_seg-FAST_desc-ace_dseg.nii.gz not used: another file of the scan is used" in err


@pytest.mark.parametrize("selected", [["--participant-label", "02"], ["--shard", "2/2"]])
def test_corrections_of_scans_that_are_not_selected_are_no_mistakes(
    selected: Sequence[str], app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app("--skip-bids-validation") == 0
    correct(app)
    assert app(*words(app), *selected) == 0
    assert "not used" not in capsys.readouterr().err


def test_the_output_is_no_folder_of_corrections(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("--skip-bids-validation") == 0
    assert app("--corrections", str(app.output)) == 64
    assert "copy them to another folder" in capsys.readouterr().err
    assert app("--corrections", str(app.output.parent / "nowhere")) == 66


def test_evaluate_does_not_take_a_corrected_label_map_for_the_model_s(
    app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app("--skip-bids-validation") == 0
    for label in ("01", "02"):
        correct(app, FAST.replace("01", label))
    (corrections(app) / FAST.replace("01", "02")).rename(reference := app.output.parent / "later.nii.gz")
    assert app(*words(app)) == 0
    reference.rename(corrections(app) / FAST.replace("01", "02"))
    assert app("--labels", f"FAST={corrections(app)}", level="evaluate") == 0
    err = capsys.readouterr().err
    assert "FAST: sub-01 not compared: its label map was corrected by hand, and is not the model's" in err
    table = pd.read_csv(app.output / "group_seg-FAST_desc-wholebrain_ref-corrected_agreement.tsv", sep="\t")
    assert set(table["participant_id"]) == {"sub-02"}


def test_the_folder_is_one_of_labels_for_train(app: App) -> None:
    assert app("--skip-bids-validation") == 0
    correct(app)
    (source,) = label_sources({"": [corrections(app)]})
    assert source.protocol.name == "FAST" and source.label_maps()[0].key == "sub-01"
