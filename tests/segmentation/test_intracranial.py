"""The estimated intracranial volume, and the reasons why it is not known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nifti import load_nifti
from scipy import ndimage

import bidsseg
from bidsseg.image.brightness import shows_brain_alone
from bidsseg.image.guard import Finding
from bidsseg.image.volume import Volume
from bidsseg.models.card import Card, find_card
from bidsseg.segmentation.intracranial import estimate_intracranial

CARD = Card("ours", "", ("T1w",), {}, 1.0, ("brain", "FAST"), "", mask_reaches_skull=True)
DISTANCE = np.sqrt(((np.indices((32, 32, 32)) - 15.5) ** 2).sum(0))
BRAIN = DISTANCE < 8


def scan(shown: np.ndarray) -> Volume:
    """Return an image with voxels of 2 × 1 × 1 mm, 0 where nothing is shown."""
    values = np.random.default_rng(0).uniform(1, 100, shown.shape)
    return Volume(np.where(shown, values, 0), np.diag([2.0, 1.0, 1.0, 1.0]))


HEAD = scan(DISTANCE < 13)


def test_it_is_the_volume_of_the_mask_in_cubic_millimetres() -> None:
    found = estimate_intracranial(HEAD, BRAIN, CARD, findings=[Finding("NAN_VALUES", "")])
    assert found.mm3 == 2 * np.count_nonzero(BRAIN) and not found.note.startswith("n/a")


def test_a_defaced_head_has_one() -> None:
    faceless = DISTANCE < 13
    faceless[:, 16:, :8] = False
    assert estimate_intracranial(scan(faceless), BRAIN, CARD, findings=[]).mm3 == 2 * np.count_nonzero(BRAIN)


@pytest.mark.parametrize(
    ("image", "card", "findings", "reason"),
    [
        (scan(DISTANCE < 8.5), CARD, [], "skull-stripped"),
        (HEAD, replace(CARD, mask_reaches_skull=False), [], "the model ours"),
        (HEAD, CARD, [Finding("BRAIN_CUT", "")], "field of view"),
    ],
)
def test_otherwise_the_reason_is_given(image: Volume, card: Card, findings: list[Finding], reason: str) -> None:
    found = estimate_intracranial(image, BRAIN, card, findings=findings)
    assert np.isnan(found.mm3) and found.note.startswith("n/a: ") and reason in found.note


def test_ripples_of_a_resampled_image_are_no_head() -> None:
    distance = np.sqrt(((np.indices((80, 80, 80)) - 39.5) ** 2).sum(0))
    stripped, head = (100.0 * (distance < radius) for radius in (20, 30))
    moved = [ndimage.shift(image, 0.4, order=3).astype(np.float32) for image in (stripped, head)]
    assert np.count_nonzero(moved[0]) > 2 * np.count_nonzero(stripped)
    assert [shows_brain_alone(image, distance < 20) for image in (stripped, head, *moved)] == [True, False, True, False]


@pytest.mark.parametrize(("noise", "seen"), [(1.0, True), (3.0, True), (10.0, False)])
def test_noise_is_no_head(noise: float, seen: bool) -> None:
    """In strong noise, a dark skull could not be told from air."""
    distance, random = np.sqrt(((np.indices((80, 80, 80)) - 39.5) ** 2).sum(0)), np.random.default_rng(0)
    waves = random.normal(0, noise, (2, 80, 80, 80))
    stripped, head = (np.hypot(100.0 * (distance < radius) + waves[0], waves[1]) for radius in (20, 30))
    assert [shows_brain_alone(image, distance < 20) for image in (stripped, head)] == [seen, False]


@pytest.mark.data
@pytest.mark.parametrize(("place", "alone"), [("ds002748/sub-01", True), ("ds000011/sub-01", False)])
def test_real_scans_in_noise(place: str, alone: bool, testdata: Path) -> None:
    (path,) = (testdata / place / "anat").glob("*_T1w.nii.gz")
    scan = bidsseg.segment(path, model="open", device="cpu", fast=True)
    brain, image = np.asarray(scan.brain_mask.dataobj), np.asarray(load_nifti(path).dataobj, np.float32)
    noise = 0.02 * np.median(image[brain > 0]) * np.random.default_rng(0).normal(size=image.shape)
    assert [shows_brain_alone(each, brain) for each in (image, image + noise)] == [alone, alone]


def test_the_models_that_were_measured_say_so() -> None:
    known = {name: find_card(name).mask_reaches_skull for name in ("open", "wholebrain", "neuronet", "partial")}
    assert known == {"open": True, "wholebrain": True, "neuronet": False, "partial": False}
