"""The clock of every training loop: when to end, report and save."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TypeVar

from bidsseg.learning.state import Conditions, State

CHECKPOINT_EVERY_S = 180

T = TypeVar("T")


class Clock:
    """The steps and the time of a training, counted in its state, and the remainder.

    Args:
        state: state of the resumed run, or a new one.
        steps: number of steps at which the training ends, if its time is not used up before.

    Attributes:
        stopped: whether the user or the cluster wants to stop the training.
        agreed: share (0..1) of the run that all processes last agreed on.
    """

    def __init__(self, conditions: Conditions, state: State, steps: float = math.inf) -> None:
        self.conditions, self.state, self.steps = conditions, state, steps
        self.started = time.monotonic() - state.elapsed_s
        self.saved_at = time.monotonic()
        self.stopped = False
        self.agreed = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the training began, without the time between its runs."""
        return time.monotonic() - self.started

    @property
    def share(self) -> float:
        """Share (0..1) of the steps or of the time used up at the last step, whichever is larger."""
        return max(self.state.step / self.steps, self.state.elapsed_s / self.learning_s)

    @property
    def learning_s(self) -> float:
        """Seconds for the training itself; at least a tenth of the budget, however long the rest takes."""
        budget_s = self.conditions.budget_s
        return max(budget_s - self.state.reserve_s - self.state.readout_s, 0.1 * budget_s)

    def progress(self) -> float:
        """Return the share that all processes agree on, and record whether they must stop."""
        self.agreed, stopped = self.conditions.processes.agree(self.share, self.conditions.stop())
        self.stopped = bool(stopped)
        return self.agreed

    def tick(self, steps: int = 1) -> None:
        """Count completed steps."""
        self.state.step += steps
        self.state.elapsed_s = self.elapsed_s
        self.conditions.check_memory()

    def timed(self, samples: Iterator[T]) -> Iterator[T]:
        """Yield samples, and count the time in which the network waits for them."""
        asked = time.monotonic()
        for sample in samples:
            self.state.waited_s += time.monotonic() - asked
            yield sample
            asked = time.monotonic()

    def pace(self, share: float) -> str:
        """Return the time of a step, and the remaining time, from the share completed before the last step."""
        return f"{self.state.elapsed_s / self.state.step:.2f} s/step, {time_left(self.state.elapsed_s, share)}"

    def throughput(self, batch: int) -> str:
        """Return the number of samples per second, and the share of the time in which the network waited for them."""
        state = self.state
        seconds = max(state.elapsed_s, 1e-6)
        pace, waited = state.step * batch / seconds, state.waited_s / seconds
        steps = f"{state.step} steps in {seconds:.1f} s"
        return f"{steps}: {pace:.2f} samples/s, {waited:.0%} of the time waiting for samples"

    def is_time_to_save(self) -> bool:
        """Return whether a checkpoint is due; if so, the next one is due after the same interval."""
        if time.monotonic() - self.saved_at <= CHECKPOINT_EVERY_S:
            return False
        self.saved_at = time.monotonic()
        return True


def time_left(elapsed_s: float, progress: float) -> str:
    """Return the remaining time at the pace so far, from the completed share (0..1)."""
    if progress <= 0:
        return "time left unknown"
    left = elapsed_s * (1 - progress) / progress
    if left < 100:
        return f"{left:.0f} s left"
    return f"{left / 60:.0f} min left" if left < 6000 else f"{left / 3600:.1f} h left"
