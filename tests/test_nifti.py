"""Reading with the guard, and writing on the grid of the source; nibabel is the oracle."""

import errno
import gzip
import os
import re
import resource
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidsseg.errors import BidssegError, DataError, InputMissing, IOFailure, OutputNotWritable
from bidsseg.image.files import replacing
from bidsseg.image.nifti import read_image, read_labels, write_labels, write_map, write_maps
from bidsseg.image.volume import Volume

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
"""What the guard says of the cases of `phantoms`; of all others it says nothing."""


def codes(path: Path) -> list[str]:
    return [finding.code for finding in read_image(path)[1]]


def header_of(path: Path) -> nib.Nifti1Header:
    """The header as it stands in the file; nibabel forgets slope and offset on loading."""
    raw = gzip.decompress(path.read_bytes())
    return nib.Nifti1Header(raw[:348], check=False) if raw[344:347] == b"n+1" else nib.Nifti2Header(raw[:540])


def edit(path: Path, change: Callable[[nib.Nifti1Header], None]) -> Path:
    """Changes the header of a file and nothing else of it."""
    raw = gzip.decompress(path.read_bytes())
    header = header_of(path)
    change(header)
    path.write_bytes(gzip.compress(header.binaryblock + raw[header.sizeof_hdr :]))
    return path


# Reading -------------------------------------------------------------------------------------------------------------


