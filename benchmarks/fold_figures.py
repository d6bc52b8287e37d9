"""Results of a cross-validation for some of its cases, or for folds that were trained separately.

    python benchmarks/fold_figures.py OUT [--cases PATTERN] [--card MODEL_FOLDER]

``train --cross-validate`` prints the results of all cases and stores them on the card. This script reads the models of
the folds from OUT/folds/fold-0 and so on, and prints the results of the cases that match the pattern --cases, for
example to exclude cases whose labels were made by a model. The pattern is compared with ``DATASET/sub-LABEL in fold I``
(``'oasis/*'``, ``'* in fold [12]'``). Folds may have their own datasets, with participants of the same name. --card
stores the results on the card of a model, which must have been trained with the same recipe.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from bidsseg.learning.crossvalidation import enter, fold_models, fold_output, gathered
from bidsseg.learning.folds import person
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
        parser.error(f"{options.out} must have the folds of one model, but has those of {', '.join(names) or 'none'}")
    models = fold_models(options.out, names[0])
    table = gathered(models)
    counted = matching(table, options.cases)
    if counted.empty:
        parser.error(f"--cases '{options.cases}' matches none of {', '.join(matching(table, '*').case.unique())}")
    print("\n".join(described(counted)))
    if options.card is not None:
        enter(options.card, counted, len(models))


def matching(table: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """Return the rows whose case matches a pattern, with the fold in the name of the participant."""
    names = table["case"] + " in fold " + table["fold"].astype(str)
    people = [
        case.replace(person(case), f"{person(case)} in fold {fold}")
        for case, fold in zip(table["case"], table["fold"], strict=True)
    ]
    return table.assign(case=people)[[fnmatchcase(name, pattern) for name in names]]


if __name__ == "__main__":
    main()
