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
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from bidsseg.bids.sidecars import write_text_atomic
from bidsseg.learning.record import figures
from bidsseg.learning.validation import summary
from bidsseg.models.card import CARD, read_card

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
    for _, row in summary(table).iterrows():
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
        told = f"{row['head']} (against {row['annotation']}, {row['cases']} scans): Dice {row['dice']:.3f} {interval}"
        print(f"{told}, voxel error {row['voxel_error']:.3f}")
    if options.card:
        enter(options.card, {"split": f"{options.folds}-fold cross-validation by participant", "heads": figures(table)})


def validation(fold: int, folds: int, bids_dir: Path, out: Path, words: list[str]) -> pd.DataFrame:
    """What the model of a fold reaches on the people that it has not learned from."""
    place = out / f"fold{fold}"
    command = [sys.executable, RUN, bids_dir, place, "train", *words, "--folds", folds, "--fold", fold, "--resume"]
    subprocess.run([str(word) for word in command], check=True)
    (path,) = place.glob("models/*/validation.tsv")
    return pd.read_csv(path, sep="\t").assign(fold=fold)


def enter(model: Path, figure: dict[str, Any]) -> None:
    """Puts the figures on the card, beside those that it has."""
    card = read_card(model)
    card = replace(card, metrics={**card.metrics, "cross_validation": figure})
    write_text_atomic(model / CARD, card.to_json())


if __name__ == "__main__":
    main()
