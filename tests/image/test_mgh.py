"""MGH files of FreeSurfer, and images in memory, are read with the same checks as NIfTI files."""

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from nifti import load_nifti

from bidsseg.errors import DataError, InputMissing
from bidsseg.image.nifti import label_image, read_image, read_labels, write_labels

GRID = phantoms.grid((3.7, 3.9, 4.1), "LIA", rotation_degrees=7).astype(np.float32)
HEAD = np.rint(phantoms.noisy_head(GRID)).astype(np.int16)


def save(path: Path, data: np.ndarray = HEAD, affine: np.ndarray = GRID) -> Path:
    nib.save(nib.MGHImage(data, affine), path)
    return path


@pytest.mark.parametrize("ending", ["mgz", "mgh", "MGZ"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_voxels_and_positions_equal_those_of_nibabel(ending: str, dtype: type, tmp_path: Path) -> None:
    path = save(tmp_path / f"orig.{ending.lower()}", HEAD.astype(dtype))
    path = path.rename(tmp_path / f"orig.{ending}")
    volume, findings = read_image(path)
    oracle = nib.MGHImage.from_filename(path) if ending != "MGZ" else nib.MGHImage(HEAD.astype(dtype), GRID)
    assert findings == []
    assert volume.data.dtype == np.float32
    assert np.array_equal(volume.data, oracle.get_fdata())
    assert np.allclose(volume.affine, oracle.affine, atol=1e-5)
    assert volume.header is not None
    assert np.allclose(volume.header.get_qform(), volume.header.get_sform(), atol=1e-4)


def test_labels_are_written_on_the_grid_of_an_mgh_file(tmp_path: Path) -> None:
    labels = phantoms.head(GRID, contrast=phantoms.LABEL)
    volume = read_labels(save(tmp_path / "aseg.mgz", labels))
    assert np.array_equal(volume.data, labels)
    write_labels(tmp_path / "out.nii.gz", labels, volume)
    found = load_nifti(tmp_path / "out.nii.gz")
    assert np.allclose(found.affine, GRID, atol=1e-4)
    assert found.header["sform_code"] == found.header["qform_code"] == 1
    image = label_image(labels, volume)
    assert np.array_equal(image.dataobj, found.dataobj)
    assert image.header == found.header


def edited(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda stored: stored[:offset] + value + stored[offset + len(value) :]


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut in the voxels": (lambda stored: stored[:-5000], "TRUNCATED"),
    "cut in the header": (lambda stored: stored[:200], "TRUNCATED"),
    "nothing inside": (lambda stored: b"", "TRUNCATED"),
    "other format": (edited(0, b"\0\0\1\\"), "NOT_MGH"),
    "noise": (lambda stored: bytes(range(256)) * 9, "NOT_MGH"),
    "unknown type": (edited(20, b"\0\0\0\7"), "BAD_HEADER"),
    "no voxels": (edited(4, b"\0\0\0\0"), "TOO_FEW_VOXELS"),
    "negative size": (edited(4, b"\xff\xff\xff\xff"), "TOO_FEW_VOXELS"),
    "huge size": (edited(4, b"\x7f\xff\xff\xff"), "TRUNCATED"),
    "no spacing": (edited(30, b"\0\0\0\0"), "SINGULAR_AFFINE"),
    "spacing not a number": (edited(30, b"\x7f\xc0\0\0"), "SINGULAR_AFFINE"),
    "two volumes": (edited(16, b"\0\0\0\2"), "REAL_4D"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_cannot_be_used_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    change, code = BROKEN[case]
    path = save(tmp_path / "orig.mgz")
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    with pytest.raises(DataError, match=rf"orig\.mgz: .*\[{code}\]$") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_damage_of_the_file_itself(tmp_path: Path) -> None:
    path = save(tmp_path / "orig.mgz")
    whole = path.read_bytes()
    for content, code in [
        (whole[:-3000], "DAMAGED_GZIP"),
        (b"", "EMPTY_FILE"),
        (b"not an image", "NOT_NIFTI"),
        (gzip.decompress(whole), "NAME_MISLEADS"),
        (b"<!DOCTYPE html>", "WEB_PAGE"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=code):
            read_image(path)
    with pytest.raises(InputMissing):
        read_image(tmp_path / "none.mgz")


def test_a_grid_that_the_header_does_not_give_is_reported(tmp_path: Path) -> None:
    path = save(tmp_path / "orig.mgz")
    path.write_bytes(gzip.compress(edited(28, b"\0\0")(gzip.decompress(path.read_bytes()))))
    volume, findings = read_image(path)
    assert findings[0].code == "FORMS_MISSING"
    assert volume.orientation == "LIA"


def test_an_image_in_memory_is_read_as_its_file(head_file: Path) -> None:
    volume, findings = read_image(head_file)
    held, held_findings = read_image(load_nifti(head_file))
    assert np.array_equal(held.data, volume.data)
    assert np.array_equal(held.affine, volume.affine)
    assert held_findings == findings
    assert held.header is not None and volume.header is not None
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert held.header[field] == volume.header[field]


def test_an_array_of_the_user_is_not_changed() -> None:
    data = phantoms.noisy_head(GRID)
    data[0, 0, 0] = np.nan
    image = nib.Nifti1Image(data, GRID)
    volume, _ = read_image(image)
    assert volume.data[0, 0, 0] == 0
    assert np.isnan(data[0, 0, 0])
    image.affine[0, 3] += 5
    assert np.allclose(read_image(image)[0].affine, image.affine)


def test_an_image_that_nibabel_maps_for_reading_alone(tmp_path: Path) -> None:
    data = phantoms.noisy_head(GRID)
    data[0, 0, 0] = np.nan
    path = phantoms.save(tmp_path / "a.nii", data, GRID)
    volume, (finding,) = read_image(nib.load(path, mmap="r"))  # type: ignore[arg-type]
    assert finding.code == "NAN_VALUES"
    assert np.array_equal(volume.data, np.nan_to_num(data))


def test_images_in_memory_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^image: .*REAL_4D"):
        read_image(nib.Nifti1Image(np.zeros((20, 20, 20, 2), np.float32), GRID))
    with pytest.raises(DataError, match="COMPLEX_IMAGE"):
        read_image(nib.Nifti1Image(np.ones((20, 20, 20), np.complex64), GRID))
    with pytest.raises(DataError, match="SINGULAR_AFFINE"):
        read_image(nib.Nifti1Image(HEAD, None))
    for name in ("short.nii", "short.nii.gz"):
        path = phantoms.save(tmp_path / name, HEAD, GRID)
        image = load_nifti(path)
        path.write_bytes(path.read_bytes()[:-3000])
        with pytest.raises(DataError, match=rf"{name}: .*TRUNCATED"):
            read_image(image)
