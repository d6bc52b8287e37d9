"""Measure the estimated intracranial volume on images synthesised from label maps of whole heads.

    python benchmarks/intracranial.py HEADS [--participant-label 01 06 11 16] [--model open wholebrain] [--table TSV]

The true volume is that of the brain, the ventricles and the fluid around the brain down to the lowest slice of the
cerebellum, without holes. Each label map gives five heads of different sizes, each with another contrast near that of a
T1w, once with a skull of any brightness and once with one about as dark as the fluid, where no image shows the border.
Each is segmented as it is and defaced, and each head once skull-stripped, where no volume may be estimated. The script
prints the mean error, the mean absolute error, the standard deviation of the errors and the correlation with the truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lesion_datasets import HEAD, mapped_to
from scipy import ndimage
from torch import Generator

from bidsseg.execution.machine import cpu_precision
from bidsseg.image.volume import Volume
from bidsseg.labels.anatomy import CEREBELLUM, FLUID
from bidsseg.learning.augment import Intensity, change_intensity, uniform
from bidsseg.learning.case_reading import read_label_map
from bidsseg.learning.synthesis import NOT_BRAIN, brightness, textured
from bidsseg.models.library import Model, load_model
from bidsseg.segmentation.masks import largest_piece
from bidsseg.segmentation.predict import segment

SIZES_MM = (0.94, 0.97, 1.0, 1.03, 1.06)
"""Spacing of the images of a label map with a spacing of 1 mm."""
SKULL, SKULL_BRIGHTNESS = 515, (0.03, 0.2)
"""The class of the label maps around the fluid, and its brightness in a T1w, where the fluid has about .15."""
ANY, DARK = "skull of any brightness", "skull as dark as the fluid"
DEFACED, STRIPPED = "defaced", "skull-stripped"
LEFT_BY_DEFACING_MM, LEFT_BY_STRIPPING_MM = 10, 1
"""Distances from the brain up to which voxels are kept."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path)
    parser.add_argument("--participant-label", nargs="+", default=["01", "06", "11", "16"])
    parser.add_argument("--model", nargs="+", default=["open", "wholebrain"])
    parser.add_argument("--table", type=Path, help="TSV with one row for each image and model")
    options = parser.parse_args()
    models = [load_model(name) for name in options.model]
    rows = []
    for label in options.participant_label:
        path = options.heads / f"sub-{label}/anat/sub-{label}_seg-head_dseg.nii.gz"
        for row in measured(path, models):
            rows.append(row)
            print(*(f"{value:.4g}" if isinstance(value, float) else value for value in row.values()), flush=True)
    table = pd.DataFrame(rows)
    if options.table:
        table.to_csv(options.table, sep="\t", index=False, na_rep="n/a")
    for (name, image), part in table.groupby(["model", "image"], sort=False):
        print(f"{name}, {image}: {figures(part)}")


def measured(path: Path, models: list[Model]) -> Iterator[dict[str, object]]:
    """Yield the true and the estimated volume (ml) of each image of a label map by each model."""
    values = read_label_map(path.name, path, HEAD).annotations[0].values
    inside = intracranial(values.numpy())
    for draw, size in enumerate(SIZES_MM):
        seed = 1000 * draw + sum(path.name.encode())
        for kind, image in images_of(values, inside, seed=seed, stripped=draw == 0):
            for model in models:
                scan = Volume(image, np.diag([size, size, size, 1.0]))
                found = segment({"T1w": scan}, model, precision=cpu_precision()).intracranial
                truth = float(inside.sum() * size**3 / 1000)
                yield {
                    "label map": path.name.partition("_")[0],
                    "model": model.card.name,
                    "image": kind,
                    "true": truth,
                    "estimated": found.mm3 / 1000,
                    "error-percent": 100 * (found.mm3 / 1000 / truth - 1),
                }


def intracranial(values: np.ndarray) -> np.ndarray:
    """Return the voxels inside of the skull, booleans (X, Y, Z), from positions in HEAD, axes to R, A, S."""
    outside, cerebellum = (mapped_to(kind).numpy()[values] for kind in (NOT_BRAIN, CEREBELLUM))
    inside = (values > 0) & ~outside
    inside[:, :, : int(np.flatnonzero(cerebellum.any((0, 1)))[0])] = False
    inside = largest_piece(inside)
    for plane in np.moveaxis(inside, 2, 0):  # the spinal cord is a class outside of the brain, with fluid around it
        plane[:] = ndimage.binary_fill_holes(plane)
    return inside


def images_of(
    values: torch.Tensor, inside: np.ndarray, *, seed: int, stripped: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield synthetic T1w (X, Y, Z) of a label map with their kinds."""
    for kind in (ANY, DARK):
        generator = Generator().manual_seed(seed)
        image = synthetic(values, dark_skull=kind == DARK, generator=generator)
        yield kind, image
        if kind == DARK:
            yield f"{kind}, {DEFACED}", np.where(face(inside), 0, image)
            if stripped:
                tissue = inside & ~mapped_to(FLUID)[values.long()].numpy()
                around = ndimage.binary_dilation(ndimage.binary_fill_holes(tissue), iterations=LEFT_BY_STRIPPING_MM)
                yield f"{kind}, {STRIPPED}", np.where(around, image, 0)


def synthetic(values: torch.Tensor, *, dark_skull: bool, generator: Generator) -> np.ndarray:
    """Return an image near the contrast of a T1w, as `learning.synthesis` makes them."""
    means, spread = brightness(HEAD, realistic=True, generator=generator)
    dark = uniform(*SKULL_BRIGHTNESS, generator)
    if dark_skull:
        means[HEAD.indices.index(SKULL)] = dark
    image = textured(values, means, spread, generator=generator)
    changed = change_intensity(image, Intensity(gamma=0.0, blur=0.0), 1.0, generator=generator)
    return (1000 * changed).numpy().astype(np.float32)


def face(inside: np.ndarray) -> np.ndarray:
    """Return the voxels that defacing removes: in front, below the middle of the brain and not near it."""
    near: np.ndarray = ndimage.distance_transform_edt(~inside) <= LEFT_BY_DEFACING_MM
    _, y, z = (int(np.mean(places)) for places in np.nonzero(inside))
    removed = ~near
    removed[:, :y] = False
    removed[:, :, z:] = False
    return removed


def figures(table: pd.DataFrame) -> str:
    """Return the figures of one model and kind of images."""
    known = table[table["estimated"].notna()]
    counted = f"{len(known)} of {len(table)} estimated"
    if known.empty:
        return counted
    errors = known["error-percent"]
    return (
        f"{counted}, mean error {errors.mean():+.1f} %, mean absolute error {errors.abs().mean():.1f} %, "
        f"standard deviation {errors.std():.1f} %, r {known['true'].corr(known['estimated']):.3f}"
    )


if __name__ == "__main__":
    main()
