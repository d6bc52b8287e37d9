"""NIfTI files, read by nibabel with their type: ``nibabel.load`` returns the base class of all formats."""

from os import PathLike

import nibabel as nib


def load_nifti(path: str | PathLike[str]) -> nib.Nifti1Image:
    """Return the image in a NIfTI-1 or NIfTI-2 file; other formats fail."""
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    return image
