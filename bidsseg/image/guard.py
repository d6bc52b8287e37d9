"""Checks that make an image unusable, or usable with a finding.

An unusable image raises a `DataError` whose message ends with its code in brackets, e.g. ``[REAL_4D]``. Otherwise, the
checks return `Finding` objects, which the caller records.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import aff2axcodes
from nibabel.spatialimages import HeaderDataError

from bidsseg.errors import DataError

MIN_VOXELS = 8
"""Fewest voxels along an axis; a single slice or a few slices are not a brain."""

SMALL_FIELD_MM = 60.0
"""An adult brain is about 140 × 170 × 130 mm; a field of view below this misses most of it along one axis."""

SPACING_MM = (0.05, 12.0)
"""Outside of this range, the header is wrong for any scanner."""

USUAL_SPACING_MM = (0.25, 5.5)
"""Outside of this range, a result should be checked."""

FORMS_TOLERANCE_MM = 0.1
"""A qform is a rounded rotation, so the two never agree to the last digit."""

SHEAR_TOLERANCE_DEGREES = 0.5

SPACING_TOLERANCE = 0.01
"""Relative difference of voxel sizes that counts as rounding."""

LARGEST_INTENSITY = 1e12
"""Largest intensity of any scanner; below it, sums of squares over a whole image stay finite in float32."""

NEGATIVE_FRACTION = 0.01
"""Fewer negative voxels than this come from interpolation and are ignored."""

FEWEST_LEVELS, EVERY = 32, 97
"""With fewer grey levels, tissues are hard to separate; every 97th voxel is checked first."""

UNITS_MM = {1: ("metres", 1000.0), 2: ("millimetres", 1.0), 3: ("micrometres", 0.001)}
"""NIfTI code of the spatial unit: its name and its length in millimetres."""


@dataclass(frozen=True)
class Finding:
    """An observation about an input image that users should know.

    Attributes:
        code: stable upper-case name, e.g. ``'NAN_VALUES'``.
        message: one sentence for users.
    """

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


BRAIN_CUT = "BRAIN_CUT"
"""Code of the finding that the field of view does not show the whole brain."""


def is_cut(findings: Iterable[Finding]) -> bool:
    """Return whether the field of view is known to cut off a part of the brain."""
    return any(finding.code == BRAIN_CUT for finding in findings)


def refusal(code: str, message: str) -> DataError:
    """Return the error for an image that cannot be used, with its code in the message."""
    return DataError(f"{message} [{code}]")


def check_shape(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], list[Finding]]:
    """Return the three spatial axes of an image, after dropping further axes of length one, and the findings."""
    size = " × ".join(map(str, shape))
    if len(shape) < 3 or 1 in shape[:3]:
        raise refusal("NOT_3D", f"has {size} voxels, which is not a volume; give a 3-D image")
    if any(length != 1 for length in shape[3:]):
        raise refusal("REAL_4D", f"has {size} voxels, several volumes in one file; give a single 3-D volume")
    if min(shape[:3]) < MIN_VOXELS:
        raise refusal("TOO_FEW_VOXELS", f"has {size} voxels; at least {MIN_VOXELS} along each axis are needed")
    findings = []
    if len(shape) > 3:
        findings.append(Finding("EXTRA_AXES", f"The image has {len(shape)} axes; axes of length one were dropped."))
    x, y, z = shape[:3]
    return (x, y, z), findings


def check_kind(dtype: np.dtype) -> None:
    """Raise DataError for colour and complex images."""
    if dtype.fields is not None:
        raise refusal("COLOUR_IMAGE", "contains RGB colours, not intensities; convert it to one value per voxel")
    if dtype.kind == "c":
        raise refusal("COMPLEX_IMAGE", "contains complex numbers; give the magnitude image")


def check_space(header: nib.Nifti1Header, shape: tuple[int, int, int]) -> tuple[np.ndarray, list[Finding]]:
    """Return the affine of an image, from the form that nibabel chooses (sform, then qform), and the findings.

    Returns:
        Affine (4, 4) from voxel index to RAS+ mm, and the findings.
    """
    form = "sform" if header["sform_code"] else "qform"
    try:
        affine = header.get_best_affine().astype(np.float64)
    except (HeaderDataError, ValueError):
        raise refusal("SINGULAR_AFFINE", "has a qform that is not a rotation; correct the header") from None
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise refusal("SINGULAR_AFFINE", f"has a {form} that gives voxels without a volume; correct the header")
    scale, findings = _unit(header, voxel_sizes(affine))
    affine[:3] *= scale
    findings += _check_forms(header, shape, affine, scale=scale)
    findings += _check_axes(header, affine, scale)
    findings += _check_size(shape, voxel_sizes(affine))
    return affine, findings


def _plausible(spacing_mm: np.ndarray) -> bool:
    return bool(spacing_mm.min() >= SPACING_MM[0] and spacing_mm.max() <= SPACING_MM[1])


def _unit(header: nib.Nifti1Header, spacing: np.ndarray) -> tuple[float, list[Finding]]:
    """Return the number of millimetres in one unit of the header, and the findings."""
    code = int(header["xyzt_units"]) % 8
    if code not in UNITS_MM:
        return 1.0, [Finding("UNITS_MISSING", "The header gives no unit of length; millimetres were assumed.")]
    name, scale = UNITS_MM[code]
    if scale == 1.0:
        return 1.0, []
    if not _plausible(spacing * scale) and _plausible(spacing):
        return 1.0, [
            Finding("UNITS_WRONG", f"The unit {name} in the header does not fit its numbers; millimetres were assumed.")
        ]
    return scale, [Finding("UNITS_CONVERTED", f"The header is in {name}; its numbers were converted to millimetres.")]


def _check_forms(
    header: nib.Nifti1Header, shape: tuple[int, int, int], affine_mm: np.ndarray, *, scale: float
) -> Iterator[Finding]:
    """Yield findings if sform or qform are missing, or place the corners of the image differently."""
    if not header["sform_code"] and not header["qform_code"]:
        axes = "".join(aff2axcodes(affine_mm))
        yield Finding(
            "FORMS_MISSING",
            f"The header has neither sform nor qform, so left and right are not known; {axes} was assumed.",
        )
    if not header["sform_code"] or not header["qform_code"]:
        return
    try:
        qform = header.get_qform().astype(np.float64)
    except (HeaderDataError, ValueError):
        yield Finding("FORMS_DISAGREE", "The qform is not a rotation; the sform was used.")
        return
    qform[:3] *= scale
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1).T
    distance_mm = np.linalg.norm(apply_affine(affine_mm - qform, corners), axis=1).max()
    if not distance_mm <= FORMS_TOLERANCE_MM:
        yield Finding(
            "FORMS_DISAGREE", f"The sform and the qform are up to {distance_mm:.1f} mm apart; the sform was used."
        )


def _check_axes(header: nib.Nifti1Header, affine_mm: np.ndarray, scale: float) -> Iterator[Finding]:
    """Yield findings if the axes are not perpendicular, or if their lengths disagree with the header."""
    spacing_mm = voxel_sizes(affine_mm)
    directions = affine_mm[:3, :3] / spacing_mm
    cosine = np.abs((directions.T @ directions)[np.triu_indices(3, 1)]).max()
    shear = np.degrees(np.arcsin(min(cosine, 1.0)))
    if shear > SHEAR_TOLERANCE_DEGREES:
        yield Finding("AXES_SHEARED", f"The voxel axes are {shear:.1f}° off perpendicular.")
    pixdim_mm = header["pixdim"][1:4].astype(np.float64) * scale
    if not np.allclose(pixdim_mm, spacing_mm, rtol=SPACING_TOLERANCE):
        yield Finding(
            "SPACING_DISAGREES",
            f"The header gives a voxel size of {_size(pixdim_mm)} mm, its sform "
            f"{_size(spacing_mm)} mm; the latter was used.",
        )


def _size(spacing_mm: np.ndarray) -> str:
    return " × ".join(f"{s:.3g}" for s in spacing_mm)


def _check_size(shape: tuple[int, int, int], spacing_mm: np.ndarray) -> Iterator[Finding]:
    size = _size(spacing_mm)
    if not _plausible(spacing_mm):
        raise refusal("VOXEL_SIZE_ABSURD", f"has voxels of {size} mm; correct the voxel size or the unit in the header")
    if spacing_mm.min() < USUAL_SPACING_MM[0] or spacing_mm.max() > USUAL_SPACING_MM[1]:
        yield Finding("VOXEL_SIZE_UNUSUAL", f"The voxels measure {size} mm; check the result carefully.")
    field = np.array(shape) * spacing_mm
    if field.min() < SMALL_FIELD_MM:
        field_text = " × ".join(f"{f:.0f}" for f in field)
        yield Finding("FIELD_OF_VIEW_SMALL", f"The field of view is {field_text} mm and cannot hold a whole brain.")


def is_usable(data: np.ndarray) -> np.ndarray:
    """Return whether intensities are finite and not beyond those of any scanner, booleans."""
    usable: np.ndarray = np.abs(data) <= LARGEST_INTENSITY
    return usable


def clean_intensities(data: np.ndarray) -> list[Finding]:
    """Set invalid intensities to 0, in place, and return the findings.

    Args:
        data: intensities, float32, shape (X, Y, Z).
    """
    findings = []
    low, high = float(data.min()), float(data.max())
    if not max(abs(low), abs(high)) <= LARGEST_INTENSITY:
        finite = np.isfinite(data)
        huge = finite & (np.abs(data) > LARGEST_INTENSITY)
        for code, voxels, what in (
            ("NAN_VALUES", ~finite, "not a number or infinite"),
            ("HUGE_VALUES", huge, f"beyond {LARGEST_INTENSITY:.0e}"),
        ):
            if count := int(voxels.sum()):
                share = 100 * count / data.size
                findings.append(Finding(code, f"Voxels set to 0 because they were {what}: {count} ({share:.3g} %)."))
        data[~is_usable(data)] = 0
        low, high = float(data.min()), float(data.max())
    if low == high:
        after = " once its unusable values are set to 0" if findings else ""
        raise refusal("CONSTANT_IMAGE", f"has the value {low:g} in every voxel{after}; there is nothing to segment")
    if low < 0 and (negative := int((data < 0).sum())) > NEGATIVE_FRACTION * data.size:
        findings.append(
            Finding(
                "NEGATIVE_VALUES",
                f"{100 * negative / data.size:.3g} % of the voxels are negative "
                f"(lowest {low:.4g}); the image seems to be normalised already.",
            )
        )
    if len(np.unique(data.ravel("K")[::EVERY])) < FEWEST_LEVELS and (levels := len(np.unique(data))) < FEWEST_LEVELS:
        findings.append(
            Finding("FEW_GREY_LEVELS", f"The image has only {levels} grey levels; tissue borders are uncertain.")
        )
    return findings
