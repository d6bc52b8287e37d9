"""Smooth heads at several sessions, with a known change, and the level that compares them."""

from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from nibabel.affines import apply_affine
from recording_console import RecordingConsole

from bidsseg.levels.longitudinal import longitudinal_level
from bidsseg.registration import linear
from bidsseg.settings import Settings

SHAPE = (50, 58, 52)
AFFINE = phantoms.grid(4.0, "LAS", SHAPE, 5)


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
    x, y, z = np.moveaxis(points, -1, 0)
    folds = 6 * np.sin(x / 9) * np.sin(y / 11 + 1) * np.sin(z / 10 + x / 17)  # without them, poses look alike
    found: np.ndarray = np.where(brightness > 20, brightness + folds, brightness).astype(np.float32)
    return found


def noisy(data: np.ndarray, seed: int) -> np.ndarray:
    image: np.ndarray = np.abs(data + np.random.default_rng(seed).normal(0, 1.5, data.shape)).astype(np.float32)
    return image


def dataset(root: Path, *sessions: np.ndarray, participant: str = "01") -> Path:
    """Write a dataset of one participant, with the given images as sessions, and return its folder."""
    for label, data in enumerate(sessions, 1):
        stem = f"sub-{participant}_ses-{label}"
        phantoms.save(root / f"sub-{participant}/ses-{label}/anat/{stem}_T1w.nii.gz", data, AFFINE)
    (root / "dataset_description.json").write_text('{"Name": "heads", "BIDSVersion": "1.10.0"}')
    return root


def flair(*lesions: tuple[int, int, int, int]) -> np.ndarray:
    """Return a FLAIR of a head without grey matter, with balls of lesion, each with its centre and radius in mm."""
    image = phantoms.head(AFFINE, SHAPE, phantoms.FLAIR_INTENSITY)
    image[(image == 140) | (image == 20)] = 0  # scalp and skull
    image[image > 100] = 80  # grey matter, and the lesion of the phantom
    points = apply_affine(AFFINE, np.moveaxis(np.indices(SHAPE), 0, -1))
    for x, y, z, radius in lesions:
        image[((points - [x, y, z]) ** 2).sum(-1) < radius**2] = 180
    return np.where(image > 0, noisy(image, sum(map(sum, lesions)) % 7), 0)


def run(bids: Path, model: Path, **more: Any) -> RecordingConsole:
    """Run the level, with a third of the usual voxels in registrations at most, and return the recorded messages."""
    console = RecordingConsole()
    given = {"skip_validation": True, "precision": "fp32", "n_cpus": 1, "report": console, **more}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "SAMPLES", min(linear.SAMPLES, 10_000))
        longitudinal_level(Settings(bids, bids.parent / "out", model=str(model), **given))
    return console
