"""Agreement of anatomy with and without lesions, as they are and filled.

    python benchmarks/filling.py T1W... --lesions MASK... [--model NAME] [--table TSV]

The script segments each scan, puts lesions in it and segments it twice again: with the lesions as they are, and filled
(``segmentation/filling.py``, as ``participant --lesions`` does). The lesions have the shapes, sizes and places of real
ones: each mask, from another head, is moved into the brain by the boxes of both brains, and cut to the white matter of
the scan. There, the T1w is darkened below the brightness of grey matter (by 1.2 times the difference of the two
tissues), with a border of .6 mm. The script prints the Dice of each protocol with the label maps of the scan without
lesions: mean over regions, over the regions with a voxel at most 3 mm from a lesion, and of the cerebral white matter;
then the change of the volumes of white and grey matter (%).

The masks are those of Lesjak et al. 2017: they are on a grid of 1 mm, on which BOX is the box of the brains.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from scipy import ndimage

from bidsseg.evaluation.agreement import dice
from bidsseg.image.nifti import read_image, read_labels
from bidsseg.image.volume import Volume, places
from bidsseg.labels.protocol import Protocol
from bidsseg.models.library import load_model
from bidsseg.segmentation.filling import fill_lesions
from bidsseg.segmentation.predict import segment

BOX = np.array([(-61.0, 62.0), (-95.0, 56.0), (-48.0, 66.0)])
"""Box of the brains on the grid of the masks (mm), from quantiles of .001 and .999."""
BORDER_MM, DEPTH, NEAR_MM = 0.6, 1.2, 3.0
WHITE, GREY = 3, 2
"""Values of the protocol FAST."""
COLUMNS = ["dice", "near lesions", "white matter", "white volume %", "grey volume %"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path, metavar="T1W")
    parser.add_argument("--lesions", nargs="+", type=Path, required=True, metavar="MASK")
    parser.add_argument("--model", default="wholebrain")
    parser.add_argument("--table", type=Path, help="TSV with a row for each scan, mask, protocol and way")
    options = parser.parse_args()
    model, rows = load_model(options.model), list[dict[str, object]]()
    for path in options.scans:
        volume, _ = read_image(path)
        before = segment({"T1w": volume}, model)
        for mask in options.lesions:
            lesion = placed(read_labels(mask), volume, before.brain) & (before.labels["FAST"] == WHITE)
            ill = darkened(volume, lesion, before.labels["FAST"])
            ways = {"as they are": ill, "filled": fill_lesions(ill, lesion)}
            about = {"scan": path.name, "mask": mask.name, "ml": lesion.sum() * volume.voxel_volume_mm3 / 1000}
            for way, image in ways.items():
                labels = segment({"T1w": image}, model).labels
                for name in labels:
                    found = agreement(before.labels[name], labels[name], model.heads[name], lesion=lesion, grid=volume)
                    rows.append({**about, "protocol": name, "lesions": way, **found})
            print(pd.DataFrame(rows[-2 * len(before.labels) :]).round(4).to_string(), file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    if options.table:
        table.to_csv(options.table, sep="\t", index=False, float_format="%.5f")
    print(table.groupby(["protocol", "lesions"], sort=False)[COLUMNS].mean().round(4).to_string())


def placed(mask: Volume, image: Volume, brain: np.ndarray) -> np.ndarray:
    """Return a mask of the template, booleans (X, Y, Z), moved to a scan by the boxes of both brains."""
    inside = apply_affine(image.affine, np.argwhere(brain))
    low, high = np.quantile(inside, [0.001, 0.999], axis=0)
    in_template = (places(image.shape, image.affine) - low) / (high - low) * (BOX[:, 1] - BOX[:, 0]) + BOX[:, 0]
    index = np.moveaxis(apply_affine(np.linalg.inv(mask.affine), in_template), -1, 0)
    found: np.ndarray = ndimage.map_coordinates((mask.data > 0).astype(np.float32), index, order=1) >= 0.5
    return found


def darkened(image: Volume, lesion: np.ndarray, tissue: np.ndarray) -> Volume:
    """Return a T1w with dark voxels in lesions and a soft border around them."""
    white, grey = (float(np.median(image.data[tissue == value])) for value in (WHITE, GREY))
    share = ndimage.gaussian_filter(lesion.astype(np.float32), BORDER_MM / image.spacing_mm)
    return replace(image, data=image.data - share * np.float32(DEPTH * (white - grey)))


def agreement(
    before: np.ndarray, now: np.ndarray, protocol: Protocol, *, lesion: np.ndarray, grid: Volume
) -> dict[str, float]:
    """Return the agreement of a label map (X, Y, Z) with that of the scan without lesions, by the names of COLUMNS."""
    near = ndimage.distance_transform_edt(~lesion, sampling=grid.spacing_mm) <= NEAR_MM
    indices = [region.index for region in protocol.regions if region.index]
    found = dict(zip(indices, dice(now, before, indices), strict=True))
    there = [i for i in indices if (before == i).any()]
    touched = [found[i] for i in there if (near & (before == i)).any()]
    tissue = {kind: [r.index for r in protocol.regions if is_tissue(r.name, r.mapping, kind)] for kind in (1, 2)}
    white, grey = ([np.isin(labels, tissue[kind]) for labels in (before, now)] for kind in (2, 1))
    means = [float(np.mean([found[i] for i in there])), float(np.mean(touched))]
    return dict(zip(COLUMNS, [*means, overlap(*white), change(*white), change(*grey)], strict=True))


def is_tissue(name: str, mapping: int | None, kind: int) -> bool:
    """Return whether a region is white (2) or grey matter (1: all of it, 8 cortex, 9 deep) of the cerebrum."""
    if "erebell" in name:
        return False
    return mapping == 2 if kind == 2 else mapping in (1, 8, 9)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Dice of two masks."""
    return float(dice(one.view(np.uint8), other.view(np.uint8), [1])[0])


def change(before: np.ndarray, now: np.ndarray) -> float:
    """Return the change of a volume (%)."""
    return float(100 * (np.count_nonzero(now) / np.count_nonzero(before) - 1))


if __name__ == "__main__":
    main()
