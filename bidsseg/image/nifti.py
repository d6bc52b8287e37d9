"""Reading images with a guard, and writing NIfTI files on the grid of another image."""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy, is_proxy
from nibabel.spatialimages import SpatialImage

from bidsseg.errors import DataError
from bidsseg.files import replacing
from bidsseg.image.content import content
from bidsseg.image.guard import (
    UNITS_MM,
    Finding,
    check_kind,
    check_shape,
    check_space,
    clean_intensities,
    is_usable,
    refusal,
)
from bidsseg.image.mgh import Layout, header_at, is_mgh, mgh_layout
from bidsseg.image.nifti_header import nifti_header
from bidsseg.image.volume import Field, Volume

__all__ = [
    "Finding",
    "Source",
    "label_image",
    "map_image",
    "name_of",
    "read_grid",
    "read_image",
    "read_labels",
    "read_mask",
    "read_usable",
    "write_changed",
    "write_field",
    "write_labels",
    "write_map",
    "write_maps",
]

Source = Path | SpatialImage
"""A ``.nii``, ``.nii.gz``, ``.mgh`` or ``.mgz`` file, or a nibabel image, which is not modified."""

COMPRESSION = 4
"""gzip level."""

LABEL_TOLERANCE = 0.01
"""Largest distance of a stored label from an integer: scaled files contain values such as 2.9999."""

LARGEST_LABEL = 2**31 - 1

MAP_STEP = 2.0**-15
"""Resolution of maps, a power of two so that 0 and 1 are read back exactly."""

GEOMETRY = (
    "qform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "sform_code",
    "srow_x",
    "srow_y",
    "srow_z",
)
"""Fields of a header that define the position of its voxels, besides ``pixdim`` and the unit."""


def read_image(source: Source) -> tuple[Volume, list[Finding]]:
    """Return an intensity image as float32, and the findings.

    Args:
        source: a file, or a nibabel image.

    Returns:
        Volume of shape (X, Y, Z), intensities scaled as in the header, NaN and infinity set to 0, affine in mm;
        and the findings.

    Raises:
        InputMissing: the file does not exist, or cannot be opened.
        DataError: not a usable 3-D image; the message ends with a code in brackets.
    """
    with _named(source):
        header, stored, findings = _load(source)
        data = np.asarray(stored, dtype=np.float32)
        shape, more = check_shape(data.shape)
        affine, remarks = check_space(header, shape)
        data = np.require(data.reshape(shape, order="F"), requirements="W")  # nibabel may map a file for reading alone
        findings += more + remarks + clean_intensities(data)
        return Volume(data, affine, header), findings


def read_usable(source: Source) -> np.ndarray:
    """Return which intensities `read_image` keeps instead of setting them to 0, booleans (X, Y, Z)."""
    with _named(source):
        _, stored, _ = _load(source)
        data = np.asarray(stored, dtype=np.float32)
        shape, _ = check_shape(data.shape)
        return is_usable(data.reshape(shape, order="F"))


