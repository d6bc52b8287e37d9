"""Agreement of label maps between a scan and changed copies of it.

    python benchmarks/robustness.py T1W... [--model NAME] [--copies NAME ...] [--table TSV] [run.py options]

The script creates copies of each scan with other units, another background, another field of view or pose, fewer grey
levels, noise around the head, shading, or larger voxels. It runs ``participant`` on all of them, resamples the label
maps to the grid of the scan, and prints the mean Dice over regions of each protocol, averaged over scans, with the
lowest quality and the findings. Copies of a skull-stripped scan are compared with the scan stripped with its own brain
mask.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bidsseg.image.nifti import read_image, read_labels
from bidsseg.models.library import load_model
from bidsseg.segmentation.predict import segment

RUN = Path(__file__).parent.parent / "run.py"
SHADING_MM = 60.0
"""Width of the bright centre of an image at 7 T."""
OBLIQUE, NOD, TILT = (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
"""Axes of rotations in RAS."""


@dataclass(frozen=True, eq=False)
class Copy:
    """A changed scan.

    Attributes:
        image: image that the program reads.
        affine: true affine of the image, RAS+ mm; it differs from the header if the header is wrong.
        seen: mask on the grid of the scan in which label maps are compared; None for the whole grid.
    """

    image: nib.Nifti1Image
    affine: np.ndarray
    seen: np.ndarray | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path, metavar="T1W")
    parser.add_argument("--copies", nargs="+", default=list(COPIES), choices=list(COPIES), metavar="NAME")
    parser.add_argument("--model", default="wholebrain")
    parser.add_argument("--table", type=Path, help="TSV with one row for each scan, copy and protocol")
    options, more = parser.parse_known_args()
    rows: list[dict[str, object]] = []
    for number, path in enumerate(options.scans, 1):
        with tempfile.TemporaryDirectory() as name:
            rows += measure(path, number, options.copies, folder=Path(name), model=options.model, more=more)
    table = pd.DataFrame(rows)
    if options.table:
        table.to_csv(options.table, sep="\t", index=False, float_format="%.4f")
    shown = table.pivot_table("dice", "copy", "protocol", sort=False).round(3)
    shown["quality"] = table.groupby("copy").quality.min().round(3)
    shown["findings"] = table.groupby("copy").findings.agg(lambda codes: " ".join(sorted(set(" ".join(codes).split()))))
    print(shown.to_string())


def measure(
    path: Path, number: int, names: list[str], *, folder: Path, model: str, more: list[str]
) -> list[dict[str, object]]:
    """Return the table rows of one scan."""
    options = ["--model", model, *more]
    volume, _ = read_image(path)
    scan = nib.Nifti1Image(volume.data, volume.affine)
    segmented(folder, {"whole": scan}, number, options=options)
    mask = read_labels(next((folder / "out").rglob("*_desc-brain_mask.nii.gz"))).data > 0
    copies = {name: COPIES[name](scan, mask) for name in names}
    stripped = nib.Nifti1Image(np.where(mask, scan.get_fdata(), 0).astype(np.float32), scan.affine)
    segmented(
        folder, {"stripped": stripped, **{name: copy.image for name, copy in copies.items()}}, number, options=options
    )
    rows: list[dict[str, object]] = []
    for name, copy in copies.items():
        expected = answers(folder, "stripped" if name.startswith("stripped") else "whole")
        found = answers(folder, name)
        for protocol, truth in expected.items():
            back = brought_back(found.get(protocol), copy, scan)
            dice = mean_dice(back, truth, copy.seen if copy.seen is not None else np.ones(truth.shape, bool))
            row = {"scan": f"{number} {path.name}", "copy": name, "protocol": protocol, "dice": dice}
            quality, findings = quality_and_findings(folder, name)
            rows.append({**row, "quality": quality, "findings": findings})
            print(f"{number} {name} {protocol} {dice:.3f} {quality:.3f} {findings}", file=sys.stderr, flush=True)
    resampled = {name: copy for name, copy in copies.items() if name in RESAMPLED}
    if resampled:
        probabilities = segment({"T1w": volume}, load_model(model), want_probabilities=True).probabilities
        protocol, head = min(probabilities.items(), key=lambda item: item[1].table.shape[1])
        maps = [each.astype(np.float32) for each in head.maps()]
        for name, copy in resampled.items():
            row = {"scan": f"{number} {path.name}", "copy": f"{name}, at best", "protocol": protocol}
            rows.append({**row, "dice": ceiling(maps, scan, copy), "quality": float("nan"), "findings": ""})
    return rows


def ceiling(maps: list[np.ndarray], scan: nib.Nifti1Image, copy: Copy) -> float:
    """Return the highest possible Dice on another grid, which nearest-neighbour resampling limits.

    The probabilities (X, Y, Z) of the regions of a scan are interpolated on the grid of the copy, and the most probable
    labels are resampled to the scan.
    """
    pull = np.linalg.inv(scan.affine) @ copy.affine
    on_copy = [ndimage.affine_transform(each, pull[:3, :3], pull[:3, 3], copy.image.shape, order=1) for each in maps]
    back = brought_back(np.argmax(on_copy, 0), copy, scan)
    return mean_dice(back, np.argmax(maps, 0), np.ones(scan.shape, bool))


def segmented(folder: Path, images: dict[str, nib.Nifti1Image], number: int, *, options: list[str]) -> None:
    """Run ``participant`` on images, each as a separate acquisition; a failed image has no label map."""
    place = folder / "bids" / f"sub-{number:02d}" / "anat"
    place.mkdir(parents=True, exist_ok=True)
    (folder / "bids" / "dataset_description.json").write_text(json.dumps({"Name": "copies", "BIDSVersion": "1.10.1"}))
    for name, image in images.items():
        image.header.set_xyzt_units("mm")
        nib.save(image, place / f"sub-{number:02d}_acq-{label(name)}_T1w.nii.gz")
    command = [sys.executable, str(RUN), str(folder / "bids"), str(folder / "out"), "participant", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)


def label(name: str) -> str:
    """Return the label of an entity for a name."""
    return "".join(letter for letter in name.title() if letter.isalnum())


def answers(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Return the label maps of an acquisition by protocol."""
    paths = (folder / "out").rglob(f"*_acq-{label(name)}_seg-*_dseg.nii.gz")
    return {path.name.split("_seg-")[1].split("_")[0]: read_labels(path).data for path in sorted(paths)}


