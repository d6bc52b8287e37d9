"""Scans in several processes, on one machine or on a cluster, by Dask. Each scan is a task that writes its own outputs.

Workers are processes of this machine, or jobs of a batch system that dask-jobqueue submits. A worker that dies is
replaced, and its scans go to other workers. A worker reads or writes one scan while its network segments another.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
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
from bidsseg.derivative.finished import is_finished
from bidsseg.derivative.job import Job
from bidsseg.derivative.run_log import Entry
from bidsseg.errors import BidssegError, MemoryTooSmall, TemporaryFailure, UsageError
from bidsseg.execution.cluster_config import read_config
from bidsseg.execution.exports import export
from bidsseg.execution.machine import Workers, cuda_count, prepare_environment
from bidsseg.execution.pipeline import Outcome, Pipeline, write_page
from bidsseg.models.card import FOLDER as SHIPPED
from bidsseg.models.card import find_card
from bidsseg.registration.spaces import caches
from bidsseg.settings import Report, Settings

if TYPE_CHECKING:
    from dask.distributed import Client

    from bidsseg.execution.cluster_config import ClusterConfig
    from bidsseg.execution.machine import Machine
    from bidsseg.models.library import Model

ENGINES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster"}
"""Classes of dask-jobqueue."""
ONE_ARENA = "MALLOC_ARENA_MAX", "1"
"""Environment of workers: their network runs in a thread, and only the first C library arena keeps large blocks."""
TASKS = 2
"""Scans that a worker has at a time: one is read or written while the other is segmented."""
PLACES = Semaphore(TASKS)
"""Limit of simultaneous scans for workers of a user's cluster, which may receive more tasks."""
NETWORK = Lock()
"""Lock of the network in each process, because a scan uses all threads of the process."""
GPUS_FOR_IMAGE = (
    '[ -z "${CUDA_VISIBLE_DEVICES+set}" ] || export SINGULARITYENV_CUDA_VISIBLE_DEVICES="$CUDA_VISIBLE_DEVICES"'
    ' APPTAINERENV_CUDA_VISIBLE_DEVICES="$CUDA_VISIBLE_DEVICES"'
)
"""Line of a job script: an image with a clean environment still sees only the GPUs that the batch system has given."""
CANCEL_S = 60.0
"""Time limit (s) of the command that cancels a job."""
LOOK_EVERY_S = 60.0
"""Time (s) between two checks whether there are workers."""
PREPARED: dict[tuple[object, ...], tuple[Machine, Model]] = {}
"""Machine and model of the last scan of this process."""


