"""Signals that ask a training to stop."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType


class Interruption:
    """Turns SIGTERM and Ctrl-C into a question that the training loop asks after each step."""

    ONE_KEY_S = 1.0
    """Within which a signal that comes again is the same one: torchrun passes on what the cluster sends to all."""

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
        """Remembers a signal; Ctrl-C once more ends the process as usual."""
        self.first = self.first or time.monotonic()
        if number == signal.SIGINT and time.monotonic() - self.first > self.ONE_KEY_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def asked(self) -> bool:
        """Whether the user or the cluster wants the run to stop."""
        return self.first is not None
