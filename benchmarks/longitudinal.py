"""Differences between a scan and copies of it, segmented separately and by the level longitudinal.

    python benchmarks/longitudinal.py T1W... [--table TSV] [run.py options]

The script makes copies of each scan that are moved by 5 mm and 8°, interpolated by cubic splines and given new noise:
one unchanged, and others whose hippocampi have shrunk by 2 and 5 % in a smooth deformation. It prints the mean
difference of the volumes of the unchanged copy (%, without sign, over regions, then scans) from separate segmentation
and from the level longitudinal, and the change of the hippocampi that the level finds, from the scan and from the
unchanged copy, which was interpolated as the shrunken ones were.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bidsseg.image.nifti import read_image, read_labels
from bidsseg.image.volume import Volume

RUN = Path(__file__).parent.parent / "run.py"
HIPPOCAMPI = ("Left Hippocampus", "Right Hippocampus")
SHRINKAGE = (2.0, 5.0)
"""Shrinkage of the hippocampi (%)."""
DISTANCE_MM, ANGLE_DEGREES = 5.0, 8.0
NOISE = 0.02
"""Standard deviation of the noise, as a share of the brightness of the brain."""
NEAR_MM, FAR_MM = 2.0, 12.0
"""Distance from a structure up to which it shrinks evenly, and from which nothing moves."""
LEAST_MM3 = 50.0
"""Volume from which a region counts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path, metavar="T1W")
    parser.add_argument("--table", type=Path, help="TSV with a row for each scan, copy, region and way")
    options, more = parser.parse_known_args()
    tables = []
    for number, path in enumerate(options.scans, 1):
        with tempfile.TemporaryDirectory() as name:
            tables.append(measured(path, f"{number:02d}", Path(name), more=more).assign(scan=str(path)))
            print(summary(tables[-1]), file=sys.stderr, flush=True)
    table = pd.concat(tables)
    if options.table:
        table.to_csv(options.table, sep="\t", index=False, float_format="%.4f")
    print(summary(table))


def summary(table: pd.DataFrame) -> str:
    """Return the mean difference of the unchanged copy, and the changes of the hippocampi, as text."""
    unchanged = table[(table["copy"] == "moved") & (table["mm3"] > LEAST_MM3)]
    means = unchanged.assign(size=unchanged["percent"].abs()).pivot_table("size", "protocol", "way", sort=False)
    structures = table[table["name"].isin(HIPPOCAMPI) & (table["protocol"] == "FreeSurfer")]
    found = structures.pivot_table("percent", "copy", "way", sort=False).rename(columns={"together": "from the scan"})
    share = 1 + found["from the scan"] / 100
    found["from the copy"] = 100 * (share / share["moved"] - 1)
    return f"{means.round(2).to_string()}\n\nhippocampi (%)\n{found.round(2).to_string()}"


def measured(path: Path, label: str, folder: Path, *, more: list[str]) -> pd.DataFrame:
    """Return the difference (%) of each region of each copy from the scan, by both ways of segmentation."""
    volume, _ = read_image(path)
    bids, out = folder / "bids", folder / "out"
    place = bids / f"sub-{label}"
    bids.mkdir()
    (bids / "dataset_description.json").write_text('{"Name": "copies", "BIDSVersion": "1.10.1"}')
    brightness = float(np.median(volume.data[volume.data > np.quantile(volume.data, 0.7)]))
    save(place, "1", noisy(volume.data, NOISE * brightness, seed=1), affine=volume.affine)
    run(bids, out, "participant", more=more)
    labels = read_labels(next(out.rglob("*_seg-FreeSurfer_*_dseg.nii.gz")))
    table = pd.read_csv(next(out.rglob("*_seg-FreeSurfer_*_dseg.tsv")), sep="\t").set_index("name")
    masks = [labels.data == table.loc[name, "index"] for name in HIPPOCAMPI]
    names = ["moved"]
    save(place, "2", noisy(moved(volume, []), NOISE * brightness, seed=2), affine=volume.affine)
    run(bids, out, "participant", more=more)
    for number, percent in enumerate(SHRINKAGE, 3):
        names.append(f"shrunk by {percent:g} %")
        inward = [shrinkage(mask, volume, percent) for mask in masks]
        save(place, str(number), noisy(moved(volume, inward), NOISE * brightness, seed=number), affine=volume.affine)
    run(bids, out, "longitudinal", more=more)
    rows = list[pd.DataFrame]()
    for file in sorted(out.rglob("*_longitudinal.tsv")):
        found = pd.read_csv(file, sep="\t").dropna(subset="index")
        for number, name in enumerate(names, 2):
            rows.append(compared(found, "1", str(number)).assign(copy=name, way="together", protocol=protocol(file)))
    for file in sorted(out.rglob("*_ses-1_*_morph.tsv")):
        both = [
            pd.read_csv(str(file).replace("ses-1", f"ses-{n}"), sep="\t").assign(session_id=f"ses-{n}") for n in (1, 2)
        ]
        found = pd.concat(both).dropna(subset="index")
        rows.append(compared(found, "1", "2").assign(copy="moved", way="separately", protocol=protocol(file)))
    return pd.concat(rows)


