"""Cross-validation of what ``train`` makes: every participant is measured by a model that has not seen them.

    python benchmarks/crossvalidate.py OUT [--folds 5] [--card MODEL_FOLDER] BIDS_DIR --recipe NAME --labels ... [...]

All that follows OUT and its own options are arguments of ``bidsseg ... train``, which is run once for each fold, in
OUT/fold0 and so on. A fold that is finished is not done again, and one that was stopped goes on: the same command
continues. Prints for each head the mean Dice over regions, then over scans, with a bootstrap 95 % interval over scans,
and the share of wrong voxels; writes OUT/crossvalidation.tsv with a row for each scan, head and region. ``--card``
enters the figures on the card of a model that the same recipe made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from bidsseg.bids.sidecars import write_text_atomic
from bidsseg.learning.validation import ERROR
from bidsseg.models.card import CARD
from bidsseg.segmentation.agreement import estimate

RUN = Path(__file__).parents[1] / "run.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--card", type=Path, metavar="MODEL_FOLDER")
    options, words = parser.parse_known_args()
    tables = [validation(fold, options.folds, options.bids_dir, options.out, words) for fold in range(options.folds)]
    table = pd.concat(tables, ignore_index=True)
    text = table.to_csv(sep="\t", index=False, float_format="%.4f")
    write_text_atomic(options.out / "crossvalidation.tsv", text)
    found = figures(table)
    for head, figure in found.items():
        interval = f"[{figure['dice_low']:.3f}, {figure['dice_high']:.3f}]"
        error, scans = figure["voxel_error"], figure["scans"]
        print(f"{head}: Dice {figure['dice']:.3f} {interval}, voxel error {error:.3f}, {scans} scans")
    if options.card:
        enter(options.card, {"split": f"{options.folds}-fold cross-validation by participant", "heads": found})


def validation(fold: int, folds: int, bids_dir: Path, out: Path, words: list[str]) -> pd.DataFrame:
    """What the model of a fold reaches on the people that it has not learned from."""
    place = out / f"fold{fold}"
    command = [sys.executable, RUN, bids_dir, place, "train", *words, "--folds", folds, "--fold", fold, "--resume"]
    subprocess.run([str(word) for word in command], check=True)
    (path,) = place.glob("models/*/validation.tsv")
    return pd.read_csv(path, sep="\t").assign(fold=fold)


def figures(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Of each head, against annotations in its own protocol or, as named, in another."""
    found = {}
    for (head, annotation), part in table.groupby(["head", "annotation"]):
        regions, errors = part[part.region != ERROR], part[part.region == ERROR]
        mean = estimate(regions.groupby("case").dice.mean().to_numpy())
        found[str(head) if head == annotation else f"{head} ({annotation})"] = {
            "dice": round(float(mean.mean), 4),
            "dice_low": round(float(mean.low), 4),
            "dice_high": round(float(mean.high), 4),
            "voxel_error": round(float(errors.groupby("case").dice.mean().mean()), 4),
            "scans": int(part.case.nunique()),
        }
    return found


def enter(model: Path, figure: dict[str, Any]) -> None:
    """Puts the figures on the card, beside those that it has."""
    card = json.loads((model / CARD).read_text(encoding="utf-8"))
    card["metrics"] = {**card["metrics"], "cross_validation": figure}
    write_text_atomic(model / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