def read_grid(source: Source) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return shape (X, Y, Z) and affine (voxel to RAS+ mm) of an image.

    Raises:
        InputMissing, DataError: as `read_labels`, whatever the values are.
    """
    with _named(source):
        header, stored, _ = _load(source)
        shape, _ = check_shape(stored.shape)
        return shape, check_space(header, shape)[0]


def read_labels(source: Source) -> Volume:
    """Return a label map, in the smallest integer type for its labels (unsigned unless some are negative).

    Args:
        source: a file, or a nibabel image; floating-point and scaled labels are rounded.

    Raises:
        InputMissing: the file does not exist, or cannot be opened.
        DataError: not a usable 3-D image, or a value is not close to an integer.
    """
    with _named(source):
        header, stored, _ = _load(source)
        values = np.asarray(stored)
        shape, _ = check_shape(values.shape)
        affine, _ = check_space(header, shape)
        return Volume(_integers(values.reshape(shape, order="F")), affine, header)


def read_mask(source: Source, threshold: float) -> Volume | None:
    """Return the voxels of a map of probabilities with at least some probability; None for other values than 0 to 1.

    A value that is not a number, as some tools write outside of the brain, counts as 0.

    Raises:
        InputMissing, DataError: as `read_labels`, whatever the values are.
    """
    with _named(source):
        header, stored, _ = _load(source)
        values = np.nan_to_num(np.asarray(stored))
        shape, _ = check_shape(values.shape)
        affine, _ = check_space(header, shape)
        if not (values.min() >= -LABEL_TOLERANCE and values.max() <= 1 + LABEL_TOLERANCE):
            return None
        return Volume((values.reshape(shape, order="F") >= threshold).astype(np.uint8), affine, header)


def write_labels(path: Path, labels: np.ndarray, like: Volume) -> None:
    """Write a label map or a mask in the smallest unsigned type.

    Args:
        path: output file; its folder is created if needed.
        labels: integers ≥ 0 or booleans, shape (X, Y, Z) of `like`.
        like: the image on the same grid; sform, qform, codes and units are copied bit by bit.

    Raises:
        OutputNotWritable: the file cannot be created.
        IOFailure: writing failed, e.g. the disk is full.
    """
    if labels.dtype.kind not in "bui" or labels.min() < 0:
        raise ValueError("labels are integers from 0 up")
    header = _label_header(labels, like)
    dtype = header.get_data_dtype()
    _write(path, header, (labels[..., k].astype(dtype) for k in range(labels.shape[-1])))


def write_map(path: Path, values: np.ndarray, like: Volume) -> None:
    """Write values from 0 to 1, such as an uncertainty, as scaled 16-bit integers in steps of 2⁻¹⁵.

    Args:
        path: output file; its folder is created if needed.
        values: floating point, shape (X, Y, Z) of `like`.
        like: the image on the same grid; sform, qform, codes and units are copied bit by bit.

    Raises:
        OutputNotWritable: the file cannot be created.
        IOFailure: writing failed, e.g. the disk is full.
    """
    _write_scaled(path, like.shape, [values], like=like)


def write_changed(path: Path, source: Path, image: Volume, *, changed: np.ndarray) -> None:
    """Write a copy of an image in its own type and scale, in which some voxels have the values of another image.

    Args:
        image: the other image, on the same grid.
        changed: booleans (X, Y, Z).

    Raises:
        InputMissing, DataError: as `read_image`.
        OutputNotWritable, IOFailure: as `write_labels`.
    """
    with _named(source):
        _, proxy, _ = _load(source)
        stored = np.array(proxy.get_unscaled()).reshape(image.shape, order="F")
    values, dtype = (image.data[changed].astype(np.float64) - proxy.inter) / proxy.slope, stored.dtype.newbyteorder("=")
    if dtype.kind in "iu":
        values = np.rint(values).clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    stored[changed] = values
    header = _fresh_header(image, image.shape, dtype)
    header.set_slope_inter(proxy.slope, proxy.inter)
    _write(path, header, (stored[..., k].astype(dtype) for k in range(stored.shape[-1])))


def write_maps(path: Path, maps: Iterable[np.ndarray], count: int, *, like: Volume) -> None:
    """Write several maps (X, Y, Z) into one file (X, Y, Z, count), one at a time; otherwise as write_map."""
    _write_scaled(path, (*like.shape, count), maps, like=like)


def write_field(path: Path, field: Field) -> None:
    """Write displacements in the form of ITK and ANTs: single-precision vectors in LPS.

    Raises:
        OutputNotWritable: the file cannot be created.
        IOFailure: writing failed, e.g. the disk is full.
    """
    shape = field.vectors.shape
    header = nib.Nifti1Header()
    header.set_data_shape((*shape[:3], 1, 3))
    header.set_data_dtype(np.float32)
    header.set_intent("vector")
    header.set_xyzt_units("mm", "sec")
    header.set_qform(field.affine, "aligned")
    header.set_sform(field.affine, "aligned")
    _write(path, header, (sign * field.vectors[..., axis].astype(np.float32) for axis, sign in enumerate((-1, -1, 1))))


def _write_scaled(path: Path, shape: tuple[int, ...], maps: Iterable[np.ndarray], *, like: Volume) -> None:
    header = _fresh_header(like, shape, np.dtype(np.uint16))
    header.set_slope_inter(MAP_STEP, 0)
    _write(path, header, (np.rint(m.astype(np.float32).clip(0, 1) / MAP_STEP).astype(np.uint16) for m in maps))


def label_image(labels: np.ndarray, like: Volume) -> nib.Nifti1Image:
    """Return the nibabel image that :func:`write_labels` writes."""
    header = _label_header(labels, like)
    return _image(labels, header)


def map_image(values: np.ndarray, like: Volume) -> nib.Nifti1Image:
    """Return values, floating point of shape (X, Y, Z), on the grid of `like` as a float32 nibabel image."""
    return _image(values, _fresh_header(like, values.shape, np.dtype(np.float32)))


def _image(values: np.ndarray, header: nib.Nifti1Header) -> nib.Nifti1Image:
    """Return values in the data type of a header as a nibabel image."""
    kind: type[nib.Nifti1Image] = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(values.astype(header.get_data_dtype()), header.get_best_affine(), header)


def name_of(source: Source) -> str:
    """Return the name of an image in errors: its path, or ``image`` without one."""
    return str(source) if isinstance(source, Path) else source.get_filename() or "image"


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Prefix errors with the name of the file, and silence numpy's warnings: the guard reports unusual values."""
    try:
        with np.errstate(all="ignore"):
            yield
    except DataError as error:
        raise DataError(f"{name_of(source)}: {error}") from error
    except (EOFError, OSError, zlib.error) as error:  # from nibabel, which reads voxels on demand
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())
        message = f"{name_of(source)}: has voxels that cannot be read ({reason}); copy or convert it again"
        raise refusal("TRUNCATED", message) from error


