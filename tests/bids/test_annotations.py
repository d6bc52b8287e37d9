"""Search for the annotations of scans."""

from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from bids_trees import home, make_tree

from bidsseg.bids.annotations import find_annotations, find_label_maps, find_lesion_mask
from bidsseg.bids.query import find_scans
from bidsseg.bids.scan import LabelMap
from bidsseg.errors import DataError, InputMissing


def test_annotations_match_all_entities(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path / "bids", "sub-01_ses-1_acq-a_run-1_T1w.nii", "sub-02_T1w.nii", "sub-03_T1w.nii")
    stem = "sub-01_ses-1_acq-a_run-1_seg-FAST_desc-hand_dseg.nii.gz"
    others = ["sub-01_ses-1_acq-a_seg-FAST_dseg.nii.gz", "sub-02_label-lesion_mask.nii"]
    folder = make_tree(tmp_path / "labels", stem, *others)
    (folder / "dataset_description.json").unlink()
    one, two, three = find_scans(bids_dir)
    assert find_annotations(folder, one, "FAST") == folder / home(stem)
    assert find_annotations(folder, one, "BrainCOLOR") is None
    assert find_annotations(folder, two, "FAST") is None
    assert find_annotations(folder, two, "lesion") == folder / home("sub-02_label-lesion_mask.nii")
    assert find_annotations(folder, three, "lesion") is None
    with pytest.raises(InputMissing):
        find_annotations(tmp_path / "nowhere", one, "FAST")


def test_the_plainest_annotation_wins_and_equals_are_refused(tmp_path: Path) -> None:
    (scan,) = find_scans(make_tree(tmp_path / "bids", "sub-01_T1w.nii"))
    folder = make_tree(tmp_path / "labels", "sub-01_seg-A_desc-x_dseg.nii", "sub-01_seg-A_desc-y_dseg.nii")
    with pytest.raises(DataError, match="both annotate sub-01"):
        find_annotations(folder, scan, "A")
    make_tree(folder, "sub-01_seg-A_dseg.nii")
    assert find_annotations(folder, scan, "A") == folder / home("sub-01_seg-A_dseg.nii")


@pytest.mark.parametrize("metres", [False, True], ids=["NIfTI-1", "NIfTI-2 in metres"])
@pytest.mark.parametrize(("shift_mm", "fits"), [(0.0, True), (1.0, False)])
def test_another_space_counts_on_the_same_grid(tmp_path: Path, shift_mm: float, fits: bool, metres: bool) -> None:
    bids_dir = make_tree(tmp_path / "bids", "sub-01_T1w.nii")
    folder = make_tree(tmp_path / "labels", "sub-01_space-MNI152_label-lesion_mask.nii")
    affine, empty = np.eye(4), np.zeros((8, 9, 10), np.uint8)
    phantoms.save(bids_dir / home("sub-01_T1w.nii"), empty, affine)
    affine[0, 3] = shift_mm
    mask = folder / home("sub-01_space-MNI152_label-lesion_mask.nii")
    if metres:
        phantoms.save(mask, empty, np.diag([0.001, 0.001, 0.001, 1]) @ affine, unit="meter", kind=nib.Nifti2Image)
    else:
        phantoms.save(mask, empty, affine)
    assert find_annotations(folder, find_scans(bids_dir)[0], "lesion") == (mask if fits else None)


def test_an_annotation_that_was_not_fetched(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path / "bids", "sub-01_T1w.nii.gz")
    folder = make_tree(tmp_path / "labels", "sub-01_space-MNI152_label-lesion_mask.nii.gz")
    mask = folder / home("sub-01_space-MNI152_label-lesion_mask.nii.gz")
    mask.write_text("/annex/objects/MD5E-s9--0.nii.gz\n")
    with pytest.raises(DataError, match=rf"datalad get .*{mask.name}"):
        find_annotations(folder, find_scans(bids_dir)[0], "lesion")
    make_tree(folder, "sub-01_label-lesion_desc-x_mask.nii.gz")
    assert find_annotations(folder, find_scans(bids_dir)[0], "lesion"), "a file of another space is not needed"
    assert find_lesion_mask(folder, find_scans(bids_dir)[0])


