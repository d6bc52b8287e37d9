"""Datasets of nnU-Net to BIDS, and back."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
from labelled import HALF, SHAPE
from recording_console import RecordingConsole

from bidsseg.app.cli import main
from bidsseg.errors import BidssegError, DataError
from bidsseg.learning.datasets import load_cases
from bidsseg.learning.nnunet import bids_to_nnunet, nnunet_to_bids, read_nnunet
from bidsseg.settings import Settings

CONTENT = {
    "channel_names": {"0": "FLAIR", "1": "T1"},
    "labels": {"background": 0, "Left-Half": 1, "Right-Half": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
CASES = ("brain_003", "sub-7_ses-1")


@pytest.fixture
def nnunet(tmp_path: Path) -> Path:
    """Two cases with two channels."""
    folder = tmp_path / "Dataset042_Halves"
    head = phantoms.head(2 * HALF, SHAPE, phantoms.LABEL)
    halves = np.where(np.arange(SHAPE[0]) < SHAPE[0] // 2, 2, 1)[:, None, None].astype(np.uint8) * (head > 0)
    for case in CASES:
        for channel, contrast in enumerate((phantoms.FLAIR_INTENSITY, phantoms.INTENSITY)):
            image = phantoms.head(2 * HALF, SHAPE, contrast).astype(np.int16)
            phantoms.save(folder / "imagesTr" / f"{case}_{channel:04}.nii.gz", image, HALF)
        phantoms.save(folder / "labelsTr" / f"{case}.nii.gz", halves, HALF)
    (folder / "dataset.json").write_text(json.dumps(CONTENT))
    return folder


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]


def test_hidden_files_of_macos_are_no_cases(nnunet: Path, tmp_path: Path) -> None:
    for path in [*nnunet.glob("*Tr/*.nii.gz")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0")
    nnunet_to_bids(nnunet, tmp_path / "bids", RecordingConsole())
    assert not [*(tmp_path / "bids").rglob("._*")]


def test_there_and_back(nnunet: Path, tmp_path: Path) -> None:
    bids, back = tmp_path / "bids", tmp_path / "Dataset043_Back"
    assert main(["convert", "nnunet", str(nnunet), str(bids)]) == 0
    labels = bids / "derivatives" / "nnunet"
    stem = bids / "sub-7" / "ses-1" / "anat" / "sub-7_ses-1"
    assert Path(f"{stem}_T1w.nii.gz").read_bytes() == (nnunet / "imagesTr" / "sub-7_ses-1_0001.nii.gz").read_bytes()
    assert Path(f"{stem}_FLAIR.nii.gz").is_file()
    settings = Settings(bids, tmp_path / "out", labels={"": [labels]}, report=RecordingConsole())
    cases = load_cases(settings, settings.report)
    assert [case.name for case in cases] == ["bids/sub-7_ses-1", "bids/sub-brain003"]
    regions = cases[0].annotations[0].protocol.regions
    assert [region.name for region in regions] == ["Background", "Left-Half", "Right-Half"]

    assert main(["convert", "bids", str(bids), str(back), "--labels", str(labels)]) == 0
    content = json.loads((back / "dataset.json").read_text())
    assert content == {**CONTENT, "channel_names": {"0": "T1w", "1": "FLAIR"}}
    for ours, theirs in (("sub-7_ses-1", CASES[1]), ("sub-brain003", CASES[0])):
        assert np.array_equal(voxels(back / f"labelsTr/{ours}.nii.gz"), voxels(nnunet / f"labelsTr/{theirs}.nii.gz"))
        for channel, other in ((0, 1), (1, 0)):
            image = voxels(back / f"imagesTr/{ours}_{channel:04}.nii.gz")
            assert np.array_equal(image, voxels(nnunet / f"imagesTr/{theirs}_{other:04}.nii.gz"))
    assert read_nnunet(back).protocol.indices == (0, 1, 2)


def test_labels_are_numbered_for_nnunet(nnunet: Path, tmp_path: Path) -> None:
    nnunet_to_bids(nnunet, tmp_path / "bids", RecordingConsole())
    labels = tmp_path / "bids" / "derivatives" / "nnunet"
    table = "index\tname\tscored\n0\tBackground\t1\n1\tLeft-Half\t0\n2\tRight-Half\t1\n"
    (labels / "seg-Halves_dseg.tsv").write_text(table)
    assert main(["convert", "bids", str(tmp_path / "bids"), str(tmp_path / "back"), "--labels", str(labels)]) == 0
    content = json.loads((tmp_path / "back" / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "Right-Half": 1, "ignore": 2}
    before, after = (
        voxels(nnunet / "labelsTr/sub-7_ses-1.nii.gz"),
        voxels(tmp_path / "back/labelsTr/sub-7_ses-1.nii.gz"),
    )
    assert np.array_equal(after, np.array([0, 2, 1])[before])


def test_labels_are_read_as_in_a_training(nnunet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mask may have the value 255; two regions of one name are refused."""
    bids, masks = tmp_path / "bids", tmp_path / "masks"
    labels = nnunet_to_bids(nnunet, bids, RecordingConsole())
    for path in labels.glob("sub-*/**/*_dseg.nii.gz"):
        mask = masks / path.relative_to(labels).with_name(path.name.replace("seg-Halves_dseg", "label-brain_mask"))
        phantoms.save(mask, np.where(voxels(path) > 0, 255, 0).astype(np.uint8), HALF)
    assert main(["convert", "bids", str(bids), str(tmp_path / "one"), "--labels", str(masks)]) == 0
    assert "the value 255 of the mask is read as 1 (and 1 more label maps)" in capsys.readouterr().out
    assert np.unique(voxels(tmp_path / "one/labelsTr/sub-brain003.nii.gz")).tolist() == [0, 1]
    table = labels / "seg-Halves_dseg.tsv"
    table.write_text(table.read_text().replace("Right-Half", "Left-Half"))
    assert main(["convert", "bids", str(bids), str(tmp_path / "two"), "--labels", str(labels)]) == 65
    assert "the values 1, 2 have the same name, 'Left-Half'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["background", "ignore"])