def quality_and_findings(folder: Path, name: str) -> tuple[float, str]:
    """Return the quality and the codes of the findings of an acquisition; NaN and FAILED if it has no label map."""
    sidecars = sorted((folder / "out").rglob(f"*_acq-{label(name)}_seg-*_dseg.json"))
    if not sidecars:
        return float("nan"), "FAILED"
    sidecar = json.loads(sidecars[0].read_text())
    texts = [text for key in ("ResultFindings", "InputFindings") for text in sidecar[key]]
    return sidecar["Quality"], " ".join(text.split(":")[0] for text in texts)


def brought_back(labels: np.ndarray | None, copy: Copy, scan: nib.Nifti1Image) -> np.ndarray:
    """Return the labels of a copy on the grid of the scan, by nearest neighbour; 0 if there is no label map."""
    if labels is None:
        return np.zeros(scan.shape, int)
    matrix = np.linalg.inv(copy.affine) @ scan.affine
    turn, shift = matrix[:3, :3], matrix[:3, 3]
    found: np.ndarray = ndimage.affine_transform(labels.astype(np.int32), turn, shift, scan.shape, order=0)
    return found


def mean_dice(found: np.ndarray, truth: np.ndarray, seen: np.ndarray) -> float:
    """Return the mean Dice in the mask ``seen``, over the regions of the truth of which at least half are in it."""
    size = int(max(found.max(), truth.max())) + 1
    whole = np.bincount(truth.ravel(), minlength=size)
    found, truth = found[seen], truth[seen]
    both = np.bincount(truth[found == truth], minlength=size)
    part = np.bincount(truth, minlength=size)
    total = np.bincount(found, minlength=size) + part
    there = (part > 0) & (2 * part >= whole) & (np.arange(size) > 0)
    return float((2 * both[there] / total[there]).mean())


# -- copies ------------------------------------------------------------------------------------------------------------


def changed(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[nib.Nifti1Image, np.ndarray], Copy]:
    """Return a function that creates copies with other values on the same grid, from data and brain mask."""

    def make(scan: nib.Nifti1Image, mask: np.ndarray) -> Copy:
        data = change(scan.get_fdata(), mask).astype(np.float32)
        return Copy(nib.Nifti1Image(data, scan.affine), scan.affine)

    return make


def surrounded(value: Callable[[np.ndarray], float]) -> Callable[[nib.Nifti1Image, np.ndarray], Copy]:
    """Return a function that creates skull-stripped copies whose background value depends on the brain's values."""
    return changed(lambda data, mask: np.where(mask, data, value(data[mask])))


