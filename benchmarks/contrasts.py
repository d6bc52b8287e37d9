"""Agreement of the results on other images of a session with those on its T1w, for models of any contrast.

    python benchmarks/contrasts.py BIDS_DIR ... [--suffix T2w FLAIR] [--model open] [--table TSV]

Each image is segmented on its own. The label maps are moved with the image onto the grid of the T1w (rigidly, nearest
voxel) and compared with those of the T1w there. The script prints the Dice of each scan, the mean over scans, and the
mean difference of the volumes of regions (%, without sign). None of the results is the truth, and resampling alone
lowers the Dice, the more the thicker the slices are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.processing import resample_from_to

import bidsseg
from bidsseg.image.nifti import read_image
from bidsseg.models.card import BRAIN
from bidsseg.models.library import Model
from bidsseg.registration.align import align

LEAST_MM3 = 200
"""Volumes of smaller regions are not compared."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path, metavar="BIDS_DIR")
    parser.add_argument("--suffix", nargs="+", default=["T2w", "FLAIR"])
    parser.add_argument("--model", default="open")
    parser.add_argument("--table", type=Path, help="TSV with one row for each scan, image and protocol")
    options = parser.parse_args()
    model = bidsseg.load_model(options.model)
    rows = []
    for dataset in options.datasets:
        for t1w in sorted(dataset.glob("sub-*/**/anat/*_T1w.nii.gz")):
            for row in compared(t1w, options.suffix, model):
                rows.append({"dataset": dataset.name, **row})
                print(
                    *(f"{value:.3f}" if isinstance(value, float) else value for value in rows[-1].values()), flush=True
                )
    table = pd.DataFrame(rows)
    if options.table:
        table.to_csv(options.table, sep="\t", index=False, na_rep="n/a")
    print(table.groupby(["dataset", "suffix", "protocol"], sort=False)[["dice", "volume-percent"]].mean().round(3))


def compared(t1w: Path, suffixes: list[str], model: Model) -> Iterator[dict[str, object]]:
    """Yield the agreement of each other image with a T1w, by protocol."""
    reference, fixed = bidsseg.segment(t1w, model=model), read_image(t1w)[0]
    for suffix in suffixes:
        path = Path(str(t1w).replace("_T1w.", f"_{suffix}."))
        if not path.exists():
            continue
        found = bidsseg.segment(path, model=model)
        _, motion = align(read_image(path)[0], fixed)
        matrix = np.eye(4) if motion is None else motion.matrix
        words = {"scan": t1w.name.removesuffix("_T1w.nii.gz"), "suffix": suffix}
        for protocol in reference.protocols:
            drawn = reference.dseg(protocol)
            table = bidsseg.compare(moved(found.dseg(protocol), matrix, drawn), drawn, protocol)
            large = table[table["reference-mm3"] > LEAST_MM3]
            change = 100 * (large["found-mm3"] / large["reference-mm3"] - 1).abs().mean()
            yield {**words, "protocol": protocol, "dice": float(table["dice"].mean()), "volume-percent": float(change)}
        one, other = reference.brain_mask, moved(found.brain_mask, matrix, reference.brain_mask)
        inside, also = (np.asanyarray(image.dataobj) > 0 for image in (one, other))
        dice = 2 * (inside & also).sum() / (inside.sum() + also.sum())
        change = 100 * abs(also.sum() / inside.sum() - 1)
        yield {**words, "protocol": BRAIN, "dice": float(dice), "volume-percent": float(change)}


def moved(labels: nib.Nifti1Image, matrix: np.ndarray, fixed: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return a label map that is moved by a matrix, on the grid of another."""
    there = nib.Nifti1Image(np.asanyarray(labels.dataobj), matrix @ labels.affine)
    found = resample_from_to(there, (fixed.shape, fixed.affine), order=0)
    return nib.Nifti1Image(np.asanyarray(found.dataobj).astype(labels.get_data_dtype()), fixed.affine, fixed.header)


if __name__ == "__main__":
    main()
