"""A segmentation with corrected label maps in the place of the model's."""

from pathlib import Path

import numpy as np

from bidsseg.derivative.corrections import corrected
from bidsseg.image.guard import Finding
from bidsseg.labels import load_protocol
from bidsseg.models.card import Card
from bidsseg.models.library import Model
from bidsseg.networks.network import Network
from bidsseg.segmentation.result import Segmentation

FREESURFER = load_protocol("FreeSurfer").scored()
CARD = Card("ours", "", ("T1w",), {}, 1.0, ("brain", "FAST", "FreeSurfer"), "", least_quality=0.7)
MODEL = Model(CARD, Network())
LITRE = np.ones((10, 10, 10), np.uint8)


def result(quality: float = 0.5) -> Segmentation:
    """Return a segmentation of a brain of a litre, all grey matter, with a left side alone."""
    left = np.array([region.name.startswith("Left") for region in FREESURFER.regions])
    findings = [Finding("TISSUE_UNUSUAL", ""), Finding("SIDES_UNEQUAL", ""), Finding("UNITS_MISSING", "")]
    volumes = {"FAST": np.array([0, 0, 1e6, 0]), "FreeSurfer": left * 1e4}
    labels = {"FAST": 2 * LITRE, "FreeSurfer": LITRE * 10}
    return Segmentation(labels, volumes, LITRE > 0, None, quality, findings=findings)


def codes(found: Segmentation) -> list[str]:
    return [finding.code for finding in found.findings]


def test_findings_are_those_of_the_corrected_label_maps() -> None:
    tissue = np.digitize(np.arange(1000), (150, 600)).reshape(LITRE.shape).astype(np.uint8) + 1
    files = {"FAST": Path("a.nii")}
    found = corrected(result(), {"FAST": tissue}, MODEL, protocols=MODEL.heads, files=files, voxel_mm3=1000.0)
    assert codes(found) == ["UNITS_MISSING", "CONFIDENCE_LOW", "SIDES_UNEQUAL"]
    assert np.isnan(found.soft_mm3["FAST"]).all() and not np.isnan(found.soft_mm3["FreeSurfer"]).any()
    assert found.manual == {"FAST": "FAST"} and found.quality == 0.5


def test_without_a_label_map_of_the_model_there_is_no_confidence() -> None:
    names = ("FAST", "FreeSurfer")
    labels = {name: LITRE * FREESURFER.indices[1] if name == "FreeSurfer" else LITRE for name in names}
    files = {name: Path(f"{name}.nii") for name in names}
    found = corrected(result(), labels, MODEL, protocols=MODEL.heads, files=files, voxel_mm3=1000.0)
    assert np.isnan(found.quality) and "CONFIDENCE_LOW" not in codes(found)
    assert "TISSUE_UNUSUAL" in codes(found)
