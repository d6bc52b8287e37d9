"""A segmentation with corrected label maps in the place of the model's."""

from pathlib import Path

import numpy as np

from bidsseg.derivative.corrections import corrected
from bidsseg.image.guard import Finding
from bidsseg.labels import load_protocol
from bidsseg.models.card import Card
from bidsseg.models.library import Model
from bidsseg.networks.network import Network
from bidsseg.segmentation.given_lesions import with_lesions_of
from bidsseg.segmentation.result import Segmentation

FREESURFER = load_protocol("FreeSurfer").scored()
CARD = Card("ours", "", ("T1w",), {}, 1.0, ("brain", "FAST", "FreeSurfer"), "", least_quality=0.7)
MODEL = Model(CARD, Network())
SPACING = np.full(3, 10.0)
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
    found = corrected(
        result(), {"FAST": tissue}, MODEL, protocols=MODEL.heads, files=files, spacing_mm=SPACING, voxel_mm3=1000.0
    )
    assert codes(found) == ["UNITS_MISSING", "CONFIDENCE_LOW", "SIDES_UNEQUAL"]
    assert np.isnan(found.soft_mm3["FAST"]).all() and not np.isnan(found.soft_mm3["FreeSurfer"]).any()
    assert found.manual == {"FAST": "FAST"} and found.quality == 0.5


def test_without_a_label_map_of_the_model_there_is_no_confidence() -> None:
    names = ("FAST", "FreeSurfer")
    labels = {name: LITRE * FREESURFER.indices[1] if name == "FreeSurfer" else LITRE for name in names}
    files = {name: Path(f"{name}.nii") for name in names}
    found = corrected(result(), labels, MODEL, protocols=MODEL.heads, files=files, spacing_mm=SPACING, voxel_mm3=1000.0)
    assert np.isnan(found.quality) and "CONFIDENCE_LOW" not in codes(found)
    assert "TISSUE_UNUSUAL" in codes(found)


def test_a_lesion_that_was_removed_has_the_region_of_the_nearest_voxel_in_millimetres() -> None:
    labels = np.full((3, 3, 3), 3, np.uint8)
    labels[:, :, 0] = labels[:, :, 2] = 2
    labels[:, 1, 1] = 4
    labels[0, 0] = 0
    mask = np.zeros(labels.shape, bool)
    mask[2, 2, 2] = True
    found = with_lesions_of(mask, labels, load_protocol("FASTlesion"), spacing_mm=np.array([1.0, 1.0, 3.0]))
    assert found[:, 1, 1].tolist() == [3, 3, 3] and found[2, 2, 2] == 4 and found.dtype == np.uint8
    found = with_lesions_of(mask, labels, load_protocol("FASTlesion"), spacing_mm=np.array([1.0, 3.0, 1.0]))
    assert found[:, 1, 1].tolist() == [2, 2, 2]
    alone = np.where(labels == 4, labels, 0)
    assert not with_lesions_of(mask & False, alone, load_protocol("FASTlesion"), spacing_mm=np.ones(3)).any()
