"""The outcomes of a run of the level ``participant``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from bidsseg.derivative.job import Job
from bidsseg.derivative.run_log import RunLog
from bidsseg.errors import BidssegError, DataError, InputMissing
from bidsseg.execution.agenda import Agenda, Failure
from bidsseg.execution.pipeline import Outcome
from bidsseg.settings import Settings


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

    def conclude(self, agenda: Agenda) -> None:
        """Summarise the run; raise if any scan failed."""
        report, failures, total = self.settings.report, self.failures, agenda.total
        done_now = total - len(agenda.done)
        report.stop()
        report.say(f"segmented {done_now - len(failures)} of {total} scans, {len(agenda.done)} were finished before")
        raise_if_failed(self.settings, failures, total=total, what="scans")


def raise_if_failed(settings: Settings, failures: Sequence[Failure], *, total: int, what: str) -> None:
    """Report the failures of a run again, and raise if there are any.

    Args:
        what: what the run counts: scans or participants.
    """
    for entry, _ in failures:
        trace = f" ({entry.crash_file})" if entry.crash_file else ""
        settings.report.warn(f"{entry.scan} failed: {entry.reason}{trace}")
    if not failures:
        return
    of_data = all(isinstance(error, DataError | InputMissing) for _, error in failures)
    if len(failures) == total and of_data:
        raise DataError(f"none of the {total} {what} can be used; see the reasons above")
    raise BidssegError(f"{len(failures)} of {total} {what} failed; see the reasons above")
