"""The level longitudinal with a tiny model: what is written, and that only real changes are found."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import phantoms
import pytest
import SimpleITK as sitk
from browser import CONTRAST, needs_chromium, seen
from fake_model import make_app
from moved_heads import FIXED, FLAIR, T1W, blobs, motion
from nibabel.affines import apply_affine, from_matvec
from nifti import load_nifti
from recording_console import RecordingConsole
from scipy import ndimage
from smooth_heads import AFFINE, SHAPE, dataset, flair, head, noisy, run
from tiny_model import SecondImage, save_tiny

from bidsseg.bids.annotations import find_annotations
from bidsseg.bids.scan import Scan
from bidsseg.derivative.on_request import earlier_outputs
from bidsseg.derivative.results import find_native_maps
from bidsseg.errors import BidssegError, InvalidInputDataset, NothingSelected, OutputNotWritable, UsageError
from bidsseg.evaluation.agreement import dice
from bidsseg.execution import series
from bidsseg.image.nifti import read_image
from bidsseg.image.volume import Volume
from bidsseg.levels.longitudinal import longitudinal_level
from bidsseg.levels.participant import participant_level
from bidsseg.models.library import load_model
from bidsseg.registration import linear
from bidsseg.registration.align import Motion
from bidsseg.registration.linear import motion_of
from bidsseg.segmentation.engine import Engine
from bidsseg.segmentation.predict import segment
from bidsseg.settings import Settings

TABLE = "sub-01/anat/sub-01_seg-FAST_desc-tiny_longitudinal.tsv"
NATIVE = "space-orig_seg-FAST_desc-tinylongitudinal_dseg"
VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")
DATES = "session_id\tacq_time\nses-1\t2020-01-01T10:00:00\nses-2\t2022-01-01T10:00:00\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        yield save_tiny(tmp_path_factory.mktemp("tiny"), patch)


@pytest.fixture
def roughly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare few voxels at one resolution in registrations, where it does not matter how exact they are."""
    monkeypatch.setattr(linear, "SAMPLES", 3000)
    monkeypatch.setattr(linear, "LEVELS_MM", (6.0,))


def table(bids: Path) -> pd.DataFrame:
    return pd.read_csv(bids.parent / "out" / TABLE, sep="\t")


