"""Reading of NIfTI files with the guard; nibabel is the oracle."""

import errno
import gzip
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nifti import load_nifti

from bidsseg.errors import BidssegError, DataError, InputMissing, IOFailure
from bidsseg.image.nifti import read_image, read_labels, read_mask

GRID = phantoms.grid()
HEAD = phantoms.noisy_head(GRID)
LABELS = phantoms.head(GRID, contrast=phantoms.LABEL)

FINDINGS = {
    "squeezable": ["EXTRA_AXES"],
    "nan": ["NAN_VALUES"],
    "negative": ["NEGATIVE_VALUES"],
    "micrometres": ["UNITS_CONVERTED"],
    "metres": ["UNITS_CONVERTED"],
    "unitless": ["UNITS_MISSING"],
    "formless": ["FORMS_MISSING"],
}
"""Findings of the guard for the cases of `phantoms`; all other cases have none."""


def codes(path: Path) -> list[str]:
    return [finding.code for finding in read_image(path)[1]]


def edit(path: Path, change: Callable[[nib.Nifti1Header], None]) -> Path:
    """Change only the header of a file."""
    raw = gzip.decompress(path.read_bytes())
    header = phantoms.header_of(path)
    change(header)
    path.write_bytes(gzip.compress(header.binaryblock + raw[header.sizeof_hdr :]))
    return path


# Reading -------------------------------------------------------------------------------------------------------------


def test_every_form_of_a_head_is_read_as_nibabel_reads_it(head_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    volume, findings = read_image(head_file)
    oracle = load_nifti(head_file)
    case = head_file.name.removesuffix(".nii.gz")
    assert [finding.code for finding in findings] == FINDINGS.get(case, [])
    assert volume.data.dtype == np.float32
    expected = np.nan_to_num(oracle.get_fdata()).reshape(volume.shape)
    assert np.allclose(volume.data, expected, rtol=1e-6)
    scale = {"micrometres": 1e-3, "metres": 1e3}.get(case, 1)
    assert np.array_equal(volume.affine, np.diag([scale, scale, scale, 1]) @ oracle.affine)
    assert capfd.readouterr() == ("", "")


def test_units_do_not_change_the_size_of_the_head(tmp_path: Path) -> None:
    for case in ("micrometres", "metres", "unitless"):
        volume, _ = read_image(phantoms.save_case(tmp_path, case))
        assert np.allclose(volume.affine, GRID, atol=1e-5)


def test_a_plain_nii_is_read_alike(tmp_path: Path) -> None:
    volume, findings = read_image(phantoms.save(tmp_path / "a.nii", HEAD, GRID))
    assert np.array_equal(volume.data, HEAD)
    assert not findings


def test_nan_and_infinity_are_counted(tmp_path: Path) -> None:
    data = HEAD.copy()
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    data[0, 0, 3] = 3e38
    volume, (nan, huge) = read_image(phantoms.save(tmp_path / "a.nii.gz", data, GRID))
    assert nan.code == "NAN_VALUES" and ": 3 (" in nan.message
    assert huge.code == "HUGE_VALUES" and ": 1 (" in huge.message
    assert not volume.data[0, 0, :4].any()
    assert np.array_equal(volume.data[1:], HEAD[1:])


def test_float64_beyond_float32_is_no_crash(tmp_path: Path) -> None:
    data = HEAD.astype(np.float64)
    data[0, 0, 0] = 1e300
    assert codes(phantoms.save(tmp_path / "a.nii.gz", data, GRID)) == ["NAN_VALUES"]


def test_a_share_of_all_voxels_is_100_percent(tmp_path: Path) -> None:
    _, (finding,) = read_image(phantoms.save(tmp_path / "a.nii.gz", HEAD - 500, GRID))
    assert finding.message.startswith("100 % of the voxels are negative")


def test_a_few_negative_voxels_are_no_finding(tmp_path: Path) -> None:
    data = HEAD.copy()
    data[:2, :2, :2] = -1
    assert codes(phantoms.save(tmp_path / "a.nii.gz", data, GRID)) == []


@pytest.mark.parametrize(("levels", "expected"), [(31, True), (32, False)])
def test_few_grey_levels_are_reported(tmp_path: Path, levels: int, expected: bool) -> None:
    data = np.arange(40**3).reshape(40, 40, 40) % levels
    nib.save(nib.Nifti1Image(data.astype(np.int16), GRID), tmp_path / "head.nii.gz")
    assert ("FEW_GREY_LEVELS" in codes(tmp_path / "head.nii.gz")) == expected


def test_levels_that_were_not_looked_at_first_count_too(tmp_path: Path) -> None:
    data = np.zeros((40, 40, 40), np.int16)
    data.ravel("K")[1:90] = range(1, 90)
    nib.save(nib.Nifti1Image(data, GRID), tmp_path / "head.nii.gz")
    assert "FEW_GREY_LEVELS" not in codes(tmp_path / "head.nii.gz")


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [(0.2, "VOXEL_SIZE_UNUSUAL"), (6.0, "VOXEL_SIZE_UNUSUAL"), (1.0, "FIELD_OF_VIEW_SMALL"), (4.0, None), (2.0, None)],
)
def test_voxel_size_and_field_of_view(tmp_path: Path, spacing: float, expected: str | None) -> None:
    found = codes(phantoms.save(tmp_path / "a.nii.gz", HEAD, phantoms.grid(spacing)))
    assert (expected in found) if expected else not found


