"""Lesions from the command line: map, tables, places, the cohort's tables and the page, with a small real network."""

import json
import re
import shutil
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
from nibabel.affines import apply_affine
from tiny_model import Brightness, save_tiny

from bidsseg.app import cli
from bidsseg.labels import load_protocol

HEADS = {"brain": [0, 1, 1, 1], "FASTlesion": [0, 4, 2, 3]}
"""Regions of the four classes of brightness: nothing, lesion, grey matter, white matter."""
BRIGHTNESS = np.array([0, 5, 100, 150, 50])
"""Brightness of the background, fluid, grey matter, white matter and lesion."""
PROBABLE, IMPROBABLE = 74, 81
"""Brightness of the rim of the lesion on both sides of half-way between lesion and grey matter."""
CENTRE, HALF = np.array((-32, 10, 15)), np.array((10, 12, 10))
VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")
STEM = "sub-01_label-lesion_desc-tiny_morph"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return save_tiny(tmp_path / "model", monkeypatch, Brightness, HEADS, lesion="FASTlesion", spacing_mm=4.0)


@pytest.fixture
def run(tmp_path: Path, model: Path, make_bids: Callable[..., Path]) -> Callable[..., Path]:
    bids = make_bids(2)
    affine = phantoms.grid()
    where = apply_affine(affine, np.moveaxis(np.indices(phantoms.SHAPE), 0, -1)) - CENTRE
    image = BRIGHTNESS[phantoms.head(affine, phantoms.SHAPE, phantoms.LABEL).astype(int)].astype(np.float32)
    rim = (((where / HALF) ** 2).sum(-1) < 2) & (image != 50)
    image[rim] = np.where(where[rim][:, 0] < 0, PROBABLE, IMPROBABLE)
    for number in (1, 2):
        phantoms.save(bids / f"sub-0{number}" / "anat" / f"sub-0{number}_T1w.nii.gz", image, affine)

    def command(*words: str, levels: tuple[str, ...] = ("participant",)) -> Path:
        given = [
            str(bids),
            str(tmp_path / "out"),
            *levels,
            "--model",
            str(model),
            "--skip-bids-validation",
            "--n-cpus",
            "1",
            *words,
        ]
        assert cli.main(given) == 0
        return tmp_path / "out"

    return command


def table(path: Path) -> Any:
    """Return a table, in which n/a is a missing value."""
    return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)