def volumes(bids: Path, session: str) -> pd.Series:
    """Return the soft volume of each region at a session."""
    rows = table(bids).set_index("name")
    return rows[rows.session_id == session]["softvolume-mm3"].dropna()


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A dataset in which a head was scanned twice, in another pose, compared by the level."""
    heads = noisy(head(), 0), noisy(head(moved=motion(5, 8)), 1)
    bids = dataset(tmp_path_factory.mktemp("twice") / "bids", *heads)
    phantoms.save(bids / "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz", heads[0], AFFINE)
    (bids / "sub-01/sub-01_sessions.tsv").write_text(DATES)
    console = run(bids, model)
    assert "not compared: sub-02: fewer than two sessions with a usable T1w" in console.warnings
    return bids


# -- what is measured --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("roughly")
def test_identical_scans_do_not_change(tmp_path: Path, model: Path) -> None:
    image = noisy(head(), 0)
    bids = dataset(tmp_path / "bids", image, image)
    run(bids, model)
    second = table(bids).query("session_id == 'ses-2'")
    assert len(second) == 4
    assert (second["change-mm3"] == 0).all() and (second["change-percent"] == 0).all()
    one, other = (
        load_nifti(tmp_path / f"out/sub-01/ses-{n}/anat/sub-01_ses-{n}_space-halfway_seg-FAST_desc-tiny_dseg.nii.gz")
        for n in (1, 2)
    )
    assert (np.asarray(one.dataobj) == np.asarray(other.dataobj)).all()
    assert np.asarray(one.dataobj).max() == 3


def test_a_moved_copy_differs_less_than_half_as_much_as_two_separate_scans(twice: Path, model: Path) -> None:
    one, other = (volumes(twice, f"ses-{n}").to_numpy() for n in (1, 2))
    scans = sorted(twice.rglob("sub-01*_T1w.nii.gz"))
    tiny = load_model(str(model))
    apart = [segment({"T1w": read_image(scan)[0]}, tiny).soft_mm3["FAST"][1:] for scan in scans]
    together, separate = np.abs(other / one - 1).mean(), np.abs(apart[1] / apart[0] - 1).mean()
    assert together < separate / 2


def test_a_known_change_is_found(tmp_path: Path, model: Path) -> None:
    bids = dataset(tmp_path / "bids", noisy(head(), 0), noisy(head(ventricle=1.15, moved=motion(3, 4)), 1))
    run(bids, model)
    grown = 4 / 3 * np.pi * np.prod(phantoms.TISSUES["ventricle"][0]) * (1.15**3 - 1)
    found = float((volumes(bids, "ses-2") - volumes(bids, "ses-1"))["Cerebrospinal Fluid"])
    assert found == pytest.approx(grown, rel=1 / 3)
    names = [f"sub-01/ses-{n}/anat/sub-01_ses-{n}_space-halfway_seg-FAST_desc-tiny_dseg.nii.gz" for n in (1, 2)]
    before, after = (np.asarray(load_nifti(tmp_path / "out" / name).dataobj) for name in names)
    assert dice(before, after, [1]) > 0.93, "volumes alone do not show that the sessions are aligned"


def test_the_order_of_the_sessions_does_not_matter(twice: Path, tmp_path: Path, model: Path) -> None:
    bids = tmp_path / "bids"
    for label, other in ((1, 2), (2, 1)):
        target = bids / f"sub-01/ses-{other}/anat/sub-01_ses-{other}_T1w.nii.gz"
        target.parent.mkdir(parents=True)
        shutil.copy(twice / f"sub-01/ses-{label}/anat/sub-01_ses-{label}_T1w.nii.gz", target)
    shutil.copy(twice / "dataset_description.json", bids)
    run(bids, model)
    assert (volumes(bids, "ses-1") == volumes(twice, "ses-2")).all()
    for label, other in ((1, 2), (2, 1)):
        name = "sub-01/ses-{0}/anat/sub-01_ses-{0}_{1}.nii.gz"
        for kind in ("space-halfway_seg-FAST_desc-tiny_dseg", "space-halfway_desc-tiny_T1w", NATIVE):
            swapped = (tmp_path / "out" / name.format(other, kind)).read_bytes()
            assert swapped == (twice.parent / "out" / name.format(label, kind)).read_bytes()


# -- what is written ---------------------------------------------------------------------------------------------------


def test_the_files(twice: Path) -> None:
    out = twice.parent / "out"
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() and "logs" not in path.parts}
    of_session = [
        "from-T1w_to-halfway_mode-image_desc-tiny_xfm.txt",
        *(f"space-halfway_desc-tiny_T1w.{kind}" for kind in ("json", "nii.gz")),
        *(f"space-halfway_desc-tinybrain_mask.{kind}" for kind in ("json", "nii.gz")),
        *(f"space-halfway_seg-FAST_desc-tiny_dseg.{kind}" for kind in ("json", "nii.gz", "tsv")),
        *(f"{NATIVE}.{kind}" for kind in ("json", "nii.gz", "tsv")),
    ]
    expected = {f"sub-01/ses-{n}/anat/sub-01_ses-{n}_{name}" for n in (1, 2) for name in of_session}
    expected |= {f"sub-01/anat/sub-01_seg-FAST_desc-tiny_longitudinal.{kind}" for kind in ("json", "tsv")}
    expected |= {f"sub-01/anat/sub-01_space-halfway_desc-tiny_T1w.{kind}" for kind in ("json", "nii.gz")}
    expected |= {"sub-01/figures/sub-01_desc-tiny_longitudinal.png", "sub-01_desc-tiny_longitudinal.html"}
    expected |= {f"labels/seg-FAST_desc-tiny.{kind}" for kind in ("ctbl", "label")}
    assert found == expected | {"dataset_description.json", "descriptions.tsv", "README.md", ".bidsignore"}


def test_images_of_skull_stripped_scans_are_named_so(tmp_path: Path, model: Path, roughly: None) -> None:
    inside = head() > 30
    scalp = np.where(ndimage.binary_dilation(inside, iterations=5), 4 * noisy(np.full(SHAPE, 5), 2), 0)
    for name, around in (("stripped", 0), ("whole", scalp)):
        images = [np.where(inside, noisy(head(), seed), around).astype(np.float32) for seed in (0, 1)]
        bids = dataset(tmp_path / name / "bids", *images)
        run(bids, model)
        sidecars = list((bids.parent / "out").rglob("*_space-halfway_desc-tiny_T1w.json"))
        found = [json.loads(path.read_text())["SkullStripped"] for path in sidecars]
        assert found == 3 * [name == "stripped"], name


def test_the_table_has_dates_and_a_dictionary(twice: Path) -> None:
    rows = table(twice)
    dictionary = json.loads((twice.parent / "out" / TABLE).with_suffix(".json").read_text())
    assert set(rows.columns) <= set(dictionary)
    assert list(rows.session_id) == ["ses-1"] * 4 + ["ses-2"] * 4
    assert rows["years"].tolist() == [0.0] * 4 + [2.001] * 4
    first, second = rows[:4], rows[4:]
    assert first["change-mm3"].isna().all() and rows["smallest-change-percent"].isna().all()
    assert np.allclose(second["change-percent-per-year"], second["change-percent"] / 2.001, atol=0.002)
    assert rows["name"].iloc[-1] == "brain mask"


@pytest.mark.skipif(not VALIDATOR.is_file(), reason="the BIDS validator is not installed")
def test_the_output_passes_the_validator(twice: Path) -> None:
    done = subprocess.run([VALIDATOR, twice.parent / "out", "--format", "json"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_the_transform_leads_to_the_halfway_space(twice: Path) -> None:
    moved = [motion_in(twice, label) for label in (1, 2)]
    assert np.allclose(moved[0] @ moved[1], np.eye(4), atol=1e-6)  # as far from either session
    between = np.linalg.inv(moved[1]) @ moved[0]
    assert Motion.of(between @ np.linalg.inv(motion(5, 8)), Volume(np.zeros(SHAPE), AFFINE)).distance_mm < 1


def motion_in(bids: Path, label: int) -> np.ndarray:
    """Return the motion (4, 4) of a session, RAS+ mm, from its file."""
    name = f"sub-01_ses-{label}_from-T1w_to-halfway_mode-image_desc-tiny_xfm.txt"
    transform = sitk.ReadTransform(bids.parent / f"out/sub-01/ses-{label}/anat" / name)
    return motion_of(transform)


def test_finished_participants_are_skipped_until_a_date_changes(twice: Path, model: Path) -> None:
    copy = twice.parent.parent / "copy"
    shutil.copytree(twice.parent, copy, dirs_exist_ok=True)
    bids = copy / "bids"
    assert "compared the sessions of 0 of 1 participants, 1 were finished before" in run(bids, model).messages
    (bids / "sub-01/sub-01_sessions.tsv").write_text(DATES.replace("2022", "2018"))
    console = run(bids, model, dry_run=True)
    assert "sub-01 (ses-2, ses-1): to do" in console.messages


def test_flags_without_effect_are_named(twice: Path, model: Path) -> None:
    unused = {"measures": {"T2w": "T2w"}, "lesions": twice, "output_spaces": ["absent"], "freesurfer": twice.parent}
    switches = dict.fromkeys(("filled", "probseg", "entropy", "viewer"), True)
    console = run(twice, model, **unused, **switches)
    named = [warning.split()[1] for warning in console.warnings if warning.endswith("compares what the model labels")]
    assert named == [
        "--lesions",
        "--filled",
        "--measure",
        "--probseg",
        "--entropy",
        "--output-spaces",
        "--viewer",
        "--freesurfer",
    ]


def test_a_page_of_another_program_is_kept(twice: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(twice.parent, tmp_path / "copy")
    page = tmp_path / "copy/out/sub-01_desc-tiny_longitudinal.html"
    page.write_text("mine")
    with pytest.raises(OutputNotWritable, match="was not written by bidsseg"):
        run(tmp_path / "copy/bids", model)
    assert page.read_text() == "mine"


@pytest.mark.usefixtures("roughly")
def test_one_bad_session_does_not_stop_the_others(twice: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(twice.parent, tmp_path / "copy")
    bids = dataset(tmp_path / "copy/bids", noisy(head(), 0), noisy(head(), 0), participant="00")
    (bids / "sub-00/ses-2/anat/sub-00_ses-2_T1w.nii.gz").write_bytes(b"no image")
    with pytest.raises(BidssegError, match="1 of 2 participants failed") as raised:
        run(bids, model)
    assert raised.value.code == 1
    assert [path.read_text().count("DataError") > 0 for path in (tmp_path / "copy/out/logs").glob("crash-*.txt")] == [
        True
    ]


def test_what_cannot_be_compared(tmp_path: Path, model: Path) -> None:
    bids = dataset(tmp_path / "bids", noisy(head(), 0))
    with pytest.raises(NothingSelected, match="no participant has two sessions"):
        run(bids, model)
    with pytest.raises(UsageError, match="--shard"):
        run(bids, model, executor="slurm")


def test_an_executor_is_refused_before_other_levels_run(
    tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = make_app(tmp_path, make_bids(1, 2, spacing_mm=8.0, shape=(24, 28, 24)), monkeypatch)
    assert app("longitudinal", "group", "--executor", "slurm") == 64
    assert "the level longitudinal runs on this machine" in capsys.readouterr().err
    assert not app.output.exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory")
def test_an_invalid_dataset_where_only_shared_memory_can_be_written(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bids = dataset(tmp_path / "bids", noisy(head(), 0), noisy(head(), 1))
    (bids / "dataset_description.json").unlink()
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    with pytest.raises(InvalidInputDataset, match="MISSING_DATASET_DESCRIPTION"):
        run(bids, model, skip_validation=False)


@pytest.mark.parametrize("sessions", [0, 1])
def test_without_sessions_to_compare_the_next_level_runs(
    sessions: int,
    tmp_path: Path,
    make_bids: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = make_app(tmp_path, make_bids(2, sessions, spacing_mm=8.0, shape=(24, 28, 24)), monkeypatch)
    assert app("longitudinal", "group", "--skip-bids-validation") == 0
    assert (app.output / "group.html").is_file()
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "two sessions" in line]) == 1
    assert any("longitudinal is skipped: no participant has two sessions" in line for line in lines)
    assert app(level="longitudinal") == 18
    last = capsys.readouterr().err.splitlines()
    assert len(last) == 1 and "no participant has two sessions" in last[0]


@needs_chromium
def test_the_page_in_a_browser(twice: Path, tmp_path: Path) -> None:
    shown = seen(twice.parent / "out/sub-01_desc-tiny_longitudinal.html", CONTRAST, tmp_path)
    assert shown["failures"] == ""
    assert shown["pale"] == ""


# -- the grids of the sessions -----------------------------------------------------------------------------------------


def overlap(found: Path, reference: Path) -> float:
    """Return the mean Dice over the regions of two label maps on one grid."""
    one, other = (load_nifti(path) for path in (found, reference))
    assert one.shape == other.shape and (one.affine == other.affine).all()
    labels, wanted = np.asarray(one.dataobj), np.asarray(other.dataobj)
    return float(np.nanmean(dice(labels, wanted, np.unique(wanted)[1:].tolist())))


@pytest.fixture(scope="module")
def with_participant(twice: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ``twice`` in which the level participant has segmented both sessions after the comparison."""
    copy = tmp_path_factory.mktemp("with_participant")
    shutil.copytree(twice.parent, copy, dirs_exist_ok=True)
    given: dict[str, Any] = {"skip_validation": True, "precision": "fp32", "n_cpus": 1, "participants": ["01"]}
    participant_level(Settings(copy / "bids", copy / "out", model=str(model), report=RecordingConsole(), **given))
    return copy / "bids"


