"""A derivative dataset as input, as fMRIPrep leaves it: images of one scan in its own and in a standard space."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fake_model import App, make_app

from bidsseg.derivative.sidecars import carried_over
from bidsseg.image.volume import Volume
from bidsseg.registration.spaces import Fit, Space, template_brain

NAME = "MNI152NLin2009cAsym"
IN_SPACE = f"space-{NAME}_res-2_desc-preproc"
TABLE = "group_seg-FAST_desc-preprocwholebrain_morph.tsv"


@pytest.fixture
def app(tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> App:
    """An app with two participants, each with an image in native and in standard space."""
    bids = make_bids(2)
    description = {"Name": "d", "BIDSVersion": "1.10.1", "DatasetType": "derivative", "GeneratedBy": [{"Name": "x"}]}
    (bids / "dataset_description.json").write_text(json.dumps(description))
    for label in ("01", "02"):
        anat = bids / f"sub-{label}" / "anat"
        shutil.copy(anat / f"sub-{label}_T1w.nii.gz", anat / f"sub-{label}_{IN_SPACE}_T1w.nii.gz")
        (anat / f"sub-{label}_T1w.nii.gz").rename(anat / f"sub-{label}_desc-preproc_T1w.nii.gz")
        sidecar = {"SkullStripped": False, "Resolution": "2 mm", "SpatialReference": "x"}
        (anat / f"sub-{label}_{IN_SPACE}_T1w.json").write_text(json.dumps(sidecar))
    return make_app(tmp_path, bids, monkeypatch)


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with a template at two resolutions; registration is skipped."""
    folder = tmp_path / "templateflow" / f"tpl-{NAME}"
    folder.mkdir(parents=True)
    for name in ("res-01_T1w", "res-02_T1w", "res-01_desc-brain_mask", "res-02_desc-brain_mask"):
        data = np.pad(np.ones((10, 10, 10), np.uint8), 4)
        nib.save(nib.Nifti1Image(data, np.diag([4.0, 4, 4, 1])), folder / f"tpl-{NAME}_{name}.nii.gz")
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(folder.parent))

    def fit_to(space: Space, t1w: Volume, brain: np.ndarray) -> Fit:
        return Fit(template_brain(space)[0], np.eye(4), None)

    monkeypatch.setattr("bidsseg.derivative.job.fit_to", fit_to)


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_the_label_of_the_image_is_described_with_that_of_the_model(app: App) -> None:
    assert app("--skip-bids-validation") == 0
    rows = {row["desc_id"]: row["description"] for row in rows_of(app.output / "descriptions.tsv")}
    written = {path.name.partition("_desc-")[2].partition("_")[0] for path in app.output.glob("sub-*/anat/*")}
    assert written == {"preprocwholebrain", "preprocbrain"} and {f"desc-{label}" for label in written} <= rows.keys()
    assert rows["desc-preprocbrain"] == f"{rows['desc-brain']}; of images with desc-preproc"


def test_scans_that_failed_are_failed_in_the_table(app: App) -> None:
    anat = app.bids / "sub-02" / "anat"
    (anat / f"sub-02_{IN_SPACE}_T1w.nii.gz").write_bytes(b"")
    assert app("--skip-bids-validation") == 1
    shutil.copy(anat / "sub-02_desc-preproc_T1w.nii.gz", anat / "sub-02_acq-raw_T1w.nii.gz")
    assert app("--skip-bids-validation", level="group") == 0
    rows = rows_of(app.output / TABLE)
    assert [(row["participant_id"], row["res_id"], row["status"]) for row in rows] == [
        ("sub-01", "n/a", "done"),
        ("sub-01", "res-2", "done"),
        ("sub-02", "n/a", "done"),
        ("sub-02", "res-2", "failed"),
    ]
    assert "is empty" in (app.output / "group.html").read_text()


def test_raw_and_derived_scans_have_tables_of_their_own(app: App) -> None:
    anat = app.bids / "sub-01" / "anat"
    shutil.copy(anat / "sub-01_desc-preproc_T1w.nii.gz", anat / "sub-01_T1w.nii.gz")
    assert app("--skip-bids-validation", "--bids-filter-file", filters(app, space=None)) == 0
    assert app("--bids-filter-file", filters(app, space=None), level="group") == 0
    tables = {TABLE: ["sub-01", "sub-02"], TABLE.replace("preproc", ""): ["sub-01"]}
    for name, participants in tables.items():
        rows = rows_of(app.output / name)
        assert [(row["participant_id"], row["status"]) for row in rows] == [(label, "done") for label in participants]


