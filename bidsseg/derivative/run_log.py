"""The logs of a run: a manifest, and one file for each crash."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any

from bidsseg import __version__
from bidsseg.errors import BidssegError
from bidsseg.files import write_json_atomic

PACKAGES = ("torch", "numpy", "nibabel", "pybids", "pandas", "scipy", "SimpleITK")
SAVE_EVERY_S = 10.0


@dataclass
class Entry:
    """The outcome of one scan.

    Attributes:
        outcome: ``done``, ``failed``, ``skipped`` (finished by an earlier run) or ``passed over`` (lacks an input).
        reason: why there is no result.
        findings: codes and messages of the image guard.
        seconds: wall time of each stage.
        peak_memory_mb: peak memory of the process at the end of this scan.
    """

    scan: str
    outcome: str = ""
    reason: str = ""
    findings: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: int = 0
    crash_file: str = ""


@dataclass
class RunLog:
    """The manifest of a run, saved at the start, at intervals, and at the end, so that a killed run has one.

    Attributes:
        planned: keys of the scans that the run will segment, whose files therefore belong to this program.
        details: further entries of the manifest.
    """

    path: Path
    command: Sequence[str]
    model: Mapping[str, Any]
    planned: Sequence[str] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    finished: float | None = None
    saved: float = 0.0
    lock: Lock = field(default_factory=Lock)

    def add(self, entry: Entry) -> None:
        """Record the outcome of a scan."""
        with self.lock:
            self.entries.append(entry)
            if time.time() - self.saved > SAVE_EVERY_S:
                self.save()

    def finish(self) -> None:
        """Save the final manifest."""
        self.finished = time.time()
        self.save()

    def save(self) -> None:
        """Write the current manifest."""
        content = {
            "command": list(self.command),
            "started": _clock(self.started),
            "finished": _clock(self.finished) if self.finished else None,
            "seconds": round((self.finished or time.time()) - self.started, 1),
            "versions": dict(versions()),
            "platform": platform.platform(),
            "model": dict(self.model),
            "machine": dict(self.machine),
            "warnings": self.warnings,
            "planned": list(self.planned),
            "scans": [{key: value for key, value in asdict(entry).items() if value} for entry in self.entries],
            **self.details,
        }
        write_json_atomic(self.path, content)
        self.saved = time.time()


@cache
def versions() -> dict[str, str]:
    """Return the versions of this program and of the libraries that affect results, without importing them."""
    found = {"bidsseg": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def stamp() -> str:
    """Return the time for file names, with enough digits that the names of two jobs do not collide."""
    now = time.time_ns()
    return time.strftime("%Y%m%dT%H%M%S", time.localtime(now // 10**9)) + f"{now % 10**9 // 1000:06d}"


def crash_text(error: BaseException) -> str:
    """Return the full traceback of an error."""
    return "".join(traceback.format_exception(error))


def stopped(entry: Entry, error: Exception) -> BidssegError:
    """Return the error that ends a run at its first failure, with the exit code of that failure."""
    kind = type(error) if isinstance(error, BidssegError) else BidssegError
    return kind(f"stopped at {entry.scan}: {entry.reason}")


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