def add_anatomy(output: Path, participant: str = "sub-01") -> np.ndarray:
    """Write a label map of another model: the left half is white matter, with a ventricle, cortex and cerebellum."""
    folder = output / participant / "anat"
    grid = nib.Nifti1Image.from_filename(folder / f"{participant}_desc-brain_mask.nii.gz")
    where = np.moveaxis(np.indices(grid.shape), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    labels = np.where(where[..., 0] < 0, 2, 41).astype(np.uint8)
    labels[np.abs(where - (0, 10, 15)).max(-1) < 8] = 4
    labels[where[..., 2] > 60] = 3
    labels[where[..., 2] < -40] = 47
    stem = folder / f"{participant}_seg-FreeSurfer_desc-other_dseg"
    phantoms.save(stem.with_suffix(".nii.gz"), labels, grid.affine)
    stem.with_suffix(".tsv").write_text(load_protocol("FreeSurfer").scored().to_tsv())
    return labels


def test_the_table_and_the_map_of_lesions(run: Callable[..., Path]) -> None:
    folder = run() / "sub-01" / "anat"
    lesions = table(folder / f"{STEM}.tsv")
    found = nib.Nifti1Image.from_filename(folder / "sub-01_desc-tinylesions_dseg.nii.gz")
    mask = nib.Nifti1Image.from_filename(folder / "sub-01_label-lesion_desc-tiny_mask.nii.gz")
    labels = np.asarray(found.dataobj)
    assert np.array_equal(labels > 0, np.asarray(mask.dataobj) > 0)
    assert np.array_equal(np.bincount(labels.ravel())[1:], lesions["voxels"])
    assert list(lesions["index"]) == list(range(1, len(lesions) + 1))
    assert lesions["volume-mm3"].is_monotonic_decreasing
    largest = lesions.iloc[0]
    assert len(lesions) == 1
    assert np.abs(largest[["x-mm", "y-mm", "z-mm"]].to_numpy(float) - CENTRE - (-2, 0, 0)).max() < 2
    assert largest["volume-mm3"] == pytest.approx(4 / 3 * np.pi * np.prod(HALF) * (1 + 2**1.5) / 2, rel=0.1)
    assert largest["diameter-mm"] == pytest.approx(2 * 12 * 2**0.5, abs=6)
    assert 0.7 < largest["probability"] < 1
    assert lesions["place"].isna().all()
    lookup = pd.read_csv(folder / "sub-01_desc-tinylesions_dseg.tsv", sep="\t")
    assert list(lookup["index"]) == list(range(len(lesions) + 1))
    sidecar = json.loads((folder / f"{STEM}.json").read_text())
    assert set(lesions.columns) <= sidecar.keys()
    assert (sidecar["LesionThreshold"], sidecar["LeastLesionVolume"]) == ("most probable region", 0.0)
    assert (folder.parent / "figures" / "sub-01_label-lesion_desc-tiny_dseg.png").is_file()


def test_places_and_regions_come_from_a_map_that_is_written_later(run: Callable[..., Path]) -> None:
    output = run()
    labels = add_anatomy(output)
    folder = output / "sub-01" / "anat"
    run(levels=("group",))
    lesions = table(folder / f"{STEM}.tsv")
    assert lesions["place"][0] == "deep white"
    assert lesions["ventricle-mm"].notna().all()
    sidecar = json.loads((folder / f"{STEM}.json").read_text())
    assert sidecar["Anatomy"] == "sub-01_seg-FreeSurfer_desc-other_dseg.nii.gz"
    by_region = folder / "sub-01_seg-FreeSurfer_label-lesion_desc-tiny+other_morph.tsv"
    regions = table(by_region).set_index("index")
    found = np.asarray(nib.Nifti1Image.from_filename(folder / "sub-01_desc-tinylesions_dseg.nii.gz").dataobj)
    for index, row in regions.iterrows():
        inside = found[labels == index]
        assert row["volume-mm3"] == np.count_nonzero(inside) * 64
        assert row["lesions"] == len(np.unique(inside[inside > 0]))
    assert regions["volume-mm3"].sum() == lesions["volume-mm3"].sum()
    assert regions.loc[3, "nearest-mm3"] == lesions["volume-mm3"].sum()
    assert np.isnan(regions.loc[2, "nearest-mm3"])
    page = (output / "sub-01.html").read_text()
    assert f"Lesions: {len(lesions)}," in page and "Lesions in FreeSurfer · other" in page and "deep white" in page
    cohort = table(output / "group_label-lesion_desc-tiny_morph.tsv").set_index("participant_id")
    assert cohort.loc["sub-01", "deep-white"] >= 1
    assert cohort.loc["sub-01", "volume-mm3"] == lesions["volume-mm3"].sum()
    assert np.isnan(cohort.loc["sub-02", "deep-white"])  # without anatomy
    assert cohort.loc["sub-02", "volume-mm3"] > 0
    rows = table(output / "group_seg-FreeSurfer_label-lesion_desc-tiny+other_morph.tsv")
    assert set(rows["participant_id"]) == {"sub-01"} and list(rows["index"]) == list(regions.index)
    before = by_region.stat().st_mtime_ns
    for name in ("sub-01_desc-tiny", "sub-03_desc-tiny", "sub-02_desc-mine"):
        mark = "" if "mine" in name else '<meta name="generator" content="bidsseg 1">'
        (output / f"{name}_longitudinal.html").write_text(f"<html><head>{mark}</head></html>")
    run(levels=("group",))
    of_cohort = (output / "group.html").read_text()
    assert "Lesions · tiny" in of_cohort and "The places are known in 1 of 2 scans." in of_cohort
    assert "<td>deep white</td>" in of_cohort and f"{cohort['volume-mm3'].mean() / 1000:.2f} ± 0.00" in of_cohort
    links = re.findall(r'<a href="(\S*longitudinal\S*)">', of_cohort)
    assert links == ["sub-01_desc-tiny_longitudinal.html"], "not of a participant of no scan, or of another program"
    assert by_region.stat().st_mtime_ns == before  # newer than its label maps


def test_lesions_are_those_of_the_runs_that_count(run: Callable[..., Path], tmp_path: Path) -> None:
    scan = tmp_path / "bids/sub-01/anat/sub-01_T1w.nii.gz"
    shutil.copy(scan, scan.with_name("sub-01_run-2_T1w.nii.gz"))
    output = run()
    for words, runs in (((), ["n/a", "run-2", "n/a"]), (("--runs", "first"), ["n/a", "n/a"])):
        run(*words, levels=("group",))
        rows = pd.read_csv(output / "group_label-lesion_desc-tiny_morph.tsv", sep="\t", keep_default_na=False)
        assert rows.get("run_id", pd.Series(["n/a"] * len(rows))).tolist() == runs


def test_places_come_with_the_scan_if_the_map_is_there(run: Callable[..., Path]) -> None:
    output = run()
    add_anatomy(output)
    run("--overwrite")
    folder = output / "sub-01" / "anat"
    assert table(folder / f"{STEM}.tsv")["place"].notna().all()
    assert (folder / "sub-01_seg-FreeSurfer_label-lesion_desc-tiny+other_morph.tsv").is_file()
    labels = set(table(output / "descriptions.tsv")["desc_id"])
    assert labels >= {"desc-tiny", "desc-tinylesions", "desc-tiny+other"} and "desc-other+tiny" not in labels
    assert "- `tiny+other`: Lesions of the first model" in (output / "README.md").read_text()
    assert "Places refer to sub-01_seg-FreeSurfer_desc-other_dseg.nii.gz" in (output / "sub-01.html").read_text()


def test_no_lesions(run: Callable[..., Path]) -> None:
    output = run()
    folder = output / "sub-01" / "anat"
    figure = output / "sub-01" / "figures" / "sub-01_label-lesion_desc-tiny_dseg.png"
    columns = list(table(folder / f"{STEM}.tsv").columns)
    assert figure.is_file()
    add_anatomy(output)
    run("--min-lesion-volume", "1e6", levels=("participant", "group"))
    lesions = table(folder / f"{STEM}.tsv")
    assert len(lesions) == 0 and list(lesions.columns) == columns
    assert json.loads((folder / f"{STEM}.json").read_text())["LeastLesionVolume"] == 1e6
    for name in ("sub-01_desc-tinylesions_dseg", "sub-01_label-lesion_desc-tiny_mask"):
        assert not np.asarray(nib.Nifti1Image.from_filename(folder / f"{name}.nii.gz").dataobj).any()
    tissue = nib.Nifti1Image.from_filename(folder / "sub-01_seg-FASTlesion_desc-tiny_dseg.nii.gz")
    assert not np.any(np.asarray(tissue.dataobj) == 4) and not figure.exists()
    regions = table(folder / "sub-01_seg-FreeSurfer_label-lesion_desc-tiny+other_morph.tsv")
    assert len(regions) > 30 and not regions["volume-mm3"].any() and not regions["lesions"].any()
    cohort = table(output / "group_label-lesion_desc-tiny_morph.tsv")
    assert list(cohort["lesions"]) == [0, 0] and list(cohort["volume-mm3"]) == [0, 0]
    assert list(cohort["periventricular"]) == [0, 0]
    assert "Lesions: 0, 0.00 ml" in (output / "sub-01.html").read_text()


def test_the_threshold_changes_mask_and_label_map_and_recomputes(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output = run("--participant-label", "01")
    folder = output / "sub-01" / "anat"

    def voxels() -> tuple[int, int, int]:
        mask = nib.Nifti1Image.from_filename(folder / "sub-01_label-lesion_desc-tiny_mask.nii.gz")
        tissue = nib.Nifti1Image.from_filename(folder / "sub-01_seg-FASTlesion_desc-tiny_dseg.nii.gz")
        counted = int(table(folder / "sub-01_seg-FASTlesion_desc-tiny_morph.tsv").set_index("index")["voxels"][4])
        inside = np.asarray(mask.dataobj) > 0
        assert np.array_equal(inside, np.asarray(tissue.dataobj) == 4)
        return int(inside.sum()), counted, int(np.count_nonzero(tissue.dataobj))

    usual = voxels()
    run("--lesion-threshold", "0.999", "--participant-label", "01")
    strict = voxels()
    run("--lesion-threshold", "0.02", "--participant-label", "01")
    loose = voxels()
    assert strict[0] < usual[0] < loose[0]
    for mask, counted, brain in (usual, strict, loose):
        assert mask == counted and brain == usual[2]  # voxels that are no longer a lesion have another region
    run("--min-lesion-peak", "1", "--participant-label", "01")
    assert json.loads((folder / f"{STEM}.json").read_text())["LeastLesionPeak"] == 1
    run("--participant-label", "01")
    assert voxels() == usual
    run("--participant-label", "02", "--lesion-threshold", "0.999")
    run(levels=("group",))
    assert "the lesions of the scans cannot be compared, since --lesion-threshold, --min" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("--lesion-threshold", "0"),
        ("--lesion-threshold", "1.5"),
        ("--min-lesion-volume", "-1"),
        ("--min-lesion-peak", "2"),
    ],
)
def test_impossible_values(words: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(tmp_path), str(tmp_path / "out"), "participant", *words]) == 64
    assert f"{words[0]} {float(words[1]):g}: give a" in capsys.readouterr().err


@pytest.mark.skipif(not VALIDATOR.is_file(), reason="the BIDS validator is not installed")
def test_the_outputs_are_valid(run: Callable[..., Path]) -> None:
    output = run("--participant-label", "01")
    add_anatomy(output)
    run(levels=("group",))
    done = subprocess.run([VALIDATOR, output, "--format", "json"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    named = [
        issue for issue in issues if issue["severity"] == "error" and "desc-other" not in issue.get("location", "")
    ]
    assert named == []
