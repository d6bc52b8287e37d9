"""Signals that stop a training.

The flag set here is read by `clock.Clock`; the loop then saves its state by `state.save_checkpoint`.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

INTERRUPTED = "interrupted before the training began: run the same command again"


class Interruption:
    """Turn SIGTERM and Ctrl-C into a flag that the training loop reads after each step."""

    ONE_KEY_S = 1.0
    """Interval in which repeated signals count as one: torchrun passes on the signals that the cluster sends to all."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def note(self, number: int, frame: FrameType | None) -> None:
        """Record a signal; a second Ctrl-C ends the process as usual."""
        self.first = self.first or time.monotonic()
        if number == signal.SIGINT and time.monotonic() - self.first > self.ONE_KEY_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def asked(self) -> bool:
        """Return whether the user or the cluster wants to stop the run."""
        return self.first is not None
