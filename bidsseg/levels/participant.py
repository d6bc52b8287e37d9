"""The level ``participant``: write label maps, masks and volumes of every scan."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from bidsseg.bids import outputs, query, validator
from bidsseg.bids.index import participant_labels
from bidsseg.bids.scan import Scan, Selection
from bidsseg.derivative.job import Job, check_apart, remove_halves, write_root
from bidsseg.derivative.manifest import Entry, RunLog, stamp
from bidsseg.derivative.ownership import check_files, check_folder, check_same_scan, check_source
from bidsseg.derivative.sidecars import lists_model
from bidsseg.errors import BidssegError, DataError, InputMissing, NothingSelected, UsageError
from bidsseg.execution.cluster_config import CONFIGS, read_config
from bidsseg.execution.machine import check_device, choose_workers
from bidsseg.execution.pipeline import Outcome, Pipeline, process_mb, write_page
from bidsseg.models.card import Card, find_card
from bidsseg.registration.spaces import Space, find_space
from bidsseg.settings import Settings

Failure = tuple[Entry, Exception]


def participant_level(settings: Settings) -> None:
    """Segment every selected scan that is not finished, or the images of ``settings.images``, which are in no dataset.

    Raises:
        BidssegError: with exit code 1 if some scans failed, 65 if all failed because of their data.
    """
    card, spaces = _checked(settings)
    selection = _given(settings, card) if settings.images else _selected(settings)
    if selection is not None:
        _process(settings, card, _agenda(settings, card, selection, spaces=spaces))


def _selected(settings: Settings) -> Selection | None:
    """Return the selected scans of the dataset; None if this shard has no participant."""
    participants = _shard(settings)
    if participants == []:
        settings.report.say("this shard is empty: there are fewer participants than shards")
        return None
    return query.select_scans(
        settings.bids_dir,
        participants=participants,
        sessions=settings.sessions or None,
        filters=settings.filters,
        database_dir=settings.database_dir,
    )


def _given(settings: Settings, card: Card) -> Selection:
    """Return the scan of images that are in no dataset. UsageError if the model needs another image."""
    if missing := card.lacks(settings.images):
        raise UsageError(f"the model {card.name} needs a {missing}: give --{missing.lower()} FILE")
    scan = Scan.of_files(settings.images["T1w"], settings.images.get("FLAIR"))
    check_same_scan(Job(scan, card, settings.bids_dir, settings.output_dir), overwrite=settings.overwrite)
    return Selection([scan], [])


@dataclass(frozen=True)
class Agenda:
    """The plan of a run.

    Attributes:
        jobs: one job for each usable scan.
        done: jobs that an earlier run has finished.
        passed_over: scans without an image that the model needs.
        unusable: scans that fail before they are read.
        warnings: warnings for the user before the run begins.
    """

    jobs: Sequence[Job]
    done: frozenset[Job]
    passed_over: Sequence[Entry]
    unusable: Sequence[Failure]
    warnings: list[str]

    @property
    def todo(self) -> list[Job]:
        """Jobs that are not finished."""
        return [job for job in self.jobs if job not in self.done]

    @property
    def total(self) -> int:
        """The number of scans with a job or a failure."""
        return len(self.jobs) + len(self.unusable)


def _checked(settings: Settings) -> tuple[Card, list[Space]]:
    """Return the model and the standard spaces, after checking the output folder and the device."""
    check_folder(settings.output_dir)
    check_source(settings)
    card = find_card(settings.model)
    if settings.executor == "local":  # the machines of a cluster have their own devices
        check_device(settings.device)
    elif settings.executor in CONFIGS:
        read_config(settings.cluster_config, settings.executor)
    spaces = list(dict.fromkeys(find_space(word) for word in settings.output_spaces))
    for one, other in itertools.combinations(spaces, 2):
        if one.template == other.template and one.affine != other.affine:
            raise UsageError(f"--output-spaces: give {one.template} with :affine or without, not both")
    return card, spaces


def _agenda(settings: Settings, card: Card, selection: Selection, *, spaces: Sequence[Space]) -> Agenda:
    """Return the plan of the run. DataError if no scan can be used; OutputNotWritable for files of other tools."""
    jobs, passed_over, unusable = _jobs(settings, card, selection.scans, spaces=spaces)
    unusable += [_failure(key, InputMissing(reason)) for key, reason in selection.closed.items()]
    if not jobs:
        raise DataError("; ".join(str(error) for _, error in unusable))
    if spaces:
        check_apart(jobs)
    done = frozenset() if settings.overwrite else frozenset(job for job in jobs if job.is_finished())
    check_files(settings.output_dir, jobs, done)
    warnings = [*selection.notes, *(f"{entry.scan} is skipped: {entry.reason}" for entry in passed_over)]
    todo = [job.scan for job in jobs if job not in done]
    if todo and not (settings.skip_validation or settings.images):
        place = None if settings.dry_run else settings.output_dir
        warnings += [str(issue) for issue in validator.validate(settings.bids_dir, todo, place)]
    return Agenda(jobs, done, passed_over, unusable, warnings)


def _process(settings: Settings, card: Card, agenda: Agenda) -> None:
    """Segment the scans that are not finished, write a manifest, and raise if any failed."""
    for warning in agenda.warnings:
        settings.report.warn(warning)
    if settings.dry_run:
        _list(settings, card, agenda)
        return
    write_root(settings, card)
    remove_halves(settings.output_dir.glob(".*.part"), {job.paths.report.name for job in agenda.jobs})
    for job in agenda.jobs:
        if job in agenda.done and not job.has_page():
            write_page(job)
    log = _manifest(settings, card, agenda)
    log.save()
    outcomes = Outcomes(settings, log, list(agenda.unusable))
    try:
        _segment(settings, card, agenda.todo, outcomes=outcomes)
    finally:
        log.finish()
    if not lists_model(settings.output_dir, card.name):  # a simultaneous run on a file system without locks
        write_root(settings, card)
    _conclude(settings, agenda, outcomes.failures)


def _manifest(settings: Settings, card: Card, agenda: Agenda) -> RunLog:
    """Return the manifest of the run before any work."""
    return RunLog(
        settings.output_dir / outputs.manifest_path(stamp()),
        settings.command,
        {"name": card.name, "sha256": card.sha256, "folder": str(card.folder)},
        planned=[job.scan.key for job in agenda.todo],
        warnings=agenda.warnings,
        entries=[
            *agenda.passed_over,
            *(entry for entry, _ in agenda.unusable),
            *(Entry(job.scan.key, "skipped") for job in agenda.jobs if job in agenda.done),
        ],
    )


def _segment(settings: Settings, card: Card, jobs: Sequence[Job], *, outcomes: Outcomes) -> None:
    """Run every job, in this process, in several processes of this machine, or on a cluster."""
    if not jobs:
        return
    local = settings.executor == "local"
    workers = choose_workers(settings, len(jobs), process_mb(card)) if local else None
    settings.report.start(len(jobs))
    if local and workers is None:
        Pipeline(settings, outcomes.take).process(jobs)
        return
    from bidsseg.execution.cluster import spread

    spread(settings, jobs, outcomes.take, workers=workers)


def _shard(settings: Settings) -> list[str] | None:
    """Return the labels of the participants of this shard, independent of finished scans; None for all."""
    part, parts = settings.shard
    if parts == 1:
        return list(settings.participants) or None
    return sorted(settings.participants or participant_labels(settings.bids_dir))[part - 1 :: parts]


def _jobs(
    settings: Settings, card: Card, scans: Sequence[Scan], *, spaces: Sequence[Space]
) -> tuple[list[Job], list[Entry], list[Failure]]:
    """Return the jobs, the scans without an image that the model needs, and those with invalid file names."""
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
        raise NothingSelected(f"{passed_over[0].scan}: {passed_over[0].reason}; so for all {len(scans)} scans")
    return jobs, passed_over, unusable


def _failure(scan: str, error: BidssegError) -> Failure:
    """Return the failure of a scan that was not read."""
    return Entry(scan, "failed", str(error)), error


def _list(settings: Settings, card: Card, agenda: Agenda) -> None:
    """Report the plan of a dry run."""
    settings.report.say(f"model {card.name}: {card.title}")
    for job in agenda.jobs:
        settings.report.say(f"{job.scan.key}: {'done' if job in agenda.done else 'to do'}")
        for path in job.paths.files:
            settings.report.say(f"  {settings.output_dir / path}")
    for entry, _ in agenda.unusable:
        settings.report.warn(f"{entry.scan} would fail: {entry.reason}")


def _conclude(settings: Settings, agenda: Agenda, failures: Sequence[Failure]) -> None:
    """Summarise the run; raise if any scan failed."""
    report, total = settings.report, agenda.total
    done_now = total - len(agenda.done)
    report.stop()
    report.say(f"segmented {done_now - len(failures)} of {total} scans, {len(agenda.done)} were finished before")
    for entry, _ in failures:
        trace = f" ({entry.crash_file})" if entry.crash_file else ""
        report.warn(f"{entry.scan} failed: {entry.reason}{trace}")
    if not failures:
        return
    of_data = all(isinstance(error, DataError | InputMissing) for _, error in failures)
    if len(failures) == total and of_data:
        raise DataError(f"none of the {total} scans can be used; see the reasons above")
    raise BidssegError(f"{len(failures)} of {total} scans failed; see the reasons above")


@dataclass
class Outcomes:
    """The outcomes of the scans of a run, recorded and reported.

    Attributes:
        failures: failed scans, with their errors.
        warned: warnings that were reported.
    """

    settings: Settings
    log: RunLog
    failures: list[Failure] = field(default_factory=list)
    warned: set[str] = field(default_factory=set)

    def take(self, job: Job, outcome: Outcome) -> None:
        """Record and report the outcome of a scan."""
        entry, report = outcome.entry, self.settings.report
        self.log.machine = outcome.machine or self.log.machine
        for warning in outcome.warnings:
            if warning not in self.warned:  # every worker repeats the warnings about its machine
                self.warned.add(warning)
                report.warn(warning)
        if outcome.error is None:
            self.log.add(entry)
            report.advance(job.scan.key, f"{entry.outcome} in {sum(entry.seconds.values()):.1f} s")
            return
        self.failures.append((entry, outcome.error))
        with suppress(BidssegError):  # the disk may be full, which is reported anyway
            self.log.add(entry)
        report.advance(job.scan.key, f"failed: {entry.reason}")
