"""Figures of a cross-validation from some of its cases, or from folds that were trained one by one.

    python benchmarks/fold_figures.py OUT [--cases PATTERN] [--card MODEL_FOLDER]

``train --cross-validate`` prints figures of all cases and enters them on the card. This script reads the models of the
folds from OUT/folds/fold-0 and so on, and prints the figures of the cases that --cases selects, where the labels of
others are no truth, as those of a model: a pattern of ``DATASET/sub-LABEL in fold I`` (``'oasis/*'``, ``'* in fold
[12]'``). Folds may have datasets of their own, with participants of the same name. --card enters the figures on the
card of a model, which the same recipe made.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from bidsseg.learning.crossvalidation import enter, fold_models, fold_output, gathered
from bidsseg.learning.validation import described
from bidsseg.models.card import CARD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", metavar="PATTERN", default="*")
    parser.add_argument("--card", type=Path, metavar="MODEL_FOLDER")
    options = parser.parse_args()
    names = [card.parent.name for card in fold_output(options.out, 0).glob(f"models/*/{CARD}")]
    if len(names) != 1:
        parser.error(f"{options.out} must hold the folds of one model, and holds those of {', '.join(names) or 'none'}")
    models = fold_models(options.out, names[0])
    table = gathered(models)
    counted = matching(table, options.cases)
    if counted.empty:
        parser.error(f"--cases '{options.cases}' is none of these: {', '.join(matching(table, '*').case.unique())}")
    print("\n".join(described(counted)))
    if options.card is not None:
        enter(options.card, counted, len(models))


def matching(table: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """Return the rows of some cases, whose names tell their fold too."""
    names = table["case"] + " in fold " + table["fold"].astype(str)
    return table.assign(case=names)[[fnmatchcase(name, pattern) for name in names]]


if __name__ == "__main__":
    main()
