"""The outputs of a training run: curve, validation table, card and weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from bidsseg.derivative.ownership import VALIDATION
from bidsseg.files import replacing, write_table
from bidsseg.learning.cases import Case
from bidsseg.learning.state import State
from bidsseg.learning.validation import summary, validate
from bidsseg.models.card import Card
from bidsseg.models.library import load_model, save_model


def save_curve(curve: Sequence[dict[str, float]], folder: Path) -> None:
    """Write ``curve.tsv`` and ``curve.png``: losses and Dice on unseen scans along the run."""
    from matplotlib.figure import Figure

    table = pd.DataFrame(curve)
    save_table(folder / "curve.tsv", table)
    if table.empty:
        return
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in table.columns.drop(["step", "elapsed_s"]):
        axis = right if name.startswith("dice ") else left
        axis.plot(table.step, table[name], label=name.removeprefix("dice "))
    for axis, title in ((left, "cross-entropy, training"), (right, "Dice, unseen scans")):
        axis.set(title=title, xlabel="step")
        if axis.lines:
            axis.legend(fontsize=6)
        axis.grid(alpha=0.3)
    with replacing(folder / "curve.png") as stream:
        figure.savefig(stream, format="png", dpi=120)


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table of a training. A missing value is empty, so that a region may be named ``n/a``."""
    write_table(path, table, float_format="%.4f", missing="")


def save_outcome(
    card: Card,
    network: nn.Module,
    unseen: Sequence[Case],
    *,
    say: Callable[[str], None],
    state: State,
    precision: str,
    folder: Path,
    stop: Callable[[], bool] = lambda: False,
) -> Card:
    """Write the model folder, with the results of the finished model on the held-out scans.

    ``stop`` is called before each scan; if it returns True, TemporaryFailure is raised.
    """
    recipe = dict(card.recipe) | {"steps_done": state.step, "minutes": round(state.elapsed_s / 60, 3)}
    card = save_model(replace(card, recipe=recipe), network.state_dict(), folder)
    if unseen:
        table = validate(load_model(str(folder)), unseen, say, precision=precision, stop=stop)
        save_table(folder / VALIDATION, table)
        card = save_model(replace(card, metrics=metrics(table, unseen)), network.state_dict(), folder)
    return card


def metrics(table: pd.DataFrame, unseen: Sequence[Case]) -> dict[str, Any]:
    """Return the card's figures, with the participants of the evaluation."""
    held_out = [case.name for case in unseen]
    return {"split": "participants held out from training", "held_out": held_out, "heads": figures(table)}


def figures(table: pd.DataFrame) -> dict[str, Any]:
    """Return the figures of each head for a card, with separate figures for each of several annotations."""
    heads: dict[str, Any] = {}
    for _, row in summary(table).iterrows():
        head, annotation = str(row["head"]), str(row["annotation"])
        values = {
            "dice": round(float(row["dice"]), 4),
            "dice_low": round(float(row["low"]), 4),
            "dice_high": round(float(row["high"]), 4),
            "voxel_error": round(float(row["voxel_error"]), 4),
            "annotation": annotation,
            "scans": int(row["cases"]),
        }
        alone = (table[table["head"] == head]["annotation"] == annotation).all()
        heads[head if alone or annotation == head else f"{head} ({annotation})"] = values
    return heads
