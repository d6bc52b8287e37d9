"""The level ``participant``: every scan becomes label maps, masks and volumes.

While the network works on one scan, the next is read and the last is written, so that three scans at most are in
memory. A scan that fails is noted and the others go on; only when the output cannot be written does all stop.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from bidsseg.bids import names, query, validator
from bidsseg.bids.index import participant_labels
from bidsseg.bids.sidecars import lists_model, write_text_atomic
from bidsseg.compute import (
    PROCESS_MB,
    WHOLE_MB,
    Workers,
    check_device,
    choose_workers,
    emulation,
    keep_freed_memory,
    peak_memory_mb,
    release_freed_memory,
)
from bidsseg.errors import (
    BidssegError,
    DataError,
    InputMissing,
    IOFailure,
    NothingSelected,
    OutputNotWritable,
    UsageError,
    explained,
)
from bidsseg.image.align import Images
from bidsseg.image.template import Space, find_space
from bidsseg.models.card import Card, find_card
from bidsseg.outputs import Job, check_apart, remove_halves, write_root
from bidsseg.ownership import check_files, check_folder, check_source
from bidsseg.runlog import Entry, RunLog, crash_text, stamp
from bidsseg.settings import Settings

if TYPE_CHECKING:
    from bidsseg.cluster import Outcome
    from bidsseg.compute import Machine
    from bidsseg.models.library import Model
    from bidsseg.segmentation.predict import Segmentation

T = TypeVar("T")
Failure = tuple[Entry, Exception]


def participant_level(settings: Settings) -> None:
    """Segment every selected scan that is not done yet.

    Raises:
        BidssegError: with code 1 if some scans failed, 65 if all failed because of their data.
    """
    check_folder(settings.output_dir)
    check_source(settings)
    card = find_card(settings.model)
    if settings.executor == "local":  # the machines of a cluster have devices of their own
        check_device(settings.device)
    spaces = list(dict.fromkeys(find_space(word) for word in settings.output_spaces))
    for one, other in itertools.combinations(spaces, 2):
        if one.template == other.template and one.affine != other.affine:
            raise UsageError(f"--output-spaces: give one way to {one.template}, with :affine or without")
    participants = _shard(settings)
    if participants == []:
        settings.report.say("this shard has no participant: there are fewer of them than shards")
        return
    selection = query.select_scans(
        settings.bids_dir,
        participants=participants,
        sessions=settings.sessions or None,
        filters=settings.filters,
        database_dir=settings.database_dir,
    )
    jobs, passed_over, unusable = _plan(settings, card, selection.scans, spaces)
    unusable += [_failure(key, InputMissing(reason)) for key, reason in selection.closed.items()]
    if not jobs:
        raise DataError("; ".join(str(error) for _, error in unusable))
    if spaces:
        check_apart(jobs)
    done = set() if settings.overwrite else {job for job in jobs if job.is_done()}
    todo = [job for job in jobs if job not in done]
    check_files(settings.output_dir, jobs, done)
    warnings = [*selection.notes, *(f"{entry.scan} is passed over: {entry.reason}" for entry in passed_over)]
    if todo and not settings.skip_validation:
        place = None if settings.dry_run else settings.output_dir
        warnings += [str(issue) for issue in validator.validate(settings.bids_dir, [job.scan for job in todo], place)]
    for warning in warnings:
        settings.report.warn(warning)
    if settings.dry_run:
        _list(settings, card, jobs, done)
        for entry, _ in unusable:
            settings.report.warn(f"{entry.scan} would fail: {entry.reason}")
        return
    write_root(settings, card)
    remove_halves(settings.output_dir.glob(".*.part"), {job.paths.report.name for job in jobs})
    for job in jobs:
        if job in done and not job.has_page():
            job.write_page()
    log = RunLog(
        settings.output_dir / names.manifest_path(stamp()),
        settings.command,
        {"name": card.name, "sha256": card.sha256, "folder": str(card.folder)},
        planned=[job.scan.key for job in todo],
        warnings=warnings,
        entries=[
            *passed_over,
            *(entry for entry, _ in unusable),
            *(Entry(job.scan.key, "skipped") for job in jobs if job in done),
        ],
    )
    log.save()
    run = Run(settings, log, failures=list(unusable))
    local = settings.executor == "local"
    try:
        workers = choose_workers(settings, len(todo), process_mb(card)) if local else None
        if todo and local and workers is None:
            run.process(todo)
        elif todo:
            run.spread(todo, workers)
    finally:
        log.finish()
    if not lists_model(settings.output_dir, card.name):  # another run began at the same time, where there are no locks
        write_root(settings, card)
    _conclude(settings, len(jobs) + len(unusable), len(todo) + len(unusable), run.failures)


def _shard(settings: Settings) -> list[str] | None:
    """Labels of the participants that are this job's part, which does not depend on what is done; None for all."""
    part, parts = settings.shard
    if parts == 1:
        return list(settings.participants) or None
    return sorted(settings.participants or participant_labels(settings.bids_dir))[part - 1 :: parts]