def test_every_form_of_a_head_is_read_as_nibabel_reads_it(head_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    volume, findings = read_image(head_file)
    oracle = nib.load(head_file)
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


def test_a_few_negative_voxels_are_no_finding(tmp_path: Path) -> None:
    data = HEAD.copy()
    data[:2, :2, :2] = -1
    assert codes(phantoms.save(tmp_path / "a.nii.gz", data, GRID)) == []


@pytest.mark.parametrize(("levels", "expected"), [(31, True), (32, False)])
def test_few_grey_levels_are_told(tmp_path: Path, levels: int, expected: bool) -> None:
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


def test_the_distance_between_sform_and_qform_is_told(tmp_path: Path) -> None:
    path = phantoms.save(tmp_path / "a.nii.gz", HEAD, GRID)
    moved = GRID.copy()
    moved[:3, 3] += (3, 4, 0)
    edit(path, lambda header: header.set_sform(moved, 4))
    volume, (finding,) = read_image(path)
    assert finding.code == "FORMS_DISAGREE" and "5.0 mm" in finding.message
    assert np.array_equal(volume.affine, moved) and np.array_equal(nib.load(path).affine, moved)


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
    assert np.array_equal(volume.affine, nib.load(path).affine)


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


BAD = {
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


@pytest.mark.parametrize("wrong", [2.5, 1.02, np.nan, np.inf, 1e20])
def test_labels_far_from_integers_are_refused(tmp_path: Path, wrong: float) -> None:
    stored = LABELS.astype(np.float32)
    stored[3, 3, 3] = wrong
    message = re.escape(f"a.nii.gz: holds the value {wrong:g}, ") + ".*LABELS_NOT_INTEGERS"
    with pytest.raises(DataError, match=message):
        read_labels(phantoms.save(tmp_path / "a.nii.gz", stored, GRID))


def test_an_empty_lesion_mask_is_a_label_map(tmp_path: Path) -> None:
    volume = read_labels(phantoms.save(tmp_path / "a.nii.gz", np.zeros_like(LABELS)[..., None], GRID))
    assert volume.shape == phantoms.SHAPE and not volume.data.any()


# Writing -------------------------------------------------------------------------------------------------------------


def assert_same_place(written: Path, source: Path) -> None:
    """Both files place their voxels alike, to the last bit, however they are read."""
    ours, theirs = nib.load(written), nib.load(source)
    assert np.array_equal(ours.affine, theirs.affine)
    assert np.array_equal(ours.get_sform(), theirs.get_sform())
    assert np.array_equal(ours.get_qform(), theirs.get_qform())
    for field in ("sform_code", "qform_code"):
        assert ours.header[field] == theirs.header[field]
    assert np.array_equal(ours.header["pixdim"][:4], theirs.header["pixdim"][:4])


def test_labels_lie_where_the_source_lies(head_file: Path, tmp_path: Path) -> None:
    volume, _ = read_image(head_file)
    labels = (volume.data > np.median(volume.data)).astype(np.int64) * 7
    path = tmp_path / "new folder" / "dseg.nii.gz"
    write_labels(path, labels, volume)
    assert_same_place(path, head_file)
    assert np.array_equal(np.asanyarray(nib.load(path).dataobj), labels)
    unit = nib.load(head_file).header.get_xyzt_units()[0]
    assert nib.load(path).header.get_xyzt_units() == ("mm" if unit == "unknown" else unit, "unknown")
    assert np.array_equal(read_labels(path).affine, volume.affine)


affines = st.builds(
    lambda spacing, signs, angles, order, centre: nib.affines.from_matvec(
        nib.eulerangles.euler2mat(*angles)[:, order] * np.array(spacing) * signs, centre
    ),
    spacing=st.tuples(*[st.floats(0.06, 11)] * 3),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    angles=st.tuples(*[st.floats(-3.2, 3.2)] * 3),
    order=st.permutations([0, 1, 2]),
    centre=st.tuples(*[st.floats(-300, 300)] * 3),
)


@settings(deadline=None)
@given(
    affine=affines, forms=st.tuples(st.integers(0, 5), st.integers(0, 5)), shape=st.tuples(*[st.integers(8, 12)] * 3)
)
def test_any_affine_is_read_back_to_the_last_bit(
    affine: np.ndarray, forms: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, written = Path(folder) / "T1w.nii.gz", Path(folder) / "dseg.nii.gz"
        data = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
        phantoms.save(source, data, affine, sform_code=forms[0], qform_code=forms[1])
        volume, _ = read_image(source)
        assert np.array_equal(volume.affine, nib.load(source).affine)
        write_labels(written, data, volume)
        assert_same_place(written, source)
        assert np.array_equal(np.asanyarray(nib.load(written).dataobj), data)


def test_a_volume_without_a_file_keeps_its_affine(tmp_path: Path) -> None:
    affine = phantoms.grid((0.7, 1.2, 3), "LPS", rotation_degrees=12)
    write_labels(tmp_path / "a.nii.gz", LABELS, Volume(HEAD, affine))
    image = nib.load(tmp_path / "a.nii.gz")
    assert np.array_equal(image.affine, affine.astype(np.float32))
    assert np.allclose(image.get_qform(), affine, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize(("largest", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65_536, np.uint32)])
def test_labels_are_stored_in_the_smallest_unsigned_type(tmp_path: Path, largest: int, dtype: type) -> None:
    labels = np.where(LABELS > 0, largest, 0)
    write_labels(tmp_path / "a.nii.gz", labels, Volume(HEAD, GRID))
    header = header_of(tmp_path / "a.nii.gz")
    assert header.get_data_dtype() == dtype
    assert (header["scl_slope"], header["scl_inter"]) == (1, 0)
    assert np.array_equal(nib.load(tmp_path / "a.nii.gz").get_fdata(), labels)


def test_masks_are_bytes(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.nii.gz", LABELS > 1, Volume(HEAD, GRID))
    assert np.array_equal(np.asanyarray(nib.load(tmp_path / "a.nii.gz").dataobj), (LABELS > 1).astype(np.uint8))


def test_nothing_else_of_the_source_is_taken_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(HEAD, GRID)
    image.header["descrip"] = b"Doe^Jane"
    image.header["cal_max"] = 99
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    nib.save(image, tmp_path / "T1w.nii.gz")
    volume, _ = read_image(tmp_path / "T1w.nii.gz")
    write_labels(tmp_path / "dseg.nii.gz", LABELS, volume)
    raw = gzip.decompress((tmp_path / "dseg.nii.gz").read_bytes())
    assert len(raw) == 352 + LABELS.size and raw[348:352] == bytes(4)
    assert b"Doe" not in raw and header_of(tmp_path / "dseg.nii.gz")["cal_max"] == 0


def test_values_from_0_to_1_are_read_back(tmp_path: Path) -> None:
    volume = Volume(HEAD, GRID)
    values = np.random.default_rng(0).random((*phantoms.SHAPE, 3)).astype(np.float16)
    values[0, 0, 0] = 0, 1, 1.1
    write_maps(tmp_path / "probseg.nii.gz", iter(np.moveaxis(values, 3, 0)), values.shape[3], volume)
    image = nib.load(tmp_path / "probseg.nii.gz")
    assert image.shape == values.shape and np.array_equal(image.affine, GRID)
    assert np.array_equal(image.get_fdata()[0, 0, 0], [0, 1, 1])
    assert np.abs(image.get_fdata() - values.clip(0, 1)).max() <= 2.0**-16
    write_map(tmp_path / "entropy.nii.gz", values[..., 0], volume)
    assert nib.load(tmp_path / "entropy.nii.gz").shape == phantoms.SHAPE


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    volume = Volume(HEAD, GRID)
    write_labels(tmp_path / "a.nii.gz", LABELS, volume)
    write_labels(tmp_path / "b.nii.gz", np.asfortranarray(LABELS.astype(np.int64)), volume)
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "b.nii.gz").read_bytes()
    flags, time = struct.unpack("<BI", content[3:8])
    assert (flags, time) == (0, 0)  # neither a file name nor a time in the gzip header


def test_arrays_off_the_grid_are_refused(tmp_path: Path) -> None:
    volume = Volume(HEAD, GRID)
    with pytest.raises(ValueError, match="grid"):
        write_labels(tmp_path / "a.nii.gz", LABELS[1:], volume)
    with pytest.raises(ValueError, match="integers"):
        write_labels(tmp_path / "a.nii.gz", HEAD, volume)
    with pytest.raises(ValueError, match="integers"):
        write_labels(tmp_path / "a.nii.gz", LABELS.astype(int) - 1, volume)
    assert not list(tmp_path.iterdir())


# Failing while writing -----------------------------------------------------------------------------------------------


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_is_honoured(tmp_path: Path, mask: int, mode: int) -> None:
    with umask(mask):
        write_labels(tmp_path / "a.nii.gz", LABELS, Volume(HEAD, GRID))
    assert stat.S_IMODE((tmp_path / "a.nii.gz").stat().st_mode) == mode


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(0, 255, phantoms.SHAPE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(IOFailure, match=r"a\.nii\.gz: writing failed"):
            write_labels(path, noise, Volume(HEAD, GRID))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, OutputNotWritable),
        (errno.EPERM, OutputNotWritable),
        (errno.EROFS, OutputNotWritable),
        (errno.ENOSPC, IOFailure),
        (errno.EDQUOT, IOFailure),
        (errno.EIO, IOFailure),
    ],
)
def test_errors_of_the_system_are_told_apart(tmp_path: Path, number: int, expected: type[BidssegError]) -> None:
    with pytest.raises(expected, match=os.strerror(number)), replacing(tmp_path / "a.tsv") as stream:
        stream.write(b"half")
        raise OSError(number, os.strerror(number))
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritable, match="another folder"):
        write_labels(tmp_path / "file" / "a.nii.gz", LABELS, Volume(HEAD, GRID))
    (tmp_path / "a.nii.gz").mkdir()
    with pytest.raises(OutputNotWritable, match="another folder"):
        write_labels(tmp_path / "a.nii.gz", LABELS, Volume(HEAD, GRID))


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root, whom permissions do not bind, becomes nobody for a while."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_permissions(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    path = phantoms.save(folder / "T1w.nii.gz", HEAD, GRID)
    for locked, mode in ((path, 0o000), (folder, 0o555), (folder, 0o000)):
        locked.chmod(mode)
        with ordinary_user(), pytest.raises(InputMissing, match="permissions"):
            read_image(path)
    folder.chmod(0o555)
    with ordinary_user(), pytest.raises(OutputNotWritable, match="permissions"):
        write_labels(folder / "dseg.nii.gz", LABELS, Volume(HEAD, GRID))
    folder.chmod(0o755)
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize("cause", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, cause: type[BaseException]) -> None:
    with pytest.raises(cause), replacing(tmp_path / "a.tsv") as stream:
        stream.write(b"half")
        raise cause
    assert not list(tmp_path.iterdir())


