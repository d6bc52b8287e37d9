"""Label maps in the halfway space that were corrected by hand (``longitudinal --corrections``)."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nifti import load_nifti
from recording_console import RecordingConsole
from smooth_heads import dataset, flair, head, noisy, run
from tiny_model import SecondImage, save_tiny
from trees import run_group

from bidsseg.errors import BidssegError
from bidsseg.levels.participant import participant_level
from bidsseg.registration import linear
from bidsseg.settings import Settings

Change = Callable[[np.ndarray], np.ndarray]
TABLE = "sub-01/anat/sub-01_seg-FAST_desc-tiny_longitudinal.tsv"
LESIONS = "sub-01/anat/sub-01_label-lesion_desc-tiny_longitudinal.tsv"
STEM = "sub-01/ses-2/anat/sub-01_ses-2_"
FAST = f"{STEM}space-halfway_seg-FAST_desc-tiny_dseg.nii.gz"
NATIVE = f"{STEM}space-orig_seg-FAST_desc-tinylongitudinal_dseg.nii.gz"


@pytest.fixture(autouse=True, scope="module")
def _roughly() -> Iterator[None]:
    """Compare few voxels at one resolution in registrations, where it does not matter how exact they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "SAMPLES", 3000)
        patch.setattr(linear, "LEVELS_MM", (6.0,))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        yield save_tiny(tmp_path_factory.mktemp("tiny"), patch)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A dataset in which a head was scanned twice, compared by the level."""
    bids = dataset(tmp_path_factory.mktemp("compared") / "bids", noisy(head(), 0), noisy(head(), 1))
    run(bids, model)
    return bids


@pytest.fixture
def bids(compared: Path, tmp_path: Path) -> Path:
    """A copy of the dataset and its comparison."""
    shutil.copytree(compared.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "bids"


def correct(bids: Path, name: str, change: Change) -> np.ndarray:
    """Write a corrected copy of an output, and return its voxels."""
    image = load_nifti(bids.parent / "out" / name)
    labels = change(np.asarray(image.dataobj))
    (bids.parent / "corrected" / name).parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, image.affine, image.header), bids.parent / "corrected" / name)
    return labels


def without_some_fluid(labels: np.ndarray) -> np.ndarray:
    """Return labels in which the fluid on the left side of the head is grey matter."""
    return np.where((labels == 1) & (on_the_left(labels) > 0), 2, labels).astype(np.uint8)


def on_the_left(labels: np.ndarray) -> np.ndarray:
    """Return the labels of the left side of the head; 0 on the right side."""
    return np.where(np.arange(len(labels))[:, None, None] < len(labels) // 2, labels, 0).astype(np.uint8)


def warned(console: RecordingConsole) -> list[str]:
    """Return the warnings, without those about the size of the head."""
    return [text for text in console.warnings if "BRAIN_VOLUME_UNUSUAL" not in text]


def voxels(bids: Path, name: str) -> np.ndarray:
    return np.asarray(load_nifti(bids.parent / "out" / name).dataobj)


def rows(bids: Path, table: str = TABLE) -> pd.DataFrame:
    return pd.read_csv(bids.parent / "out" / table, sep="\t")


def sidecar(bids: Path, name: str) -> dict[str, Any]:
    path = bids.parent / "out" / name
    found: dict[str, Any] = json.loads(path.with_name(path.name.partition(".")[0] + ".json").read_text())
    return found


def test_a_corrected_label_map_counts_in_the_changes(bids: Path, model: Path) -> None:
    before, model_labels, native = rows(bids), voxels(bids, FAST), voxels(bids, NATIVE)
    drawn = correct(bids, FAST, without_some_fluid)
    folder = bids.parent / "corrected"
    console = run(bids, model, corrections=folder)
    assert warned(console) == [f"sub-01 ses-2: the label map FAST was corrected by hand ({Path(FAST).name})"]
    assert (voxels(bids, FAST) == drawn).all()
    found = rows(bids)
    assert list(found["corrected"]) == [0] * 4 + [1, 1, 0, 0]
    same = [*range(4), 6, 7]  # the first session, and what was not touched at the second
    pd.testing.assert_frame_equal(found.iloc[same], before.iloc[same])
    fluid, start = found.iloc[4], found.iloc[0]
    mm3 = np.prod(load_nifti(bids.parent / "out" / FAST).header.get_zooms())
    assert fluid["volume-mm3"] == pytest.approx((drawn == 1).sum() * mm3) and np.isnan(fluid["softvolume-mm3"])
    assert fluid["change-mm3"] == pytest.approx(fluid["volume-mm3"] - start["volume-mm3"])
    about, of_table = sidecar(bids, FAST), sidecar(bids, TABLE)
    uri = f"bids:corrections:{FAST}"
    assert about["Manual"] and about["Sources"][-1] == of_table["Sources"][-1] == uri
    assert "Quality" not in about and of_table["CorrectedSessions"] == ["ses-2"]
    assert not sidecar(bids, FAST.replace("ses-2", "ses-1"))["Manual"]
    carried = voxels(bids, NATIVE) != native
    assert sidecar(bids, NATIVE)["Manual"] and set(voxels(bids, NATIVE)[carried]) == {2}
    edited_mm3 = mm3 * (drawn != model_labels).sum()
    assert carried.sum() * 64 == pytest.approx(edited_mm3, rel=0.2)
    page = (bids.parent / "out/sub-01_desc-tiny_longitudinal.html").read_text()
    assert "Cerebrospinal Fluid (corrected: ses-2)" in page and "White Matter (corrected" not in page
    warnings = run_group(bids, bids.parent / "out", corrections=folder).warnings
    assert not [text for text in warnings if "corrections" in text]
    cohort = pd.read_csv(bids.parent / "out/group_seg-FAST_desc-tiny_longitudinal.tsv", sep="\t")
    assert list(cohort["corrected"]) == list(found["corrected"])


def test_sessions_are_compared_again_when_a_correction_changes(bids: Path, model: Path) -> None:
    before, folder = voxels(bids, FAST), bids.parent / "corrected"
    correct(bids, FAST, without_some_fluid)
    warnings = run_group(bids, bids.parent / "out", corrections=folder).warnings
    assert [f"{folder / FAST} is not in the tables of changes" in text for text in warnings][-1:] == [True]
    done = "compared the sessions of {} of 1 participants, {} were finished before"
    assert done.format(1, 0) in run(bids, model, corrections=folder).messages
    assert done.format(0, 1) in run(bids, model, corrections=folder).messages
    console = run(bids, model)
    assert "sub-01: compared again without the correction of ses-2 FAST (see --corrections)" in console.warnings
    assert done.format(1, 0) in console.messages and (voxels(bids, FAST) == before).all()


def test_a_label_map_that_equals_the_model_s_is_not_marked(bids: Path, model: Path) -> None:
    before = rows(bids)
    correct(bids, FAST, lambda labels: labels)
    console = run(bids, model, corrections=bids.parent / "corrected")
    assert warned(console) == [f"sub-01 ses-2: {Path(FAST).name} is equal to the model's label map FAST"]
    pd.testing.assert_frame_equal(rows(bids), before)
    assert "CorrectedSessions" not in sidecar(bids, TABLE)


def test_a_label_map_of_an_earlier_halfway_space_is_refused(bids: Path, model: Path) -> None:
    correct(bids, FAST, lambda labels: labels[1:])
    before = rows(bids)
    with pytest.raises(BidssegError, match="none of the 1 participants can be used"):
        run(bids, model, corrections=bids.parent / "corrected")
    (crash,) = (bids.parent / "out/logs").glob("crash-*.txt")
    assert f"{Path(FAST).name}: not on the grid of sub-01_ses-2_space-halfway_desc-tiny_T1w" in crash.read_text()
    pd.testing.assert_frame_equal(rows(bids), before)


def test_each_level_takes_its_own_corrections(bids: Path, model: Path) -> None:
    folder = bids.parent / "corrected"
    correct(bids, NATIVE, without_some_fluid)
    (warning,) = warned(run(bids, model, corrections=folder))
    assert warning.startswith(f"longitudinal: --corrections: {Path(NATIVE).name} not used: changes are those")
    shutil.rmtree(folder)
    correct(bids, FAST, without_some_fluid)
    other = FAST.replace("desc-tiny", "desc-tinyedited")
    shutil.copy(folder / FAST, folder / other)
    console = run(bids, model, corrections=folder, dry_run=True)
    assert warned(console)[0].endswith(
        "_desc-tinyedited_dseg.nii.gz not used: no session that is compared has an output "
        "of this name: keep the names of the files in OUTPUT_DIR"
    )
    assert "sub-01 (ses-1, ses-2): to do, corrected: ses-2 FAST" in console.messages
    (folder / other).unlink()
    console = RecordingConsole()
    given: dict[str, Any] = {"skip_validation": True, "precision": "fp32", "n_cpus": 1, "corrections": folder}
    participant_level(Settings(bids, bids.parent / "out", model=str(model), report=console, **given))
    assert warned(console) == []
    assert not sidecar(bids, f"{STEM}seg-FAST_desc-tiny_dseg.nii.gz")["Manual"]


def test_a_corrected_mask_of_lesions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meaning, inputs = {"brain": [0, 1, 1, 1], "FASTlesion": [0, 3, 2, 4]}, ("T1w", "FLAIR")
    given: dict[str, Any] = {"inputs": inputs, "lesion": "FASTlesion", "spacing_mm": 4.0}
    model = save_tiny(tmp_path / "m", monkeypatch, SecondImage, meaning, **given)
    bids = dataset(tmp_path / "bids", noisy(head(), 0), noisy(head(), 1))
    for label, places in {1: [(-26, 10, 20, 18)], 2: [(-26, 10, 20, 18), (28, -28, 20, 18)]}.items():
        stem = f"sub-01/ses-{label}/anat/sub-01_ses-{label}"
        (tmp_path / "bids" / stem).parent.mkdir(parents=True, exist_ok=True)
        image = load_nifti(bids / f"{stem}_T1w.nii.gz")
        nib.save(nib.Nifti1Image(flair(*places), image.affine, image.header), bids / f"{stem}_FLAIR.nii.gz")
    run(bids, model)
    assert "new" in set(rows(bids, LESIONS).query("`volume-mm3` > 5000")["status"])
    mask = f"{STEM}space-halfway_label-lesion_desc-tiny_mask.nii.gz"
    labels = mask.replace("label-lesion_desc-tiny_mask", "seg-FASTlesion_desc-tiny_dseg")
    correct(bids, labels, lambda values: np.where(values == 2, 3, values).astype(np.uint8))
    run(bids, model, corrections=tmp_path / "corrected")
    assert set(rows(bids, LESIONS)["corrected"]) == {0} and not sidecar(bids, mask)["Manual"], "only tissue changed"
    (tmp_path / "corrected" / labels).unlink()
    drawn = correct(bids, mask, on_the_left)
    run(bids, model, corrections=tmp_path / "corrected")
    found = rows(bids, LESIONS)
    assert "new" not in set(found.query("`volume-mm3` > 5000")["status"])
    assert set(found.query("session_id == 'ses-2'")["corrected"]) == {1} and set(found["corrected"]) == {0, 1}
    assert ((voxels(bids, labels) == 4) == (drawn > 0)).all() and sidecar(bids, labels)["Manual"]
    run_group(bids, tmp_path / "out", corrections=tmp_path / "corrected")
    cohort = pd.read_csv(tmp_path / "out/group_label-lesion_desc-tiny_longitudinal.tsv", sep="\t")
    assert list(cohort["corrected"]) == [0, 1]