def zscored_all(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the skull-stripped image, z-scored over the whole image."""
    data = np.where(mask, data, 0)
    zscored: np.ndarray = (data - data.mean()) / data.std()
    return zscored


def zscored_brain(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the skull-stripped image, z-scored over the brain, 0 outside."""
    return np.where(mask, (data - data[mask].mean()) / data[mask].std(), 0)


def sixteen_levels(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image with 16 grey levels up to the 99.9th percentile."""
    levels: np.ndarray = np.clip(np.round(15 * data / np.quantile(data, 0.999)), 0, 15)
    return levels


def noise_around(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image with noise of the full range outside the head, as in MP2RAGE (UNIT1) images."""
    smooth = ndimage.gaussian_filter(data, 2)
    head = smooth > 0.15 * np.median(data[mask])
    head = ndimage.binary_fill_holes(head | mask)
    noise = np.random.default_rng(0).uniform(0, np.quantile(data[mask], 0.999), data.shape)
    return np.where(head, data, noise)


def shaded(scan: nib.Nifti1Image, mask: np.ndarray) -> Copy:
    """Return a copy that is brighter at the centre and on one side of the head, as at 7 T."""
    places = world(scan, np.argwhere(np.ones(scan.shape, bool)))
    away = places - world(scan, np.argwhere(mask)).mean(0)
    field = 0.45 + 1.1 * np.exp(-(away**2).sum(1) / 2 / SHADING_MM**2) * (1 + 0.15 * away[:, 0] / 70)
    data = scan.get_fdata() * field.reshape(scan.shape)
    return Copy(nib.Nifti1Image(data.astype(np.float32), scan.affine), scan.affine)


def padded(voxels: int) -> Callable[[nib.Nifti1Image, np.ndarray], Copy]:
    """Return a function that creates copies padded with this number of zero voxels on every side."""

    def make(scan: nib.Nifti1Image, mask: np.ndarray) -> Copy:
        affine = scan.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ np.full(3, voxels)
        return Copy(nib.Nifti1Image(np.pad(scan.get_fdata(dtype=np.float32), voxels), affine), affine)

    return make


def turned(axis: tuple[float, ...], angle: float, *, straight: bool = False) -> Callable[..., Copy]:
    """Return a function that creates copies on a grid rotated about an axis (RAS), in degrees.

    Args:
        straight: whether the header describes an unrotated grid, as for a rotated head.
    """

    def make(scan: nib.Nifti1Image, mask: np.ndarray) -> Copy:
        spacing = nib.affines.voxel_sizes(scan.affine)
        turn = Rotation.from_rotvec(np.radians(angle) * np.array(axis) / np.linalg.norm(axis)).as_matrix()
        matrix = turn @ scan.affine[:3, :3]
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in scan.shape])).reshape(3, -1).T
        middle = world(scan, (np.array(scan.shape) - 1)[None] / 2)[0]
        reach = (world(scan, corners) - middle) @ np.linalg.inv(matrix).T
        more = np.ceil(np.abs(reach).max(0) - (np.array(scan.shape) - 1) / 2).astype(int)
        shape = np.array(scan.shape) + 2 * more  # with the same centre: half a voxel would be rounded
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = matrix, middle - matrix @ ((shape - 1) / 2)
        pull = np.linalg.inv(scan.affine) @ affine
        data = ndimage.affine_transform(scan.get_fdata(), pull[:3, :3], pull[:3, 3], tuple(shape), order=3)
        header = affine
        if straight:
            header = np.eye(4)
            header[:3, :3] = np.diag(spacing) * np.sign(np.round(scan.affine[:3, :3] / spacing))
            header[:3, 3] = middle - header[:3, :3] @ ((shape - 1) / 2)
        low, high = scan.get_fdata().min(), scan.get_fdata().max()
        return Copy(nib.Nifti1Image(np.clip(data, low, high).astype(np.float32), header), affine)

    return make


def coarse(*sizes_mm: float) -> Callable[[nib.Nifti1Image, np.ndarray], Copy]:
    """Return a function that creates copies with larger voxels, each the mean of what it covers.

    Args:
        sizes_mm: of the voxels along the axes of RAS; a voxel that is larger already stays as it is.
    """

    def make(scan: nib.Nifti1Image, mask: np.ndarray) -> Copy:
        data, affine = scan.get_fdata(), scan.affine.copy()
        for axis, wanted in enumerate(sizes_mm):
            along = voxel_axis(scan, axis)
            ratio = max(1.0, wanted / nib.affines.voxel_sizes(scan.affine)[along])
            starts = ratio * np.arange(int(data.shape[along] / ratio))[:, None]
            before = np.arange(data.shape[along])[None]
            shares = np.clip(np.minimum(starts + ratio, before + 1) - np.maximum(starts, before), 0, None) / ratio
            data = np.moveaxis(np.tensordot(shares, data, (1, along)), 0, along)
            affine[:3, 3] += affine[:3, along] * (ratio - 1) / 2
            affine[:3, along] *= ratio
        return Copy(nib.Nifti1Image(data.astype(np.float32), affine), affine)

    return make