def test_a_region_with_a_name_of_nnunet_is_refused(nnunet: Path, tmp_path: Path, name: str) -> None:
    labels = nnunet_to_bids(nnunet, tmp_path / "bids", RecordingConsole())
    (table,) = labels.glob("*_dseg.tsv")
    table.write_text(table.read_text().replace("Right-Half", name))
    settings = Settings(tmp_path / "bids", tmp_path / "out", labels={"": [labels]}, report=RecordingConsole())
    with pytest.raises(DataError, match=rf"the value 2 of Halves has the name '{name}'.* rename it in the table"):
        bids_to_nnunet(settings, tmp_path / "back", settings.report)
    assert not (tmp_path / "back").exists()


def test_the_first_version_of_the_format(nnunet: Path) -> None:
    old = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "255": "ignore"}}
    (nnunet / "dataset.json").write_text(json.dumps(old))
    dataset = read_nnunet(nnunet)
    assert dataset.channels == {0: "T1w"}
    assert [(region.index, region.scored) for region in dataset.protocol.regions] == [
        (0, True),
        (1, True),
        (255, False),
    ]


@pytest.mark.parametrize(
    "change, code, reason",
    [
        ({"channel_names": {"0": "FLAIR", "1": "T1ce"}}, 65, "must have one T1"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, 65, "the label whole has several values"),
        ({"channel_names": ["T1"]}, 65, "channel_names is a list: write names and numbers"),
        ({"channel_names": {"T1": "T1"}}, 65, "channel_names: 'T1' must be a whole number"),
        ({"labels": ["background", "x"]}, 65, "labels is a list: write names and numbers"),
        ({"labels": {"background": 0, "x": "one"}}, 65, "labels: 'one' must be a whole number"),
        ({"file_ending": ".mha"}, 65, r"convert them to NIfTI"),
        ({"channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"}}, 66, "_0002.nii.gz: no such file"),
    ],
)
def test_what_cannot_be_converted_is_named(nnunet: Path, tmp_path: Path, change: Any, code: int, reason: str) -> None:
    (nnunet / "dataset.json").write_text(json.dumps(CONTENT | change))
    with pytest.raises(BidssegError, match=reason) as caught:
        nnunet_to_bids(nnunet, tmp_path / "bids", RecordingConsole())
    assert caught.value.code == code
    assert not (tmp_path / "bids").exists()


def test_two_cases_of_one_name_and_full_folders_are_refused(
    nnunet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in nnunet.glob("*/brain_003*"):
        path.with_name(path.name.replace("brain_003", "brain003")).write_bytes(path.read_bytes())
    assert main(["convert", "nnunet", str(nnunet), str(tmp_path / "bids")]) == 65
    assert "rename one case" in capsys.readouterr().err
    assert main(["convert", "nnunet", str(nnunet), str(nnunet)]) == 64
    assert main(["convert", "bids", str(nnunet), str(tmp_path / "new")]) == 64
    assert main(["convert", "tar", str(nnunet), str(tmp_path / "new")]) == 64
