"""Overlap of the manual labels of different participants in the space of a template, with both kinds of registration.

    python benchmarks/spaces.py BIDS_DIR LABELS_DIR PROTOCOL [--space TEMPLATE] [--participant-label L...]

The script registers the T1w of each participant, skull-stripped by ``wholebrain``, to the template, moves its label map
there, and prints the Dice between the label maps of each two participants: the mean over the regions that both have in
the original label maps, then over pairs. It also prints the seconds of a registration and the share of voxels in which
the field folds. Without ``--space``, the template is the one that the package nilearn contains (ICBM 2009a, 1 mm);
others must be in TemplateFlow's cache, or the script needs network access.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

import bidsseg
from bidsseg.bids.annotations import find_annotations
from bidsseg.bids.query import find_scans
from bidsseg.evaluation.agreement import dice
from bidsseg.image.nifti import read_image, read_labels
from bidsseg.image.volume import places
from bidsseg.registration.spaces import Fit, Space, find_space, fit_to, labels_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("labels_dir", type=Path)
    parser.add_argument("protocol")
    parser.add_argument("--space")
    parser.add_argument("--participant-label", nargs="+")
    options = parser.parse_args()
    model = bidsseg.load_model("wholebrain")
    scans = [
        (read_image(scan.t1w)[0], bidsseg.segment(scan.t1w, model=model).brain_mask.get_fdata() > 0, read_labels(path))
        for scan in find_scans(options.bids_dir, participants=options.participant_label)
        if (path := find_annotations(options.labels_dir, scan, options.protocol)) is not None
    ]
    regions = [set(np.unique(labels.data).tolist()) - {0} for _, _, labels in scans]
    with tempfile.TemporaryDirectory() as folder:
        space = find_space(options.space) if options.space else template_of_nilearn(Path(folder))
        for affine in (False, True):
            started, maps, folds = time.monotonic(), [], []
            for t1w, brain, labels in scans:
                fit = fit_to(replace(space, affine=affine), t1w, brain)
                maps.append(labels_at(labels.data, labels.affine, fit.points))
                folds.append(folded(fit))
            seconds = (time.monotonic() - started) / len(scans)
            overlap = mean_dice(maps, regions)
            print(
                f"{'affine' if affine else 'deformable'}: Dice {overlap:.3f}, {seconds:.1f} s a scan, "
                f"{100 * np.mean(folds):.3f} % folded",
                flush=True,
            )


def template_of_nilearn(folder: Path) -> Space:
    """Write nilearn's template at 1 mm into a folder, and return it."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    image, brain = folder / "T1w.nii.gz", folder / "brain.nii.gz"
    nib.save(load_mni152_template(resolution=1), image)
    mask = load_mni152_brain_mask(resolution=1)
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj).astype(np.uint8), mask.affine), brain)
    return Space("nilearn", "1", image, brain)


def folded(fit: Fit) -> float:
    """Return the share of voxels of the field with a Jacobian that is not positive; 0 for an affine registration."""
    if fit.field is None:
        return 0.0
    affine, vectors = fit.field.affine, fit.field.vectors
    index = apply_affine(np.linalg.inv(affine) @ fit.motion, places(vectors.shape[:3], affine) + vectors)
    slopes = np.stack([np.gradient(index, axis=axis) for axis in range(3)], -2)
    return float((np.linalg.det(slopes) <= 0).mean())


def mean_dice(maps: list[np.ndarray], regions: list[set[int]]) -> float:
    """Return the Dice of label maps (X, Y, Z) on one grid, the mean over common regions, then over pairs."""
    pairs = combinations(zip(maps, regions, strict=True), 2)
    return float(np.mean([np.mean(dice(a, b, sorted(in_a & in_b))) for (a, in_a), (b, in_b) in pairs]))


if __name__ == "__main__":
    main()
