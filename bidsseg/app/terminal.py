"""The streams of the command line: work goes on whatever becomes of them."""

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
    """Let streams take any name of a file, and put the null device in place of those that are closed.

    Otherwise the next file that is opened would take the number of a closed stream, and whatever is written to the
    stream.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may hold what the terminal cannot show


class Enduring:
    """A stream to which writing never fails: what cannot be written is dropped, with all that follows."""

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
        except OSError:  # who read along has gone, or the disk is full
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        except ValueError:  # closed
            pass


def write_line(message: str, stream: Any) -> None:
    """Write a line to a stream, if that is possible."""
    enduring = Enduring(stream)
    enduring.write(f"{message}\n")  # in one piece, for two threads speak
    enduring.flush()


class Terminal(Report):
    """Speaks to the user: results on standard output, the rest on standard error, with a bar on a terminal."""

    def __init__(self, verbose: bool = False) -> None:
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
