"""The level participant with a fake network: outputs, selection and errors."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import phantoms
import pytest
from fake_model import INTRACRANIAL_MM3, App, make_app, save_card
from nifti import load_nifti

from bidsseg.bids.names import parse_name

ROOT = Path(__file__).parents[2]
EXPECTED = Path(__file__).with_name("expected_outputs.txt")
VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")


@pytest.fixture
def sessions(tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> App:
    """Two participants with two sessions of two runs, each with a FLAIR; images are small."""
    return make_app(tmp_path, make_bids(2, 2, 2, flair=True, spacing_mm=5.0, shape=(36, 42, 36)), monkeypatch)


def scan(app: App, label: str = "01") -> Path:
    return app.bids / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"


# -- what is written ---------------------------------------------------------------------------------------------------


def copied(output: Path) -> Path:
    """Return a copy of an output folder, to compare it with."""
    return shutil.copytree(output, output.parent / "reference" / output.name)


def test_the_tree_is_the_committed_one(sessions: App) -> None:
    lesions = save_card(
        sessions.card.parent / "lesions", name="lesions", inputs=("T1w", "FLAIR"), heads=("lesion",), lesion="lesion"
    )
    assert sessions("--participant-label", "01") == 0
    assert sessions("--probseg", "--entropy", "--viewer", "--participant-label", "02", "--session-label", "1") == 0
    assert sessions("--session-label", "2", model=lesions) == 0
    assert sessions(level="group") == 0
    assert sessions("--labels", f"FAST={copied(sessions.output)}", level="evaluate") == 0
    produced = sorted(path.relative_to(sessions.output).as_posix() for path in sessions.output.rglob("*"))
    listing = "".join(re.sub(r"run-\d{8}T\d+\.json", "run-TIME.json", name) + "\n" for name in produced)
    if os.environ.get("BIDSSEG_UPDATE_EXPECTED"):
        EXPECTED.write_text(listing)
    assert listing == EXPECTED.read_text(), "if this is meant, run again with BIDSSEG_UPDATE_EXPECTED=1"


def test_marked_scans_are_segmented_and_count(sessions: App, capsys: pytest.CaptureFixture[str]) -> None:
    table = sessions.bids / "sub-01/ses-1/sub-01_ses-1_scans.tsv"
    table.write_text("filename\tuse\nanat/sub-01_ses-1_run-1_T1w.nii.gz\t0\nanat/sub-01_ses-1_run-2_T1w.nii.gz\t1\n")
    words = ("--participant-label", "01", "--session-label", "1", "--skip-bids-validation")
    assert sessions(*words, "--where", "use=1") == 0
    assert sessions.fates == {"sub-01_ses-1_run-2": "done"}
    assert "left out: sub-01_ses-1_run-1_T1w.nii.gz: not --where use=1 (0)" in capsys.readouterr().err
    assert sessions(*words) == sessions(*words[:-1], "--where", "use!=0", level="group") == 0
    cohort = sessions.table("group_seg-FAST_desc-wholebrain_morph.tsv")
    assert list(cohort["selected"]) == [0, 1]
    assert len(sessions.table("group_seg-FAST_desc-wholebrain_fraction.tsv")) == 1


@pytest.mark.skipif(not VALIDATOR.is_file(), reason="the BIDS validator is not installed")
def test_the_tree_passes_the_validator(sessions: App, tmp_path: Path) -> None:
    assert sessions("--probseg", "--entropy", "--viewer", "--participant-label", "01") == 0
    (tmp_path / "filter.json").write_text('{"t1w": {"subject": "01", "session": "1", "run": 1}}')
    one = ("--bids-filter-file", str(tmp_path / "filter.json"))
    assert sessions("--freesurfer", str(sessions.output / "sourcedata" / "freesurfer"), *one) == 0
    assert sessions("--measure", "FLAIR", *one) == 0
    assert sessions("--long", level="group") == 0
    assert sessions("--labels", f"FAST={copied(sessions.output)}", level="evaluate") == 0
    done = subprocess.run([VALIDATOR, sessions.output, "--format", "json"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert done.returncode == 0


def test_images_lie_on_the_grid_of_the_scan(app: App, tmp_path: Path) -> None:
    oblique = phantoms.grid((3.9, 4.1, 4.3), "PSR", rotation_degrees=11)
    source = scan(app)
    phantoms.save(source, phantoms.noisy_head(oblique), oblique)
    assert app("--probseg", "--entropy") == 0
    expected = load_nifti(source)
    images = sorted((app.output / "sub-01").rglob("*.nii.gz"))
    assert len(images) == 10
    for path in images:
        found = load_nifti(path)
        assert found.affine.tobytes() == expected.affine.tobytes(), path
        assert found.shape[:3] == expected.shape
        assert found.header["xyzt_units"] % 8 == 2
    labels = load_nifti(app.output / "sub-01/anat/sub-01_seg-FAST_desc-wholebrain_dseg.nii.gz")
    assert labels.get_data_dtype() == np.uint8
    assert set(np.unique(labels.dataobj)) == {0, 1, 2, 3}
    assert isinstance(labels.dataobj, nib.arrayproxy.ArrayProxy)
    assert (labels.dataobj.slope, labels.dataobj.inter) == (1, 0)


def test_probabilities_and_entropy(app: App) -> None:
    assert app("--probseg", "--entropy", "--participant-label", "01") == 0
    stem = app.output / "sub-01/anat/sub-01_seg-FAST_desc-wholebrain"
    probabilities = load_nifti(f"{stem}_probseg.nii.gz")
    sidecar = json.loads(Path(f"{stem}_probseg.json").read_text())
    assert sidecar["LabelMap"] == ["BG", "CSF", "GM", "WM"]
    assert probabilities.shape[3] == 4
    assert np.allclose(probabilities.get_fdata().sum(3), 1)
    labels = np.asarray(load_nifti(f"{stem}_dseg.nii.gz").dataobj)
    assert (probabilities.get_fdata().argmax(3) == labels).all()
    entropy = load_nifti(f"{stem}entropy_probseg.nii.gz").get_fdata()
    assert entropy.min() >= 0 and 0.5 < entropy.max() <= 1


def test_tables(app: App) -> None:
    assert app() == 0
    stem = app.output / "sub-01/anat/sub-01_seg-FAST_desc-wholebrain"
    table = pd.read_csv(f"{stem}_morph.tsv", sep="\t", keep_default_na=False)
    labels = np.asarray(load_nifti(f"{stem}_dseg.nii.gz").dataobj)
    columns = ["index", "name", "abbreviation", "voxels", "volume-mm3", "softvolume-mm3", "expected-dice"]
    assert list(table.columns) == columns
    assert list(table["index"]) == ["1", "2", "3", "n/a", "n/a"]
    counted = table["voxels"][:-1].astype(int)
    assert list(counted) == [*np.bincount(labels.ravel())[1:], np.count_nonzero(labels)]
    assert np.allclose(table["volume-mm3"], [*(counted * 64.0), INTRACRANIAL_MM3])
    assert list(table["name"])[-2:] == ["brain mask", "estimated total intracranial volume"]
    dictionary = json.loads(Path(f"{stem}_morph.json").read_text())
    assert set(table.columns) <= set(dictionary) and dictionary["EstimatedTotalIntracranialVolume"] == "made up"
    lookup = pd.read_csv(f"{stem}_dseg.tsv", sep="\t")
    assert set(np.unique(labels)) <= set(lookup["index"])


def test_sidecars_tell_where_it_comes_from(app: App) -> None:
    source = scan(app)
    image = load_nifti(source)
    phantoms.save(source, np.asarray(image.dataobj), image.affine, unit=None)
    assert app() == 0
    sidecar = json.loads((app.output / "sub-01/anat/sub-01_seg-FAST_desc-wholebrain_dseg.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
    assert sidecar["SpatialReference"] == sidecar["Sources"][0]
    assert sidecar["Models"] == [{"Name": "wholebrain", "SHA256": "0" * 64}]
    assert sidecar["Quality"] == 0.875
    assert [finding.partition(":")[0] for finding in sidecar["InputFindings"]] == ["UNITS_MISSING"]


def test_the_manifest_records_all_outcomes(app: App) -> None:
    assert app("--n-cpus", "1") == 0
    manifest = app.manifest
    assert manifest["command"][:3] == ["bidsseg", str(app.bids), str(app.output)]
    assert manifest["model"]["sha256"] == "0" * 64
    assert {"bidsseg", "python", "torch", "nibabel"} <= set(manifest["versions"])
    assert manifest["started"] <= manifest["finished"]
    first, _ = manifest["scans"]
    assert first["scan"] == "sub-01" and first["outcome"] == "done"
    assert set(first["seconds"]) == {"read", "segment", "write"}
    assert first["peak_memory_mb"] > 10
    assert manifest["machine"] == {"device": "cpu", "precision": "fp32", "threads": 1, "memory_mb": 3000}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_emulated_precision_is_warned_about_once(
    precision: str, app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_MODEL_PRECISION", precision)
    monkeypatch.setattr("bidsseg.execution.machine.cpu_flags", lambda: {"avx2"})
    assert app("--n-cpus", "1") == 0
    assert capsys.readouterr().err.count("emulation is") == (precision == "bf16")


def test_the_same_input_gives_the_same_bytes(app: App, tmp_path: Path) -> None:
    assert app("--probseg", "--entropy") == 0
    first = app.files()
    for label in ("01", "02"):
        os.utime(scan(app, label), (1, 1))
    app.output = tmp_path / "again"
    assert app("--probseg", "--entropy") == 0
    assert app.files() == first


def test_several_models_share_a_tree(app: App) -> None:
    assert app() == 0
    before = app.files()
    other = save_card(app.card.parent / "other", name="other", description="Another one.", heads=("FAST",))
    assert app(model=other) == 0
    after = app.files()
    assert {name: after[name] for name in before if "desc-brain" not in name}.items() <= before.items()
    assert "sub-01/anat/sub-01_seg-FAST_desc-other_dseg.nii.gz" in after
    rows = (app.output / "descriptions.tsv").read_text()
    assert "desc-wholebrain\tTissues told by their intensity." in rows
    assert "desc-other\tAnother one." in rows
    assert app() == 0 and app(model=other) == 0
    assert app.fake.segmented == 4


# -- selection ---------------------------------------------------------------------------------------------------------


def test_shards_together_are_everything(
    tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = make_app(tmp_path, make_bids(5), monkeypatch)
    parts = []
    for part in (1, 2, 3):
        assert app("--shard", f"{part}/3") == 0
        parts.append(sorted(app.fates))
    assert parts == [["sub-01", "sub-04"], ["sub-02", "sub-05"], ["sub-03"]]
    assert app("--shard", "2/3") == 0  # finished scans do not change the shards
    assert app.fates == dict.fromkeys(("sub-02", "sub-05"), "skipped")
    assert app("--shard", "2/2", "--participant-label", "05", "03") == 0
    assert list(app.fates) == ["sub-05"]
    capsys.readouterr()
    assert app("--shard", "6/6") == 0
    assert "this shard is empty" in capsys.readouterr().out


def test_selection(sessions: App, tmp_path: Path) -> None:
    (tmp_path / "filter.json").write_text('{"t1w": {"run": 2}}')
    (tmp_path / "list.txt").write_text("sub-02\n")
    words = ["--participant-label", str(tmp_path / "list.txt"), "--session_label", "ses-1"]
    assert sessions(*words, "--bids-filter-file", str(tmp_path / "filter.json")) == 0
    assert sessions.fates == {"sub-02_ses-1_run-2": "done"}
    assert sessions("--participant_label", "sub-01") == 0
    assert len(sessions.fates) == 4


def test_a_model_that_needs_flair_reports_scans_without_it(sessions: App, capsys: pytest.CaptureFixture[str]) -> None:
    for flair in sessions.bids.glob("sub-01/ses-2/anat/*_FLAIR.nii.gz"):
        flair.unlink()
    lesions = save_card(sessions.card, name="lesions", inputs=("T1w", "FLAIR"), heads=("lesion",), lesion="lesion")
    assert sessions("--participant-label", "01", model=lesions) == 0
    err = capsys.readouterr().err
    for run in (1, 2):
        assert f"sub-01_ses-2_run-{run} is skipped: the model lesions needs a FLAIR" in err
        assert sessions.fates[f"sub-01_ses-2_run-{run}"] == "passed over"
    assert sessions.fake.segmented == 2
    sidecar = json.loads(
        (sessions.output / "sub-01/ses-1/anat/sub-01_ses-1_run-1_label-lesion_desc-lesions_mask.json").read_text()
    )
    assert [Path(uri).name for uri in sidecar["Sources"]] == [
        "sub-01_ses-1_run-1_T1w.nii.gz",
        "sub-01_ses-1_run-1_FLAIR.nii.gz",
    ]
    (note,) = sidecar["Notes"]
    assert note.startswith("FLAIR moved by 0.") and note.endswith("° to match the T1w")
    assert note in next(e["notes"] for e in sessions.manifest["scans"] if e["scan"] == "sub-01_ses-1_run-1")
    assert note not in err
    assert sessions("--participant-label", "01", model=lesions) == 0
    assert sessions.fake.segmented == 2


def test_no_scan_with_flair(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert app(model=save_card(app.card, inputs=("T1w", "FLAIR"))) == 18
    assert "needs a FLAIR" in capsys.readouterr().err


# -- failures ----------------------------------------------------------------------------------------------------------


def test_one_bad_scan_does_not_stop_the_others(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    bad = scan(app)
    bad.write_bytes(bad.read_bytes()[:-100])
    assert app() == 1
    assert app.fates == {"sub-01": "failed", "sub-02": "done"}
    out, err = capsys.readouterr()
    assert "segmented 1 of 2 scans" in out
    (crash,) = (app.output / "logs").glob("crash-*_sub-01.txt")
    assert f"sub-01 failed: {bad}" in err and crash.name in err
    assert "Traceback" not in err and "Traceback" in crash.read_text()
    assert err.splitlines()[-1].startswith("bidsseg: 1 of 2 scans failed")
    assert not list(app.output.glob("sub-01/**/*.*"))
    assert app() == 1
    assert app.fake.segmented == 1


def test_when_no_scan_can_be_used(app: App) -> None:
    for label in ("01", "02"):
        scan(app, label).write_bytes(b"no image")
    assert app() == 65
    assert set(app.fates.values()) == {"failed"}


def test_stop_on_first_crash(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    bad = scan(app)
    bad.write_bytes(b"no image")
    assert app("--stop-on-first-crash") == 65
    assert app.fake.segmented == 0
    assert "stopped at sub-01" in capsys.readouterr().err


def test_stop_before_any_scan_is_read(app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rater in "ab":
        drawn = tmp_path / f"manual/sub-02/anat/sub-02_seg-FAST_desc-{rater}_dseg.nii.gz"
        drawn.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scan(app, "02"), drawn)
    assert app("--stop-on-first-crash", "--corrections", str(tmp_path / "manual")) == 65
    assert app.fake.segmented == 0
    assert "stopped at sub-02" in capsys.readouterr().err
    assert app.fates == {"sub-02": "failed"}


def test_a_bug_in_one_scan_is_reported_as_such(
    app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = app.fake.segment

    def fail_first(*given: object, **asked: object) -> object:
        if app.fake.segmented == 0:
            app.fake.segmented = 1
            raise ZeroDivisionError("a bug")
        return real(*given, **asked)

    monkeypatch.setattr(sys.modules["bidsseg.segmentation.predict"], "segment", fail_first)
    assert app() == 1
    err = capsys.readouterr().err
    assert "sub-01 failed: internal error: ZeroDivisionError('a bug')" in err and "Traceback" not in err
    assert app.fates["sub-02"] == "done"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
    ],
)
def test_want_of_memory_is_no_bug(
    error: Exception, app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["bidsseg.segmentation.predict"], "segment", fail)
    assert app("--participant-label", "01") == 1
    err = capsys.readouterr().err
    assert "sub-01: failed: out of memory" in err
    assert ": free memory, raise the limit" in err
    assert "internal error" not in err


def test_a_limit_that_cannot_be_kept_is_refused_first(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("--mem", "1000M") == 64
    assert "cannot be done in 1G: the model wholebrain needs 1.5G here; give --mem" in capsys.readouterr().err
    assert app.fake.segmented == 0


def find_nothing(app: App, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the network find no brain, or no region of a protocol."""
    real = app.fake.segment

    def empty(*given: object, **asked: object) -> object:
        result = real(*given, **asked)
        array = result.brain if what == "brain" else result.labels[what]
        array[:] = 0
        return result

    monkeypatch.setattr(sys.modules["bidsseg.segmentation.predict"], "segment", empty)


