"""benchmarks/calibration.py: temperatures and the expected calibration error."""

from dataclasses import replace

import calibration
import numpy as np
import pandas as pd
import pytest

from bidsseg.models.card import find_card


def participant(seed: int, *, temperature: float) -> calibration.Seen:
    """Return probabilities (N, 3) that are right if they are raised by a temperature, and which voxels are right."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (20_000, 3))
    shown, true = (np.exp(values) / np.exp(values).sum(1, keepdims=True) for values in (logits, logits / temperature))
    right = random.random(len(logits)) < true.max(1)
    return shown.astype(np.float32), right


@pytest.mark.parametrize("temperature", [0.8, 1.0, 1.5])
def test_the_temperature_of_probabilities_is_found(temperature: float) -> None:
    seen = [participant(seed, temperature=temperature) for seed in (1, 2)]
    assert calibration.balanced(seen) == pytest.approx(temperature, abs=0.05)
    assert calibration.error([calibration.at_temperature(one, temperature) for one in seen]) < 0.012


def test_the_error_is_the_mean_difference_of_confidence_and_right_voxels_in_bins() -> None:
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5])
    right = np.array([True, True, True, False, True, True])
    assert calibration.error([(confidence, right)]) == pytest.approx((4 * 0.15 + 2 * 0.5) / 6)


def test_only_participants_that_a_model_was_not_trained_on_count() -> None:
    card = find_card("open")
    assert [calibration.is_unseen(f"heads/sub-{n:02d}", card) for n in (1, 2)] == [True, False]
    assert calibration.is_unseen("oasis/sub-1000", card)
    assert not calibration.is_unseen("heads/sub-01", find_card("wholebrain"))
    assert not calibration.is_unseen("oasis/sub-2000", find_card("wholebrain")), (
        "its list of participants is not complete"
    )
    continued = replace(find_card("wholebrain"), metrics={"held_out": ["oasis/sub-1000"]})
    assert not calibration.is_unseen("oasis/sub-1000", continued), "the initial model was trained on it"


def test_a_participant_is_measured_with_the_calibration_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sessions of a participant are left out."""
    cases = ["a/sub-01_ses-1", "a/sub-01_ses-2", "a/sub-02", "a/sub-03"]
    estimates = [0.7, 0.71, 0.8, 0.9]
    columns = {"case": cases, "copy": "unchanged", "region": "Putamen", "estimate": estimates, "dice": estimates}
    table = pd.DataFrame(columns)
    others: list[list[float]] = []

    def calibrate(estimate: np.ndarray, dice: np.ndarray) -> tuple[float, float]:
        others.append(estimate.tolist())
        return 0.0, 1.0

    monkeypatch.setattr(calibration, "calibrate", calibrate)
    calibration.figures(table)
    assert others == [[0.8, 0.9], [0.7, 0.71, 0.9], [0.7, 0.71, 0.8]]
