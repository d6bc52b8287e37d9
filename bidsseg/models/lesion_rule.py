"""Which voxels of a probability of lesions are lesions."""

from __future__ import annotations

from dataclasses import dataclass

NO_THRESHOLD = "most probable region"
"""The rule without a threshold, as it is recorded in sidecars."""


@dataclass(frozen=True)
class LesionRule:
    """The rule that turns probabilities of lesions into a mask.

    Attributes:
        threshold: least probability of a lesion voxel, 0 to 1; None where a lesion is the most probable region.
        least_mm3: smallest volume of a lesion (connected voxels, corners included), mm³; 0 for any.
        least_peak: least probability of the most probable voxel of a lesion, 0 to 1; 0 for any.
    """

    threshold: float | None = None
    least_mm3: float = 0.0
    least_peak: float = 0.0

    @property
    def recorded_threshold(self) -> float | str:
        """The threshold as it is recorded in sidecars."""
        return NO_THRESHOLD if self.threshold is None else self.threshold


MOST_PROBABLE = LesionRule()
"""The rule that a lesion is where it is the most probable region."""
