"""The outputs of a training run: curve, validation table, card and weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from bidsseg.derivative.ownership import VALIDATION
from bidsseg.files import replacing, write_table
from bidsseg.learning.cases import ListedCase
from bidsseg.learning.state import State
from bidsseg.learning.validation import regions_of, summary, validate
from bidsseg.models.card import Card
from bidsseg.models.library import Model, build, load_model, save_model
from bidsseg.networks.network import Network
from bidsseg.report import Pictures, training_page

RESERVE = 1.2
"""Part of the time budget kept for the evaluation, as a multiple of its expected time."""

HARDLY = 0.1
"""Dice below which a model has hardly learned a head."""


def rehearsal(
    card: Card, unseen: Sequence[ListedCase], *, precision: str, say: Callable[[str], None]
) -> Callable[[Network], float]:
    """Return a function that evaluates a network on one held-out scan and returns the seconds to keep for all."""

    def expected_s(network: Network) -> float:
        began = time.monotonic()
        with torch.random.fork_rng(devices=[]):  # the initial weights, which are replaced
            own = build(card)  # a network in training may hold tensors of its last sample, which cannot be copied
        own.load_state_dict(network.state_dict())
        own.eval().requires_grad_(requires_grad=False)
        locator = load_model(card.locator) if card.locator else None
        validate(Model(card, own, locator), unseen[:1], lambda message: None, precision=precision)
        seconds = RESERVE * len(unseen) * (time.monotonic() - began)
        say(f"{seconds:.0f} s of the time budget are kept for the evaluation at the end")
        return seconds

    return expected_s


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
    unseen: Sequence[ListedCase],
    *,
    say: Callable[[str], None],
    state: State,
    precision: str,
    watched: Sequence[ListedCase] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Card:
    """Write the model folder and its page, with the results of the finished model on the held-out scans.

    Args:
        watched: scans whose Dice the curve has, if these are not the held-out scans.
        stop: called before each scan; if it returns True, TemporaryFailure is raised.
    """
    folder, table, pictures = card.folder, None, Pictures()
    recipe = dict(card.recipe) | {"steps_done": state.step, "minutes": round(state.elapsed_s / 60, 3)}
    card = save_model(replace(card, recipe=recipe), network.state_dict(), folder)
    if unseen:
        table = validate(load_model(str(folder)), unseen, say, precision=precision, stop=stop, show=pictures.add)
        save_table(folder / VALIDATION, table)
        results = {**card.metrics, **metrics(table, unseen)}
        card = save_model(replace(card, metrics=results), network.state_dict(), folder)
        if not watched:
            save_curve(with_results(state, results["heads"]), folder)
    training_page(card, None if table is None else regions_of(table), pictures.lowest())
    return card


def hardly_learned(card: Card) -> list[str]:
    """Return the heads whose Dice on held-out participants is near that of a model that has learned nothing."""
    return [head for head, dice in card.dice.items() if dice < HARDLY]


def with_results(state: State, heads: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return the curve, which ends with the results of the finished model.

    During the training, the Dice is measured on a part of the voxels.
    """
    row = {"step": float(state.step), "elapsed_s": round(state.elapsed_s, 1)}
    rows = list(state.curve)
    if rows and rows[-1]["step"] == state.step:
        row = rows.pop()
    results = {
        f"dice {figure['annotation']}>{head.partition(' (')[0]}": figure["dice"]
        for head, figure in heads.items()
        if figure["dice"] is not None
    }
    return [*rows, {**row, **results}]


def metrics(table: pd.DataFrame, unseen: Sequence[ListedCase]) -> dict[str, Any]:
    """Return the card's figures, with the participants of the evaluation."""
    held_out = [case.name for case in unseen]
    return {"split": "participants held out from training", "held_out": held_out, "heads": figures(table)}


def figures(table: pd.DataFrame) -> dict[str, Any]:
    """Return the figures of each head for a card, with separate figures for each of several annotations."""
    heads: dict[str, Any] = {}
    for _, row in summary(table).iterrows():
        head, annotation = str(row["head"]), str(row["annotation"])
        values = {
            "dice": rounded(row["dice"]),
            "dice_low": rounded(row["low"]),
            "dice_high": rounded(row["high"]),
            "voxel_error": rounded(row["voxel_error"]),
            "annotation": annotation,
            "scans": int(row["cases"]),
        }
        alone = (table[table["head"] == head]["annotation"] == annotation).all()
        heads[head if alone or annotation == head else f"{head} ({annotation})"] = values
    return heads


def rounded(value: float) -> float | None:
    """Return a figure for a card; None if it is unknown."""
    return round(float(value), 4) if math.isfinite(value) else None