@pytest.mark.parametrize("what", ["brain", "FAST"])
def test_an_empty_segmentation_is_an_error(what: str, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    find_nothing(app, what, monkeypatch)
    assert app() == 65
    assert "EMPTY_SEGMENTATION" in app.manifest["scans"][0]["reason"]
    assert not app.files()


def test_a_scan_without_a_region_that_few_people_have_is_written(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = ["0\tBackground\tBG\t#000000", *(f"{i}\tTumour {i}\tT{i}\t#ff000{i}" for i in (1, 2, 3))]
    table = app.card / "seg-Tumour_dseg.tsv"
    table.write_text("\n".join(["index\tname\tabbreviation\tcolor", *regions]))
    save_card(app.card, name="tumours", heads=("brain", "Tumour"))
    find_nothing(app, "Tumour", monkeypatch)
    assert app("--participant-label", "01") == 0
    assert not app.voxels("sub-01/anat/sub-01_seg-Tumour_desc-tumours_dseg.nii.gz").any()


def test_a_dry_run_stores_no_index(app: App, tmp_path: Path) -> None:
    assert app("group", "--dry-run", "--bids-database-dir", str(tmp_path / "index")) == 0
    assert not (tmp_path / "index").exists()


def test_another_dataset_is_not_overwritten(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    app.output.mkdir()
    (app.output / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.8.0"}')
    assert app() == 64
    assert "is not a derivative" in capsys.readouterr().err
    assert len(list(app.output.iterdir())) == 1


# -- surroundings ------------------------------------------------------------------------------------------------------


@pytest.fixture
def read_only_bids(app: App) -> Iterator[Path]:
    for path in [app.bids, *app.bids.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield app.bids
    for path in [app.bids, *app.bids.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_input_is_left_alone(app: App, read_only_bids: Path) -> None:
    before = sorted(app.bids.rglob("*"))
    process = app.process("--participant-label", "01", HOME="/nonexistent")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert sorted(app.bids.rglob("*")) == before


def test_output_inside_the_dataset_where_bids_allows_it(app: App) -> None:
    app.output = app.bids / "derivatives" / "bidsseg"
    assert app() == 0
    description = json.loads((app.output / "dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"raw": "../.."}
    assert app() == 0
    assert app.fake.segmented == 2


def test_spaces_and_letters_of_the_world(
    tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bids = tmp_path / "données 腦"
    make_bids(1).rename(bids)
    app = make_app(tmp_path / "résultats æ", bids, monkeypatch)
    process = app.process("--dry-run", PYTHONIOENCODING="ascii")
    assert process.wait() == 0
    process = app.process(LC_ALL="C", LANG="C")
    _, err = process.communicate()
    assert process.returncode == 0, err
    names = [parse_name(Path(name).name) for name in app.files()]
    assert names and all(names)


# -- the shipped model -------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("model", ["locator", "wholebrain"])
def test_a_shipped_model_on_a_real_head(model: str, testdata: Path, tmp_path: Path) -> None:
    label = sorted(path.name for path in (testdata / "oasis").glob("sub-*"))[0]
    words = [
        str(testdata / "oasis"),
        str(tmp_path / "out"),
        "participant",
        "--participant-label",
        label,
        "--model",
        model,
    ]

    def run() -> str:
        done = subprocess.run([sys.executable, ROOT / "run.py", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "segmented 1 of 1 scans" in run()
    (brain,) = (tmp_path / "out").rglob("*_desc-brain_mask.nii.gz")
    image = load_nifti(brain)
    volume_mm3 = np.count_nonzero(image.dataobj) * np.prod(image.header.get_zooms())
    assert 900_000 < volume_mm3 < 2_000_000
    assert "1 were finished before" in run()
