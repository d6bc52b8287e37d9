"""The header of a NIfTI file, with corrections; DataError for one that cannot be used."""

from __future__ import annotations

import nibabel as nib
from nibabel.spatialimages import HeaderDataError

from bidsseg.image.content import is_text
from bidsseg.image.guard import Finding, refusal


def nifti_header(stored: bytes) -> tuple[nib.Nifti1Header, list[Finding]]:
    """Return the header with nibabel's corrections, and the findings about them.

    Args:
        stored: the file, uncompressed.

    Raises:
        DataError: not a NIfTI file, or its header cannot be used.
    """
    header = _header(stored)
    corrections = _Corrections()
    try:
        header.check_fix(logger=corrections)
        if not header["vox_offset"]:  # which nibabel accepts, and reads the header as voxels
            header["vox_offset"] = header.single_vox_offset
            corrections.append("the voxels begin after it, not at vox offset 0")
        header.get_data_dtype()
        header.get_slope_inter()
        header.get_data_shape()
        header.get_data_offset()
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise refusal("BAD_HEADER", f"has a NIfTI header that cannot be used: {error}") from error
    return header, [Finding("HEADER_CORRECTED", f"The header was corrected: {text}.") for text in corrections]


class _Corrections(list[str]):
    """Stand-in for nibabel's logger that collects the important corrections."""

    def log(self, level: int, message: str) -> None:
        # Level 20 is a qfac of 0, which many converters write; an odd offset matters to SPM only.
        if level >= 30 and "SPM" not in message:
            self.append(message)


def _header(stored: bytes) -> nib.Nifti1Header:
    """Return the header of a file as stored, unchecked."""
    if stored[344:348] == b"n+1\0":
        return nib.Nifti1Header(stored[:348], check=False)
    if stored[4:8] == b"n+2\0":
        return nib.Nifti2Header(stored[:540].ljust(540, b"\0"), check=False)
    if stored[344:348] == b"ni1\0":
        raise refusal("NOT_NIFTI", "is only the header of a pair of files; convert it to a single .nii.gz")
    if is_text(stored):
        raise refusal("NOT_NIFTI", "is text, not a NIfTI image")
    raise refusal("NOT_NIFTI", "is not a NIfTI image; convert it to .nii.gz")
