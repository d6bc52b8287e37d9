"""Every participant is measured once, by a model that has not seen them."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from labelled import RECIPE, make_labelled

from bidsseg.learning.validation import ERROR
from bidsseg.models.card import read_card

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "crossvalidate.py"


def test_folds_become_figures_on_a_card(tmp_path: Path) -> None:
    bids, labels = make_labelled(tmp_path)
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text(RECIPE)
    words = [out, bids, "--folds", 2, "--recipe", recipe, "--labels", f"FAST={labels}", "--n-cpus", 1]
    for more in ([], ["--card", out / "fold1" / "models" / "tiny"]):
        done = subprocess.run([sys.executable, SCRIPT, *map(str, [*words, *more])], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("is finished") == 2, "what is done is not done again"
    table = pd.read_csv(out / "crossvalidation.tsv", sep="\t")
    assert set(table.case) == {f"bids/sub-{number:02}" for number in range(1, 5)}
    assert table.groupby("case").fold.nunique().max() == 1
    own = table[(table["head"] == "FAST") & (table.region != ERROR)]
    card = read_card(out / "fold1" / "models" / "tiny")
    figure = card.metrics["cross_validation"]["heads"]["FAST"]
    assert figure["dice"] == pytest.approx(own.groupby("case").dice.mean().mean(), abs=1e-4)
    assert figure["scans"] == 4 and figure["dice_low"] <= figure["dice"] <= figure["dice_high"]
    assert card.metrics["held_out"] == ["bids/sub-02", "bids/sub-04"]
    assert json.loads((card.folder / "card.json").read_text())["metrics"]["cross_validation"]["split"].startswith(
        "2-fold"
    )