def test_a_scan_in_a_template_has_the_annotation_in_it(tmp_path: Path) -> None:
    stems = ["sub-01_", "sub-01_space-A_", "sub-01_space-A_res-2_"]
    folder = make_tree(tmp_path, *(f"{stem}desc-preproc_T1w.nii" for stem in stems))
    names = [f"{stem}desc-brain_mask.nii" for stem in stems]
    make_tree(folder, *names, "sub-01_label-lesion_mask.nii", "sub-01_space-A_label-lesion_dseg.nii")
    native, template, coarse = find_scans(folder)
    assert [find_annotations(folder, scan, "brain") for scan in (native, template, coarse)] == [
        folder / home(name) for name in names
    ]
    assert find_lesion_mask(folder, native) == folder / home("sub-01_label-lesion_mask.nii")
    assert find_lesion_mask(folder, template) == folder / home("sub-01_space-A_label-lesion_dseg.nii")


def test_a_native_annotation_is_of_a_scan_in_a_template_only_on_its_grid(tmp_path: Path) -> None:
    folder = make_tree(tmp_path, "sub-01_space-A_T1w.nii", "sub-01_desc-brain_mask.nii")
    empty, affine = np.zeros((8, 9, 10), np.uint8), np.eye(4)
    phantoms.save(folder / home("sub-01_space-A_T1w.nii"), empty, affine)
    for shift_mm in (0.0, 1.0):
        affine[0, 3] = shift_mm
        mask = phantoms.save(folder / home("sub-01_desc-brain_mask.nii"), empty, affine)
        assert find_annotations(folder, find_scans(folder)[0], "brain") == (None if shift_mm else mask)


def test_zeros_before_the_number_of_a_run_do_not_matter_without_an_exact_match(tmp_path: Path) -> None:
    one, ten = find_scans(make_tree(tmp_path / "bids", "sub-01_run-01_T1w.nii", "sub-01_run-10_T1w.nii"))
    names = [f"sub-01_run-1_{name}.nii" for name in ("seg-A_dseg", "label-lesion_mask")]
    folder = make_tree(tmp_path / "labels", *names)
    assert find_annotations(folder, one, "A") == folder / home(names[0])
    assert find_lesion_mask(folder, one) == folder / home(names[1])
    assert find_annotations(folder, ten, "A") is None
    phantoms.save(one.t1w, np.zeros((8, 9, 10), np.uint8), np.eye(4))
    phantoms.save(folder / home("sub-01_run-01_space-B_seg-A_dseg.nii"), np.zeros((8, 9, 9), np.uint8), np.eye(4))
    assert find_annotations(folder, one, "A") == folder / home(names[0])
    make_tree(folder, "sub-01_run-01_seg-A_desc-x_dseg.nii")
    assert find_annotations(folder, one, "A") == folder / home("sub-01_run-01_seg-A_desc-x_dseg.nii")


def test_label_maps_without_images(tmp_path: Path) -> None:
    names = ["sub-01_seg-head_dseg.nii.gz", "sub-02_ses-1_seg-head_dseg.nii", "sub-02_ses-2_seg-other_dseg.nii"]
    folder = make_tree(tmp_path, *names, "sub-01_seg-head_dseg.json")
    found = find_label_maps(folder, "head")
    assert [(one.key, one.path) for one in found] == [
        ("sub-01", folder / home(names[0])),
        ("sub-02_ses-1", folder / home(names[1])),
    ]
    assert isinstance(found[0], LabelMap)
    with pytest.raises(InputMissing):
        find_label_maps(tmp_path / "nowhere", "head")
