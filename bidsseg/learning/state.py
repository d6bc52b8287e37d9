"""The conditions and the progress of a training, and its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Generator, nn

from bidsseg.derivative.ownership import CHECKPOINT
from bidsseg.errors import DataError, IOFailure
from bidsseg.files import replacing
from bidsseg.learning.processes import Processes
from bidsseg.learning.recipe import DESCRIBING
from bidsseg.networks.network import Network


def derived(seed: int, *numbers: int) -> int:
    """Return a seed that depends only on another seed and the numbers."""
    state = np.random.SeedSequence([seed % 2**32, *numbers]).generate_state(1)[0]  # torch uses only 32 bits
    return int(state)


def seeded(seed: int, *numbers: int, device: str | torch.device = "cpu") -> Generator:
    """Return a generator whose draws depend only on the seed, the numbers and the kind of device."""
    return Generator(device).manual_seed(derived(seed, *numbers))


class Keeper(Protocol):
    """An object whose state can be stored in a checkpoint."""

    def state_dict(self) -> Any:
        """Return the state for a checkpoint."""

    def load_state_dict(self, saved: Any, /) -> Any:
        """Restore the state of a checkpoint."""


@dataclass(frozen=True)
class Conditions:
    """The conditions of a training, which change its time and its record but not its result.

    Attributes:
        folder: folder of the model and its checkpoint.
        budget_s: seconds until the evaluation ends, including those before the checkpoint.
        stop: called after each step; if it returns True, the training is saved and ends.
        report: receives messages on the progress.
        precision: type of the activations.
        run: identity of the run that made a checkpoint: recipe, seed, scans and the like; it must match.
        files: checksums of the images and label maps, which are stored in the checkpoint, see
            ``data_files.fingerprints``.
        rehearse: evaluates a network on one held-out scan, and returns the seconds that the evaluation of all will
            take; None without held-out scans or a time budget.
        check_memory: called after each step; raises an error if the process holds more memory than it may.
    """

    folder: Path
    budget_s: float
    stop: Callable[[], bool]
    report: Callable[[str], None]
    precision: torch.dtype = torch.float32
    processes: Processes = field(default_factory=Processes)
    run: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    rehearse: Callable[[Network], float] | None = None
    check_memory: Callable[[], None] = lambda: None

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the training."""
        return self.folder / CHECKPOINT

    @property
    def device(self) -> str:
        """The device of this process."""
        return self.processes.device


@dataclass
class State:
    """The progress of a training: everything in a checkpoint besides weights.

    Attributes:
        waited_s: seconds of the run in which the network waited for samples.
        best: the highest mean Dice on the validation scans so far.
        reserve_s: part of the time budget that is kept for the evaluation at the end; 0 while it is unknown.
        readout_s: part of the time budget that the training of the last layers alone has used.
    """

    step: int = 0
    elapsed_s: float = 0.0
    waited_s: float = 0.0
    best: float = -1.0
    curve: list[dict[str, float]] = field(default_factory=list)
    reserve_s: float = 0.0
    readout_s: float = 0.0


def resumed(conditions: Conditions, network: nn.Module, optimiser: Keeper) -> tuple[State, dict[str, Any]]:
    """Return the progress and other state of a checkpoint, and restore network and optimiser.

    Without a checkpoint, the training begins, and the other state is empty.
    """
    if not conditions.checkpoint.is_file():
        return State(), {}
    with continuing(conditions) as saved:
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        return State(**saved["state"]), saved


@contextmanager
def continuing(conditions: Conditions) -> Iterator[dict[str, Any]]:
    """Yield the content of the checkpoint, to be restored; DataError if it is damaged or from another run."""
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


def glimpsed(checkpoint: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, mapped into memory; empty if it is missing or damaged."""
    try:
        return dict(torch.load(checkpoint, weights_only=True, map_location="cpu", mmap=True))
    except Exception:  # reading the checkpoint reports the reason
        return {}


def same_run(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raise DataError unless a checkpoint was made by the same run."""
    before, now = (json.loads(json.dumps(run)) for run in (before, now))
    names = [name for name in {**before, **now} if name not in DESCRIBING]  # older checkpoints have them
    differing = [name for name in names if before.get(name) != now.get(name)]
    if differing:
        raise DataError(
            f"{where}: of another run ({', '.join(differing)} differ): repeat the command of that run, give "
            "--overwrite to start again, or another OUTPUT_DIR"
        )


def save_checkpoint(
    conditions: Conditions, network: nn.Module, optimiser: Keeper, *, state: State, **others: Any
) -> None:
    """Write a checkpoint whole or not at all, with further state, in the first process only.

    IOFailure if the disk is full or broken; the checkpoint before it is kept.
    """
    if not conditions.processes.first:
        return
    kept = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "state": vars(state)}
    try:
        with replacing(conditions.checkpoint) as stream:
            save_to(stream, {**others, **kept, "run": json.dumps(conditions.run), "files": dict(conditions.files)})
    except IOFailure as error:
        remedy = "the last one is kept: free some space and run again with --resume"
        begin = "there is none yet: free some space and run again"
        raise IOFailure(f"{error}; {remedy if conditions.checkpoint.is_file() else begin}") from error


def save_to(stream: BinaryIO, content: Mapping[str, Any]) -> None:
    """Write a checkpoint into a file; OSError if the disk is full."""
    try:
        torch.save(content, stream)
    except RuntimeError as error:
        # The archive of torch fails again while it is closed, which hides the error of the disk.
        hidden = error.__context__ or error.__cause__
        if isinstance(hidden, OSError):
            raise hidden from error
        raise
