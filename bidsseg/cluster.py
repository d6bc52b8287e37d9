"""Scans on many processes and machines, by Dask: a scan is a task, and writes its results to the output itself.

Engines that start the workers are those of dask-jobqueue. Workers that die are replaced, and their scans go to others.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from bidsseg import __version__, arguments
from bidsseg.compute import prepare_surroundings
from bidsseg.errors import BidssegError, TemporaryFailure, UsageError
from bidsseg.outputs import Job
from bidsseg.participant import Run
from bidsseg.runlog import Entry, RunLog
from bidsseg.settings import Report, Settings

if TYPE_CHECKING:
    from dask.distributed import Client

    from bidsseg.models.library import Model

ENGINES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster"}
"""Classes of dask-jobqueue."""
ONE_SCAN_AT_A_TIME = Lock()
"""In each process, however many threads a worker has: a scan uses them all."""


class Kept(Report):
    """Keeps what the user should know, for the one who tells it."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@dataclass
class Outcome:
    """What a worker tells of a scan.

    Attributes:
        entry: its fate.
        warnings: what the user should know of it.
        error: why it failed.
        fatal: what would make every further scan fail.
    """

    entry: Entry
    warnings: Sequence[str] = ()
    error: Exception | None = None
    fatal: BidssegError | None = None
    machine: dict[str, Any] = field(default_factory=dict)


def spread(settings: Settings, jobs: Sequence[Job], take: Callable[[Job, Outcome], None]) -> None:
    """Has every job done by some worker, and hands over what became of it, in the order in which they end.

    Raises:
        UsageError: Dask is not installed, or the configuration is wrong.
        TemporaryFailure: no scheduler answers.
        BidssegError: the outputs cannot be written, or a scan failed and the user wants to stop then.
    """
    try:
        import dask_jobqueue  # noqa: F401
        from dask.distributed import as_completed
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise UsageError('--executor needs Dask: pip install "bidsseg[cluster]"') from error
    with connected(settings, len(jobs)) as client:
        plain = replace(settings, report=Report())
        futures = {client.submit(segment, plain, job, __version__, pure=False): job for job in jobs}
        settings.report.detail(f"{len(jobs)} scans at {client.dashboard_link}")
        for future in as_completed(futures):
            job = futures.pop(future)
            try:
                outcome = future.result()
            except KilledWorker:
                reason = "the worker died again and again with this scan; has it too little memory?"
                outcome = Outcome(Entry(job.scan.key, "failed", reason), error=BidssegError(reason))
            take(job, outcome)
            if outcome.fatal is not None:
                client.cancel(list(futures))
                raise outcome.fatal


def segment(settings: Settings, job: Job, version: str) -> Outcome:
    """What a worker does with a scan."""
    if version != __version__:
        raise UsageError(f"a worker has bidsseg {__version__} and not {version}: install the same everywhere")
    with ONE_SCAN_AT_A_TIME:
        prepare_surroundings(settings)
        if job.is_done() and not settings.overwrite:  # by a worker that died before it could tell
            return Outcome(Entry(job.scan.key, "skipped"))
        told = Kept()
        run = Run(
            replace(settings, report=told),
            RunLog(None, settings.command, {}),
            load=lambda name: kept_model(name, job.card.sha256),
        )
        fatal: BidssegError | None = None
        try:
            run.process([job])
        except BidssegError as stopped:
            fatal = stopped
        entry = next(iter(run.log.entries), Entry(job.scan.key, "failed", str(fatal)))
        failure = next((failure for _, failure in run.failures), None)
        if failure is not None and not isinstance(failure, BidssegError):
            failure = BidssegError(repr(failure))  # others may not survive the way
        return Outcome(entry, told.warnings, failure, fatal, dict(run.log.machine))


@cache
def kept_model(name: str, sha256: str) -> Model:
    """A model that the next scan finds loaded, unless its weights have changed since."""
    from bidsseg.models.library import load_model

    return load_model(name)


@contextmanager
def connected(settings: Settings, scans: int) -> Iterator[Client]:
    """A client of the user's cluster, or of one that is started for this run."""
    from dask.distributed import Client

    if settings.executor == "dask":
        if settings.dask_scheduler is None:
            raise UsageError("--executor dask: give the address of its scheduler with --dask-scheduler")
        try:
            client = Client(settings.dask_scheduler, timeout="30s")
        except (OSError, ValueError) as error:
            raise TemporaryFailure(f"no Dask scheduler answers at {settings.dask_scheduler}: {error}") from error
        with client:
            yield client
        return
    import dask_jobqueue

    options = read_config(settings.cluster_config) if settings.cluster_config else {}
    workers = min(options.pop("workers", 10), scans)
    if "image" in options:
        options["python"] = in_image(options.pop("image"), settings)
    try:
        cluster = getattr(dask_jobqueue, ENGINES[settings.executor])(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--cluster-config: {error}") from error
    with cluster, Client(cluster) as client:
        settings.report.detail(cluster.job_script())
        cluster.adapt(minimum_jobs=workers, maximum_jobs=workers)  # which replaces jobs that end too early
        yield client


def read_config(path: Path) -> dict[str, Any]:
    """How jobs are to be: arguments of the class of dask-jobqueue, and ours, ``workers`` and ``image``."""
    try:
        options = tomllib.loads(arguments.text(path))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the cluster configuration {path} is not TOML: {error}") from error
    if not isinstance(options.get("workers", 1), int) or not isinstance(options.get("image", ""), str):
        raise UsageError(f"the cluster configuration {path}: workers must be a number, and image a file")
    return options


def in_image(image: str, settings: Settings) -> str:
    """The command that is the image's Python, with the folders of the run at the same places."""
    bids, out = settings.bids_dir.resolve(), settings.output_dir.resolve()
    return f"singularity exec -e -B {bids}:{bids}:ro -B {out}:{out} {image} python3"
