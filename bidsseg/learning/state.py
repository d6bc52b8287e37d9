"""How a training is run, how far it has come, and the checkpoint that it goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, nn

from bidsseg.errors import DataError
from bidsseg.files import replacing
from bidsseg.learning.processes import Processes

CHECKPOINT = "checkpoint.pt"
"""The file in a model's folder that its training goes on from."""


def derived(seed: int, *numbers: int) -> int:
    """A seed that depends on another and the numbers alone."""
    state = np.random.SeedSequence([seed % 2**32, *numbers]).generate_state(1)[0]  # torch looks at 32 bits alone
    return int(state)


def seeded(seed: int, *numbers: int) -> Generator:
    """A generator of draws that depend on the seed and the numbers alone."""
    return Generator().manual_seed(derived(seed, *numbers))


class Keeper(Protocol):
    """What can be kept in a checkpoint and put back."""

    def state_dict(self) -> Any:
        """What a checkpoint keeps."""

    def load_state_dict(self, saved: Any, /) -> Any:
        """Goes on from a checkpoint."""


@dataclass(frozen=True)
class Conditions:
    """How a training is run, which changes its time and its record and not what is learnt.

    Attributes:
        folder: of the model, where the checkpoint is kept.
        budget_s: seconds until it ends, those before its checkpoint included.
        stop: asked after each step; True saves and returns.
        report: told how it goes.
        precision: type of the activations.
        run: what a checkpoint must have been made by to be continued: recipe, seed, scans and the like.
    """

    folder: Path
    budget_s: float
    stop: Callable[[], bool]
    report: Callable[[str], None]
    precision: torch.dtype = torch.float32
    processes: Processes = field(default_factory=Processes)
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """The file that the training goes on from."""
        return self.folder / CHECKPOINT

    @property
    def device(self) -> str:
        """Where this process computes."""
        return self.processes.device


@dataclass
class State:
    """How far a training has come; everything a checkpoint holds besides weights.

    Attributes:
        best: the highest mean Dice on scans that are watched, so far.
    """

    step: int = 0
    elapsed_s: float = 0.0
    best: float = -1.0
    curve: list[dict[str, float]] = field(default_factory=list)


def resumed(conditions: Conditions, network: nn.Module, optimiser: Keeper) -> tuple[State, dict[str, Any]]:
    """How far the training has come, and what else was kept; network and optimiser are put back to where they were.

    Without a checkpoint it begins, and nothing was kept.
    """
    if not conditions.checkpoint.is_file():
        return State(), {}
    with continuing(conditions) as saved:
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        return State(**saved["state"]), saved


@contextmanager
def continuing(conditions: Conditions) -> Iterator[dict[str, Any]]:
    """What the checkpoint holds, to be put back; DataError if it is damaged or of another run."""
    checkpoint = conditions.checkpoint
    try:
        saved = torch.load(checkpoint, weights_only=True, map_location=conditions.device)
        run = json.loads(saved["run"])
    except Exception as error:
        raise DataError(f"{checkpoint}: damaged; give --overwrite to start again") from error
    same_run(run, conditions.run, checkpoint)
    try:
        yield saved
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"{checkpoint}: of another version of bidsseg; give --overwrite to start again") from error


def same_run(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """DataError unless what is there was made by the run that is to be continued."""
    before, now = (json.loads(json.dumps(run)) for run in (before, now))
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        raise DataError(
            f"{where}: of another run ({', '.join(differing)} differ): repeat the command of that run, give "
            "--overwrite to start again, or another OUTPUT_DIR"
        )


def save_checkpoint(conditions: Conditions, network: nn.Module, optimiser: Keeper, state: State, **others: Any) -> None:
    """Written whole or not at all, with what else the training goes on with; by the first process alone."""
    if not conditions.processes.first:
        return
    kept = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "state": vars(state)}
    with replacing(conditions.checkpoint) as stream:
        torch.save({**others, **kept, "run": json.dumps(conditions.run)}, stream)
