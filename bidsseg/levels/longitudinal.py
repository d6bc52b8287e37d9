"""The level ``longitudinal``: compare the sessions of each participant in the space halfway between them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from bidsseg.bids import validator
from bidsseg.bids.outputs import crash_path, report_path, series_log_path
from bidsseg.bids.series import SPACE, find_series
from bidsseg.derivative.corrections import is_halfway, maps_of_comparisons
from bidsseg.derivative.results import is_own_page
from bidsseg.derivative.root import write_root
from bidsseg.derivative.run_log import Entry, RunLog, crash_text, stamp, stopped
from bidsseg.derivative.series import SeriesJob, crash_source
from bidsseg.errors import (
    BidssegError,
    IOFailure,
    NothingToCompare,
    OutputNotWritable,
    UsageError,
    explained,
    listed,
)
from bidsseg.execution.agenda import about_ages, check_request, select
from bidsseg.execution.machine import keep_freed_memory, peak_memory_mb, release_freed_memory
from bidsseg.execution.outcomes import raise_if_failed
from bidsseg.files import write_text_atomic
from bidsseg.models.card import Card
from bidsseg.settings import Settings

if TYPE_CHECKING:
    from bidsseg.execution.machine import Machine
    from bidsseg.models.library import Model

OTHER_SPACE = (
    f"changes are those of label maps and masks in the halfway space: correct copies of *_space-{SPACE}_* in OUTPUT_DIR"
)
OTHER_NAME = "no session that is compared has an output of this name: keep the names of the files in OUTPUT_DIR"
"""Reasons why a correction is not used."""


def longitudinal_level(settings: Settings) -> None:
    """Compare the sessions of every selected participant who has two or more, and write tables and pages.

    Raises:
        NothingToCompare: no participant has two sessions.
        BidssegError: with exit code 1 if some participants failed, 65 if all failed because of their data.
    """
    check_executor(settings)
    card = check_request(settings)
    unused = {
        "lesions": settings.lesions,
        "filled": settings.filled,
        "measure": settings.measures,
        "probseg": settings.probseg,
        "entropy": settings.entropy,
        "output-spaces": settings.output_spaces,
        "viewer": settings.viewer,
        "freesurfer": settings.freesurfer,
    }
    for name, value in unused.items():
        if value:
            settings.report.warn(f"longitudinal: --{name} is not used: it compares what the model labels")
    jobs = _jobs(settings, card)
    if jobs is None:
        return
    done = [] if settings.overwrite else [job for job in jobs if job.is_finished()]
    todo = [job for job in jobs if job not in done]
    for warning in [*_lost_corrections(todo), *_about_corrections(settings, card, jobs)]:
        settings.report.warn(warning)
    for job in todo:
        job.check_files()
        if sessions := sorted({path.parent.parent.name for path in job.outdated()}):
            settings.report.warn(
                f"{job.series.key}: compared again, in a new space: files of the earlier comparison that it does not "
                f"write any more are removed ({', '.join(sessions)})"
            )
    if settings.dry_run:
        _list(settings, card, jobs, done=done)
        return
    if todo and not settings.skip_validation:
        scans = [scan for job in todo for scan in job.series.scans]
        for issue in validator.validate(settings.bids_dir, scans, settings.output_dir):
            settings.report.warn(str(issue))
    write_root(settings, card, [scan for job in jobs for scan in job.series.scans])
    log = RunLog(
        settings.output_dir / series_log_path(stamp()),
        settings.command,
        {"name": card.name, "sha256": card.sha256, "folder": str(card.folder)},
        planned=[job.series.key for job in todo],
        entries=[Entry(job.series.key, "skipped") for job in done],
    )
    log.save()
    try:
        failures = _compare(settings, todo, log)
    finally:
        log.finish()
    compared = len(jobs) - len(done) - len(failures)
    settings.report.say(
        f"compared the sessions of {compared} of {len(jobs)} participants, {len(done)} were finished before"
    )
    raise_if_failed(settings, failures, total=len(jobs), what="participants")


def check_executor(settings: Settings) -> None:
    """Raise UsageError if the level should run elsewhere than on this machine."""
    if settings.executor != "local":
        raise UsageError("the level longitudinal runs on this machine: leave --executor out, and give --shard I/N")


def _jobs(settings: Settings, card: Card) -> list[SeriesJob] | None:
    """Return a job for each participant with two sessions; None if this shard is empty."""
    selection = select(settings, card)
    if selection is None:
        return None
    if others := [scan.t1w.name for scan in selection.scans if scan.modality != "T1w"]:
        raise UsageError(f"the level longitudinal compares T1w images, not {listed(others, 3)}")
    lacking = [scan for scan in selection.scans if card.lacks(scan.images(card.inputs))]
    series, notes = find_series([scan for scan in selection.scans if scan not in lacking], settings.bids_dir)
    unusable = [f"{scan.key} is skipped: {card.name} needs a FLAIR: {scan.flair_reason}" for scan in lacking]
    young = about_ages(settings, card, [scan for each in series for scan in each.scans])
    # Without a series, the error says what the notes would say about every participant.
    for note in [*selection.notes, *selection.closed.values(), *unusable, *young, *(notes if series else [])]:
        settings.report.warn(note)
    if not series:
        raise NothingToCompare("no participant has two sessions (ses-*) with images that the model reads")
    lesions = card.lesion_rule(*settings.lesion_numbers)
    return [
        SeriesJob(
            each,
            card,
            settings.bids_dir,
            settings.output_dir,
            fast=settings.fast,
            lesions=lesions,
            corrections_dir=settings.corrections,
        )
        for each in series
    ]


def _lost_corrections(jobs: Sequence[SeriesJob]) -> Iterator[str]:
    """Yield a warning for each comparison that had corrections and is made again without them."""
    for job in jobs:
        if lost := job.lost_corrections():
            yield f"{job.series.key}: compared again without the correction of {listed(lost)} (see --corrections)"


def _about_corrections(settings: Settings, card: Card, jobs: Sequence[SeriesJob]) -> Iterator[str]:
    """Yield warnings about corrections that are not used."""
    if settings.corrections is None:
        return
    used = {path for job in jobs for corrections in job.corrections for path in corrections.files.values()}
    subjects = {job.series.source["subject"] for job in jobs}
    unused: dict[str, list[str]] = {}
    for image in maps_of_comparisons(settings.corrections):
        is_of_model = card.name in image.entities.get("desc", card.name)  # copies may have a longer name
        if image.path not in used and image.entities["subject"] in subjects and is_of_model:
            reason = OTHER_NAME if is_halfway(image) else OTHER_SPACE
            unused.setdefault(reason, []).append(image.path.name)
    for reason, names in unused.items():
        yield f"longitudinal: --corrections: {listed(names)} not used: {reason}"
    if not (used or unused):
        yield f"longitudinal: --corrections: no label map used: {OTHER_SPACE}"


def _compare(settings: Settings, jobs: Sequence[SeriesJob], log: RunLog) -> list[tuple[Entry, Exception]]:
    """Run every job, write what it returns, and return the failures."""
    from bidsseg.execution.machine import choose_machine
    from bidsseg.models.library import load_model

    failures: list[tuple[Entry, Exception]] = []
    if not jobs:
        return failures
    keep_freed_memory()
    machine, model = choose_machine(settings), load_model(settings.model)
    log.machine = asdict(machine)
    settings.report.start(len(jobs), "participant")
    for job in jobs:
        entry, start = Entry(job.series.key, "done"), time.perf_counter()
        try:
            _process(settings, job, entry, machine=machine, model=model)
        except Exception as raised:  # an error of one participant must not affect the others
            error = explained(raised) or raised
            _record(settings, job, entry, error=error)
            failures.append((entry, error))
            if isinstance(error, OutputNotWritable | IOFailure):
                raise error from error.__cause__
            if settings.stop_on_first_crash:
                raise stopped(entry, error) from error
        entry.seconds = {"whole": round(time.perf_counter() - start, 2)}
        entry.peak_memory_mb = peak_memory_mb()
        log.add(entry)
        release_freed_memory()
        settings.report.advance(entry.scan, entry.outcome if not entry.reason else f"failed: {entry.reason}")
    settings.report.stop()
    return failures


def _process(settings: Settings, job: SeriesJob, entry: Entry, *, machine: Machine, model: Model) -> None:
    """Compare the sessions of one participant, and write the results."""
    from bidsseg.execution.series import compare_sessions
    from bidsseg.report import participant_page
    from bidsseg.report.longitudinal_page import longitudinal_page, write_change_figure

    key, report = job.series.key, settings.report
    visits, mean = compare_sessions(
        job, model, machine, strict=settings.memory_mb is not None, progress=lambda stage: report.stage(key, stage)
    )
    for label, visit in zip(job.series.sessions, visits, strict=True):
        findings = [*visit.images.findings, *visit.result.findings]
        entry.findings += [asdict(finding) for finding in findings]
        entry.notes += [*visit.images.notes, *visit.result.notes]
        for finding in findings:
            report.warn(f"{key} {label}: {finding.message} [{finding.code}]")
        for note in visit.result.notes:
            report.warn(f"{key} {label}: {note}")
    report.stage(key, "writing")
    job.clear()
    write_change_figure(job, visits)
    job.write(visits, mean, model.heads)
    longitudinal_page(job)
    for scan in job.series.scans:
        if is_own_page(job.output_dir / report_path(scan)):
            participant_page(job.output_dir, scan)  # which now has a link to the comparison


def _record(settings: Settings, job: SeriesJob, entry: Entry, *, error: Exception) -> None:
    """Record a failure, with its full traceback in a file."""
    known = isinstance(error, BidssegError)
    entry.outcome = "failed"
    entry.reason = " ".join(str(error).split()) if known else f"internal error: {error!r}"
    path = crash_path(crash_source(job.series), stamp())
    with suppress(BidssegError):  # the disk may be full, which is reported anyway
        write_text_atomic(settings.output_dir / path, crash_text(error))
        entry.crash_file = str(path)


def _list(settings: Settings, card: Card, jobs: Sequence[SeriesJob], *, done: Sequence[SeriesJob]) -> None:
    """Report the plan of a dry run."""
    settings.report.say(f"model {card.name}: {card.title}")
    for job in jobs:
        sessions, names = ", ".join(job.series.sessions), ", ".join(job.correction_checksums)
        corrected = f", corrected: {names}" if names else ""
        settings.report.say(f"{job.series.key} ({sessions}): {'done' if job in done else 'to do'}{corrected}")
        for path in (*job.paths.files, job.paths.figure, job.paths.page):
            settings.report.say(f"  {settings.output_dir / path}")
