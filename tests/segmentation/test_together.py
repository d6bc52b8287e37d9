"""Several scans shown to a network alike, and their labels on the grid of each."""

from pathlib import Path

import numpy as np
import phantoms
import pytest
from moved_heads import motion
from tiny_model import save_tiny

from bidsseg.image.volume import Volume, from_canonical
from bidsseg.models.library import load_model
from bidsseg.registration.halfway import HalfwaySpace
from bidsseg.segmentation.engine import Engine
from bidsseg.segmentation.together import NativeScan, segment_together

SHAPE = (50, 58, 52)
AFFINE = phantoms.grid(4.0, "RAS", SHAPE, 0)


def head(seed: int) -> Volume:
    """Return a noisy head without scalp and skull."""
    data = phantoms.head(AFFINE, SHAPE)
    data[(data == 180) | (data == 25)] = 0
    return Volume((data + np.random.default_rng(seed).normal(0, 3, SHAPE)).clip(0).astype(np.float32), AFFINE)


def test_labels_on_the_common_grid_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(str(save_tiny(tmp_path, monkeypatch)))
    scans = [head(0), head(1)]
    tie = np.random.default_rng(2).uniform(0, 1, SHAPE).round().astype(np.float32)
    flipped = Volume(scans[1].data[::-1], AFFINE @ np.array([[-1, 0, 0, SHAPE[0] - 1], *np.eye(4)[1:]]))
    natives = [NativeScan(scans[0], np.eye(4)), NativeScan(flipped, np.eye(4))]
    results, labels = segment_together([{"T1w": s} for s in scans], model, Engine(), tie=tie, natives=natives)
    assert (results[0].labels["FAST"] != results[1].labels["FAST"]).any()
    for result, scan, found in zip(results, natives, labels, strict=True):
        expected = from_canonical(result.labels["FAST"], scan.volume.affine)
        assert (found["FAST"] != expected).mean() < 1e-5, "apart from rounding"


def test_labels_on_another_grid_are_where_the_motion_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(str(save_tiny(tmp_path, monkeypatch, spacing_mm=4.0)))
    pose, shape = motion(5, 8), (60, 48, 64)
    grid = phantoms.grid(3.5, "PSR", shape, 10)
    space = HalfwaySpace([np.eye(4)], shape, grid)
    native = Volume(space.resampled(head(0), np.linalg.inv(pose)), grid)
    (result,), (labels,) = segment_together(
        [{"T1w": head(0)}], model, Engine(), tie=np.zeros(SHAPE, np.float32), natives=[NativeScan(native, pose)]
    )
    expected = space.resampled(Volume(result.labels["FAST"] == 3, AFFINE), np.linalg.inv(pose)) > 0.5
    found = labels["FAST"] == 3
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.9
