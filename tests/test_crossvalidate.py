"""Every participant is measured once, by a model that has not seen them."""

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from labelled import RECIPE, make_labelled
from scripts import script

from bidsseg.learning.validation import ERROR, summary
from bidsseg.models.card import read_card

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "crossvalidate.py"


def crossvalidate(*words: object) -> str:
    """What the script prints."""
    done = subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_folds_become_figures_on_the_card_of_a_model_that_learns_from_everybody(tmp_path: Path) -> None:
    bids, labels = make_labelled(tmp_path)
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text(RECIPE)
    common = [bids, "--folds", 2, "--recipe", recipe, "--labels", f"FAST={labels}", "--n-cpus", 1]
    crossvalidate(out, *common)
    table = pd.read_csv(out / "crossvalidation.tsv", sep="\t")
    assert set(table.case) == {f"bids/sub-{number:02}" for number in range(1, 5)}
    assert table.groupby("case").fold.nunique().max() == 1

    said = crossvalidate(out, *common, "--final")
    assert said.count("is finished") == 2, "what is done is not done again"
    card = read_card(out / "foldall" / "models" / "tiny")
    assert card.data == ["bids: 4 scans"] and set(card.metrics) == {"cross_validation"}
    found = card.metrics["cross_validation"]
    own = table[(table["head"] == "FAST") & (table.region != ERROR)]
    assert found["split"] == "2-fold cross-validation by participant"
    assert card.dice["FAST"] == found["heads"]["FAST"]["dice"]
    assert card.dice["FAST"] == pytest.approx(own.groupby("case").dice.mean().mean(), abs=1e-4)
    assert found["heads"]["FAST"]["scans"] == 4
    assert found["heads"]["FAST"]["dice_low"] <= card.dice["FAST"] <= found["heads"]["FAST"]["dice_high"]

    other = tmp_path / "other"
    start = ["--init", f"{out}/fold{{fold}}/models/tiny"]
    crossvalidate(other, *common, *start, "--cases", "bids/sub-0[123] *", "--card", out / "fold1" / "models" / "tiny")
    for fold in range(2):
        first, second = (read_card(place / f"fold{fold}" / "models" / "tiny") for place in (out, other))
        assert second.recipe["init"]["sha256"] == first.sha256
    card = read_card(out / "fold1" / "models" / "tiny")
    assert card.metrics["held_out"] == ["bids/sub-02", "bids/sub-04"]
    figure = card.metrics["cross_validation"]["heads"]["FAST"]
    other_table = pd.read_csv(other / "crossvalidation.tsv", sep="\t")
    assert set(other_table.case) == set(table.case)
    own = other_table[(other_table["head"] == "FAST") & (other_table.region != ERROR)]
    own = own[own.case != "bids/sub-04"]
    assert figure["dice"] == pytest.approx(own.groupby("case").dice.mean().mean(), abs=1e-4)
    assert figure["scans"] == 3 and figure["dice_low"] <= figure["dice"] <= figure["dice_high"]
    assert card.metrics["cross_validation"]["split"].startswith("2-fold")


def test_people_of_one_name_in_two_folds_are_two() -> None:
    matching = script("crossvalidate").matching
    rows = [(f"both/sub-{name}", fold, dice) for name, fold, dice in (("01", 0, 0.2), ("01", 1, 0.6), ("02", 1, 0.7))]
    table = pd.DataFrame(rows, columns=["case", "fold", "dice"])
    table = table.assign(head="FAST", annotation="FAST", region="White Matter")
    (row,) = summary(matching(table, "*")).to_dict("records")
    assert (row["cases"], row["dice"]) == (3, pytest.approx(0.5))
    assert matching(table, "* in fold 1").dice.tolist() == [0.6, 0.7]
    assert matching(table, "both/sub-01 *").dice.tolist() == [0.2, 0.6]
    assert matching(table, "oasis/*").empty


STOPPED = """
import signal, sys, time
from pathlib import Path
place = Path(sys.argv[2])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), (place / "kept").touch(), sys.exit(75)))
(place / "begun").touch()
time.sleep(60)
"""
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from scripts import script
module = script("crossvalidate")
module.RUN = Path({run!r})
module.train(Path({place!r}), ["bids"], "0")
"""


def test_what_stops_it_stops_the_training_which_keeps_what_it_has(tmp_path: Path) -> None:
    run = tmp_path / "run.py"
    run.write_text(STOPPED)
    driver = DRIVER.format(tests=str(Path(__file__).parent), run=str(run), place=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", driver])
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=60) == 75
    assert (tmp_path / "kept").exists()
