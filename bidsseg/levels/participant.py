"""The level ``participant``: write label maps, masks and volumes of every scan."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bidsseg.bids import outputs
from bidsseg.bids.names import with_extension
from bidsseg.derivative.finished import has_page
from bidsseg.derivative.job import Job
from bidsseg.derivative.root import describes, write_root
from bidsseg.derivative.run_log import Entry, RunLog, stamp, stopped
from bidsseg.execution.agenda import Agenda, check_exports, check_request, plan, select
from bidsseg.execution.exports import export, planned_exports
from bidsseg.execution.machine import choose_workers
from bidsseg.execution.outcomes import Outcomes
from bidsseg.execution.pipeline import Pipeline, process_mb, write_page
from bidsseg.files import remove_halves
from bidsseg.models.card import Card
from bidsseg.settings import Settings


def participant_level(settings: Settings) -> None:
    """Segment every selected scan that is not finished, or the images of ``settings.images``, which are in no dataset.

    Raises:
        BidssegError: with exit code 1 if some scans failed, 65 if all failed because of their data.
    """
    card = check_request(settings)
    spaces = check_exports(settings, card)
    selection = select(settings, card)
    if selection is not None:
        _process(settings, card, plan(settings, card, selection, spaces=spaces))


def _process(settings: Settings, card: Card, agenda: Agenda) -> None:
    """Segment the scans that are not finished, write a manifest, and raise if any failed."""
    for warning in agenda.warnings:
        settings.report.warn(warning)
    if settings.dry_run:
        _list(settings, card, agenda)
        return
    scans = [job.scan for job in agenda.jobs]
    write_root(settings, card, scans)
    for folder in {job.folder for job in agenda.done}:  # those of the others are removed before they are segmented
        remove_halves(folder.rglob(".*.part"))
    for job in agenda.jobs:
        if job in agenda.done:
            if not has_page(job):
                write_page(job)
            export(job, settings)
    log = _manifest(settings, card, agenda)
    log.save()
    outcomes = Outcomes(settings, log, list(agenda.unusable))
    try:
        _segment(settings, agenda.todo, outcomes=outcomes)
    finally:
        log.finish()
    by_region = {label for job in agenda.todo for label in job.region_labels}
    # A simultaneous run on a file system without locks may have left out the model.
    if not describes(settings.output_dir, {card.name, *by_region}):
        write_root(settings, card, scans, by_region=by_region)
    outcomes.conclude(agenda)


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


def _segment(settings: Settings, jobs: Sequence[Job], *, outcomes: Outcomes) -> None:
    """Run every job, in this process, in several processes of this machine, or on a cluster."""
    if settings.stop_on_first_crash and outcomes.failures:
        entry, error = outcomes.failures[0]
        raise stopped(entry, error) from error
    if not jobs:
        return
    local = settings.executor == "local"
    workers = choose_workers(settings, len(jobs), partial(process_mb, settings.model)) if local else None
    settings.report.start(len(jobs))
    left = jobs
    if workers is not None or not local:
        from bidsseg.execution.cluster import spread

        left = spread(settings, jobs, outcomes.take, workers=workers)
        if left:
            settings.report.say(f"scans that need more memory than a process has, now one after another: {len(left)}")
    if left:
        Pipeline(settings, outcomes.take).process(left)


def _list(settings: Settings, card: Card, agenda: Agenda) -> None:
    """Report the plan of a dry run."""
    settings.report.say(f"model {card.name}: {card.title}")
    for job in agenda.jobs:
        settings.report.say(f"{job.scan.key}: {'done' if job in agenda.done else 'to do'}{_corrected(job)}")
        by_region = [file for table in job.region_tables for file in (table, with_extension(table, ".json"))]
        for path in (*job.paths.files, *by_region, *job.pictures, job.paths.report):
            settings.report.say(f"  {settings.output_dir / path}")
        for path in planned_exports(job, settings):
            settings.report.say(f"  {path}")
    for entry, _ in agenda.unusable:
        settings.report.warn(f"{entry.scan} would fail: {entry.reason}")


def _corrected(job: Job) -> str:
    """Return what is given of a scan, for its line in a dry run."""
    names = ", ".join(job.corrections.files)
    given = f", lesions: {job.given.file.name}" if job.given.file is not None else ""
    return (f", corrected: {names}" if names else "") + given