def test_label_maps_on_the_grid_of_each_session(with_participant: Path) -> None:
    for label in (1, 2):
        stem = with_participant.parent / f"out/sub-01/ses-{label}/anat/sub-01_ses-{label}_"
        t1w = load_nifti(with_participant / f"sub-01/ses-{label}/anat/sub-01_ses-{label}_T1w.nii.gz")
        found = load_nifti(Path(f"{stem}{NATIVE}.nii.gz"))
        assert found.shape == t1w.shape and (found.affine == t1w.affine).all()
        for part in ("qform_code", "sform_code", "quatern_b", "srow_x"):
            assert (found.header[part] == t1w.header[part]).all()
        assert overlap(Path(f"{stem}{NATIVE}.nii.gz"), Path(f"{stem}seg-FAST_desc-tiny_dseg.nii.gz")) > 0.93
        about = json.loads(Path(f"{stem}{NATIVE}.json").read_text())
        assert about["SpatialReference"] == "orig" and about["Models"][0]["Name"] == "tiny"
        assert about["Sources"] == [f"bids:raw:sub-01/ses-{label}/anat/sub-01_ses-{label}_T1w.nii.gz"]
        assert f"{Path(TABLE).name} are counted in the halfway space" in about["Description"]
        link = f'<a href="sub-01/ses-{label}/anat/sub-01_ses-{label}_{NATIVE}.nii.gz">'
        assert link in (with_participant.parent / "out/sub-01_desc-tiny_longitudinal.html").read_text()


