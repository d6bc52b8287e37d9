"""The requested settings, as plain values: the command line creates them, the levels read them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bidsseg.errors import UsageError

LEVELS = ("participant", "group", "evaluate", "train")
EXECUTORS = ("local", "dask", "slurm", "pbs", "sge", "lsf")
PRECISIONS = ("auto", "bf16", "fp32")
LEAST_MEMORY_MB = 500
Mask = Literal["own", "reference"]
"""Voxels that count in ``evaluate``, see ``evaluation.agreement.counted``."""


def device_name(text: str) -> str:
    """Return the name of a device: auto, cpu, cuda, cuda:N or mps."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", text):
        raise UsageError(f"device '{text}': give auto, cpu, cuda, cuda:N or mps")
    return text


def check_memory(memory_mb: int | None, given: str, remark: str = "") -> None:
    """Raise UsageError, with the words in which it was given, for a memory limit below any model's need."""
    if memory_mb is not None and memory_mb < LEAST_MEMORY_MB:
        raise UsageError(f"{given} is too little: give at least {LEAST_MEMORY_MB}{remark}")


class Report:
    """Interface for progress and messages of a level. This class is silent; the command line's subclass prints."""

    def say(self, message: str) -> None:
        """Report a result, in one line."""

    def warn(self, message: str) -> None:
        """Report something that the user should know or do, in one line."""

    def detail(self, message: str) -> None:
        """Report a detail for verbose output."""

    def start(self, total: int, unit: str = "scan") -> None:
        """Begin a piece of work of ``total`` units."""

    def stage(self, unit: str, stage: str) -> None:
        """Report that a unit has reached a stage."""

    def advance(self, unit: str, outcome: str) -> None:
        """Report that a unit is finished, with its outcome."""

    def stop(self) -> None:
        """End the piece of work."""


@dataclass(frozen=True)
class Training:
    """Settings of the level ``train``.

    Attributes:
        recipe: name of a shipped recipe or a TOML file.
        small: whether to use the small scale of the recipe.
        also: further BIDS datasets to train on.
        resume: whether to resume from the last checkpoint in the output folder.
        init: model (name or folder) that provides the initial weights.
        time_budget_min: stop cleanly after this number of minutes.
        cross_validate: number of folds that are all trained, before a final model on all participants; None trains one
            model. In a cross-validation, the time budget is for the whole run; folds, fold and hold_out are ignored.
        folds: number of folds by participant; 1 holds nobody out.
        fold: the held-out fold, counted from 0.
        hold_out: labels, or patterns of labels, without ``sub-`` of participants that are held out instead of a fold.
    """

    recipe: str = "wholebrain"
    small: bool = False
    also: Sequence[Path] = ()
    resume: bool = False
    init: str | None = None
    time_budget_min: float | None = None
    cross_validate: int | None = None
    folds: int = 5
    fold: int = 0
    hold_out: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cross_validate is not None and self.cross_validate < 2:
            raise UsageError(f"--cross-validate {self.cross_validate}: give at least 2 folds")
        if self.folds < 1:
            raise UsageError(f"--folds {self.folds}: give at least 2, or 1 to hold nobody out")
        if not 0 <= self.fold < self.folds:
            raise UsageError(f"--fold {self.fold}: give a number from 0 to {self.folds - 1}")
        if self.time_budget_min is not None and self.time_budget_min <= 0:
            raise UsageError("--time-budget: give a positive number of minutes")


@dataclass(frozen=True)
class Evaluation:
    """Settings of the level ``evaluate``.

    Attributes:
        against: the derivative dataset whose label maps are evaluated instead of those in the output folder.
        mask: which voxels count, see ``evaluation.agreement.counted``.
    """

    against: Path | None = None
    mask: Mask = "own"


@dataclass(frozen=True)
class Settings:
    """Settings of all levels.

    Attributes:
        images: T1w and FLAIR, by suffix, of the command ``file``; ``bids_dir`` is then their common folder.
        participants: labels without ``sub-``; empty means all.
        sessions: labels without ``ses-``; empty means all.
        shard: (I, N): only every N-th participant, from the I-th, counted from 1.
        filters: for each query (``t1w``, ``flair``) the pybids entities it must match.
        model: name of a shipped model or a model folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` (a GPU of Apple), which ``auto`` never selects.
        precision: ``auto``, ``bf16`` or ``fp32``.
        n_cpus: number of CPUs for all processes of a run together; None for all CPUs that this process may use.
        threads: threads of each process, None for an automatic choice.
        memory_mb: memory limit (MB), None for the free memory.
        fast: omit the pass over the mirror image.
        output_spaces: further standard spaces for the results, see ``registration.spaces.find_space``.
        executor: the system that runs the scans of the level participant, one of EXECUTORS.
        dask_scheduler: address of the scheduler of a Dask cluster.
        cluster_config: TOML file with the settings of the jobs of slurm, pbs, sge and lsf.
        labels: for each protocol, the derivative datasets with the annotations of ``train`` or the reference of
            ``evaluate``.
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
    labels: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    command: Sequence[str] = ()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    report: Report = field(default_factory=Report, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise UsageError(f"--shard {self.shard[0]}/{self.shard[1]}: give I/N with I from 1 to N")
        if self.n_cpus is not None and self.n_cpus < 1:
            raise UsageError(f"--n-cpus {self.n_cpus}: give at least 1")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--omp-nthreads {self.threads}: give at least 1")
        check_memory(self.memory_mb, f"--mem {self.memory_mb} MB", " (a number alone means MB)")
        if not self.images:
            self._check_places()

    def selects(self, source: Mapping[str, str]) -> bool:
        """Return whether a scan with these entities belongs to the selected participants and sessions."""
        chosen = [(self.participants, source.get("subject")), (self.sessions, source.get("session"))]
        return all(not wanted or label in wanted for wanted, label in chosen)

    def _check_places(self) -> None:
        """Raise UsageError if outputs would be written into the dataset."""
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
    """Return whether a path relative to the dataset is where BIDS allows derivatives of this tool."""
    return len(inside.parts) >= 2 and inside.parts[0] == "derivatives" and "bidsseg" in inside.parts[1]
