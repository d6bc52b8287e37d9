"""Scans on many processes and machines, by Dask: a scan is a task, and writes its results to the output itself.

Workers are processes of this machine, or those of a batch system, which the engines of dask-jobqueue start. Those that
die are replaced, and their scans go to others. A worker reads or writes a scan while its network has another.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock, Semaphore, Thread
from typing import TYPE_CHECKING, Any

from bidsseg import __version__
from bidsseg.derivative.job import Job
from bidsseg.derivative.manifest import Entry
from bidsseg.errors import BidssegError, TemporaryFailure, UsageError
from bidsseg.execution.cluster_config import read_config
from bidsseg.execution.machine import Workers, cuda_count, prepare_surroundings
from bidsseg.execution.pipeline import Outcome, Pipeline, write_page
from bidsseg.registration.spaces import caches
from bidsseg.settings import Report, Settings

if TYPE_CHECKING:
    from dask.distributed import Client

    from bidsseg.execution.machine import Machine
    from bidsseg.models.library import Model

ENGINES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster"}
"""Classes of dask-jobqueue."""
ONE_ARENA = "MALLOC_ARENA_MAX", "1"
"""Environment of workers, whose network runs in a thread: the C library keeps large blocks in its first arena alone."""
TASKS = 2
"""Scans that a worker has at a time: one is read or written while its network has the other."""
PLACES = Semaphore(TASKS)
"""The same, for workers of a user's cluster, which may be given more tasks."""
NETWORK = Lock()
"""Of each process: a scan uses all of its threads."""
CANCEL_S = 60.0
"""How long the command that cancels a job may take."""
LOOK_EVERY_S = 60.0
"""How often it is looked whether there are workers."""
PREPARED: dict[tuple[object, ...], tuple[Machine, Model]] = {}
"""What the last scan of this process was segmented with."""