def test_the_distance_between_sform_and_qform_is_reported(tmp_path: Path) -> None:
    path = phantoms.save(tmp_path / "a.nii.gz", HEAD, GRID)
    moved = GRID.copy()
    moved[:3, 3] += (3, 4, 0)
    edit(path, lambda header: header.set_sform(moved, 4))
    volume, (finding,) = read_image(path)
    assert finding.code == "FORMS_DISAGREE" and "5.0 mm" in finding.message
    assert np.array_equal(volume.affine, moved) and np.array_equal(load_nifti(path).affine, moved)


def _shear(header: nib.Nifti1Header) -> None:
    header["srow_x"][1] = 0.4
    header["qform_code"] = 0


def _bad_quaternion(header: nib.Nifti1Header) -> None:
    header["quatern_b"] = header["quatern_c"] = 0.9


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_shear, "AXES_SHEARED"),
        (_bad_quaternion, "FORMS_DISAGREE"),
        (lambda header: header["pixdim"].__setitem__(slice(1, 4), (2, 2, 2)), "SPACING_DISAGREES"),
        (lambda header: header["pixdim"].__setitem__(1, -4), "HEADER_CORRECTED"),
        (lambda header: header.__setitem__("sform_code", 77), "HEADER_CORRECTED"),
        (lambda header: header.__setitem__("vox_offset", 0), "HEADER_CORRECTED"),
        (lambda header: header.__setitem__("xyzt_units", 1), "UNITS_WRONG"),
        (lambda header: header.__setitem__("xyzt_units", 3), "UNITS_WRONG"),
        (lambda header: header.__setitem__("xyzt_units", 5), "UNITS_MISSING"),
    ],
)
def test_odd_headers_are_told(tmp_path: Path, change: Callable[[nib.Nifti1Header], None], expected: str) -> None:
    path = edit(phantoms.save(tmp_path / "a.nii.gz", HEAD, GRID), change)
    volume, findings = read_image(path)
    assert expected in [finding.code for finding in findings]
    assert all(finding.message.endswith(".") and "\n" not in finding.message for finding in findings)
    assert np.array_equal(volume.data, HEAD)
    assert np.array_equal(volume.affine, load_nifti(path).affine)


