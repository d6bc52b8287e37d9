"""The streams of the command line. Errors of these streams never stop the work."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bidsseg.settings import Report


def prepare_streams() -> None:
    """Let streams print any file name, and replace closed streams by the null device.

    Otherwise, the next opened file would get the descriptor of a closed stream, and everything written to the
    stream.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may contain unprintable characters


class Enduring:
    """A stream that never raises on writing: after the first failure, all output is dropped."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._dropping():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self.stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # the reader has closed the pipe, or the disk is full
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        except ValueError:  # closed
            pass


def write_line(message: str, stream: Any) -> None:
    """Write a line to a stream, if that is possible."""
    enduring = Enduring(stream)
    enduring.write(f"{message}\n")  # in one call, because two threads write
    enduring.flush()


class Terminal(Report):
    """Print results on standard output, everything else on standard error, with a progress bar on a terminal."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self.total = self.count = 0
        self.bar: Any = None

    def say(self, message: str) -> None:
        self._print(message, sys.stdout)

    def warn(self, message: str) -> None:
        self._print(f"warning: {message}", sys.stderr)

    def detail(self, message: str) -> None:
        if self.verbose:
            self._print(message, sys.stderr)

    def start(self, total: int, unit: str = "scan") -> None:
        self.total, self.count = total, 0
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit=unit, dynamic_ncols=True, file=Enduring(sys.stderr))

    def stage(self, unit: str, stage: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"{unit}: {stage}")
        else:
            self.detail(f"{unit}: {stage}")

    def advance(self, unit: str, outcome: str) -> None:
        self.count += 1
        if self.bar is not None:
            self.bar.update()
        else:
            self._print(f"[{self.count}/{self.total}] {unit}: {outcome}", sys.stderr)

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _print(self, message: str, stream: Any) -> None:
        if self.bar is not None:
            self.bar.write(message, file=Enduring(stream))
        else:
            write_line(message, stream)
