"""Calibration: temperatures, the expected Dice of regions, and the quality of a scan."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from tiny_model import save_tiny

from bidsseg.image.nifti import read_image
from bidsseg.labels import load_protocol
from bidsseg.models.library import load_model
from bidsseg.segmentation.expected_dice import DRAWN, calibrate, calibrate_regions, calibrated, estimated
from bidsseg.segmentation.predict import segment

INDICES = np.array([0, 5, 9])


def test_the_estimate_is_the_dice_of_certain_labels() -> None:
    labels = np.array([0, 5, 5, 9], np.uint8)
    found = estimated(labels, np.ones(4, np.float16), np.array([1.0, 2.0, 1.0]), indices=INDICES)
    assert np.isnan(found[0])
    assert found[1:].tolist() == [1.0, 1.0]


def test_the_estimate_is_about_the_mean_dice_of_references_drawn_from_the_probabilities() -> None:
    random = np.random.default_rng(1)
    chance = random.dirichlet([1.0, 1.0, 1.0], 20_000)
    labels = INDICES[chance.argmax(1)]
    found = estimated(labels, chance.max(1), chance.sum(0), indices=INDICES)
    truth = INDICES[(random.random((20_000, 1)) > chance.cumsum(1)).sum(1)]
    for position, index in enumerate(INDICES[1:], 1):
        mine, real = labels == index, truth == index
        assert found[position] == pytest.approx(2 * (mine & real).sum() / (mine.sum() + real.sum()), abs=0.01)


def test_a_region_without_voxels_has_none() -> None:
    found = estimated(np.array([5]), np.array([0.9]), np.array([0.05, 0.9, 0.05]), indices=INDICES)
    assert np.isnan(found).tolist() == [True, False, True]
    assert np.isnan(calibrated(found, (0.0, 1.0))).tolist() == [True, False, True]


def test_calibration_finds_how_far_the_estimates_are_off() -> None:
    estimate = np.random.default_rng(2).uniform(0.4, 0.98, 500)
    dice = expit(-0.8 + 1.3 * logit(estimate))
    assert calibrate(estimate, dice) == pytest.approx((-0.8, 1.3), abs=0.02)
    assert np.abs(calibrated(estimate, calibrate(estimate, dice)) - dice).max() < 0.01
    assert calibrated(np.array([1.0]), (0.0, 1.0))[0] < 1


def test_regions_that_are_harder_than_their_probabilities_say_are_told() -> None:
    """One of two regions has a lower Dice in all eight participants, in one scan of each much lower."""
    estimate, regions = np.full(48, 0.8), ["easy", "hard"] * 24
    participants = [f"sub-{n // 6}" for n in range(48)]
    harder = np.array([0.0, 0.0, 0.0, -1.0, 0.0, -1.0] * 8) + np.array([0.0, -5.0, 0.0, 0.0, 0.0, 0.0] * 8)
    dice = expit(0.3 + logit(estimate) + harder)
    found = calibrate_regions(estimate, dice, (0.3, 1.0), regions=regions, participants=participants)
    assert found == {"easy": pytest.approx(0, abs=0.001), "hard": pytest.approx(-1.0 * 8 / (8 + DRAWN), abs=0.001)}
    assert calibrated(estimate[:2], (0.3, 1.0), np.array(list(found.values())))[1] < 0.8
    alone = calibrate_regions(np.array([0.8]), np.array([0.0]), (0.3, 1.0), regions=["hard"], participants=["sub-1"])
    assert -2.5 < alone["hard"] < -1, "a Dice of 0 is no infinite difference, and one participant hardly counts"


def test_the_quality_is_the_mean_over_the_regions_of_a_calibrated_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_bids: Callable[..., Path]
) -> None:
    t1w = read_image(make_bids(1) / "sub-01" / "anat" / "sub-01_T1w.nii.gz")[0]
    plain = segment({"T1w": t1w}, load_model(str(save_tiny(tmp_path / "plain", monkeypatch))))
    assert plain.expected_dice == {}
    folder = save_tiny(tmp_path / "calibrated", monkeypatch, expected_dice={"FAST": (-1.0, 1.0)})
    result = segment({"T1w": t1w}, load_model(str(folder)))
    dice = result.expected_dice["FAST"]
    assert np.isnan(dice[0]) and (dice[1:] > 0).all() and (dice[1:] < 1).all()
    assert result.quality == pytest.approx(dice[1:].mean()) and result.quality < plain.quality
    assert all((result.labels[name] == plain.labels[name]).all() for name in plain.labels)
    harder = {"FAST": {"White Matter": -1.0}}
    folder = save_tiny(
        tmp_path / "regions", monkeypatch, expected_dice={"FAST": (-1.0, 1.0)}, expected_dice_by_region=harder
    )
    by_region = segment({"T1w": t1w}, load_model(str(folder))).expected_dice["FAST"]
    names = [region.name for region in load_protocol("FAST").regions]
    moved = [name == "White Matter" for name in names]
    assert sum(moved) == 1
    assert logit(by_region[1:]) == pytest.approx(logit(dice[1:]) - moved[1:], abs=1e-6)


def test_a_temperature_changes_probabilities_but_no_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_bids: Callable[..., Path]
) -> None:
    t1w = read_image(make_bids(1) / "sub-01" / "anat" / "sub-01_T1w.nii.gz")[0]
    folders = (
        save_tiny(tmp_path / "plain", monkeypatch),
        save_tiny(tmp_path / "warm", monkeypatch, temperature={"FAST": 2}),
    )
    plain, warm = (segment({"T1w": t1w}, load_model(str(f)), want_probabilities=True) for f in folders)
    assert (plain.labels["FAST"] == warm.labels["FAST"]).all() and (plain.brain == warm.brain).all()
    root = np.sqrt(plain.probabilities["FAST"].table.astype(np.float64))
    expected = root / root.sum(1, keepdims=True)
    assert np.abs(warm.probabilities["FAST"].table - expected).max() < 2e-3
    assert warm.quality < plain.quality