def _load(source: Source) -> tuple[nib.Nifti1Header, Any, list[Finding]]:
    """Return the header with nibabel's corrections, the voxels as stored, and the findings about the corrections."""
    if not isinstance(source, Path):
        return _held(source)
    stored = content(source)
    if is_mgh(source):
        header, layout, findings = mgh_layout(stored)
        _check_whole(stored, layout)
        return header, ArrayProxy(BytesIO(stored), layout), findings
    header, findings = nifti_header(stored)
    _check_whole(stored, (header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()))
    return header, ArrayProxy(BytesIO(stored), header), findings


def _held(image: SpatialImage) -> tuple[nib.Nifti1Header, Any, list[Finding]]:
    """Return header and voxels of a nibabel image."""
    stored: Any = image.dataobj
    check_shape(image.shape)
    check_kind(stored.dtype)
    if image.affine is None:
        raise refusal("SINGULAR_AFFINE", "has no affine; add one to the image")
    if isinstance(image.header, nib.Nifti1Header):
        header = image.header.copy()
        if not np.allclose(header.get_best_affine(), image.affine):  # changed after the image was created
            header.set_sform(image.affine, int(header["sform_code"]) or "scanner")
    else:
        header = header_at(image.affine)
    # The guard modifies voxels: an array is copied, while a proxy reads new ones from the file.
    return header, stored if is_proxy(stored) else np.array(stored), []


def _check_whole(stored: bytes, layout: Layout) -> None:
    """Raise DataError if a file does not contain such an image, or ends before its last voxel."""
    shape, dtype, offset = layout
    check_kind(dtype)
    check_shape(shape)
    missing = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize - len(stored)
    if missing > 0:
        raise refusal("TRUNCATED", f"ends {missing} bytes too early; copy or convert it again")


def _integers(values: np.ndarray) -> np.ndarray:
    """Return labels as the smallest integer type, from values that must be near integers."""
    if values.dtype.kind == "f":
        nearest = np.rint(values)
        distance = np.abs(values - nearest)
        distance[~(np.abs(values) <= LARGEST_LABEL)] = np.inf
        if distance.max() > LABEL_TOLERANCE:
            worst = values.flat[distance.argmax()]
            raise refusal(
                "LABELS_NOT_INTEGERS",
                f"contains the value {worst:g}, which is not a label; give a label map with "
                "integers only, not an interpolated one",
            )
        values = nearest
    low, high = int(values.min()), int(values.max())
    return values.astype(np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high)))


def _label_header(labels: np.ndarray, like: Volume) -> nib.Nifti1Header:
    """Return the header of a label map or a mask (X, Y, Z), in the smallest unsigned type."""
    dtype = np.dtype(np.uint8) if labels.dtype == bool else np.min_scalar_type(labels.max())
    header = _fresh_header(like, labels.shape, dtype)
    header.set_intent("label")
    return header


def _fresh_header(like: Volume, shape: tuple[int, ...], dtype: np.dtype) -> nib.Nifti1Header:
    """Return a header for values of a shape and type on the grid of another image, without its other fields."""
    if shape[:3] != like.shape:
        raise ValueError(f"values of shape {shape} do not fit a grid of {like.shape}")
    source = like.header
    header = nib.Nifti2Header() if isinstance(source, nib.Nifti2Header) else nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    # Validators require a unit of the fourth axis even if it is not time.
    header.set_xyzt_units("mm", "sec" if len(shape) > 3 else None)
    if source is None:
        header.set_qform(like.affine, "scanner")
        header.set_sform(like.affine, "scanner")
        return header
    for field in GEOMETRY:
        header[field] = source[field]
    header["pixdim"][:4] = source["pixdim"][:4]
    unit = int(source["xyzt_units"]) % 8
    if unit in UNITS_MM:
        header["xyzt_units"] = int(header["xyzt_units"]) // 8 * 8 + unit
    return header


def _write(path: Path, header: nib.Nifti1Header, slabs: Iterable[np.ndarray]) -> None:
    """Write slabs along the last axis one after the other; equal content gives equal bytes."""
    with replacing(path) as stream, gzip.GzipFile("", "wb", COMPRESSION, stream, mtime=0) as packed:
        header.write_to(packed)
        for slab in slabs:
            packed.write(slab.tobytes("F"))