def _plan(
    settings: Settings, card: Card, scans: Sequence[query.Scan], spaces: Sequence[Space]
) -> tuple[list[Job], list[Entry], list[Failure]]:
    """The jobs, the scans that lack an image which the model needs, and those whose files cannot have their names."""
    jobs, passed_over, unusable = [], [], []
    for scan in scans:
        if "FLAIR" in card.inputs and scan.flair is None:
            reason = f"the model {card.name} needs a FLAIR: {scan.flair_reason}"
            passed_over.append(Entry(scan.key, "passed over", reason))
        else:
            asked = settings.probseg, settings.entropy, spaces, settings.viewer, settings.fast
            job = Job(scan, card, settings.bids_dir, settings.output_dir, *asked)
            try:
                job.check_names()
                jobs.append(job)
            except DataError as error:
                unusable.append(_failure(scan.key, error))
    if not jobs and not unusable:
        raise NothingSelected(f"{passed_over[0].scan}: {passed_over[0].reason}; so it is for all {len(scans)} scans")
    return jobs, passed_over, unusable


def _failure(scan: str, error: BidssegError) -> Failure:
    """The failure of a scan before any work on it."""
    return Entry(scan, "failed", str(error)), error


def _list(settings: Settings, card: Card, jobs: Sequence[Job], done: Container[Job]) -> None:
    """Say what would be done."""
    settings.report.say(f"model {card.name}: {card.title}")
    for job in jobs:
        settings.report.say(f"{job.scan.key}: {'done' if job in done else 'to do'}")
        for path in job.paths.files:
            settings.report.say(f"  {settings.output_dir / path}")


def _conclude(settings: Settings, total: int, done_now: int, failures: Sequence[Failure]) -> None:
    """Tell the end of the story, and raise if it is not a happy one."""
    report = settings.report
    report.stop()
    report.say(f"segmented {done_now - len(failures)} of {total} scans, {total - done_now} were done before")
    for entry, _ in failures:
        trace = f" ({entry.crash_file})" if entry.crash_file else ""
        report.warn(f"{entry.scan} failed: {entry.reason}{trace}")
    if not failures:
        return
    of_data = all(isinstance(error, DataError | InputMissing) for _, error in failures)
    if len(failures) == total and of_data:
        raise DataError(f"none of the {total} scans can be used; the reasons stand above")
    raise BidssegError(f"{len(failures)} of {total} scans failed; the reasons stand above")


def process_mb(card: Card) -> int:
    """Memory (MB) of a process that segments usual scans by a model; many fit that see a brain in windows."""
    return WHOLE_MB if card.network.get("name") == "segnet" else PROCESS_MB


def prepare(settings: Settings, sha256: str) -> tuple[Machine, Model]:
    """This machine, and the model as it lies in its folder now."""
    from bidsseg.compute import choose_machine
    from bidsseg.models.library import load_model

    return choose_machine(settings), load_model(settings.model)


@dataclass
class _Task:
    """A job and what is known of its fate."""

    job: Job
    entry: Entry