def test_label_maps_of_the_comparison_are_not_mistaken_for_those_of_a_scan(with_participant: Path) -> None:
    out = with_participant.parent / "out"
    maps = list(find_native_maps(out, "FAST"))
    assert [found.scan.t1w.name for found in maps] == [f"sub-01_ses-{n}_seg-FAST_desc-tiny_dseg.nii.gz" for n in (1, 2)]
    entities = {"subject": "01", "session": "1"}
    scan = Scan(entities, with_participant / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")
    assert find_annotations(out, scan, "FAST") == maps[0].scan.t1w
    record = out / "sub-01/ses-1/anat/sub-01_ses-1_seg-FAST_desc-tiny_dseg.json"
    assert list(earlier_outputs(out, scan, "tiny", record=record)) == [], "participant would remove them"


def test_participants_are_compared_again_if_a_label_map_is_missing(twice: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(twice.parent, tmp_path / "copy")
    (tmp_path / f"copy/out/sub-01/ses-2/anat/sub-01_ses-2_{NATIVE}.nii.gz").unlink()
    listed = run(tmp_path / "copy/bids", model, dry_run=True).messages
    assert "sub-01 (ses-1, ses-2): to do" in listed
    assert sum(f"{NATIVE}.nii.gz" in line for line in listed) == 2


@pytest.mark.usefixtures("roughly")
def test_files_of_a_session_that_is_no_longer_compared_are_removed(model: Path, tmp_path: Path) -> None:
    bids = dataset(tmp_path / "bids", *[noisy(head(), seed) for seed in range(3)])
    run(bids, model)
    third = tmp_path / "out/sub-01/ses-3/anat"
    assert len(list(third.iterdir())) == 11
    kept = {"sub-01_ses-3_space-orig_seg-FAST_desc-manual_dseg.json": '{"Manual": true}'}
    kept["sub-01_ses-3_space-halfway_seg-FAST_desc-tiny_dseg.mgz"] = "theirs"
    for name, content in kept.items():
        (third / name).write_text(content)
    listed = run(bids, model, dry_run=True, sessions=["1", "2"])
    assert "(ses-3)" in " ".join(listed.warnings) and len(list(third.iterdir())) == 13
    shutil.rmtree(bids / "sub-01/ses-3")
    assert "sub-01: compared again, in a new space" in " ".join(run(bids, model).warnings)
    assert {path.name for path in third.iterdir()} == kept.keys()
    assert set(table(bids).session_id) == {"ses-1", "ses-2"}
    assert run(bids, model).warnings == []


def test_files_of_others_without_a_record_are_kept(model: Path, tmp_path: Path) -> None:
    bids = dataset(tmp_path / "bids", noisy(head(), 0), noisy(head(), 1))
    theirs = tmp_path / f"out/sub-01/ses-1/anat/sub-01_ses-1_{NATIVE}.nii.gz"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    with pytest.raises(OutputNotWritable, match="was not written by bidsseg"):
        run(bids, model)
    assert theirs.read_text() == "theirs"


def test_a_label_map_of_another_program_is_kept(twice: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(twice.parent, tmp_path / "copy")
    sidecar = tmp_path / f"copy/out/sub-01/ses-2/anat/sub-01_ses-2_{NATIVE}.json"
    sidecar.write_text('{"Manual": true}')
    with pytest.raises(OutputNotWritable, match="was not written by bidsseg"):
        run(tmp_path / "copy/bids", model, overwrite=True)
    assert sidecar.read_text() == '{"Manual": true}'
    sidecar.unlink()
    for manifest in (tmp_path / "copy/out/logs").glob("longitudinal-*.json"):
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "model": {"name": "other"}}))
    with pytest.raises(OutputNotWritable, match="was not written by bidsseg"):
        run(tmp_path / "copy/bids", model, overwrite=True)
    assert not sidecar.exists()