def protocol(file: Path) -> str:
    """Return the protocol of a table."""
    return file.name.split("_seg-")[1].split("_")[0]


def compared(table: pd.DataFrame, first: str, other: str) -> pd.DataFrame:
    """Return the volume (mm³) of each region at the first session, and its difference at another (%)."""
    one, two = (
        table[table["session_id"] == f"ses-{label}"].set_index("name")["softvolume-mm3"] for label in (first, other)
    )
    return pd.DataFrame({"mm3": one, "percent": 100 * (two - one) / one}).reset_index()


def run(bids: Path, out: Path, level: str, *, more: list[str]) -> None:
    """Run a level of the program."""
    command = [sys.executable, RUN, bids, out, level, "--skip-bids-validation", *more]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


def save(place: Path, session: str, data: np.ndarray, *, affine: np.ndarray) -> None:
    """Write a T1w as a session of a participant."""
    path = place / f"ses-{session}" / "anat" / f"{place.name}_ses-{session}_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)


def noisy(data: np.ndarray, deviation: float, *, seed: int) -> np.ndarray:
    """Return an image (X, Y, Z) with the noise of a magnitude image, except in a constant background of 0."""
    noise = np.random.default_rng(seed).normal(0, deviation, data.shape)
    return np.where(data > 0, np.abs(data + noise), 0)


def moved(volume: Volume, inward: list[np.ndarray]) -> np.ndarray:
    """Return an image (X, Y, Z) after displacements (X, Y, Z, 3), in mm, and a rigid motion, interpolated once."""
    turn = Rotation.from_rotvec(ANGLE_DEGREES * np.array([1.0, -2.0, 2.0]) / 3, degrees=True).as_matrix()
    centre = apply_affine(volume.affine, (np.array(volume.shape) - 1) / 2)
    shift = DISTANCE_MM * np.array([2.0, 1.0, -2.0]) / 3
    back = np.linalg.inv(from_matvec(turn, centre + shift - turn @ centre))
    places = apply_affine(back @ volume.affine, np.moveaxis(np.indices(volume.shape), 0, -1))
    index = np.moveaxis(apply_affine(np.linalg.inv(volume.affine), places), -1, 0)
    for field in inward:
        places += np.stack([ndimage.map_coordinates(field[..., axis], index, order=1) for axis in range(3)], -1)
    index = np.moveaxis(apply_affine(np.linalg.inv(volume.affine), places), -1, 0)
    shown = ndimage.map_coordinates(volume.data, index, order=0) > 0  # splines leave ripples around a stripped brain
    return np.where(shown, ndimage.map_coordinates(volume.data, index, order=3).clip(0), 0)


def shrinkage(mask: np.ndarray, volume: Volume, percent: float) -> np.ndarray:
    """Return the displacements (X, Y, Z, 3), in mm, from a structure that shrank to the original one."""
    places = apply_affine(volume.affine, np.moveaxis(np.indices(volume.shape), 0, -1))
    away = ndimage.distance_transform_edt(~mask, sampling=volume.spacing_mm)
    share = np.clip((FAR_MM - away) / (FAR_MM - NEAR_MM), 0, 1)
    scale = (1 - percent / 100) ** (1 / 3)
    found: np.ndarray = (places - places[mask].mean(0)) * ((1 / scale - 1) * share)[..., None]
    return found


if __name__ == "__main__":
    main()