class Kept(Report):
    """Keeps what the user should know, for the one who tells it."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@dataclass
class Submissions:
    """What a batch system has made of the jobs that it was asked to start.

    Attributes:
        accepted: their number.
        refusals: what it said of the others.
        left: why jobs could not be cancelled at the end.
    """

    accepted: int = 0
    refusals: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def spread(
    settings: Settings, jobs: Sequence[Job], take: Callable[[Job, Outcome], None], *, workers: Workers | None = None
) -> None:
    """Has every job done by some worker, and hands over what became of it, in the order in which they end.

    Args:
        workers: on this machine; None for those of a cluster.

    Raises:
        UsageError: dask-jobqueue is not installed, or the configuration is wrong.
        TemporaryFailure: no scheduler answers, or the batch system refuses every job.
        BidssegError: the outputs cannot be written, or a scan failed and the user wants to stop then.
    """
    from dask.distributed import CancelledError, as_completed
    from distributed.scheduler import KilledWorker

    submissions = Submissions()
    place = on_this_machine(settings, workers) if workers else on_a_cluster(settings, len(jobs), submissions)
    with place as (client, asked):
        futures = {client.submit(segment, asked, job, __version__, pure=False): job for job in jobs}
        settings.report.detail(f"{len(jobs)} scans at {client.dashboard_link}")
        with looking_after(client, settings, submissions, give_up=lambda: client.cancel(list(futures))):
            for future in as_completed(futures):
                job = futures.pop(future)
                try:
                    outcome = future.result()
                except CancelledError as error:
                    reason = (
                        f"starts no job: {submissions.refusals[-1]}" if submissions.refusals else "gave the scans up"
                    )
                    raise TemporaryFailure(f"{settings.executor} {reason}") from error
                except KilledWorker:
                    reason = "the worker died again and again with this scan; has it too little memory?"
                    outcome = Outcome(Entry(job.scan.key, "failed", reason), error=BidssegError(reason))
                if outcome.error is None and outcome.fatal is None:
                    write_page(job)
                take(job, outcome)
                if outcome.fatal is not None:
                    client.cancel(list(futures))
                    raise outcome.fatal


@contextmanager
def looking_after(
    client: Client, settings: Settings, submissions: Submissions, *, give_up: Callable[[], None]
) -> Iterator[None]:
    """Tells the user when there is no worker for long, and gives up when the batch system takes no job."""
    over = Event()

    def look() -> None:
        minutes = 0.0
        while not over.wait(LOOK_EVERY_S):
            if submissions.refusals and not submissions.accepted:
                give_up()
                return
            minutes = 0.0 if client.scheduler_info()["workers"] else minutes + LOOK_EVERY_S / 60
            if minutes:
                settings.report.warn(f"no worker has started for {minutes:.0f} min; do its jobs wait in the queue?")

    watch = Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def segment(settings: Settings, job: Job, version: str) -> Outcome:
    """What a worker does with a scan."""
    if version != __version__:
        raise UsageError(f"a worker has bidsseg {__version__} and not {version}: install the same everywhere")
    with PLACES:
        prepare_surroundings(settings)
        if job.is_done() and not settings.overwrite:  # by a worker that died before it could tell
            return Outcome(Entry(job.scan.key, "skipped"))
        told, outcomes = Kept(), list[Outcome]()
        pipeline = Pipeline(
            replace(settings, report=told), lambda _, outcome: outcomes.append(outcome), prepared, NETWORK, pages=False
        )
        fatal: BidssegError | None = None
        try:
            pipeline.process([job])
        except BidssegError as stopped:
            fatal = stopped
        outcome = outcomes[0] if outcomes else Outcome(Entry(job.scan.key, "failed", str(fatal)))
        if outcome.error is not None and not isinstance(outcome.error, BidssegError):
            outcome.error = BidssegError(repr(outcome.error))  # others may not survive the way
        outcome.warnings, outcome.fatal = told.warnings, fatal
        return outcome


def prepared(settings: Settings, sha256: str) -> tuple[Machine, Model]:
    """The machine, of whose devices each worker has its own, and the model; the next scan finds both as they are."""
    from dask.distributed import get_worker

    from bidsseg.execution.machine import choose_machine
    from bidsseg.models.library import load_model

    number = get_worker().name
    if settings.device == "auto" and isinstance(number, int) and cuda_count() > 1:
        settings = replace(settings, device=f"cuda:{number % cuda_count()}")
    machine = settings.device, settings.precision, settings.n_cpus, settings.threads, settings.memory_mb
    key = (settings.model, sha256, *machine)
    if key not in PREPARED:
        PREPARED.clear()
        PREPARED[key] = choose_machine(settings), load_model(settings.model)
    return PREPARED[key]


@contextmanager
def on_this_machine(settings: Settings, workers: Workers) -> Iterator[tuple[Client, Settings]]:
    """A client of processes that are started for this run, and what is asked of each."""
    import dask
    from dask.distributed import Client, LocalCluster

    name, value = ONE_ARENA
    with (
        dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": value}),
        LocalCluster(
            n_workers=workers.count,
            threads_per_worker=min(TASKS, workers.threads),
            processes=True,
            memory_limit=0,
            host="127.0.0.1",
            dashboard_address=None,
            local_directory=tempfile.gettempdir(),
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_worker_callbacks(setup=leave_interrupts)
        yield client, replace(settings, report=Report(), n_cpus=workers.threads, memory_mb=workers.memory_mb)


def leave_interrupts() -> None:
    """The key that stops a run reaches all processes of the terminal; the first one stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def on_a_cluster(settings: Settings, scans: int, submissions: Submissions) -> Iterator[tuple[Client, Settings]]:
    """A client of the user's cluster, or of one that is started for this run, and what is asked of each worker."""
    from dask.distributed import Client
    from dask.utils import parse_bytes

    asked = replace(settings, report=Report())
    if settings.executor == "dask":
        if settings.dask_scheduler is None:
            raise UsageError("--executor dask: give the address of its scheduler with --dask-scheduler")
        try:
            client = Client(settings.dask_scheduler, timeout="30s")
        except (OSError, ValueError) as error:
            raise TemporaryFailure(f"no Dask scheduler answers at {settings.dask_scheduler}: {error}") from error
        with client:
            yield client, asked
        return
    try:
        import dask_jobqueue
    except ImportError as error:
        raise UsageError(
            f'--executor {settings.executor} needs dask-jobqueue: pip install "bidsseg[cluster]"'
        ) from error

    config = read_config(settings.cluster_config, settings.executor)
    options, workers = config.options(), min(config.workers, scans)
    if config.image is not None:
        options["python"] = in_image(config.image, settings)
    # A worker keeps the memory that it has freed, for the next scan, and Dask would stop it for that.
    own = ["--nthreads", str(TASKS), "--memory-limit", "0"]
    options["worker_extra_args"] = [*config.worker_extra_args, *own]
    options["job_script_prologue"] = [*config.job_script_prologue, f"export {'='.join(ONE_ARENA)}"]
    kind = getattr(dask_jobqueue, ENGINES[settings.executor])
    if not shutil.which(kind.job_cls.submit_command.split()[0]):
        command = kind.job_cls.submit_command
        raise UsageError(
            f"--executor {settings.executor}: there is no command {command} here: run this where jobs are sent"
        )
    try:
        cluster = kind(**options, job_cls=told_of(kind.job_cls, submissions))
        threads = max(1, config.cores // config.processes) if config.cores else None
        memory_mb = int(parse_bytes(config.memory) / config.processes / 1e6) if config.memory else None
    except (TypeError, ValueError) as error:
        raise UsageError(f"--cluster-config {settings.cluster_config or ''}: {error}") from error
    with cancelled_at_the_end(cluster, settings, submissions), Client(cluster) as client:
        settings.report.detail(cluster.job_script())
        cluster.adapt(minimum_jobs=workers, maximum_jobs=workers)  # which replaces jobs that end too early
        yield client, replace(asked, n_cpus=settings.n_cpus or threads, memory_mb=settings.memory_mb or memory_mb)


@contextmanager
def cancelled_at_the_end(cluster: Any, settings: Settings, submissions: Submissions) -> Iterator[None]:
    """End a cluster and its jobs. What goes wrong with that is a warning: the scans are finished, or failed before."""
    cluster.__enter__()
    try:
        yield
    finally:
        try:
            cluster.__exit__(None, None, None)
        except Exception as error:
            submissions.left.append(in_short(error))
        if submissions.left:
            settings.report.warn(
                f"{settings.executor}: jobs of this run could not be cancelled ({submissions.left[-1]}); "
                "look whether any is left in the queue"
            )


def in_short(error: Exception) -> str:
    """Return the message of an error as one line of bounded length."""
    return " ".join((str(error) or type(error).__name__).split())[-500:]


def told_of(job: type, submissions: Submissions) -> type:
    """That class of jobs, of which each puts on record what becomes of it."""
    from distributed.core import Status

    class Told(job):  # type: ignore[misc]  # the base is known at run time only
        async def start(self) -> None:
            try:
                await super().start()
                submissions.accepted += 1
            except (OSError, RuntimeError, ValueError) as error:
                submissions.refusals.append(in_short(error))
                self.status = Status.running  # else Dask would tell of it too, by a trace

        @classmethod
        async def _close_job(cls, job_id: str, cancel_command: str) -> None:
            try:
                async with asyncio.timeout(CANCEL_S):
                    await super()._close_job(job_id, cancel_command)
            except (OSError, RuntimeError, ValueError) as error:  # TimeoutError is an OSError
                submissions.left.append(f"{cancel_command}: {in_short(error)}")

    return Told


def in_image(image: str, settings: Settings) -> str:
    """The command that is the image's Python, with all that the run needs at the same places."""
    read = [settings.bids_dir, *([Path(settings.model)] if Path(settings.model).is_absolute() else [])]
    read += [folder for folder in caches() if settings.output_spaces and folder.is_dir()]
    written = [settings.output_dir, *([settings.work_dir] if settings.work_dir else [])]
    mounts = [f"-B {path}:{path}:ro" for path in read] + [f"-B {path}:{path}" for path in written]
    return f"singularity exec -e --nv {' '.join(mounts)} {image} python3"
