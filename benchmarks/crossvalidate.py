"""Cross-validation of what ``train`` makes: every participant is measured by a model that has not seen them.

    python benchmarks/crossvalidate.py OUT [--folds 5] [--cases PATTERN] [--final | --card MODEL_FOLDER] BIDS_DIR ...

All that follows OUT and its own options are arguments of ``bidsseg ... train``, which is run once for each fold, in
OUT/fold0 and so on; ``{fold}`` in any of them stands for the number of the fold, so that ``--init
FIRST/fold{fold}/models/NAME`` goes on from the models of another cross-validation in FIRST, and each fold may have
datasets of its own (with --hold-out, since --fold would hold others out). A fold that is finished is not done again,
and one that was stopped goes on: the same command continues.

Prints for each head the mean Dice over regions, then over scans, with a bootstrap 95 % interval over scans, the share
of wrong voxels and regions, as accuracy.py does; writes OUT/crossvalidation.tsv with a row for each scan, head and
region. ``--cases`` names those that count, where the labels of others are no truth, as those of a model: a pattern of
``DATASET/sub-LABEL in fold I`` (``'oasis/*'``, ``'* in fold [12]'``). ``--final`` then trains the same on everybody, in
OUT/foldall, and enters the figures on the card of that model. ``--card`` enters them on the card of a model that is
there, which the same recipe made.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd

from bidsseg.files import write_text_atomic
from bidsseg.learning.record import figures
from bidsseg.learning.validation import described
from bidsseg.models.card import CARD, read_card
from bidsseg.models.library import save_card

RUN = Path(__file__).parents[1] / "run.py"
STOPS = signal.SIGTERM, signal.SIGINT
EVERYBODY = "all"
"""Stands in place of the number of a fold where nobody is held out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("bids_dir")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--cases", metavar="PATTERN", default="*")
    card = parser.add_mutually_exclusive_group()
    card.add_argument("--final", action="store_true")
    card.add_argument("--card", type=Path, metavar="MODEL_FOLDER")
    options, words = parser.parse_known_args()

    def trained(fold: object, *split: object) -> Path:
        return train(options.out / f"fold{fold}", [options.bids_dir, *words, *map(str, split)], str(fold))

    models = [trained(fold, "--folds", options.folds, "--fold", fold) for fold in range(options.folds)]
    table = pd.concat(
        [pd.read_csv(model / "validation.tsv", sep="\t").assign(fold=fold) for fold, model in enumerate(models)],
        ignore_index=True,
    )
    text = table.to_csv(sep="\t", index=False, float_format="%.4f")
    write_text_atomic(options.out / "crossvalidation.tsv", text)
    counted = matching(table, options.cases)
    if counted.empty:
        parser.error(f"--cases '{options.cases}' is none of these: {', '.join(matching(table, '*').case.unique())}")
    print("\n".join(described(counted)))
    model = trained(EVERYBODY, "--folds", 1) if options.final else options.card
    if model is not None:
        enter(model, {"split": f"{options.folds}-fold cross-validation by participant", "heads": figures(counted)})


def matching(table: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """The rows of some cases, whose names tell their fold too: folds with datasets of their own may repeat names."""
    names = table["case"] + " in fold " + table["fold"].astype(str)
    return table.assign(case=names)[[fnmatchcase(name, pattern) for name in names]]


def train(place: Path, words: Sequence[str], fold: str) -> Path:
    """The folder of the model that was trained so, now or before; the dataset is the first word."""
    bids_dir, *own = (word.replace("{fold}", fold) for word in words)
    training = subprocess.Popen([sys.executable, str(RUN), bids_dir, str(place), "train", *own, "--resume"])
    # What stops this program stops the training, which first keeps what it has.
    before = {number: signal.signal(number, lambda *_: training.terminate()) for number in STOPS}
    if training.wait():
        raise SystemExit(training.returncode)
    for number, handler in before.items():
        signal.signal(number, handler)
    (card,) = place.glob(f"models/*/{CARD}")
    return card.parent


def enter(model: Path, figure: dict[str, Any]) -> None:
    """Puts the figures on the card, beside those that it has."""
    card = read_card(model)
    save_card(replace(card, metrics={**card.metrics, "cross_validation": figure}))


if __name__ == "__main__":
    main()
