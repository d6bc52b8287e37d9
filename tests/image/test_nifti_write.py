"""Writing of NIfTI files on the grid of the source; nibabel is the oracle."""

import errno
import gzip
import os
import resource
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nifti import load_nifti
from permissions import not_root

from bidsseg.errors import BidssegError, InputMissing, IOFailure, OutputNotWritable
from bidsseg.files import replacing
from bidsseg.image.nifti import read_image, read_labels, write_labels, write_map, write_maps
from bidsseg.image.volume import Volume

GRID = phantoms.grid()
HEAD = phantoms.noisy_head(GRID)
LABELS = phantoms.head(GRID, contrast=phantoms.LABEL)


def assert_same_place(written: Path, source: Path) -> None:
    """Assert that the voxels of both files have bit-identical positions, for every reader."""
    ours, theirs = load_nifti(written), load_nifti(source)
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
    assert np.array_equal(np.asanyarray(load_nifti(path).dataobj), labels)
    unit = load_nifti(head_file).header.get_xyzt_units()[0]
    assert load_nifti(path).header.get_xyzt_units() == ("mm" if unit == "unknown" else unit, "unknown")
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
        assert np.array_equal(volume.affine, load_nifti(source).affine)
        write_labels(written, data, volume)
        assert_same_place(written, source)
        assert np.array_equal(np.asanyarray(load_nifti(written).dataobj), data)


def test_a_volume_without_a_file_keeps_its_affine(tmp_path: Path) -> None:
    affine = phantoms.grid((0.7, 1.2, 3), "LPS", rotation_degrees=12)
    write_labels(tmp_path / "a.nii.gz", LABELS, Volume(HEAD, affine))
    image = load_nifti(tmp_path / "a.nii.gz")
    assert np.array_equal(image.affine, affine.astype(np.float32))
    assert np.allclose(image.get_qform(), affine, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize(("largest", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65_536, np.uint32)])
def test_labels_are_stored_in_the_smallest_unsigned_type(tmp_path: Path, largest: int, dtype: type) -> None:
    labels = np.where(LABELS > 0, largest, 0)
    write_labels(tmp_path / "a.nii.gz", labels, Volume(HEAD, GRID))
    header = phantoms.header_of(tmp_path / "a.nii.gz")
    assert header.get_data_dtype() == dtype
    assert (header["scl_slope"], header["scl_inter"]) == (1, 0)
    assert np.array_equal(load_nifti(tmp_path / "a.nii.gz").get_fdata(), labels)


def test_masks_are_bytes(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.nii.gz", LABELS > 1, Volume(HEAD, GRID))
    assert np.array_equal(np.asanyarray(load_nifti(tmp_path / "a.nii.gz").dataobj), (LABELS > 1).astype(np.uint8))


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
    assert b"Doe" not in raw and phantoms.header_of(tmp_path / "dseg.nii.gz")["cal_max"] == 0


def test_values_from_0_to_1_are_read_back(tmp_path: Path) -> None:
    volume = Volume(HEAD, GRID)
    values = np.random.default_rng(0).random((*phantoms.SHAPE, 3)).astype(np.float16)
    values[0, 0, 0] = 0, 1, 1.1
    write_maps(tmp_path / "probseg.nii.gz", iter(np.moveaxis(values, 3, 0)), values.shape[3], like=volume)
    image = load_nifti(tmp_path / "probseg.nii.gz")
    assert image.shape == values.shape and np.array_equal(image.affine, GRID)
    assert np.array_equal(image.get_fdata()[0, 0, 0], [0, 1, 1])
    assert np.abs(image.get_fdata() - values.clip(0, 1)).max() <= 2.0**-16
    write_map(tmp_path / "entropy.nii.gz", values[..., 0], volume)
    assert load_nifti(tmp_path / "entropy.nii.gz").shape == phantoms.SHAPE


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


def test_permissions(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    path = phantoms.save(folder / "T1w.nii.gz", HEAD, GRID)
    for locked, mode in ((path, 0o000), (folder, 0o555), (folder, 0o000)):
        locked.chmod(mode)
        with not_root(), pytest.raises(InputMissing, match="permissions"):
            read_image(path)
    folder.chmod(0o555)
    with not_root(), pytest.raises(OutputNotWritable, match="permissions"):
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
        assert np.array_equal(load_nifti(tmp_path / "dseg.nii.gz").get_fdata(), load_nifti(path).get_fdata())
