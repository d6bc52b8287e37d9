"""The result of a model for a scan, on the native grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from bidsseg.image.guard import Finding
from bidsseg.image.volume import from_canonical


@dataclass(frozen=True)
class Probabilities:
    """Region probabilities, stored only where brain is possible; background elsewhere.

    Attributes:
        shape: of the native grid in its canonical form.
        affine: of the native grid.
        voxels: flat positions (P,) in the canonical form.
        table: (P, R), float16.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    voxels: np.ndarray
    table: np.ndarray

    def maps(self) -> Iterator[np.ndarray]:
        """Yield one map (X, Y, Z) after the other, in the order of the protocol."""
        return map(self.of_region, range(self.table.shape[1]))

    def of_region(self, position: int) -> np.ndarray:
        """Return the map (X, Y, Z), float16, of the region at a position in the protocol."""
        values = np.full(self.shape, position == 0, np.float16)
        values.reshape(-1)[self.voxels] = self.table[:, position]
        return from_canonical(values, self.affine)


@dataclass(frozen=True)
class Intracranial:
    """The estimated total intracranial volume of a scan.

    Attributes:
        mm3: NaN if it cannot be estimated.
        note: how it was estimated, or why it was not.
    """

    mm3: float = math.nan
    note: str = "n/a"


@dataclass
class Segmentation:
    """The segmentation of one scan. All arrays (X, Y, Z) are on the native grid of its T1w.

    Attributes:
        labels: region of each voxel for each protocol, smallest unsigned type.
        soft_mm3: sum of each region's probability times the voxel volume for each protocol, (R,).
        brain: booleans.
        intracranial: from the mask of the model, also if the mask is corrected by hand.
        lesion: booleans, None for a model without lesions.
        lesion_probability: total probability of lesions in each voxel of the brain, float16; None if it is not known.
        quality: mean of the expected Dice over the regions of the first calibrated head, 0..1; without such a head,
            mean probability of the chosen region over the brain.
        expected_dice: Dice that each region is expected to have with a reference, for each calibrated head, (R,); NaN
            for a region that no voxel has, and for the background.
        probabilities: probabilities of every region for each protocol; empty unless requested.
        entropy: uncertainty for each protocol, 0 (certain) to 1 (all equal), float32; empty unless requested.
        notes: notes for the user on how the result was computed.
        findings: observations about the scan or the result that should be checked.
        manual: outputs (protocols, ``brain``, ``lesion``) that are corrected by hand instead of the model's, each with
            the output whose correction it follows from, see ``derivative.corrections``. Soft volumes of corrected
            protocols are NaN, and so is the quality if all protocols are corrected.
    """

    labels: dict[str, np.ndarray]
    soft_mm3: dict[str, np.ndarray]
    brain: np.ndarray
    lesion: np.ndarray | None
    quality: float
    lesion_probability: np.ndarray | None = None
    intracranial: Intracranial = field(default_factory=Intracranial)
    device: str = ""
    precision: str = ""
    expected_dice: dict[str, np.ndarray] = field(default_factory=dict)
    probabilities: dict[str, Probabilities] = field(default_factory=dict)
    entropy: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    manual: dict[str, str] = field(default_factory=dict)
