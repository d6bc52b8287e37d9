"""The lock, the messages and the manifest of a training."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from bidsseg.bids.outputs import training_log_path
from bidsseg.derivative.ownership import LOCK
from bidsseg.derivative.run_log import Entry, RunLog, stamp
from bidsseg.errors import BidssegError, TemporaryFailure
from bidsseg.files import held
from bidsseg.learning.training_setup import Setup
from bidsseg.settings import Report


class LoggedReport(Report):
    """A report that passes everything on and keeps the messages with their times, in a file once it is open."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.warnings: list[str] = []
        self.lines: list[str] = []
        self.stream: TextIO | None = None

    def open(self, path: Path) -> None:
        """Write the messages so far, and those that follow, to a file. A full disk only ends the messages."""
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.stream = path.open("w", encoding="utf-8", errors="backslashreplace", buffering=1)
            self.stream.writelines(self.lines)
        self.lines.clear()

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            if self.stream is not None:
                self.stream.close()
        self.stream = None

    def say(self, message: str) -> None:
        self._keep("", message)
        self.report.say(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self._keep("warning: ", message)
        self.report.warn(message)

    def detail(self, message: str) -> None:
        self._keep("", message)
        self.report.detail(message)

    def start(self, total: int, unit: str = "scan") -> None:
        self.report.start(total, unit)

    def stage(self, unit: str, stage: str) -> None:
        self.report.stage(unit, stage)

    def advance(self, unit: str, outcome: str) -> None:
        self.report.advance(unit, outcome)

    def stop(self) -> None:
        self.report.stop()

    def _keep(self, kind: str, message: str) -> None:
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {kind}{message}\n"
        if self.stream is None:
            self.lines.append(line)
            return
        with suppress(OSError):
            self.stream.write(line)


@contextmanager
def alone(setup: Setup, folders: Sequence[Path]) -> Iterator[None]:
    """Hold the model folders for this run; a killed run releases them. A dry run writes nothing and holds nothing.

    Raises:
        TemporaryFailure: another training writes to one of the folders.
    """
    with ExitStack() as stack:
        if setup.processes.first and not setup.settings.dry_run:
            for folder in folders:
                if not stack.enter_context(held(folder / LOCK)):
                    raise TemporaryFailure(
                        f"another training is writing to {folder}: wait until it has ended, give the recipe another "
                        "name, or choose another OUTPUT_DIR"
                    )
        yield


@contextmanager
def recorded(setup: Setup, report: LoggedReport, entries: Sequence[Entry]) -> Iterator[None]:
    """Write the messages and the manifest of a training to ``logs/``, from its beginning to its outcome."""
    if not setup.processes.first:
        yield
        return
    settings, at = setup.settings, stamp()
    report.open(settings.output_dir / training_log_path(at, ".log"))
    log = RunLog(
        settings.output_dir / training_log_path(at, ".json"),
        settings.command,
        {"name": setup.recipe.name, "folder": str(setup.folder)},
        machine={
            "device": setup.processes.device,
            "precision": setup.precision,
            "threads": setup.threads,
            "processes": setup.processes.count,
        },
        warnings=report.warnings,
        entries=list(entries),
        details={"outcome": "running"},
    )
    log.save()
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, TemporaryFailure | KeyboardInterrupt)
        log.details |= {"outcome": "interrupted" if stopped else "failed", "reason": str(error) or type(error).__name__}
        report.detail(f"{log.details['outcome']}: {log.details['reason']}")
        with suppress(BidssegError):  # the disk may be full, which is reported anyway
            log.finish()
        raise
    else:
        log.details["outcome"] = "finished"
        log.finish()
    finally:
        report.close()
