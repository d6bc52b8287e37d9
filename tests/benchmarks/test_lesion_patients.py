"""Patients made from real scans: filled lesions, predicted FLAIR, and lesions that are put in."""

from dataclasses import replace
from pathlib import Path

import lesion_patients as making
import numpy as np
import pytest
from nifti import load_nifti
from scipy import ndimage

from bidsseg.image.volume import Volume

SHAPE = (40, 44, 40)
BRIGHTNESS = {"t1w": {0: 0.0, 4: 0.2, 3: 0.7, 2: 1.0}, "flair": {0: 0.0, 4: 0.1, 3: 1.2, 2: 1.0}}
"""Brightness of background, ventricle, cortex and white matter."""


@pytest.fixture
def brain() -> making.Brain:
    """A ball of white matter with a ventricle and a cortex, with a little noise."""
    away = np.sqrt((((np.indices(SHAPE).T - np.array(SHAPE) / 2 + 0.5) / (np.array(SHAPE) / 40)) ** 2).sum(-1)).T
    structures = np.select([away < 4, away < 13, away < 17], [4, 2, 3], 0).astype(np.uint8)
    tissues = np.select([structures == 4, structures == 2, structures == 3], [1, 3, 2], 0).astype(np.uint8)
    noise = 0.01 * np.random.default_rng(0).standard_normal((2, *SHAPE))
    images = [
        (np.vectorize(table.get)(structures) + noise[i]).astype(np.float32)
        for i, table in enumerate(BRIGHTNESS.values())
    ]
    return making.Brain("sub-01", images[0], images[1], tissues, structures)


def ball(centre: tuple[int, int, int], radius: float) -> np.ndarray:
    found: np.ndarray = radius**2 >= ((np.indices(SHAPE).T - np.array(centre)) ** 2).sum(-1).T
    return found


def test_a_hole_is_filled_with_white_matter_and_its_noise(brain: making.Brain) -> None:
    hole = ball((28, 22, 20), 2)
    white = (brain.structures == 2) & ~ndimage.binary_dilation(hole, iterations=2)
    sick = np.where(ndimage.binary_erosion(hole), 0.3, brain.t1w).astype(np.float32)
    filled = making.fill(sick, hole, white)
    assert filled[hole].mean() == pytest.approx(1, abs=0.01)
    assert 0.002 < filled[hole].std() < 0.03
    far = ~ndimage.binary_dilation(hole, iterations=2)
    assert np.array_equal(filled[far], sick[far])


def test_the_level_follows_shading(brain: making.Brain) -> None:
    shading = np.linspace(0.8, 1.2, SHAPE[0])[:, None, None]
    found = making.level((brain.t1w * shading).astype(np.float32), brain.structures == 2)
    inside = brain.structures == 2
    assert np.abs(found - shading)[inside].max() < 0.06


def test_lesions_are_brighter_in_the_flair_and_darker_in_the_t1w(brain: making.Brain) -> None:
    lesions = 1 * ball((29, 22, 20), 2) + 2 * ball((10, 22, 20), 1)
    white = brain.structures == 2
    for seed in range(3):
        t1w, flair = making.with_lesions(brain, lesions, np.random.default_rng(seed))
        for number in (1, 2):
            inside = lesions == number
            assert flair[inside].mean() > 1.08
            assert t1w[inside].mean() < 0.999
            assert flair[inside].max() > flair[ndimage.binary_dilation(inside, iterations=2) & ~inside & white].mean()
            far = ndimage.distance_transform_edt(lesions == 0) >= 4
            assert np.array_equal(t1w[far], brain.t1w[far])
    assert making.with_lesions(brain, np.zeros(SHAPE, int), np.random.default_rng(0))[1] is brain.flair


def test_lesions_are_placed_in_white_matter_and_small_patients_exist(
    brain: making.Brain, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = np.array([17, 17 * 1.1, 17])
    monkeypatch.setattr(making, "template_frame", lambda: (np.array(SHAPE) / 2 - 0.5, half))
    drawn = ball((28, 22, 20), 3) | ball((20, 22, 20), 3) | ball((2, 2, 2), 2) | ball((12, 22, 20), 2)
    mask = Volume(drawn.astype(np.uint8), np.eye(4))
    counts = []
    for seed in range(8):
        found = making.placed(mask, brain, np.random.default_rng(seed))
        counts.append(len(np.unique(found)) - 1)
        assert not np.isin(brain.structures[found > 0], (0, 4)).any()
    assert max(counts) >= 2
    assert min(counts) < max(counts)


def test_deceptions_are_bright_in_the_flair_and_change_no_label(brain: making.Brain) -> None:
    changed = making.with_deceptions(brain, np.random.default_rng(3))
    assert changed.t1w is brain.t1w
    assert changed.structures is brain.structures
    assert changed.flair is not None and brain.flair is not None
    assert (changed.flair - brain.flair).max() > 0.05
    assert (changed.flair - brain.flair).min() > -1e-4


def test_the_flair_is_predicted_from_t1w_and_structures(brain: making.Brain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "FIT_STEPS", 60)
    monkeypatch.setattr(making, "FIT_EDGE", 20)
    lesions = ball((28, 22, 20), 2)
    assert brain.flair is not None
    patient = making.Patient(brain.t1w, brain.flair, lesions, replace(brain, flair=np.where(lesions, 5, brain.flair)))
    other = replace(brain, t1w=0.5 * brain.t1w.clip(0, 0.72) + 0.65 * (brain.t1w > 0.85), flair=None)
    found = making.Predictor.fitted(patient).with_flair(other, np.random.default_rng(0)).flair
    assert found is not None
    cortex, white = (float(np.median(found[brain.structures == value])) for value in (3, 2))
    assert cortex == pytest.approx(1.2, abs=0.12)
    assert white == pytest.approx(1, abs=0.12)


def test_a_made_patient_is_written_with_all_labels_on_one_grid(brain: making.Brain, tmp_path: Path) -> None:
    lesions = ball((28, 22, 20), 2)
    assert brain.flair is not None
    making.write_patient(tmp_path / "patients", making.Patient(brain.t1w, brain.flair, lesions, brain))
    files = sorted((tmp_path / "patients").rglob("*.nii.gz"))
    assert [file.name for file in files] == [
        "sub-01_label-lesion_mask.nii.gz",
        "sub-01_seg-FAST_dseg.nii.gz",
        "sub-01_seg-FreeSurfer_dseg.nii.gz",
        "sub-01_FLAIR.nii.gz",
        "sub-01_T1w.nii.gz",
    ]
    images = [load_nifti(file) for file in files]
    assert len({(image.shape, tuple(image.affine.ravel())) for image in images}) == 1
    assert np.count_nonzero(images[0].dataobj) == np.count_nonzero(lesions)