# Real data -----------------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("dataset", ["clinical", "ds000011", "ds002748", "ms", "oasis"])
def test_good_scans_have_no_findings_and_keep_their_place(testdata: Path, tmp_path: Path, dataset: str) -> None:
    scans = sorted((testdata / dataset).glob("sub-*/**/anat/*.nii.gz"))
    assert scans
    for scan in scans[:6]:
        volume, findings = read_image(scan)
        assert not findings
        write_labels(tmp_path / "mask.nii.gz", volume.data > 0, volume)
        assert_same_place(tmp_path / "mask.nii.gz", scan)


@pytest.mark.data
@pytest.mark.parametrize("folder", ["heads", "ms/derivatives/manual", "oasis/derivatives/manual"])
def test_real_label_maps_go_round(testdata: Path, tmp_path: Path, folder: str) -> None:
    maps = sorted((testdata / folder).glob("sub-*/**/*.nii.gz"))
    assert maps
    for path in maps[:2]:
        volume = read_labels(path)
        write_labels(tmp_path / "dseg.nii.gz", volume.data, volume)
        assert_same_place(tmp_path / "dseg.nii.gz", path)
        assert np.array_equal(nib.load(tmp_path / "dseg.nii.gz").get_fdata(), nib.load(path).get_fdata())