def filters(app: App, **entities: object) -> str:
    path = app.output.with_name("filter.json")
    path.write_text(json.dumps({"t1w": entities}))
    return str(path)


def test_resolution_is_copied_and_makes_valid_bids(app: App) -> None:
    assert app("--skip-bids-validation") == 0
    anat = app.output / "sub-01" / "anat"
    sidecars = sorted(anat.glob(f"sub-01_space-{NAME}_*_dseg.json")) + sorted(
        anat.glob(f"sub-01_space-{NAME}_*_mask.json")
    )
    assert len(sidecars) == 4
    assert {json.loads(path.read_text())["Resolution"] for path in sidecars} == {"2 mm"}
    native = sorted(anat.glob("sub-01_seg-*_dseg.json"))
    assert len(native) == 3 and not any("Resolution" in json.loads(path.read_text()) for path in native)
    validator = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run([validator, app.output, "--format", "json"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


@pytest.mark.parametrize(
    ("sidecars", "expected"),
    [
        ({}, "same as sub-01_ses-1_res-2_T1w.nii.gz"),
        ({"T1w.json": {"Resolution": {"2": "2 mm"}}}, {"2": "2 mm"}),
        ({"res-2_T1w.json": {"Resolution": "a"}, "T1w.json": {"Resolution": "b"}}, "a"),
        ({"res-1_T1w.json": {"Resolution": "a"}, "sub-01/sub-01_T1w.json": {"Resolution": "b"}}, "b"),
        ({"sub-01/ses-1/anat/sub-01_ses-1_res-2_T1w.json": {"Resolution": 3}, "T1w.json": {"Resolution": "b"}}, "b"),
        ({"T2w.json": {"Resolution": "a"}}, "same as sub-01_ses-1_res-2_T1w.nii.gz"),
    ],
)
def test_metadata_is_that_of_the_nearest_file(tmp_path: Path, sidecars: dict[str, object], expected: object) -> None:
    bids = tmp_path / "bids"
    anat = bids / "sub-01" / "ses-1" / "anat"
    anat.mkdir(parents=True)
    (tmp_path / "T1w.json").write_text('{"Resolution": "outside of the dataset"}')
    for name, content in sidecars.items():
        (bids / name).write_text(json.dumps(content))
    assert carried_over(anat / "sub-01_ses-1_res-2_T1w.nii.gz", bids) == {"Resolution": expected}
    assert carried_over(anat / "sub-01_ses-1_T1w.nii.gz", bids) == {}


@pytest.mark.usefixtures("templates")
def test_results_that_would_have_one_name_are_refused(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("SimpleITK")
    for words in ([f"{NAME}:res-2:affine"], [f"{NAME}:affine"]):
        for dry in ([], ["--dry-run"]):
            assert app("--skip-bids-validation", "--output-spaces", *words, *dry) == 64
            error = capsys.readouterr().err.splitlines()[-1]
            assert f"sub-01_desc-preproc and sub-01_{IN_SPACE}" in error and '{"t1w": {"space": null}}' in error
    assert not app.output.exists()
    only = filters(app, space=NAME)
    assert app("--skip-bids-validation", "--output-spaces", f"{NAME}:res-2:affine", "--bids-filter-file", only) == 64
    assert app("--skip-bids-validation", "--output-spaces", f"{NAME}:affine", "--bids-filter-file", only) == 0
    assert app("--skip-bids-validation", "--output-spaces", f"{NAME}:affine", f"{NAME}:res-2:affine",
               "--bids-filter-file", filters(app, space=None)) == 0  # fmt: skip
    anat = app.output / "sub-01" / "anat"
    sidecar = json.loads((anat / f"sub-01_space-{NAME}_seg-FAST_res-1_desc-preprocwholebrain_dseg.json").read_text())
    assert sidecar["Resolution"].startswith("resolution 1 of the template")