@dataclass
class Run:
    """The work on all scans of a run, and what went wrong with them.

    Attributes:
        prepare: gives the machine and the model, whose checksum it is told.
        turn: held while a scan is segmented.
        pages: whether to write the page of a scan, which two processes with scans of one participant must not do.
        warned: warnings of workers that the user has seen.
    """

    settings: Settings
    log: RunLog
    failures: list[Failure] = field(default_factory=list)
    prepare: Callable[[Settings, str], tuple[Machine, Model]] = prepare
    turn: AbstractContextManager[Any] = field(default_factory=nullcontext)
    pages: bool = True
    warned: set[str] = field(default_factory=set)

    def spread(self, jobs: Sequence[Job], workers: Workers | None = None) -> None:
        """Have the scans segmented by workers, of this machine or else of a cluster."""
        from bidsseg.cluster import spread

        self.settings.report.start(len(jobs))
        spread(self.settings, jobs, self._take, workers)

    def _take(self, job: Job, outcome: Outcome) -> None:
        """Put on record what a worker tells of a scan."""
        entry, report = outcome.entry, self.settings.report
        if outcome.error is None and outcome.fatal is None:
            job.write_page()
        self.log.machine = outcome.machine or self.log.machine
        self.log.add(entry)
        for warning in outcome.warnings:
            if warning not in self.warned:  # every worker repeats what holds for its machine
                self.warned.add(warning)
                report.warn(warning)
        if outcome.error is not None:
            self.failures.append((entry, outcome.error))
        took = f"{entry.outcome} in {sum(entry.seconds.values()):.1f} s"
        report.advance(job.scan.key, f"failed: {entry.reason}" if outcome.error else took)

    def process(self, jobs: Sequence[Job]) -> None:
        """Read, segment and write every scan, the three overlapping."""
        keep_freed_memory()
        asked = self.settings
        asked.report.start(len(jobs))
        tasks = [_Task(job, Entry(job.scan.key)) for job in jobs]
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            reading = reader.submit(self._attempt, "read", tasks[0], self._read, tasks[0])
            with self.turn:
                machine, model = self.prepare(asked, jobs[0].card.sha256)
            if asked.memory_mb is not None and machine.device == "cpu":
                from bidsseg.segmentation.memory import require_memory

                require_memory(model, machine.memory_mb, machine.number_bytes)
            self.log.machine = asdict(machine)
            if warning := emulation(machine):
                asked.report.warn(warning)
            writing: Future[bool | None] | None = None
            for task, following in zip(tasks, [*tasks[1:], None], strict=True):
                asked.report.stage(task.entry.scan, "reading")
                images = reading.result()
                if following is not None:
                    reading = reader.submit(self._attempt, "read", following, self._read, following)
                if images is None:
                    continue
                if asked.probseg and writing is not None:  # the probabilities of two scans are too much to hold
                    writing.result()
                with self.turn:
                    result = self._attempt("segment", task, self._segment, task, images, model, machine)
                if writing is not None:
                    writing.result()
                if result is not None:
                    asked.report.stage(task.entry.scan, "writing")
                    writing = writer.submit(self._attempt, "write", task, self._write, task, images, result, model)
                del images, result  # only the writer still needs them, and frees them before the next but one
            if writing is not None:
                writing.result()

    def _read(self, task: _Task) -> Images:
        images = task.job.read()
        task.entry.findings = [asdict(finding) for finding in images.findings]
        task.entry.notes = list(images.notes)
        for finding in images.findings:
            self.settings.report.warn(f"{task.entry.scan}: {finding.message} [{finding.code}]")
        return images

    def _segment(self, task: _Task, images: Images, model: Model, machine: Machine) -> Segmentation:
        from bidsseg.segmentation.predict import segment

        asked, scan = self.settings, task.job.scan
        result = segment(
            images.volumes,
            model,
            device=machine.device,
            precision=machine.precision,
            memory_mb=self._network_mb(images, model, machine),
            fast=asked.fast,
            want_probabilities=asked.probseg,
            want_entropy=asked.entropy,
            progress=lambda stage: asked.report.stage(scan.key, stage),
        )
        release_freed_memory()
        task.entry.findings += [asdict(finding) for finding in result.findings]
        for finding in result.findings:
            asked.report.warn(f"{scan.key}: {finding.message} [{finding.code}]")
        task.entry.notes += result.notes
        for note in result.notes:
            asked.report.warn(f"{scan.key}: {note}")
        if not result.brain.any() or not all(labels.any() for labels in result.labels.values()):
            raise DataError(f"{scan.t1w}: the model found no brain; is it the T1w of a head? [EMPTY_SEGMENTATION]")
        return result

    def _network_mb(self, images: Images, model: Model, machine: Machine) -> int:
        """Memory (MB) of the device that the network may use."""
        from bidsseg.segmentation.memory import left_for_network

        if machine.device != "cpu":
            return machine.memory_mb
        voxels = max(volume.data.size for volume in images.volumes.values())
        strict = self.settings.memory_mb is not None
        return left_for_network(model, machine.memory_mb, voxels, machine.number_bytes, strict)

    def _write(self, task: _Task, images: Images, result: Segmentation, model: Model) -> bool:
        task.job.write(images, result, model.heads)
        if self.pages:
            task.job.write_page()
        return True

    def _attempt(self, stage: str, task: _Task, function: Callable[..., T], *arguments: object) -> T | None:
        """The result of one stage of one scan; None if it failed, which is then on record.

        What would make every further scan fail, an output that cannot be written, is raised.
        """
        entry = task.entry
        start = time.perf_counter()
        try:
            result = function(*arguments)
        except Exception as raised:  # whatever happens to one scan must not happen to the others
            error = explained(raised) or raised
            self._fail(task, error)
            if stage == "write" and isinstance(error, OutputNotWritable | IOFailure):
                raise error from error.__cause__
            if self.settings.stop_on_first_crash:
                raise _stop(entry, error) from error
            return None
        entry.seconds[stage] = round(time.perf_counter() - start, 2)
        if stage == "write":
            entry.outcome, entry.peak_memory_mb = "done", peak_memory_mb()
            self.log.add(entry)
            self.settings.report.advance(entry.scan, f"done in {sum(entry.seconds.values()):.1f} s")
        return result

    def _fail(self, task: _Task, error: Exception) -> None:
        """Put a failure on record, with its full trace in a file."""
        entry = task.entry
        entry.outcome = "failed"
        known = isinstance(error, BidssegError)
        entry.reason = " ".join(str(error).split()) if known else f"internal error: {error!r}"
        self.failures.append((entry, error))
        path = names.crash_path(task.job.scan, stamp())
        with suppress(BidssegError):  # the disk may be full, which is then said anyway
            write_text_atomic(self.settings.output_dir / path, crash_text(error))
            entry.crash_file = str(path)
        with suppress(BidssegError):
            self.log.add(entry)
        self.settings.report.advance(entry.scan, f"failed: {entry.reason}")


def _stop(entry: Entry, error: Exception) -> BidssegError:
    """What ends a run at its first failure; it has the exit code of that failure."""
    kind = type(error) if isinstance(error, BidssegError) else BidssegError
    return kind(f"stopped at {entry.scan}: {entry.reason}")