@pytest.mark.data
def test_a_real_scan_and_its_moved_copy(testdata: Path, tmp_path: Path) -> None:
    t1w, _ = read_image(testdata / "ds000011/sub-01/anat/sub-01_T1w.nii.gz")
    data = t1w.data.reshape(80, 2, 96, 2, 96, 2).mean((1, 3, 5))
    affine = t1w.affine @ from_matvec(2 * np.eye(3), [0.5, 0.5, 0.5])
    centre = from_matvec(np.eye(3), apply_affine(affine, np.array(data.shape) / 2))
    back = np.linalg.inv(centre @ motion(5, 8) @ np.linalg.inv(centre) @ affine) @ affine
    moved = ndimage.affine_transform(data, back[:3, :3], back[:3, 3], order=3).clip(0)
    for label, image in enumerate((data, moved), 1):
        phantoms.save(tmp_path / f"bids/sub-01/ses-{label}/anat/sub-01_ses-{label}_T1w.nii.gz", image, affine)
    (tmp_path / "bids/dataset_description.json").write_text('{"Name": "moved", "BIDSVersion": "1.10.0"}')
    for level in (participant_level, longitudinal_level):
        given: dict[str, Any] = {"skip_validation": True, "precision": "fp32", "n_cpus": 1, "model": "locator"}
        level(Settings(tmp_path / "bids", tmp_path / "out", report=RecordingConsole(), **given))
    for label in (1, 2):
        stem = tmp_path / f"out/sub-01/ses-{label}/anat/sub-01_ses-{label}_"
        native = Path(f"{stem}space-orig_seg-FreeSurfer_desc-locatorlongitudinal_dseg.nii.gz")
        assert overlap(native, Path(f"{stem}seg-FreeSurfer_desc-locator_dseg.nii.gz")) > 0.8, "a voxel beside: .72"


