"""The expected Dice of regions: the estimate, its calibration, and the quality of a scan."""

import numpy as np
import pytest
from scipy.special import expit, logit

from bidsseg.segmentation.expected_dice import calibrate, calibrated, estimated

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
