"""Values of other images in the regions of a scan."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
from fake_model import App, make_app, save_card
from nifti import load_nifti

from bidsseg.arguments import measures
from bidsseg.bids.measured import find_measured
from bidsseg.bids.scan import Image
from bidsseg.derivative.measures import sampled
from bidsseg.errors import InputMissing, UsageError

SHAPE = (24, 28, 24)
GRID = phantoms.grid(8.0, "LAS", SHAPE)


@pytest.fixture
def app(tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> App:
    """Two participants on coarse grids."""
    return make_app(tmp_path, make_bids(2, spacing_mm=8.0, shape=SHAPE), monkeypatch)


def run(app: App, *words: str, level: str = "participant") -> int:
    return app("--skip-bids-validation", *words, level=level)


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return {row["abbreviation"]: row for row in csv.DictReader(stream, delimiter="\t")}


def stats(app: App, name: str, label: str = "01") -> Path:
    return app.output / f"sub-{label}/anat/sub-{label}_meas-{name}_seg-FAST_desc-wholebrain_stats.tsv"


def labels_of(app: App, label: str = "01") -> np.ndarray:
    image = load_nifti(app.output / f"sub-{label}/anat/sub-{label}_seg-FAST_desc-wholebrain_dseg.nii.gz")
    return np.asarray(image.dataobj)


def a_map(folder: Path, name: str = "sub-01_T1map.nii.gz", seed: int = 3) -> np.ndarray:
    values = np.random.default_rng(seed).normal(-5, 20, SHAPE).astype(np.float32)
    phantoms.save(folder / "sub-01/anat" / name, values, GRID)
    return values


def test_the_statistics_are_those_of_the_voxels(app: App, tmp_path: Path) -> None:
    values = a_map(tmp_path / "maps")
    values[8:12, 8:12, 8:12] = np.nan
    phantoms.save(tmp_path / "maps/sub-01/anat/sub-01_T1map.nii.gz", values, GRID)
    assert run(app, "--measure", f"T1={tmp_path / 'maps'}", "--participant-label", "01") == 0
    rows, labels = rows_of(stats(app, "T1")), labels_of(app)
    for value, name in enumerate(("CSF", "GM", "WM"), 1):
        here = values[(labels == value) & np.isfinite(values)]
        found = [float(rows[name][column]) for column in ("mean", "median", "sd", "voxels")]
        np.testing.assert_allclose(found, [here.mean(), np.median(here), here.std(ddof=1), here.size], rtol=1e-4)
    assert int(rows["BrainMask"]["voxels"]) == int(((labels > 0) & np.isfinite(values)).sum())
    sidecar = json.loads(stats(app, "T1").with_suffix(".json").read_text())
    assert sidecar["Alignment"] == "on the grid of the T1w" and sidecar["Models"][0]["Name"] == "wholebrain"
    assert set(rows["GM"]) <= set(sidecar)


@pytest.mark.parametrize(("kind", "ending"), [(nib.Nifti2Image, ".nii.gz"), (nib.MGHImage, ".mgz")])
def test_voxels_without_a_value_are_left_out_in_every_format(tmp_path: Path, kind: type, ending: str) -> None:
    values = a_map(tmp_path)
    values[0, 0, :2] = np.nan, 1e13
    path = tmp_path / f"measured{ending}"
    nib.save(kind(values, GRID), path)
    found, _ = sampled(Image(path, {}, "T1map"), tmp_path / "sub-01/anat/sub-01_T1map.nii.gz", np.ones(SHAPE, bool))
    assert np.isnan(found[:2]).all()
    assert np.array_equal(found[2:], values.ravel()[2:])


def test_voxels_in_another_order_are_not_interpolated(tmp_path: Path) -> None:
    values = a_map(tmp_path)
    values[0, 0, :2] = np.nan, 1e13
    path = tmp_path / "measured.nii.gz"
    nib.save(nib.Nifti1Image(values, GRID).as_reoriented(np.array([[2, 1], [0, -1], [1, -1]])), path)
    inside = np.ones(SHAPE, bool)
    found, note = sampled(Image(path, {}, "T1map"), tmp_path / "sub-01/anat/sub-01_T1map.nii.gz", inside)
    assert note == "on the grid of the T1map" and np.isnan(found[:2]).all()
    assert np.array_equal(found[2:], values.ravel()[2:])


def test_an_image_on_another_grid_is_aligned(
    tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("SimpleITK")
    app = make_app(tmp_path, make_bids(1, flair=True), monkeypatch)
    assert run(app, "--measure", "FLAIR", "--participant-label", "01") == 0
    rows = rows_of(stats(app, "FLAIR"))
    assert 60 < float(rows["WM"]["median"]) < 95 and 90 < float(rows["GM"]["median"]) < 125
    sidecar = json.loads(stats(app, "FLAIR").with_suffix(".json").read_text())
    assert "moved by" in sidecar["Alignment"] and sidecar["Sources"] == ["bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz"]


def test_a_map_in_the_space_of_the_t1w_is_not_moved_and_not_extrapolated(app: App, tmp_path: Path) -> None:
    shape = (24, 28, 20)
    affine = phantoms.grid((4.0, 4.0, 4.0), "RAS", shape)
    place = np.indices(shape)[0] * 4.0 + affine[0, 3]
    path = tmp_path / "maps/sub-01/anat/sub-01_space-T1w_desc-x_T1map.nii.gz"
    phantoms.save(path, place.astype(np.float32), affine)
    assert run(app, "--measure", f"x={tmp_path / 'maps'}", "--participant-label", "01") == 0
    labels = labels_of(app)
    voxels = np.argwhere(labels == 3)
    points = voxels @ GRID[:3, :3].T + GRID[:3, 3]
    inside = (np.abs(points) <= (np.array(shape) - 1) * 2.0 + 1e-6).all(axis=1)
    row = rows_of(stats(app, "x"))["WM"]
    assert 0 < int(row["voxels"]) == inside.sum() < len(voxels)
    assert float(row["mean"]) == pytest.approx(points[inside, 0].mean(), abs=1e-3)


def test_an_image_in_the_space_of_the_scan_is_measured(tmp_path: Path) -> None:
    for name in ("T2w", "space-A_T2w", "space-A_res-2_T2w"):
        a_map(tmp_path, f"sub-01_{name}.nii.gz")

    def found(**source: str) -> str:
        return find_measured({"subject": "01", **source}, "T2w", "T2w", bids_dir=tmp_path).path.name

    assert found() == "sub-01_T2w.nii.gz"
    assert found(space="A") == "sub-01_space-A_T2w.nii.gz"
    assert found(space="A", res="2") == "sub-01_space-A_res-2_T2w.nii.gz"
    with pytest.raises(InputMissing, match=r"no T2w image of sub-01 in .*; in another space than the scan: sub-01_T2w"):
        found(space="B")


def test_a_map_of_another_resolution_in_the_space_of_the_scan_is_not_moved(tmp_path: Path) -> None:
    a_map(tmp_path, "sub-01_space-A_T1w.nii.gz")
    shape = (48, 56, 48)
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    fine = phantoms.save(tmp_path / "map.nii.gz", values, phantoms.grid(4.0, "LAS", shape))
    t1w = tmp_path / "sub-01/anat/sub-01_space-A_T1w.nii.gz"
    _, note = sampled(Image(fine, {"space": "A"}, "map"), t1w, np.ones(SHAPE, bool))
    assert note == "on another grid in the space of the T1w; linearly interpolated"


def test_a_model_without_label_maps_measures_nothing(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    save_card(app.card, heads=("brain",))
    assert run(app, "--measure", "T1w") == 64
    assert "--measure: the model wholebrain has no label maps to measure in" in capsys.readouterr().err
    assert app.fake.segmented == 0


def test_finished_scans_are_measured_once(app: App, tmp_path: Path) -> None:
    a_map(tmp_path / "maps")
    assert run(app) == 0
    segmented = app.fake.segmented
    words = ("--measure", f"T1={tmp_path / 'maps'}")
    assert run(app, *words) == 0
    assert app.fake.segmented == segmented and stats(app, "T1").is_file()
    before = stats(app, "T1").stat().st_mtime_ns
    assert run(app, *words) == 0
    assert stats(app, "T1").stat().st_mtime_ns == before
    a_map(tmp_path / "maps", seed=4)
    assert run(app, *words) == 0
    assert stats(app, "T1").stat().st_mtime_ns != before, "the map was replaced"


def test_a_new_result_leaves_no_table_of_the_old_one(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bidsseg.image.conformed.SIZE", 64)
    a_map(tmp_path / "maps")
    words = ("--participant-label", "01", "--freesurfer", str(tmp_path / "subjects"))
    assert run(app, *words, "--measure", f"T1={tmp_path / 'maps'}") == 0
    aseg = app.output / "sub-01/anat/sub-01_desc-aseg_dseg.nii.gz"
    foreign = stats(app, "T1").with_name("sub-01_meas-T1_seg-FAST_desc-other_stats.tsv")
    foreign.touch()
    assert stats(app, "T1").is_file() and aseg.is_file()
    assert run(app, "--participant-label", "01", "--overwrite") == 0
    assert not stats(app, "T1").exists() and not aseg.exists() and foreign.exists()


def test_a_killed_run_leaves_both_files_or_none(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*given: Any, **named: Any) -> None:
        raise RuntimeError("killed here")

    words = ("--measure", f"T1={tmp_path / 'maps'}", "--participant-label", "01")
    a_map(tmp_path / "maps")
    assert run(app, *words[2:]) == 0
    for seed in (3, 4):
        before = {path: path.read_bytes() for path in stats(app, "T1").parent.glob("*_stats.*")}
        a_map(tmp_path / "maps", seed=seed)
        with monkeypatch.context() as patch:
            patch.setattr("pandas.DataFrame.to_csv", killed)
            assert run(app, *words) != 0
        assert {path: path.read_bytes() for path in stats(app, "T1").parent.glob("*_stats.*")} == before
        assert run(app, *words) == 0
        assert len(list(stats(app, "T1").parent.glob("*_stats.*"))) == 6


def test_a_scan_without_the_image_is_a_warning(app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_map(tmp_path / "maps")
    assert run(app, "--measure", f"T1={tmp_path / 'maps'}") == 0
    assert stats(app, "T1").is_file() and not stats(app, "T1", "02").exists()
    assert "sub-02: --measure T1: no image of sub-02" in capsys.readouterr().err
    assert app.fates == {"sub-01": "done", "sub-02": "done"}


def test_a_table_of_another_program_is_kept(app: App, tmp_path: Path) -> None:
    a_map(tmp_path / "maps")
    stats(app, "T1").parent.mkdir(parents=True)
    stats(app, "T1").write_text("foreign")
    assert run(app, "--measure", f"T1={tmp_path / 'maps'}", "--participant-label", "01") == 73
    assert stats(app, "T1").read_text() == "foreign"


def test_measures_are_joined_to_the_long_table(app: App, tmp_path: Path) -> None:
    a_map(tmp_path / "maps")
    assert run(app, "--measure", f"T1={tmp_path / 'maps'}") == 0
    assert run(app, "--long", level="group") == 0
    path = app.output / "group_seg-FAST_desc-wholebrain_long.tsv"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    one = rows_of(stats(app, "T1"))
    assert {row["region"]: row["T1-mean"] for row in rows if row["participant_id"] == "sub-01"} == {
        "eTIV": "n/a",
        **{name: row["mean"] for name, row in one.items()},
    }
    assert {row["T1-median"] for row in rows if row["participant_id"] == "sub-02"} == {"n/a"}
    described = json.loads(path.with_suffix(".json").read_text())
    assert {"T1-mean", "T1-median", "T1-sd", "T1-voxels"} <= set(described)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["sub-01_T1map.nii.gz"], "sub-01_T1map.nii.gz"),
        (["sub-01_T1map.nii.gz", "sub-01_T2map.nii.gz"], "sub-01_T2map.nii.gz"),
        (["sub-01_desc-a_map.nii.gz", "sub-01_desc-T2map_map.nii.gz"], "sub-01_desc-T2map_map.nii.gz"),
        (["sub-01_run-1_T2map.nii.gz", "sub-01_run-02_T2map.nii.gz"], "sub-01_run-02_T2map.nii.gz"),
        (["sub-01_T2map.nii.gz", "sub-01_space-MNI152NLin6Asym_T2map.nii.gz"], "sub-01_T2map.nii.gz"),
        (["sub-01_T2map.nii.gz", "sub-01_mask.nii.gz", "sub-02_T2map.nii.gz"], "sub-01_T2map.nii.gz"),
        (["sub-01_acq-a_T2map.nii.gz", "sub-01_acq-b_T2map.nii.gz"], None),
        ([], None),
    ],
)
def test_the_image_of_the_scan_is_found(names: list[str], found: str | None, tmp_path: Path) -> None:
    (tmp_path / "sub-01/anat").mkdir(parents=True)
    for name in names:
        (tmp_path / "sub-01/anat" / name).touch()
    source = {"subject": "01", "run": "2"}
    if found is None:
        with pytest.raises(InputMissing):
            find_measured(source, "t2map", tmp_path, bids_dir=tmp_path)
    else:
        assert find_measured(source, "t2map", tmp_path, bids_dir=tmp_path).path.name == found


def test_what_is_measured_is_a_suffix_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "derivatives/maps").mkdir(parents=True)
    assert measures(["T2w", "x=FLAIR"], (), tmp_path) == {"T2w": "T2w", "x": "FLAIR"}
    assert measures([f"q={tmp_path}"], (), tmp_path) == {"q": tmp_path}
    assert measures(["q=maps"], (), tmp_path) == {"q": tmp_path / "derivatives/maps"}
    for wrong in ("a b=T2w", "=T2w", "x="):
        with pytest.raises(UsageError):
            measures([wrong], (), tmp_path)
    with pytest.raises(UsageError):
        measures(["T2w", "T2w"], (), tmp_path)
    with pytest.raises(InputMissing):
        measures(["q=/no/such/folder"], (), tmp_path)