def cut(axis: int, side: int, place: Callable[[np.ndarray], float]) -> Callable[[nib.Nifti1Image, np.ndarray], Copy]:
    """Return a function that creates copies cut off above (1) or below (-1) a position along an RAS axis."""

    def make(scan: nib.Nifti1Image, mask: np.ndarray) -> Copy:
        along = world(scan, np.argwhere(np.ones(scan.shape, bool)))[:, axis].reshape(scan.shape)
        seen = side * (along - place(along[mask])) < 0
        kept = np.flatnonzero(seen.mean(tuple(i for i in range(3) if i != voxel_axis(scan, axis))) > 0.5)
        window = [slice(None)] * 3
        window[voxel_axis(scan, axis)] = slice(kept[0], kept[-1] + 1)
        affine = scan.affine.copy()
        affine[:3, 3] += affine[:3, voxel_axis(scan, axis)] * kept[0]
        inside = np.zeros(scan.shape, bool)
        inside[tuple(window)] = True
        return Copy(nib.Nifti1Image(scan.get_fdata(dtype=np.float32)[tuple(window)], affine), affine, inside)

    return make


def voxel_axis(scan: nib.Nifti1Image, axis: int) -> int:
    """Return the voxel axis along an RAS axis."""
    return int(np.flatnonzero(nib.io_orientation(scan.affine)[:, 0] == axis)[0])


def world(scan: nib.Nifti1Image, voxels: np.ndarray) -> np.ndarray:
    """Return positions (N, 3) in RAS+ mm of voxels (N, 3)."""
    places: np.ndarray = nib.affines.apply_affine(scan.affine, voxels)
    return places


def middle(values: np.ndarray) -> float:
    """Return the middle of the range."""
    return float((values.min() + values.max()) / 2)


def low_third(values: np.ndarray) -> float:
    """Return the position at 30 % of the range, above the middle of the cerebellum."""
    return float(values.min() + 0.3 * (values.max() - values.min()))


def twice(scan: nib.Nifti1Image, mask: np.ndarray) -> Copy:
    """Return the control: a copy rotated by 20° and back, which differs by the interpolation alone."""
    once = turned(OBLIQUE, 20)(scan, mask)
    pull = np.linalg.inv(once.affine) @ scan.affine
    data = ndimage.affine_transform(once.image.get_fdata(), pull[:3, :3], pull[:3, 3], scan.shape, order=1)
    return Copy(nib.Nifti1Image(data.astype(np.float32), scan.affine), scan.affine)


COPIES: dict[str, Callable[[nib.Nifti1Image, np.ndarray], Copy]] = {
    "times 1e-9": changed(lambda data, mask: data * 1e-9),
    "times 3 minus 500": changed(lambda data, mask: data * 3 - 500),
    "stripped background -1": surrounded(lambda brain: -1.0),
    "stripped background -1024": surrounded(lambda brain: -1024.0),
    "stripped background brightest": surrounded(lambda brain: brain.max()),
    "stripped values from 1000": changed(lambda data, mask: np.where(mask, 1000 + 1000 * data / data[mask].max(), 0)),
    "stripped z-scored all": changed(zscored_all),
    "stripped z-scored brain": changed(zscored_brain),
    "padded 60": padded(60),
    "padded 150": padded(150),
    "16 grey levels": changed(sixteen_levels),
    "noise around": changed(noise_around),
    "shading": shaded,
    "one hemisphere": cut(0, 1, middle),
    "cerebellum cut": cut(2, -1, low_third),
    "voxels of 1.5 mm": coarse(1.5, 1.5, 1.5),
    "slices of 3 mm": coarse(1, 1, 3),
    "slices of 5 mm": coarse(1, 1, 5),
    "grid turned 20": turned(OBLIQUE, 20),
    "grid turned 30": turned(OBLIQUE, 30),
    "grid turned 45": turned(OBLIQUE, 45),
    "nod 20": turned(NOD, 20, straight=True),
    "tilt 20": turned(TILT, 20, straight=True),
    "turned there and back": twice,
}
RESAMPLED = (
    "voxels of 1.5 mm",
    "slices of 3 mm",
    "slices of 5 mm",
    "grid turned 20",
    "grid turned 30",
    "grid turned 45",
    "nod 20",
    "tilt 20",
)
"""Copies whose labels are resampled to another grid."""


if __name__ == "__main__":
    main()