def test_an_unset_qfac_is_no_finding(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = edit(phantoms.save(tmp_path / "a.nii.gz", HEAD, GRID), lambda header: header["pixdim"].__setitem__(0, 0))
    assert codes(path) == []
    assert capfd.readouterr() == ("", "")


# Bad input -----------------------------------------------------------------------------------------------------------


def _save(data: np.ndarray, affine: np.ndarray = GRID) -> Callable[[Path], object]:
    return lambda path: nib.save(nib.Nifti1Image(data, affine), path)


def _edited(change: Callable[[nib.Nifti1Header], None]) -> Callable[[Path], object]:
    return lambda path: edit(phantoms.save(path, HEAD, GRID), change)


def _singular(header: nib.Nifti1Header) -> None:
    header["srow_z"] = 0


def _qform_is_no_rotation(header: nib.Nifti1Header) -> None:
    _bad_quaternion(header)
    header["sform_code"] = 0


def _cut(end: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(phantoms.save(path, HEAD, GRID).read_bytes()[:end])


def _cut_inside(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(phantoms.save(path, HEAD, GRID).read_bytes())[:-100]))


def _flip_a_byte(path: Path) -> None:
    content = bytearray(phantoms.save(path, HEAD, GRID).read_bytes())
    content[-8] ^= 0xFF
    path.write_bytes(content)


def _rgb(path: Path) -> None:
    colour = np.zeros(phantoms.SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, GRID), path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "EMPTY_FILE"),
    "empty inside": (lambda path: path.write_bytes(gzip.compress(b"")), "NOT_NIFTI"),
    "text": (lambda path: path.write_text("not an image\n" * 100), "NOT_NIFTI"),
    "compressed text": (lambda path: path.write_bytes(gzip.compress(b"not an image" * 100)), "NOT_NIFTI"),
    "noise": (lambda path: path.write_bytes(gzip.compress(bytes(range(256)) * 9)), "NOT_NIFTI"),
    "pair": (_edited(lambda header: header.__setitem__("magic", b"ni1")), "NOT_NIFTI"),
    "not compressed": (lambda path: phantoms.save(path.with_suffix(""), HEAD, GRID).rename(path), "NAME_MISLEADS"),
    "folder": (lambda path: path.mkdir(), "NOT_A_FILE"),
    "truncated gzip": (_cut(20_000), "DAMAGED_GZIP"),
    "truncated at the last byte": (_cut(-1), "DAMAGED_GZIP"),
    "checksum": (_flip_a_byte, "DAMAGED_GZIP"),
    "truncated image": (_cut_inside, "TRUNCATED"),
    "truncated NIfTI-2 header": (
        lambda path: path.write_bytes(
            gzip.compress(gzip.decompress(phantoms.save(path, HEAD, GRID, kind=nib.Nifti2Image).read_bytes())[:400])
        ),
        "TRUNCATED",
    ),
    "2-D": (_save(HEAD[:, :, 20]), "NOT_3D"),
    "one slice": (_save(HEAD[:, :, 20:21]), "NOT_3D"),
    "4-D": (_save(np.stack([HEAD, HEAD], axis=-1)), "REAL_4D"),
    "5-D": (_save(np.stack([HEAD, HEAD], axis=-1)[:, :, :, None]), "REAL_4D"),
    "seven slices": (_save(HEAD[:, :, 20:27]), "TOO_FEW_VOXELS"),
    "RGB": (_rgb, "COLOUR_IMAGE"),
    "complex": (_save(HEAD.astype(np.complex64)), "COMPLEX_IMAGE"),
    "zeros": (_save(np.zeros_like(HEAD)), "CONSTANT_IMAGE"),
    "constant": (_save(np.full_like(HEAD, 7)), "CONSTANT_IMAGE"),
    "only NaN": (_save(np.full_like(HEAD, np.nan)), "CONSTANT_IMAGE"),
    "only huge": (_save(HEAD * np.float32(1e30) + np.float32(1e20)), "CONSTANT_IMAGE"),
    "zero determinant": (_edited(_singular), "SINGULAR_AFFINE"),
    "NaN affine": (_edited(lambda header: header.__setitem__("srow_x", np.nan)), "SINGULAR_AFFINE"),
    "qform without rotation": (_edited(_qform_is_no_rotation), "SINGULAR_AFFINE"),
    "13 mm voxels": (_save(HEAD, phantoms.grid(13.0)), "VOXEL_SIZE_ABSURD"),
    "0.01 mm voxels": (_save(HEAD, phantoms.grid(0.01)), "VOXEL_SIZE_ABSURD"),
    "unknown type": (_edited(lambda header: header.__setitem__("datatype", 999)), "BAD_HEADER"),
    "bit type": (_edited(lambda header: header.__setitem__("datatype", 1)), "BAD_HEADER"),
    "bad intercept": (
        _edited(lambda header: header.__setitem__("scl_slope", 2) or header.__setitem__("scl_inter", np.inf)),
        "BAD_HEADER",
    ),
    "offset": (_edited(lambda header: header.__setitem__("vox_offset", np.nan)), "BAD_HEADER"),
    "size beyond the file": (_edited(lambda header: header["dim"].__setitem__(slice(1, 4), 32767)), "TRUNCATED"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_in_one_line(tmp_path: Path, case: str) -> None:
    make, code = BAD[case]
    path = tmp_path / "sub-01 é_T1w.nii.gz"
    make(path)
    with pytest.raises(DataError) as error:
        read_image(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and message.endswith(f"[{code}]") and "\n" not in message


def test_a_compressed_file_with_a_plain_name(tmp_path: Path) -> None:
    path = phantoms.save(tmp_path / "a.nii.gz", HEAD, GRID).rename(tmp_path / "a.nii")
    with pytest.raises(DataError, match="NAME_MISLEADS"):
        read_image(path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no such file"):
        read_image(tmp_path / "a.nii.gz")
    (tmp_path / "annex.nii.gz").symlink_to("nowhere")
    with pytest.raises(InputMissing, match="datalad get"):
        read_image(tmp_path / "annex.nii.gz")
    (tmp_path / "loop.nii.gz").symlink_to("loop.nii.gz")
    with pytest.raises(InputMissing, match="link"):
        read_labels(tmp_path / "loop.nii.gz")


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), InputMissing),
        (OSError(errno.EIO, "Input/output error"), IOFailure),
    ],
)
def test_files_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: OSError, expected: type[BidssegError]
) -> None:
    def fail(path: Path) -> bytes:
        raise cause

    path = phantoms.save(tmp_path / "a.nii.gz", HEAD, GRID)
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(expected, match=r"a\.nii\.gz"):
        read_image(path)


