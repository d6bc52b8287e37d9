"""Write a small BIDS dataset made from the T1w template (ICBM 2009a, skull-stripped) in the nilearn package.

    python benchmarks/demo_dataset.py FOLDER

The dataset has two participants: ``sub-template`` is the unchanged template; ``sub-tilted`` is the same head with a
tilt, thicker slices, uneven brightness and noise.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import affine_transform

TILT_DEGREES = 12.0
SPACING_MM = (1.0, 1.0, 1.4)
NOISE = 0.02
"""Standard deviation, as a share of the brightest voxel."""


def main(folder: Path) -> None:
    """Write the dataset; existing files are written again with the same content."""
    from nilearn.datasets import load_mni152_template

    template = load_mni152_template(resolution=1)
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "Name": "The ICBM 2009a T1w template, unchanged and tilted",
        "BIDSVersion": "1.10.1",
        "DatasetType": "raw",
        "ReferencesAndLinks": ["https://doi.org/10.1016/j.neuroimage.2010.07.033"],
    }
    (folder / "dataset_description.json").write_text(json.dumps(description, indent=2) + "\n")
    (folder / "README.md").write_text("A template brain in BIDS form, to try bidsseg on.\n")
    (folder / "participants.tsv").write_text("participant_id\nsub-template\nsub-tilted\n")
    save(folder, "template", np.asarray(template.dataobj, dtype=np.float32), affine=template.affine)
    data, affine = tilted(template)
    save(folder, "tilted", data, affine=affine)


def tilted(template: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    """Return intensities (X, Y, Z) and affine (RAS+ mm) of the head on an oblique grid of anisotropic LPS voxels."""
    angle = np.radians(TILT_DEGREES)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    extent_mm = np.array([176.0, 224.0, 196.0])
    shape = np.ceil(extent_mm / SPACING_MM).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, -1.0, 1.0]) @ np.diag(SPACING_MM)
    centre = nib.affines.apply_affine(template.affine, (np.array(template.shape) - 1) / 2)
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    data = np.asarray(template.dataobj, dtype=np.float32)
    data = affine_transform(data, np.linalg.inv(template.affine) @ affine, output_shape=tuple(shape), order=1)
    uneven = np.linspace(0.8, 1.2, shape[1], dtype=np.float32)[None, :, None]
    noise = np.random.default_rng(0).normal(0, NOISE * data.max(), shape).astype(np.float32)
    return np.abs(data * uneven + noise), affine


def save(folder: Path, label: str, data: np.ndarray, *, affine: np.ndarray) -> None:
    """Write the T1w of a participant as 16-bit integers from 0 to 1000."""
    image = nib.Nifti1Image(np.rint(data * (1000 / data.max())).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    path = folder / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
