"""The requested settings, as plain values: the command line creates them, the levels read them.

A field with a flag of the command line declares that flag (see ``bidsseg/flags.py``). A new flag needs no other line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from bidsseg import arguments
from bidsseg.errors import UsageError
from bidsseg.flags import CLUSTER, COMPARISON, LABELS, OUTPUTS, RESOURCES, SCANS, TRAINING, flag

LEVELS = ("participant", "longitudinal", "group", "evaluate", "train")
EXECUTORS = ("local", "dask", "slurm", "pbs", "sge", "lsf")
PRECISIONS = ("auto", "bf16", "fp32")
LESION_FLAGS = ("--lesion-threshold", "--min-lesion-volume", "--min-lesion-peak")
LEAST_MEMORY_MB = 500
DEFAULT_FOLDS = 5
Runs = Literal["all", "best", "first"]
"""Runs of a session that count in the tables of a cohort, see ``derivative.cohort_numbers.chosen_runs``."""
Mask = Literal["own", "reference"]
"""Voxels that count in ``evaluate``, see ``evaluation.agreement.counted``."""


def check_memory(memory_mb: int | None, given: str, remark: str = "") -> None:
    """Raise UsageError, with the words in which it was given, for a memory limit below any model's need."""
    if memory_mb is not None and memory_mb < LEAST_MEMORY_MB:
        raise UsageError(f"{given} is too little: give at least {LEAST_MEMORY_MB}{remark}")