@settings(deadline=None, max_examples=300)
@given(changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6))
@pytest.mark.filterwarnings("error")
def test_whatever_the_header_holds_the_error_is_ours(changes: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = phantoms.save(Path(folder) / "a.nii", HEAD[::4, ::4, ::4], phantoms.grid(16.0 / 4))
        content = bytearray(path.read_bytes())
        for position, value in changes:
            content[position] = value
        path.write_bytes(content)
        for read in (read_image, read_labels):
            try:
                read(path)
            except BidssegError as error:
                assert str(path) in str(error)


# Labels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "dtype"),
    [((0, 1), np.uint8), ((0, 255), np.uint8), ((0, 256), np.uint16), ((0, 70_000), np.uint32), ((-1, 200), np.int16)],
)
@pytest.mark.parametrize("stored", [np.int32, np.float32, np.float64])
def test_labels_come_in_the_smallest_type(tmp_path: Path, values: tuple[int, int], dtype: type, stored: type) -> None:
    labels = np.where(LABELS > 1, values[1], values[0])
    volume = read_labels(phantoms.save(tmp_path / "a.nii.gz", labels.astype(stored), GRID))
    assert volume.data.dtype == dtype
    assert np.array_equal(volume.data, labels)


def test_labels_near_integers_are_rounded(tmp_path: Path) -> None:
    stored = LABELS.astype(np.int16) * 1000
    volume = read_labels(phantoms.save(tmp_path / "a.nii.gz", stored, GRID, slope=0.000999999))
    assert np.array_equal(volume.data, LABELS)


@pytest.mark.parametrize("outside", [0, np.nan])
def test_a_mask_of_probabilities_may_be_nan_outside_of_the_brain(tmp_path: Path, outside: float) -> None:
    probabilities = np.where(HEAD > 100, 0.7, np.where(HEAD > 50, 0.2, outside)).astype(np.float32)
    mask = read_mask(phantoms.save(tmp_path / "a.nii.gz", probabilities, GRID), 0.5)
    assert mask is not None and np.array_equal(mask.data, HEAD > 100)


@pytest.mark.parametrize("wrong", [2.5, 1.02, np.nan, np.inf, 1e20])
def test_labels_far_from_integers_are_refused(tmp_path: Path, wrong: float) -> None:
    stored = LABELS.astype(np.float32)
    stored[3, 3, 3] = wrong
    message = re.escape(f"a.nii.gz: contains the value {wrong:g}, ") + ".*LABELS_NOT_INTEGERS"
    with pytest.raises(DataError, match=message):
        read_labels(phantoms.save(tmp_path / "a.nii.gz", stored, GRID))


def test_an_empty_lesion_mask_is_a_label_map(tmp_path: Path) -> None:
    volume = read_labels(phantoms.save(tmp_path / "a.nii.gz", np.zeros_like(LABELS)[..., None], GRID))
    assert volume.shape == phantoms.SHAPE and not volume.data.any()
