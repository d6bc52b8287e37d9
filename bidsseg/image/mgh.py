"""Headers of images in other formats: FreeSurfer's MGH files, and nibabel images in memory."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import DATA_OFFSET, MGHHeader
from nibabel.orientations import aff2axcodes

from bidsseg.image.guard import Finding, refusal

NAMES = (".mgh", ".mgz", ".mgh.gz")
"""Extensions of MGH files; the format has no magic number."""

DEFAULT_DIRECTIONS = ((-1, 0, 0), (0, 0, -1), (0, 1, 0))
"""RAS+ directions of the axes that FreeSurfer assumes if the header has none; nibabel assumes others."""

Layout = tuple[tuple[int, ...], np.dtype, int]
"""Shape, type and offset (bytes) of the voxels in a file."""


def is_mgh(path: Path) -> bool:
    """Return whether a file is an MGH image, judged by its name."""
    return path.name.lower().endswith(NAMES)


def mgh_layout(stored: bytes) -> tuple[nib.Nifti1Header, Layout, list[Finding]]:
    """Return a NIfTI header for the grid of an MGH file, the layout of its voxels, and the findings.

    Args:
        stored: the file, uncompressed.

    Raises:
        DataError: not an MGH file, or its header cannot be used.
    """
    if len(stored) < DATA_OFFSET:
        raise refusal("TRUNCATED", f"ends {DATA_OFFSET - len(stored)} bytes too early; copy or convert it again")
    start = np.frombuffer(stored[: MGHHeader._hdrdtype.itemsize], MGHHeader._hdrdtype)[0]
    if start["version"] != 1:
        raise refusal("NOT_MGH", "is not an MGH image, although its name says so; convert it to .nii.gz")
    header = MGHHeader(start.tobytes(), check=False)
    if not start["goodRASFlag"]:
        header["Mdc"] = DEFAULT_DIRECTIONS
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        raise refusal("BAD_HEADER", f"has voxels of the unknown MGH type {start['type']}; convert it") from None
    shape = tuple(int(length) for length in header.get_data_shape())
    affine = header.get_best_affine()
    findings = []
    if not start["goodRASFlag"]:
        axes = "".join(aff2axcodes(affine))
        message = f"The header gives no orientation, so left and right are not known; {axes} was assumed."
        findings.append(Finding("FORMS_MISSING", message))
    return header_at(affine), (shape, dtype, DATA_OFFSET), findings


def header_at(affine: np.ndarray) -> nib.Nifti1Header:
    """Return a NIfTI header with an affine (4, 4) in RAS+ mm as sform, and as qform if its axes are perpendicular.

    Raises:
        DataError: the affine contains numbers that are not finite, or gives voxels without a volume.
    """
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm")
    header.set_sform(affine, "scanner")
    columns = np.asarray(affine, np.float64)[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not (np.isfinite(affine).all() and lengths.all()):
        raise refusal("SINGULAR_AFFINE", "has an affine that gives voxels without a volume; correct the header")
    header["pixdim"][1:4] = lengths
    cosines = (columns / lengths).T @ (columns / lengths)
    if np.allclose(cosines, np.eye(3), atol=1e-4):
        header.set_qform(affine, "scanner")
    return header
