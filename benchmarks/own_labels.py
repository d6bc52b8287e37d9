"""Dice of own labels after minutes of training from a model.

    python benchmarks/own_labels.py OASIS OUT --init MODEL [--minutes 5] [run.py options]

From the manual labels of OASIS, the script makes label maps of hippocampus and amygdala, which MODEL distinguishes, and
of the front and back halves of the thalamus, which it does not. For each, it trains on five participants and prints the
Dice on the participants of fold 0, from which MODEL must have been held out (``train --folds 5 --fold 0``), and the
seconds of the whole command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from bidsseg.image.nifti import read_labels
from bidsseg.labels import load_protocol

RUN = Path(__file__).parent.parent / "run.py"
UNSEEN, SEEN = ("1000", "1008", "1013"), ("1001", "1002", "1006", "1007", "1009")
SIDES = ("Left", "Right")
Masks = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oasis", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--init", required=True, metavar="MODEL")
    parser.add_argument("--minutes", type=float, default=5.0)
    options, more = parser.parse_known_args()
    for name, regions in {"limbic": limbic, "halves": halves}.items():
        folder = options.out / name
        write_labels(options.oasis, folder, name, regions=regions)
        started = time.monotonic()
        words = [options.oasis, options.out, "train", "--labels", folder, "--init", options.init, "--overwrite"]
        words += ["--time-budget", options.minutes, "--participant-label", *SEEN, *UNSEEN, "--hold-out", *UNSEEN, *more]
        subprocess.run([sys.executable, RUN, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        card = json.loads((options.out / "models" / name / "card.json").read_text())
        dice = ", ".join(f"{head} {figures['dice']:.3f}" for head, figures in card["metrics"]["heads"].items())
        print(f"{name}: {dice}; {time.monotonic() - started:.0f} s", flush=True)


def limbic(values: np.ndarray, front: np.ndarray) -> Masks:
    """Return masks (X, Y, Z) of hippocampus and amygdala."""
    names = [f"{side} {part}" for part in ("Hippocampus", "Amygdala") for side in SIDES]
    return {name: values == index(name) for name in names}


def halves(values: np.ndarray, front: np.ndarray) -> Masks:
    """Return masks (X, Y, Z) of the halves of the thalamus, from the place of each voxel along an axis to the front."""
    masks: Masks = {}
    for side in SIDES:
        whole = values == index(f"{side} Thalamus")
        is_front = front >= front[whole].mean()
        masks |= {f"{side} Thalamus front": whole & is_front, f"{side} Thalamus back": whole & ~is_front}
    return masks


def index(beginning: str) -> int:
    """Return the value of the BrainCOLOR region whose name begins so."""
    return next(region.index for region in load_protocol("BrainCOLOR").regions if region.name.startswith(beginning))


def write_labels(oasis: Path, folder: Path, name: str, *, regions: Callable[[np.ndarray, np.ndarray], Masks]) -> None:
    """Write a label derivative of the regions that a function makes from manual labels."""
    names: list[str] = []
    for participant in (*SEEN, *UNSEEN):
        path = next((oasis / "derivatives" / "manual" / f"sub-{participant}").rglob("*_seg-BrainCOLOR_*dseg.nii.gz"))
        labels = read_labels(path)
        places = np.stack(np.meshgrid(*map(np.arange, labels.data.shape), indexing="ij"), -1)
        masks = regions(labels.data, places @ labels.affine[1, :3])
        names = list(masks)
        values = sum((i * mask for i, mask in enumerate(masks.values(), 1)), np.zeros(labels.data.shape, np.uint8))
        target = folder / f"sub-{participant}" / "anat"
        target.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(np.asarray(values, np.uint8), labels.affine)
        nib.save(image, target / f"sub-{participant}_desc-{name}_dseg.nii.gz")
    rows = [f"{i}\t{region}" for i, region in enumerate(["Background", *names])]
    (folder / f"desc-{name}_dseg.tsv").write_text("\n".join(["index\tname", *rows]) + "\n")
    about = {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "own_labels"}],
    }
    (folder / "dataset_description.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main()