class KeptWarnings(Report):
    """A report that keeps the warnings of a worker, so that the first process can print them."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@dataclass
class Submissions:
    """The answers of a batch system to the jobs that were submitted to it.

    Attributes:
        accepted: number of accepted jobs.
        refusals: error messages of the refused jobs.
        left: reasons why jobs could not be cancelled at the end.
    """

    accepted: int = 0
    refusals: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def spread(
    settings: Settings, jobs: Sequence[Job], take: Callable[[Job, Outcome], None], *, workers: Workers | None = None
) -> list[Job]:
    """Run every job on a worker and pass each outcome to `take` as it completes.

    Return the jobs that need more memory than a worker of this machine has, which have no outcome yet.

    Args:
        workers: workers on this machine; None for those of a cluster.

    Raises:
        UsageError: dask-jobqueue is not installed, or the configuration is invalid.
        TemporaryFailure: no scheduler answers, or the batch system refuses every job.
        BidssegError: the outputs cannot be written, or a scan failed and the run stops at the first failure.
    """
    from dask.distributed import CancelledError, as_completed
    from distributed.scheduler import KilledWorker

    submissions, postponed = Submissions(), list[Job]()
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
                        f"starts no job: {submissions.refusals[-1]}" if submissions.refusals else "cancelled the scans"
                    )
                    raise TemporaryFailure(f"{settings.executor} {reason}") from error
                except KilledWorker:
                    reason = "its worker died several times; give each worker more memory"
                    outcome = Outcome(Entry(job.scan.key, "failed", reason), error=BidssegError(reason))
                if workers is not None and isinstance(outcome.error, MemoryTooSmall):
                    postponed.append(job)
                    continue
                if outcome.error is None and outcome.fatal is None:
                    write_page(job)
                take(job, outcome)
                if outcome.fatal is not None:
                    client.cancel(list(futures))
                    raise outcome.fatal
    return postponed


@contextmanager
def looking_after(
    client: Client, settings: Settings, submissions: Submissions, *, give_up: Callable[[], None]
) -> Iterator[None]:
    """Warn while there is no worker, and call `give_up` if the batch system refuses every job."""
    over = Event()

    def look() -> None:
        minutes = 0.0
        while not over.wait(LOOK_EVERY_S):
            if submissions.refusals and not submissions.accepted:
                give_up()
                return
            minutes = 0.0 if client.scheduler_info()["workers"] else minutes + LOOK_EVERY_S / 60
            if minutes:
                settings.report.warn(f"no worker has started for {minutes:.0f} min; look whether its jobs are queued")

    watch = Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def segment(settings: Settings, job: Job, version: str) -> Outcome:
    """Segment one scan on a worker and return the outcome."""
    if version != __version__:
        raise UsageError(f"a worker has bidsseg {__version__}, not {version}: install the same version everywhere")
    with PLACES:
        prepare_environment(settings)
        report, outcomes = KeptWarnings(), list[Outcome]()
        asked = replace(settings, report=report)
        if is_finished(job) and not settings.overwrite:  # by a worker that died before it could report the outcome
            export(job, asked)
            return Outcome(Entry(job.scan.key, "skipped"), report.warnings)
        pipeline = Pipeline(
            asked,
            lambda _, outcome: outcomes.append(outcome),
            prepared,
            NETWORK,
            pages=False,
        )
        fatal: BidssegError | None = None
        try:
            pipeline.process([job])
        except BidssegError as stopped:
            fatal = stopped
        outcome = outcomes[0] if outcomes else Outcome(Entry(job.scan.key, "failed", str(fatal)))
        if outcome.error is not None and not isinstance(outcome.error, BidssegError):
            outcome.error = BidssegError(repr(outcome.error))  # other errors may not be picklable
        outcome.warnings, outcome.fatal = report.warnings, fatal
        return outcome


def prepared(settings: Settings, sha256: str) -> tuple[Machine, Model]:
    """Return machine and model, with one GPU for each worker; both are kept for the next scan."""
    from dask.distributed import get_worker

    from bidsseg.execution.machine import choose_machine
    from bidsseg.models.library import load_model

    number = re.fullmatch(r"(?:.*-)?(\d+)", str(get_worker().name))  # of a job with several workers: SLURMCluster-0-1
    if settings.device == "auto" and number and cuda_count() > 1:
        settings = replace(settings, device=f"cuda:{int(number[1]) % cuda_count()}")
    machine = settings.device, settings.precision, settings.n_cpus, settings.threads, settings.memory_mb
    key = (settings.model, sha256, *machine)
    if key not in PREPARED:
        PREPARED.clear()
        PREPARED[key] = choose_machine(settings), load_model(settings.model)
    return PREPARED[key]


@contextmanager
def on_this_machine(settings: Settings, workers: Workers) -> Iterator[tuple[Client, Settings]]:
    """Yield a client of processes that are started for this run, and the settings of each worker."""
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
            silence_logs=logging.CRITICAL,  # a worker that is stopped would print its traceback
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_worker_callbacks(setup=leave_interrupts)
        yield client, replace(settings, report=Report(), n_cpus=workers.threads, memory_mb=workers.memory_mb)


def leave_interrupts() -> None:
    """Ignore interrupts in a worker: Ctrl-C reaches all processes of the terminal, and the first stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def on_a_cluster(settings: Settings, scans: int, submissions: Submissions) -> Iterator[tuple[Client, Settings]]:
    """Yield a client of the user's cluster, or of one that is started for this run, and the settings of each worker."""
    import dask
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
        if settings.freesurfer is not None:
            settings.freesurfer.mkdir(parents=True, exist_ok=True)  # only a folder that exists can be mounted
        options["python"] = in_image(config.image, settings)
    # A worker keeps freed memory for the next scan; with a memory limit, Dask would stop it for that.
    own = ["--nthreads", str(TASKS), "--memory-limit", "0"]
    site = f"jobqueue.{config.config_name or settings.executor}"
    words = config.worker_extra_args or dask.config.get(f"{site}.worker-extra-args", None) or []
    lines = config.job_script_prologue or dask.config.get(f"{site}.job-script-prologue", None) or []
    options["worker_extra_args"] = [*words, *own]
    options["job_script_prologue"] = [*lines, *prologue(config, settings)]
    kind = getattr(dask_jobqueue, ENGINES[settings.executor])
    if not shutil.which(kind.job_cls.submit_command.split()[0]):
        command = kind.job_cls.submit_command
        raise UsageError(
            f"--executor {settings.executor}: there is no command {command} here: run this where jobs are submitted"
        )
    try:
        cluster = kind(**options, job_cls=recorded(kind.job_cls, submissions))
        threads = max(1, config.cores // config.processes) if config.cores else None
        memory_mb = int(parse_bytes(config.memory) / config.processes / 1e6) if config.memory else None
    except (TypeError, ValueError) as error:
        raise UsageError(f"--cluster-config {settings.cluster_config or ''}: {error}") from error
    with cancelled_at_the_end(cluster, settings, submissions), Client(cluster) as client:
        settings.report.detail(cluster.job_script())
        cluster.adapt(minimum_jobs=workers, maximum_jobs=workers)  # replaces jobs that end too early
        yield client, replace(asked, n_cpus=settings.n_cpus or threads, memory_mb=settings.memory_mb or memory_mb)


@contextmanager
def cancelled_at_the_end(cluster: Any, settings: Settings, submissions: Submissions) -> Iterator[None]:
    """End a cluster and its jobs at the end. Errors become warnings, because the scans have already been processed."""
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


def recorded(job: type, submissions: Submissions) -> type:
    """Return a class of jobs that record whether they were accepted and cancelled."""
    from distributed.core import Status

    class RecordedJob(job):  # type: ignore[misc]  # the base is known at run time only
        async def start(self) -> None:
            try:
                await super().start()
                submissions.accepted += 1
            except (OSError, RuntimeError, ValueError) as error:
                submissions.refusals.append(in_short(error))
                self.status = Status.running  # otherwise Dask would also print a traceback

        @classmethod
        async def _close_job(cls, job_id: str, cancel_command: str) -> None:
            try:
                async with asyncio.timeout(CANCEL_S):
                    await super()._close_job(job_id, cancel_command)
            except (OSError, RuntimeError, ValueError) as error:  # TimeoutError is an OSError
                submissions.left.append(f"{cancel_command}: {in_short(error)}")

    return RecordedJob


def prologue(config: ClusterConfig, settings: Settings) -> Iterator[str]:
    """Yield the lines of a job script before the command of the workers."""
    yield f"export {'='.join(ONE_ARENA)}"
    if config.image is not None:
        yield GPUS_FOR_IMAGE
        if settings.work_dir is not None:  # of each machine; only a folder that exists can be mounted
            yield f"mkdir -p {shlex.quote(str(settings.work_dir))}"


def models_outside(model: str) -> Iterator[Path]:
    """Yield the folders of a model and its locators, except those that are named as models of the package."""
    card = find_card(model)
    if card.folder.parent != SHIPPED or Path(model).is_absolute():
        yield card.folder.absolute()
    if card.locator is not None:
        yield from models_outside(card.locator)


def in_image(image: str, settings: Settings) -> str:
    """Return the command that runs Python in the image, with the folders of the run mounted at the same paths."""
    read = [
        settings.bids_dir,
        *(folder for folder in (settings.corrections, settings.lesions) if folder),
        *(where for where in settings.measures.values() if isinstance(where, Path)),
        *models_outside(settings.model),
    ]
    read += [folder for folder in caches() if settings.output_spaces and folder.is_dir()]
    written = [folder for folder in (settings.output_dir, settings.work_dir, settings.freesurfer) if folder]
    mounts = [f"{path}:{path}:ro" for path in read] + [f"{path}:{path}" for path in written]
    places = " ".join(f"-B {shlex.quote(mount)}" for mount in mounts)
    return f"singularity exec -e --nv {places} {shlex.quote(image)} python3"