def check_lesion_rule(
    threshold: float | None, least_mm3: float | None, least_peak: float | None, *, names: Sequence[str]
) -> None:
    """Raise UsageError, with the names of the numbers, for numbers that select no lesions."""
    if threshold is not None and not 0 < threshold <= 1:
        raise UsageError(f"{names[0]} {threshold:g}: give a number above 0 and at most 1")
    if least_mm3 is not None and not 0 <= least_mm3 < math.inf:
        raise UsageError(f"{names[1]} {least_mm3:g}: give a volume of at least 0 mm³")
    if least_peak is not None and not 0 <= least_peak <= 1:
        raise UsageError(f"{names[2]} {least_peak:g}: give a number from 0 to 1")


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
        cross_validate: number of folds that are all trained, before a final model on all participants; None trains one
            model. In a cross-validation, the time budget is for the whole run; folds, fold and hold_out are ignored.
        hold_out: labels, or patterns of labels, without ``sub-``.
    """

    recipe: str = flag("--recipe NAME|FILE", TRAINING, "what to train and how [%(default)s]", default="wholebrain")
    also: Sequence[Path] = flag(
        "--also BIDS_DIR", TRAINING, "further datasets to train on",
        default=(), several=True, read=arguments.datasets)  # fmt: skip
    small: bool = flag(
        "--small", TRAINING, "use the small scale of the recipe, to try it on a laptop", default=False)  # fmt: skip
    init: str | None = flag(
        "--init NAME|DIR", TRAINING,
        "start from the weights of this model; with --cross-validate also the output of another cross-validation: each "
        "fold starts from the same fold",
        default=None)  # fmt: skip
    resume: bool = flag(
        "--resume", TRAINING, "resume from the last checkpoint in OUTPUT_DIR; keep finished folds",
        default=False)  # fmt: skip
    time_budget_min: float | None = flag(
        "--time-budget MINUTES", TRAINING,
        "finish the model within this time, with the steps for which there is time; with --cross-validate, the time of "
        "the whole run, divided evenly among the unfinished models",
        default=None, read=float)  # fmt: skip
    cross_validate: int | None = flag(
        "--cross-validate K", TRAINING,
        "train each of K folds, then a final model on all participants; its card has the results of the folds "
        f"[K: {DEFAULT_FOLDS}]",
        default=None, read=int, alone=DEFAULT_FOLDS)  # fmt: skip
    folds: int = flag(
        "--folds K", TRAINING, "number of parts of the participants; 1: hold out no participant [%(default)s]",
        default=DEFAULT_FOLDS, read=int)  # fmt: skip
    fold: int = flag(
        "--fold I", TRAINING, "hold out this part, counted from 0 [%(default)s]", default=0, read=int)  # fmt: skip
    hold_out: Sequence[str] = flag(
        "--hold-out LABEL", TRAINING, "hold out these participants, or patterns of labels, instead of a fold",
        default=(), several=True, read=partial(arguments.labels, "sub", patterns=True))  # fmt: skip
    seed: int = flag("--seed N", TRAINING, "random seed [%(default)s]", default=0, read=int)

    def __post_init__(self) -> None:
        if self.cross_validate is not None and self.cross_validate < 2:
            raise UsageError(f"--cross-validate {self.cross_validate}: give at least 2 folds")
        if self.folds < 1:
            raise UsageError(f"--folds {self.folds}: give at least 2, or 1 to hold nobody out")
        if not 0 <= self.fold < self.folds:
            raise UsageError(f"--fold {self.fold}: give a number from 0 to {self.folds - 1}")
        if self.time_budget_min is not None and not self.time_budget_min > 0:  # nan is not
            raise UsageError("--time-budget: give a positive number of minutes")


@dataclass(frozen=True)
class Evaluation:
    """Settings of the level ``evaluate``."""

    against: Path | None = flag(
        "--against DIR", COMPARISON,
        "compare the label maps of this derivative dataset (of any tool or rater) with those of --labels, instead of "
        "those in OUTPUT_DIR, which then receives only the tables and the page",
        default=None)  # fmt: skip
    mask: Mask = flag(
        "--mask", COMPARISON, "voxels that count: all (own), or those that the reference labels [%(default)s]",
        default="own", choices=get_args(Mask))  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Settings of all levels. The flags have the order of the help text.

    Attributes:
        images: T1w and FLAIR, by suffix, of the command ``file``; ``bids_dir`` is then the folder of the T1w.
        participants: labels without ``sub-``; empty means all.
        sessions: labels without ``ses-``; empty means all.
        shard: (I, N).
        where: conditions that scans must meet, see ``bids.marks.Marks``.
        controls: conditions that the scans of controls meet.
        covariates: columns; empty means age and sex, see ``derivative.norms.Controls``.
        filters: for each query (``t1w``, ``flair``) the pybids entities it must match.
        modality: suffix of the images in the place of the T1w; None for that of the model.
        device: ``auto`` never selects ``mps``, a GPU of Apple.
        n_cpus: number of CPUs for all processes of a run together; None for all CPUs that this process may use.
        output_spaces: see ``registration.spaces.find_space``.
        labels: for each protocol, the derivative datasets with the annotations of ``train`` or the reference of
            ``evaluate``; under the empty name those whose labels define the protocol.
        command: the command line as typed, for the record.
    """

    bids_dir: Path
    output_dir: Path
    images: Mapping[str, Path] = field(default_factory=dict)

    participants: Sequence[str] = flag(
        "--participant-label --subject-label LABEL", SCANS,
        "only these ('sub-' is optional; also 01,02), or a file of labels, e.g. participants.tsv",
        default=(), several=True, read=partial(arguments.labels, "sub"))  # fmt: skip
    sessions: Sequence[str] = flag(
        "--session-label LABEL", SCANS, "only these ('ses-' is optional), or a file of labels",
        default=(), several=True, read=partial(arguments.labels, "ses"))  # fmt: skip
    shard: tuple[int, int] = flag(
        "--shard I/N", SCANS, "every N-th participant from the I-th, counted from 1: the part of one job",
        default=(1, 1), read=arguments.shard, levels="participant longitudinal")  # fmt: skip
    filters: Mapping[str, Mapping[str, Any]] = flag(
        "--bids-filter-file FILE", SCANS,
        "JSON with the entities that t1w and flair must have; null = absent, '*' = any value",
        default={}, read=Path, levels="participant longitudinal train")  # fmt: skip
    where: Sequence[str] = flag(
        "--where COLUMN=VALUE", SCANS,
        "only scans with this value in scans.tsv, sessions.tsv or participants.tsv (VALUE,VALUE: one of these; "
        "COLUMN!=VALUE: another or none); level group: only they count",
        default=(), several=True, read=partial(arguments.conditions, "--where"),
        levels="participant longitudinal")  # fmt: skip
    modality: str | None = flag(
        "--anat-modality SUFFIX", SCANS,
        "images to segment: T1w, UNIT1 or, with a model of any contrast (open), e.g. T2w or FLAIR [those of the model]",
        default=None, read=arguments.suffix, levels="participant longitudinal train")  # fmt: skip
    database_dir: Path | None = flag(
        "--bids-database-dir DIR", SCANS, "store the pybids index here for later runs",
        default=None, read=arguments.absolute, levels="participant longitudinal")  # fmt: skip
    skip_validation: bool = flag(
        "--skip-bids-validation --skip-bids-validator", SCANS, "do not run the BIDS validator",
        default=False, levels="participant longitudinal train")  # fmt: skip

    model: str = flag(
        "--model NAME|DIR", OUTPUTS, "a shipped model or a model folder [%(default)s]",
        default="wholebrain", levels="participant longitudinal evaluate file")  # fmt: skip
    probseg: bool = flag(
        "--probseg", OUTPUTS, "also write the probability of every region (large files)", default=False)  # fmt: skip
    entropy: bool = flag(
        "--entropy", OUTPUTS, "also write a map of the uncertainty, from 0 to 1", default=False)  # fmt: skip
    corrections: Path | None = flag(
        "--corrections DIR", OUTPUTS,
        "derivative dataset with label maps or masks that were corrected by hand, in the place of the model's",
        default=None, levels="participant longitudinal")  # fmt: skip
    lesions: Path | None = flag(
        "--lesions DIR", OUTPUTS,
        "derivative dataset with masks of lesions, drawn by hand or by another tool, in the place of the model's; they "
        "are filled in the T1w before the anatomy is segmented",
        default=None)  # fmt: skip
    filled: bool = flag(
        "--filled", OUTPUTS, "also write the T1w with filled lesions, given or found by the model",
        default=False, levels="participant file")  # fmt: skip
    output_spaces: Sequence[str] = flag(
        "--output-spaces SPACE", OUTPUTS,
        "also write label maps in these TemplateFlow spaces, e.g. MNI152NLin2009cAsym:res-1",
        default=(), several=True, read=arguments.standard_spaces)  # fmt: skip
    viewer: bool = flag(
        "--viewer", OUTPUTS, "also write a page for each scan that shows slices and a 3-D view (6 MB)",
        default=False)  # fmt: skip
    lesion_threshold: float | None = flag(
        "--lesion-threshold P", OUTPUTS,
        "least probability of a lesion [of the model; else where a lesion is the most probable region]",
        default=None, read=float, levels="participant longitudinal file")  # fmt: skip
    least_lesion_mm3: float | None = flag(
        "--min-lesion-volume MM3", OUTPUTS, "omit lesions that are smaller, in mm³ [of the model; else 0]",
        default=None, read=float, levels="participant longitudinal file")  # fmt: skip
    least_lesion_peak: float | None = flag(
        "--min-lesion-peak P", OUTPUTS,
        "omit lesions in which no voxel has this probability [of the model; else 0]",
        default=None, read=float, levels="participant longitudinal file")  # fmt: skip
    freesurfer: Path | None = flag(
        "--freesurfer DIR", OUTPUTS,
        "also write a folder for each scan as FreeSurfer's tools read it (mri/aseg.mgz, stats/aseg.stats, …) in this "
        "SUBJECTS_DIR, and desc-aseg label maps",
        default=None, read=arguments.absolute, levels="participant file")  # fmt: skip
    measures: Mapping[str, str | Path] = flag(
        "--measure NAME=DIR|SUFFIX", OUTPUTS,
        "also write mean, median and standard deviation of another image in every region: an image of the dataset "
        "(T2w, FLAIR), or of a folder with sub-*/ in it, aligned to the T1w where needed",
        default={}, several=True)  # fmt: skip
    long: bool = flag(
        "--long", OUTPUTS, "level group: also write a table with a row for each scan and region",
        default=False)  # fmt: skip
    runs: Runs = flag(
        "--runs", OUTPUTS,
        "level group: runs of a session that count: all, the best by quality, or the first [%(default)s]",
        default="all", choices=get_args(Runs))  # fmt: skip
    controls: Sequence[str] = flag(
        "--controls COLUMN=VALUE", OUTPUTS,
        "level group: also write z scores of the volumes of all scans, relative to the participants with this value in "
        "the tables of the dataset, given age, sex and head size",
        default=(), several=True, read=partial(arguments.conditions, "--controls"))  # fmt: skip
    covariates: Sequence[str] = flag(
        "--covariates COLUMN", OUTPUTS,
        "columns of these tables for which --controls corrects, beside head size [age and sex, or gender]",
        default=(), several=True)  # fmt: skip
    overwrite: bool = flag(
        "--overwrite", OUTPUTS, "recompute finished scans",
        default=False, levels="participant longitudinal evaluate train")  # fmt: skip
    dry_run: bool = flag(
        "--dry-run", OUTPUTS, "list scans, model and outputs; write nothing",
        default=False, levels="participant longitudinal evaluate train")  # fmt: skip
    stop_on_first_crash: bool = flag(
        "--stop-on-first-crash", OUTPUTS, "stop at the first scan that fails",
        default=False, levels="participant longitudinal")  # fmt: skip
    work_dir: Path | None = flag(
        "-w --work-dir DIR", OUTPUTS,
        "folder for temporary files [the system's folder], and for the prepared scans of train [OUTPUT_DIR]",
        default=None, read=arguments.absolute, levels="participant longitudinal evaluate train")  # fmt: skip

    fast: bool = flag(
        "--fast", RESOURCES, "skip the second pass, over the mirror image; a little less accurate",
        default=False, levels="participant longitudinal file")  # fmt: skip
    device: str = flag(
        "--device NAME", RESOURCES, "auto, cpu, cuda, cuda:N or mps [%(default)s]",
        default="auto", read=arguments.device_name)  # fmt: skip
    precision: str = flag(
        "--precision", RESOURCES, "precision of the network [%(default)s]",
        default="auto", choices=PRECISIONS)  # fmt: skip
    n_cpus: int | None = flag(
        "--n-cpus --nprocs --nthreads N", RESOURCES, "number of CPUs [all available]",
        default=None, read=int, levels="participant longitudinal evaluate train file")  # fmt: skip
    threads: int | None = flag(
        "--omp-nthreads N", RESOURCES,
        "threads of each process; the number of processes follows from CPUs and memory [2 or more]",
        default=None, read=int)  # fmt: skip
    memory_mb: int | None = flag(
        "--mem --mem-mb SIZE", RESOURCES, "memory limit: MB, or a number with K, M, G or T [the free memory]",
        default=None, read=arguments.megabytes, levels="participant longitudinal evaluate train file")  # fmt: skip

    executor: str = flag(
        "--executor", CLUSTER,
        "run on this machine, on a Dask cluster, or in jobs of a batch system [%(default)s]",
        default="local", choices=EXECUTORS)  # fmt: skip
    dask_scheduler: str | None = flag(
        "--dask-scheduler ADDRESS", CLUSTER, "address of a Dask cluster, e.g. tcp://node1:8786",
        default=None)  # fmt: skip
    cluster_config: Path | None = flag(
        "--cluster-config FILE", CLUSTER, "TOML: settings of the jobs (see docs/cluster.md)",
        default=None, read=Path)  # fmt: skip

    labels: Mapping[str, Sequence[Path]] = flag(
        "--labels PROTOCOL=DIR", LABELS,
        "derivative dataset with the labels of a protocol, to train on or to compare with; DIR alone takes its only "
        "kind of labels; the level train also takes the SUBJECTS_DIR of FreeSurfer or FastSurfer",
        default={}, several=True)  # fmt: skip

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
        check_lesion_rule(*self.lesion_numbers, names=LESION_FLAGS)
        if self.covariates and not self.controls:
            raise UsageError("--covariates requires --controls")
        if not self.images:
            self._check_places()

    @property
    def lesion_numbers(self) -> tuple[float | None, float | None, float | None]:
        """The numbers of the user for ``Card.lesion_rule``; None for those of the model."""
        return self.lesion_threshold, self.least_lesion_mm3, self.least_lesion_peak

    def queries(self, modality: str = "T1w") -> Mapping[str, Mapping[str, Any]]:
        """Return the filters, with the suffix that the images in the place of the T1w have.

        Args:
            modality: the suffix if the user gives none.
        """
        filters = self.filters.get("t1w", {})
        t1w = {"suffix": modality, **filters} if self.modality is None else {**filters, "suffix": self.modality}
        return {**self.filters, "t1w": t1w}

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
        if self.corrections is not None and self.corrections.resolve() == out:
            raise UsageError(
                "--corrections is OUTPUT_DIR, where corrected files are replaced: copy them to another folder"
            )
        if self.lesions is not None and self.lesions.resolve() == out:
            raise UsageError("--lesions is OUTPUT_DIR, where masks are replaced: copy them to another folder")
        if self.freesurfer is not None:
            subjects = self.freesurfer.resolve()
            if subjects.is_relative_to(raw) and not subjects.is_relative_to(raw / "derivatives"):
                raise UsageError(f"--freesurfer lies inside BIDS_DIR: choose a folder outside, or in {raw}/derivatives")


def _is_own_derivative(inside: Path) -> bool:
    """Return whether a path relative to the dataset is where BIDS allows derivatives of this tool."""
    return len(inside.parts) >= 2 and inside.parts[0] == "derivatives" and "bidsseg" in inside.parts[1]
