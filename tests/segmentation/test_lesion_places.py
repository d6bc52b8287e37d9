"""Places of lesions in a made-up brain: a box of white matter with cortex, ventricles and a cerebellum."""

import numpy as np
import phantoms
import pytest

from bidsseg.labels import load_protocol
from bidsseg.labels.anatomy import Anatomy, find_anatomy
from bidsseg.segmentation.lesion_places import find_places, nearest_regions
from bidsseg.segmentation.lesions import numbered

WHITE, LEFT_CORTEX, CORTEX, VENTRICLE, CEREBELLUM, LESION = 2, 3, 42, 4, 7, 25
WHERE = {
    "periventricular": (slice(15, 17), slice(20, 23), slice(30, 33)),
    "juxtacortical": (slice(33, 36), slice(6, 8), slice(30, 32)),
    "infratentorial": (slice(18, 23), slice(18, 23), slice(5, 8)),
    "deep white": (slice(28, 30), slice(28, 30), slice(24, 26)),
}


def brain() -> np.ndarray:
    """Return FreeSurfer labels (40, 40, 40): 1 mm voxels, axes to the right, front and top."""
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[2:38, 2:38, 12:38] = CORTEX
    labels[2:20, 2:38, 12:38] = LEFT_CORTEX
    labels[5:35, 5:35, 15:35] = WHITE
    labels[10:14, 15:25, 25:35] = VENTRICLE
    labels[10:30, 10:30, 2:11] = CEREBELLUM
    return labels


def anatomy() -> Anatomy:
    found = find_anatomy(load_protocol("FreeSurfer"))
    assert found is not None
    return found


@pytest.mark.parametrize("labelled", [False, True], ids=["healthy below", "lesion in the label map"])
@pytest.mark.parametrize("name", WHERE)
def test_places(name: str, labelled: bool) -> None:
    labels, mask = brain(), np.zeros((40, 40, 40), bool)
    mask[WHERE[name]] = True
    if labelled:
        labels[mask] = LESION
    (place,) = find_places(numbered(mask), labels, np.eye(4), anatomy=anatomy())
    assert place.name == name
    if name == "periventricular":
        assert place.ventricle_mm == 2  # a voxel of white matter between them
    if name == "juxtacortical":
        assert place.cortex_mm == (0 if not labelled else 1)


def test_contact_is_measured_in_millimetres_on_any_grid() -> None:
    labels, mask = brain(), np.zeros((40, 40, 40), bool)
    mask[15:17, 20:23, 30:33] = True
    for spacing, expected in (((1.0, 1.0, 1.0), "periventricular"), ((1.5, 1.0, 1.0), "deep white")):
        affine = phantoms.grid(spacing, shape=(40, 40, 40), rotation_degrees=21)
        (place,) = find_places(numbered(mask), labels, affine, anatomy=anatomy())
        assert place.name == expected and place.ventricle_mm == pytest.approx(2 * spacing[0])
    turned = find_places(numbered(mask.transpose(2, 0, 1)), labels.transpose(2, 0, 1), np.eye(4), anatomy=anatomy())
    assert turned[0].ventricle_mm == 2


def test_voxels_that_share_a_corner_touch_even_if_they_are_large() -> None:
    labels, mask = brain(), np.zeros((40, 40, 40), bool)
    mask[14, 25, 24] = True
    (place,) = find_places(numbered(mask), labels, np.diag([1.0, 1.0, 4.0, 1.0]), anatomy=anatomy())
    assert place.name == "periventricular" and place.ventricle_mm == pytest.approx(np.sqrt(18))


def test_a_map_without_the_region_has_no_distance() -> None:
    labels, mask = brain(), np.zeros((40, 40, 40), bool)
    labels[labels == VENTRICLE] = WHITE
    mask[WHERE["deep white"]] = True
    (place,) = find_places(numbered(mask), labels, np.eye(4), anatomy=anatomy())
    assert place.name == "deep white" and np.isinf(place.ventricle_mm)
    assert find_places(np.zeros(mask.shape, np.uint16), labels, np.eye(4), anatomy=anatomy()) == []


def test_the_nearest_cortex_of_each_voxel() -> None:
    labels, mask = brain(), np.zeros((40, 40, 40), bool)
    mask[6, 20, 30] = mask[33, 20, 30] = mask[38, 20, 20] = mask[36, 20, 20] = True
    found = nearest_regions(mask, labels, np.eye(4), indices=anatomy().cortex)
    assert found.tolist() == [LEFT_CORTEX, CORTEX, CORTEX, CORTEX]
    assert not nearest_regions(mask, np.zeros_like(labels), np.eye(4), indices=(3,)).any()
