"""Findings for results that no living brain has."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bidsseg.image.guard import Finding
from bidsseg.labels import load_protocol
from bidsseg.models.card import Card
from bidsseg.models.library import Model
from bidsseg.networks.network import Network
from bidsseg.segmentation.plausibility import difference_of_sides, implausible_findings
from bidsseg.segmentation.result import Segmentation

CARD = Card("ours", "", ("T1w",), {}, 1.0, ("brain", "FAST", "FreeSurfer"), "", least_quality=0.7)
MODEL = Model(CARD, Network())
FREESURFER = load_protocol("FreeSurfer").scored()


def result(
    brain_cm3: float = 1400, tissue: tuple[float, ...] = (0, 300, 650, 500), quality: float = 0.85
) -> Segmentation:
    """Return a segmentation of a brain of this volume, with tissues in ml, equal on both sides."""
    brain = np.zeros((20, 20, 20), bool)
    brain.reshape(-1)[: round(brain_cm3)] = True
    sides = np.full(len(FREESURFER.regions), 10_000.0)
    return Segmentation({}, {"FAST": 1000 * np.array(tissue), "FreeSurfer": sides}, brain, None, quality)


def codes(found: Segmentation) -> list[str]:
    return [finding.code for finding in implausible_findings(found, MODEL, 1000.0)]


def test_a_usual_brain_is_not_doubted() -> None:
    assert codes(result()) == []


@pytest.mark.parametrize("brain_cm3", [300, 3000])
def test_a_brain_of_an_unusual_volume(brain_cm3: float) -> None:
    assert codes(result(brain_cm3)) == ["BRAIN_VOLUME_UNUSUAL"]


def test_regions_that_are_no_brain_have_no_usual_volume(tmp_path: Path) -> None:
    """Without a locator, the mask of such a model has these regions alone."""
    (tmp_path / "seg-Two_dseg.tsv").write_text("index\tname\n0\tBackground\n1\tLeft one\n2\tRight one\n")
    alone = Model(replace(CARD, heads=("Two",), folder=tmp_path), Network())
    found = replace(result(8), soft_mm3={"Two": np.array([0.0, 4000.0, 4000.0])})
    assert list(implausible_findings(found, alone, 1000.0)) == []
    (finding,) = implausible_findings(found, replace(alone, locator=MODEL), 1000.0)
    assert finding.code == "BRAIN_VOLUME_UNUSUAL"


@pytest.mark.parametrize("tissue", [(0, 100, 1200, 100), (0, 1200, 100, 100)])
def test_shares_of_tissue_that_no_brain_has(tissue: tuple[float, ...]) -> None:
    assert set(codes(result(tissue=tissue))) == {"TISSUE_UNUSUAL"}


def test_a_side_that_is_missing() -> None:
    found = result()
    volumes = found.soft_mm3["FreeSurfer"]
    volumes[[region.name.startswith("Left") for region in FREESURFER.regions]] = 1000.0
    assert difference_of_sides(volumes, FREESURFER) == pytest.approx(9 / 11)
    assert codes(found) == ["SIDES_UNEQUAL"]
    found.findings.append(Finding("BRAIN_CUT", "seen by half"))
    assert codes(found) == []


def test_a_network_that_is_unsure() -> None:
    assert codes(result(quality=0.5)) == ["CONFIDENCE_LOW"]
    near = replace(MODEL, card=replace(CARD, least_quality=0.735))
    (finding,) = implausible_findings(result(quality=0.7329), near, 1000.0)
    assert "quality 0.7329, usually at least 0.735" in finding.message
    unknown = replace(MODEL, card=replace(CARD, least_quality=None))
    assert list(implausible_findings(result(quality=0.5), unknown, 1000.0)) == []


def test_a_protocol_without_sides_has_no_difference() -> None:
    assert difference_of_sides(np.array([0.0, 1.0, 2.0, 3.0]), load_protocol("FAST").scored()) == 0.0