@pytest.mark.usefixtures("roughly")
@pytest.mark.parametrize("distance_mm", [10.0, 40.0])
def test_a_flair_that_was_moved_far_is_a_finding(
    distance_mm: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bidsseg.segmentation.together.located_brain", lambda images, model, engine: np.ones(1, bool))
    t1w = phantoms.save(tmp_path / "sub-01_T1w.nii.gz", blobs(FIXED, shape := (48, 56, 48), T1W).data, FIXED)
    other = phantoms.save(
        tmp_path / "sub-01_FLAIR.nii.gz", blobs(FIXED, shape, FLAIR).data, motion(distance_mm, 0) @ FIXED
    )
    model: Any = SimpleNamespace(card=SimpleNamespace(inputs=("T1w", "FLAIR")))
    session = series._read(Scan({"subject": "01"}, t1w, other), model, Engine())
    assert ("MOVED_FAR" in {finding.code for finding in session.findings}) == (distance_mm > 20)
    assert len(session.notes) == 1


# -- lesions -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("roughly")
def test_lesions_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meaning = {"brain": [0, 1, 1, 1], "FASTlesion": [0, 3, 2, 4]}
    inputs = ("T1w", "FLAIR")
    model = save_tiny(
        tmp_path / "m", monkeypatch, SecondImage, meaning, inputs=inputs, lesion="FASTlesion", spacing_mm=4.0
    )
    bids = dataset(tmp_path / "bids", noisy(head(), 0), noisy(head(), 1))
    lesions = {1: [(-26, 10, 20, 18), (28, 20, 20, 18)], 2: [(-26, 10, 20, 23), (28, -28, 20, 18)]}
    for label, places in lesions.items():
        path = bids / f"sub-01/ses-{label}/anat/sub-01_ses-{label}_FLAIR.nii.gz"
        phantoms.save(path, flair(*places), AFFINE, unit="mm" if label == 1 else None)
    phantoms.save(bids / "sub-01/ses-3/anat/sub-01_ses-3_T1w.nii.gz", noisy(head(), 2), AFFINE)
    console = run(bids, model)
    assert any(text.startswith("sub-01 ses-2: FLAIR: The header gives no unit") for text in console.warnings)
    assert any("sub-01_ses-3 is skipped: tiny needs a FLAIR" in text for text in console.warnings)
    rows = pd.read_csv(tmp_path / "out/sub-01/anat/sub-01_label-lesion_desc-tiny_longitudinal.tsv", sep="\t")
    large = rows[rows.groupby("lesion")["volume-mm3"].transform("max") > 5000]
    second = large[large.session_id == "ses-2"]
    centres = {str(row["status"]): (float(row["x-mm"]), float(row["y-mm"])) for _, row in second.iterrows()}
    assert centres.keys() == {"enlarged", "vanished", "new"}
    assert centres["enlarged"][0] < 0 < centres["new"][0]
    assert centres["new"][1] < centres["vanished"][1]
    mask = load_nifti(tmp_path / "out/sub-01/ses-2/anat/sub-01_ses-2_space-halfway_label-lesion_desc-tiny_mask.nii.gz")
    assert np.asarray(mask.dataobj).sum() == pytest.approx(rows[rows.session_id == "ses-2"]["volume-mm3"].sum() / 64)
    native = tmp_path / "out/sub-01/ses-2/anat/sub-01_ses-2_space-orig_seg-FASTlesion_desc-tinylongitudinal_dseg.nii.gz"
    of_lesion = (np.asarray(load_nifti(native).dataobj) == 4).sum() * 64
    assert of_lesion == pytest.approx(rows[rows.session_id == "ses-2"]["volume-mm3"].sum(), rel=0.05)
    assert "vanished" in (tmp_path / "out/sub-01_desc-tiny_longitudinal.html").read_text()
    assert rows.groupby("lesion")["volume-mm3"].max().min() < 20000
    run(bids, model, least_lesion_mm3=20000.0)
    rows = pd.read_csv(tmp_path / "out/sub-01/anat/sub-01_label-lesion_desc-tiny_longitudinal.tsv", sep="\t")
    assert len(rows) and rows.groupby("lesion")["volume-mm3"].max().min() >= 20000
