"""Annotations from files: harmless differences are accepted with a note, harmful ones are refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from labelled import HALF, SHAPE, console
from recording_console import RecordingConsole

from bidsseg.errors import DataError, NothingSelected
from bidsseg.image.volume import Volume, distance_in_voxels
from bidsseg.labels import Protocol, Region, load_protocol
from bidsseg.learning.cases import Case
from bidsseg.learning.datasets import load_cases
from bidsseg.registration.label_files import nearest
from bidsseg.settings import Settings

Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
TABLE = "index\tname\n0\tBackground\n1\tLeft-A\n2\tRight-A\n"
TISSUE = np.array([0, 1, 2, 3, 2], np.uint8)[phantoms.head(2 * HALF, SHAPE, phantoms.LABEL)]


@pytest.fixture
def labelled(tmp_path: Path) -> Settings:
    """Two participants with their tissues."""
    bids = phantoms.make_bids(tmp_path / "bids", 2, spacing_mm=8.0, shape=SHAPE)
    for number in (1, 2):
        name = f"sub-0{number}"
        image = phantoms.noisy_head(phantoms.grid(8.0, "LAS", SHAPE), SHAPE, seed=number)
        phantoms.save(bids / name / "anat" / f"{name}_T1w.nii.gz", image, HALF)
        phantoms.save(label_map(tmp_path / "fast", number), TISSUE, HALF)
    return Settings(bids, tmp_path / "out", labels={"": [tmp_path / "fast"]}, report=RecordingConsole())


def label_map(folder: Path, number: int, kind: str = "seg-FAST_dseg") -> Path:
    return folder / f"sub-0{number}" / "anat" / f"sub-0{number}_{kind}.nii.gz"


def read(settings: Settings, inputs: tuple[str, ...] = ("T1w",)) -> list[Case]:
    return load_cases(settings, settings.report, inputs)


def same_values(cases: list[Case]) -> bool:
    first, second = (case.annotations[0].values for case in cases)
    return bool((first == second).all())


def stored_as_psr(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image = nib.Nifti1Image(values, affine)
    order = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt("PSR")
    )
    turned = image.as_reoriented(order)
    return np.asarray(turned.dataobj), turned.affine


def moved(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    other = affine.copy()
    other[:3, 3] += 0.05 * 4
    return values, other


@pytest.mark.parametrize(
    "change, remark", [(stored_as_psr, "stored as PSR and not as LAS"), (moved, "less than 0.1 voxels away")]
)
def test_other_forms_of_the_same_grid_are_accepted(labelled: Settings, change: Change, remark: str) -> None:
    for number in (1, 2):
        plain = read(labelled)
        phantoms.save(label_map(labelled.labels[""][0], number), *change(TISSUE, HALF))
        assert same_values([plain[number - 1], read(labelled)[number - 1]])
    (line,) = [line for line in console(labelled).messages if remark in line and "and 1 more" in line]
    assert "sub-01_seg-FAST_dseg.nii.gz" in line


def test_all_files_on_other_grids_are_named_at_once(labelled: Settings) -> None:
    for number in (1, 2):
        affine = HALF.copy()
        affine[0, 3] += 0.2 * 4
        phantoms.save(label_map(labelled.labels[""][0], number), TISSUE, affine)
    with pytest.raises(DataError, match=r"2 scans or label maps cannot be used, the first: .*sub-01_seg"):
        read(labelled)
    assert sum("not on the grid of" in line for line in console(labelled).warnings) == 2


def test_labels_of_freesurfer_are_resampled_to_the_scan(labelled: Settings, tmp_path: Path) -> None:
    """A conformed volume of 1 mm voxels has the same labels at the same places."""
    aseg = np.array([0, 24, 3, 2], np.uint8)[TISSUE]
    fine = np.kron(aseg, np.ones((2, 2, 2), np.uint8))
    affine = HALF @ np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = HALF[:3, 3] - (HALF[:3, :3] @ np.full(3, 0.25))
    values, conformed = stored_as_psr(fine, affine)
    for number in (1, 2):
        path = tmp_path / "recons" / f"sub-0{number}" / "mri" / "aseg.mgz"
        path.parent.mkdir(parents=True)
        nib.MGHImage(values, conformed).to_filename(path)
    cases = read(replace(labelled, labels={"": [tmp_path / "recons"]}))
    table = load_protocol("aseg")
    expected = [np.array([table.indices.index(value) for value in (0, 24, 3, 2)])[case.annotations[0].values.numpy()]
                for case in read(labelled)]  # fmt: skip
    for case, values in zip(cases, expected, strict=True):
        assert case.annotations[0].protocol == table
        assert np.array_equal(case.annotations[0].values.numpy(), values)
    assert any("resampled to the grid of the T1w" in line for line in console(labelled).messages)


def test_nearest_labels_are_zero_outside_their_field_of_view() -> None:
    labels = Volume(np.full((2, 2, 2), 5, np.uint8), np.eye(4))
    found = nearest(labels, Volume(np.zeros((4, 2, 2)), np.diag([1.0, 1, 1, 1])))
    assert found.data[:2].all() and not found.data[2:].any()
    assert distance_in_voxels(labels, found) == np.inf


def test_a_mask_of_another_value_is_read(labelled: Settings, tmp_path: Path) -> None:
    for number in (1, 2):
        brain = 255 * (TISSUE > 0).astype(np.uint8)
        phantoms.save(label_map(tmp_path / "masks", number, "desc-brain_mask"), brain, HALF)
    cases = read(replace(labelled, labels={"": [tmp_path / "masks"]}))
    assert [case.annotations[0].values.max() for case in cases] == [1, 1]
    assert any("the value 255 of the mask is read as 1" in line for line in console(labelled).messages)


@pytest.mark.parametrize("largest, accepted", [(1.0, True), (3.0, False)])
def test_probabilities_are_labels_from_a_stated_threshold(
    labelled: Settings, tmp_path: Path, largest: float, accepted: bool
) -> None:
    chances = (largest * np.array([0, 0.3, 0.6, 1.0], np.float32))[TISSUE]
    for number in (1, 2):
        phantoms.save(label_map(tmp_path / "maps", number, "label-deep_probseg"), chances, HALF)
    settings = replace(labelled, labels={"FAST": labelled.labels[""], "": [tmp_path / "maps"]})
    if not accepted:
        with pytest.raises(DataError, match="is not a label"):
            read(settings)
        return
    tissue, deep = (annotation.values.numpy() for annotation in read(settings)[0].annotations)
    assert np.array_equal(deep, tissue >= 2)
    assert any("probabilities of at least 0.5 are read as labels" in line for line in console(labelled).messages)


def test_lesions_on_the_grid_of_the_flair(labelled: Settings, tmp_path: Path) -> None:
    """The FLAIR lies elsewhere in the scanner; its lesions follow it to the T1w."""
    thick, shape = phantoms.grid((8, 4, 8), "PSR", (28, 50, 24)), (28, 50, 24)
    affine = np.diag([0.5, 0.5, 0.5, 1]) @ thick
    affine[:3, 3] += 3.0
    labels = phantoms.head(thick, shape, phantoms.LABEL)
    anat = labelled.bids_dir / "sub-01" / "anat"
    phantoms.save(anat / "sub-01_FLAIR.nii.gz", phantoms.head(thick, shape, phantoms.FLAIR_INTENSITY), affine)
    lesion = label_map(tmp_path / "lesions", 1, "label-lesion_mask")
    phantoms.save(lesion, (labels == 4).astype(np.uint8), affine)
    (found, _) = read(replace(labelled, labels={"FAST": labelled.labels[""], "lesion": [tmp_path / "lesions"]}))
    by_name = {each.protocol.name: each.values.numpy() for each in found.annotations}
    expected = phantoms.head(2 * HALF, SHAPE, phantoms.LABEL) == 4
    assert 0.6 < by_name["lesion"].sum() / (64 * expected.sum()) < 1.6
    middle = np.argwhere(by_name["lesion"]).mean(0)
    where = np.argwhere(nib.as_closest_canonical(nib.Nifti1Image(expected.astype(np.uint8), HALF)).get_fdata()).mean(0)
    assert np.abs(middle - (4 * where + 1.5)).max() < 2.5
    assert any("on the grid of the FLAIR" in line for line in console(labelled).messages)


@pytest.mark.parametrize("flipped", [False, True])
def test_exchanged_sides_are_refused(labelled: Settings, tmp_path: Path, flipped: bool) -> None:
    """The scans are stored as LAS: the first voxels along x are on the right."""
    halves = np.where(np.arange(SHAPE[0]) < SHAPE[0] // 2, 2, 1)[:, None, None].astype(np.uint8) * (TISSUE > 0)
    for number in (1, 2):
        phantoms.save(
            label_map(tmp_path / "own", number, "desc-own_dseg"), halves[:: -1 if flipped else 1].copy(), HALF
        )
    (tmp_path / "own" / "desc-own_dseg.tsv").write_text(TABLE)
    settings = replace(labelled, labels={"FAST": labelled.labels[""], "": [tmp_path / "own"]})
    if not flipped:
        assert len(read(settings)) == 2
        return
    with pytest.raises(DataError, match=r"left and right are exchanged .'Left-A' lies on the other side"):
        read(settings)


def test_empty_label_maps_are_refused_if_all_are(labelled: Settings) -> None:
    phantoms.save(label_map(labelled.labels[""][0], 1), np.zeros_like(TISSUE), HALF)
    lesions = labelled.bids_dir.parent / "lesions"
    for number in (1, 2):
        phantoms.save(label_map(lesions, number, "label-lesion_mask"), np.zeros_like(TISSUE), HALF)
    with pytest.raises(DataError):
        read(labelled)
    phantoms.save(label_map(labelled.labels[""][0], 1), TISSUE, HALF)
    with pytest.raises(DataError, match="all label maps of lesion are empty"):
        read(replace(labelled, labels={"": [*labelled.labels[""], lesions]}))


def test_an_empty_map_of_the_whole_brain_is_named(labelled: Settings) -> None:
    phantoms.save(label_map(labelled.labels[""][0], 1), 0 * TISSUE, HALF)
    with pytest.raises(DataError, match=r"bids/sub-01: the label map of FAST shows no brain; is it empty\?"):
        read(labelled)


def test_a_folder_of_which_no_file_is_used_is_refused(labelled: Settings, tmp_path: Path) -> None:
    phantoms.save(label_map(tmp_path / "lesions", 7, "label-WMH_mask"), TISSUE, HALF)
    with pytest.raises(NothingSelected, match=r"--labels lesion=.*lesions: none of its files is used"):
        read(replace(labelled, labels={"FAST": labelled.labels[""], "lesion": [tmp_path / "lesions"]}))


def test_the_label_map_of_one_rater_is_chosen_and_named(labelled: Settings) -> None:
    folder = labelled.labels[""][0]
    label_map(folder, 1).rename(label_map(folder, 1, "seg-FAST_desc-raterB_dseg"))
    phantoms.save(label_map(folder, 1, "seg-FAST_desc-raterA_dseg"), TISSUE, HALF)
    assert len(read(labelled)) == 2
    (line,) = console(labelled).warnings
    assert "sub-01_seg-FAST_desc-raterA_dseg.nii.gz: chosen for sub-01, not sub-01_seg-FAST_desc-raterB" in line


def test_scans_without_a_flair_are_counted(labelled: Settings) -> None:
    read(labelled, ("T1w", "FLAIR"))
    assert console(labelled).warnings == ["2 of 2 scans have no FLAIR (sub-01, sub-02): it is 0 in training"]


def test_regions_of_one_name_are_known() -> None:
    regions = [Region(i, name, name, "#808080", None) for i, name in enumerate(("Background", "A", "B", "A"))]
    assert Protocol("Own", tuple(regions)).repeated == ("A",)
