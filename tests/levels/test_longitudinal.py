"""The level longitudinal with a tiny model: what is written, and that only real changes are found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import phantoms
import pytest
from nibabel.affines import apply_affine, from_matvec
from nifti import load_nifti
from recording_console import RecordingConsole
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tiny_model import FAST_HEADS, SecondImage, save_tiny

from bidsseg.errors import DataError, NothingSelected, OutputNotWritable, UsageError
from bidsseg.levels.group import group_level
from bidsseg.levels.longitudinal import longitudinal_level
from bidsseg.settings import Settings

SHAPE = (50, 58, 52)
AFFINE = phantoms.grid(4.0, "LAS", SHAPE, 5)
TABLE = "sub-01/anat/sub-01_seg-FAST_desc-tiny_longitudinal.tsv"
DATES = "session_id\tacq_time\nses-1\t2020-01-01T10:00:00\nses-2\t2022-01-01T10:00:00\n"


def motion(distance_mm: float, angle_degrees: float) -> np.ndarray:
    """Return a rigid motion (4, 4) about the centre of the head, with an oblique axis and shift."""
    turn = Rotation.from_rotvec(angle_degrees * np.array([1.0, -2.0, 2.0]) / 3, degrees=True)
    rigid: np.ndarray = from_matvec(turn.as_matrix(), distance_mm * np.array([2.0, 1.0, -2.0]) / 3)
    return rigid


def head(*, ventricle: float = 1.0, moved: np.ndarray | None = None) -> np.ndarray:
    """Return a smooth head (X, Y, Z) whose ventricle is enlarged along each axis, after a motion; no noise."""
    back = np.eye(4) if moved is None else np.linalg.inv(moved)
    points = apply_affine(back @ AFFINE, np.moveaxis(np.indices(SHAPE), 0, -1))
    brightness = np.zeros(SHAPE)
    for name, tissue in phantoms.TISSUES.items():
        if name not in ("lesion", "scalp", "skull"):
            half = np.array(tissue[0]) * (ventricle if name == "ventricle" else 1)
            away = (np.sqrt((((points - np.array(tissue[1])) / half) ** 2).sum(-1)) - 1) * half.mean()
            inside = 1 / (1 + np.exp(np.clip(away / 1.5, -50, 50)))  # borders of 3 mm, as in a scan
            brightness += inside * (tissue[2] - brightness)
    turn = apply_affine(back @ AFFINE, np.moveaxis(np.indices(SHAPE), 0, -1))
    folds = 6 * np.sin(turn[..., 0] / 9) * np.sin(turn[..., 1] / 11 + 1) * np.sin(turn[..., 2] / 10 + turn[..., 0] / 17)
    found: np.ndarray = np.where(brightness > 20, brightness + folds, brightness).astype(np.float32)
    return found


def noisy(data: np.ndarray, seed: int) -> np.ndarray:
    image: np.ndarray = np.abs(data + np.random.default_rng(seed).normal(0, 1.5, data.shape)).astype(np.float32)
    return image


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a dataset of one participant, with the given images as sessions."""

    def write(*sessions: np.ndarray, labels: tuple[str, ...] = ("1", "2", "3"), name: str = "bids") -> Path:
        root = tmp_path / name
        for label, data in zip(labels, sessions, strict=False):
            phantoms.save(root / f"sub-01/ses-{label}/anat/sub-01_ses-{label}_T1w.nii.gz", data, AFFINE)
        (root / "dataset_description.json").write_text('{"Name": "heads", "BIDSVersion": "1.10.0"}')
        return root

    return write


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return save_tiny(tmp_path / "tiny", monkeypatch)


def run(bids: Path, model: Path, *, out: str = "out", **more: Any) -> RecordingConsole:
    """Run the level and return the recorded messages."""
    console = RecordingConsole()
    given = {"skip_validation": True, "precision": "fp32", "n_cpus": 1, "report": console, **more}
    longitudinal_level(Settings(bids, bids.parent / out, model=str(model), **given))
    return console


def table(bids: Path, out: str = "out") -> pd.DataFrame:
    return pd.read_csv(bids.parent / out / TABLE, sep="\t")


def change(bids: Path, name: str, out: str = "out") -> float:
    """Return the change (%) of a region at the second session."""
    rows = table(bids, out)
    return float(rows[(rows.session_id == "ses-2") & (rows["name"] == name)]["change-percent"].iloc[0])


def test_identical_scans_do_not_change(dataset: Callable[..., Path], model: Path) -> None:
    image = noisy(head(), 0)
    bids = dataset(image, image)
    run(bids, model)
    second = table(bids).query("session_id == 'ses-2'")
    assert len(second) == 4
    assert (second["change-mm3"] == 0).all() and (second["change-percent"] == 0).all()
    one, other = (
        load_nifti(bids.parent / f"out/sub-01/ses-{n}/anat/sub-01_ses-{n}_space-halfway_seg-FAST_desc-tiny_dseg.nii.gz")
        for n in (1, 2)
    )
    assert (np.asarray(one.dataobj) == np.asarray(other.dataobj)).all()
    assert np.asarray(one.dataobj).max() == 3
