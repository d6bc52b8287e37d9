"""What the user asked for, as plain values: the command line makes it, the levels read it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidsseg.errors import UsageError

LEVELS = ("participant", "group", "train")
EXECUTORS = ("local", "dask", "slurm", "pbs", "sge", "lsf")
PRECISIONS = ("auto", "bf16", "fp32")
LEAST_MEMORY_MB = 500


def device_name(text: str) -> str:
    """Return the name of a device: auto, cpu, cuda, cuda:N or mps."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", text):
        raise UsageError(f"device '{text}': give auto, cpu, cuda, cuda:N or mps")
    return text


class Report:
    """How a level tells its user what happens. This one is silent; the command line has one that speaks."""

    def say(self, message: str) -> None:
        """A result, one line."""

    def warn(self, message: str) -> None:
        """Something the user should know or do, one line."""

    def detail(self, message: str) -> None:
        """Something for the curious."""

    def start(self, total: int, unit: str = "scan") -> None:
        """A piece of work of ``total`` units begins."""

    def stage(self, unit: str, stage: str) -> None:
        """The named unit has come to the named stage."""

    def advance(self, unit: str, outcome: str) -> None:
        """The named unit is over."""

    def stop(self) -> None:
        """The piece of work is over."""


@dataclass(frozen=True)
class Training:
    """What only the level ``train`` reads.

    Attributes:
        recipe: name of a shipped recipe or a TOML file.
        small: whether to take the small scale of the recipe.
        labels: for each protocol, the derivative datasets that hold its annotations.
        also: further BIDS datasets to learn from.
        resume: go on from the last checkpoint in the output folder.
        init: model (name or folder) whose weights are the start.
        time_budget_min: stop cleanly after so many minutes.
        folds: number of folds of a cross-validation by participant; 1 holds nobody out.
        fold: the fold, counted from 0, that is held out.
        hold_out: labels without ``sub-`` of participants, or patterns of such, that are held out in place of a fold.
    """

    recipe: str = "wholebrain"
    small: bool = False
    labels: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    also: Sequence[Path] = ()
    resume: bool = False
    init: str | None = None
    time_budget_min: float | None = None
    folds: int = 5
    fold: int = 0
    hold_out: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 1:
            raise UsageError(f"--folds {self.folds}: give at least 2, or 1 to hold nobody out")
        if not 0 <= self.fold < self.folds:
            raise UsageError(f"--fold {self.fold}: give a number from 0 to {self.folds - 1}")
        if self.time_budget_min is not None and self.time_budget_min <= 0:
            raise UsageError("--time-budget: give a positive number of minutes")


@dataclass(frozen=True)
class Settings:
    """What every level may read.

    Attributes:
        images: T1w and FLAIR, by suffix, of the command ``file``, for which ``bids_dir`` is the folder they are in.
        participants: labels without ``sub-``; empty means all.
        sessions: labels without ``ses-``; empty means all.
        shard: (I, N): only every N-th of the participants, from the I-th, counted from 1.
        filters: for each query (``t1w``, ``flair``) the pybids entities it must match.
        model: name of a shipped model or a model folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` (a GPU of Apple), which ``auto`` never selects.
        precision: ``auto``, ``bf16`` or ``fp32``.
        n_cpus: CPUs that all processes of a run use together, None for all that this process may use.
        threads: threads of each process, None for a number that suits the machine.
        memory_mb: limit on memory (MB), None for what is free.
        fast: leave out the pass over the mirror image.
        output_spaces: standard spaces, see ``registration.spaces.find_space``, in which results are written too.
        executor: one of EXECUTORS: what runs the scans of the level participant.
        dask_scheduler: address of the scheduler of a Dask cluster.
        cluster_config: TOML file that says how the jobs of slurm, pbs, sge and lsf are to be.
        command: the command line as typed, for the record.
    """

    bids_dir: Path
    output_dir: Path
    images: Mapping[str, Path] = field(default_factory=dict)
    participants: Sequence[str] = ()
    sessions: Sequence[str] = ()
    shard: tuple[int, int] = (1, 1)
    filters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    database_dir: Path | None = None
    skip_validation: bool = False
    work_dir: Path | None = None
    model: str = "wholebrain"
    device: str = "auto"
    precision: str = "auto"
    n_cpus: int | None = None
    threads: int | None = None
    memory_mb: int | None = None
    executor: str = "local"
    dask_scheduler: str | None = None
    cluster_config: Path | None = None
    probseg: bool = False
    entropy: bool = False
    fast: bool = False
    output_spaces: Sequence[str] = ()
    viewer: bool = False
    overwrite: bool = False
    stop_on_first_crash: bool = False
    dry_run: bool = False
    command: Sequence[str] = ()
    training: Training = Training()
    report: Report = field(default_factory=Report, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise UsageError(f"--shard {self.shard[0]}/{self.shard[1]}: give I/N with I from 1 to N")
        if self.n_cpus is not None and self.n_cpus < 1:
            raise UsageError(f"--n-cpus {self.n_cpus}: give at least 1")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--omp-nthreads {self.threads}: give at least 1")
        if self.memory_mb is not None and self.memory_mb < LEAST_MEMORY_MB:
            raise UsageError(
                f"--mem {self.memory_mb} MB is too little: give at least {LEAST_MEMORY_MB} (a number alone means MB)"
            )
        if not self.images:
            self._check_places()

    def _check_places(self) -> None:
        """UsageError if something would be written into the dataset."""
        raw, out = self.bids_dir.resolve(), self.output_dir.resolve()
        if out == raw:
            raise UsageError("OUTPUT_DIR is BIDS_DIR: choose another folder for the output")
        if out.is_relative_to(raw) and not _is_own_derivative(out.relative_to(raw)):
            raise UsageError(
                f"OUTPUT_DIR lies inside BIDS_DIR: choose a folder outside, or {raw / 'derivatives' / 'bidsseg'}"
            )
        if self.work_dir is not None and self.work_dir.resolve().is_relative_to(raw):
            raise UsageError("--work-dir lies inside BIDS_DIR: choose a folder outside")


def _is_own_derivative(inside: Path) -> bool:
    """Whether a path relative to the dataset is where BIDS lets a derivative of this tool be."""
    return len(inside.parts) >= 2 and inside.parts[0] == "derivatives" and "bidsseg" in inside.parts[1]
