"""The predictions of a head at native voxels, and the place of these voxels on the native grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bidsseg.image.grid import Box
from bidsseg.image.volume import Volume, canonical_shape, from_canonical
from bidsseg.models.lesion_rule import LesionRule
from bidsseg.segmentation.expected_dice import calibrated, estimated
from bidsseg.segmentation.lesions import selected


@dataclass(frozen=True)
class Place:
    """The native voxels at which heads are applied, in the box that the model grid covers.

    Attributes:
        box: canonical voxels of the scan.
        voxels: flat positions (P,) in the box.
    """

    volume: Volume
    box: Box
    voxels: np.ndarray

    @cached_property
    def positions(self) -> np.ndarray:
        """Return the flat positions (P,) in the canonical form of the scan."""
        low, high = np.array(self.box).T
        return flat(self.voxels, tuple((high - low).tolist()), low, whole=canonical_shape(self.volume))

    def filled(self, values: np.ndarray) -> np.ndarray:
        """Return values (P,) in the box, 0 elsewhere in it."""
        found = np.zeros([end - first for first, end in self.box], values.dtype)
        found.reshape(-1)[self.voxels] = values
        return found

    def native(self, values: np.ndarray) -> np.ndarray:
        """Return values in the box, 0 outside of it, on the grid of the scan."""
        found = np.zeros(canonical_shape(self.volume), values.dtype)
        found[tuple(slice(first, end) for first, end in self.box)] = values
        return from_canonical(found, self.volume.affine)


@dataclass
class HeadOutput:
    """Predictions of one head at P voxels of the canonical native grid, filled chunk by chunk.

    A head with lesions also stores their total probability and the most probable region that is no lesion.

    Attributes:
        given: booleans (P,), voxels of lesions that are given; None if the network finds lesions. A head with lesions
            then has a lesion as its region there, and no lesion elsewhere.
        is_marked: whether a head without lesions gets a region for the given lesions later. Their voxels then do not
            count in the sums of probabilities.
    """

    indices: np.ndarray
    labels: np.ndarray
    soft: np.ndarray
    certainty: np.ndarray
    probabilities: np.ndarray | None
    entropy: np.ndarray | None
    lesions: Sequence[int] = ()
    lesion_chance: np.ndarray | None = None
    healthy: np.ndarray | None = None
    given: np.ndarray | None = None
    is_marked: bool = False

    @staticmethod
    def empty(
        indices: np.ndarray, count: int, *, probabilities: bool, entropy: bool, lesions: Sequence[int] = ()
    ) -> HeadOutput:
        """Return background at a number of voxels."""
        small = np.min_scalar_type(int(indices.max()))
        return HeadOutput(
            indices.astype(small),
            np.zeros(count, small),
            np.zeros(len(indices)),
            np.zeros(count, np.float16),
            np.zeros((count, len(indices)), np.float16) if probabilities else None,
            np.zeros(count, np.float32) if entropy else None,
            [indices.tolist().index(index) for index in lesions],
            np.zeros(count, np.float16) if lesions else None,
            np.zeros(count, small) if lesions else None,
        )

    def put(self, start: int, logits: Tensor) -> None:
        """Store the result of logits (N, R), which are overwritten, at N voxels from a start."""
        here = slice(start, start + len(logits))
        inside = None if self.given is None else torch.from_numpy(self.given[here])
        if inside is not None and self.lesions:
            is_lesion = torch.zeros(logits.shape[1], dtype=torch.bool)
            is_lesion[list(self.lesions)] = True
            logits.masked_fill_(inside[:, None] != is_lesion, -torch.inf)
        best = logits.max(1)
        chance = logits.sub_(best.values[:, None]).exp_()
        certainty = 1 / chance.sum(1)
        self.labels[here] = self.indices[best.indices.numpy()]
        self.certainty[here] = certainty.numpy()
        counted = certainty * ~inside if inside is not None and self.is_marked else certainty
        self.soft += (counted @ chance).double().numpy()
        if self.probabilities is None and self.entropy is None and self.lesion_chance is None:
            return
        chance *= certainty[:, None]
        if self.lesion_chance is not None and self.healthy is not None:
            self.lesion_chance[here] = chance[:, self.lesions].sum(1).half().numpy()
            healthy = chance.clone()
            healthy[:, self.lesions] = -1
            self.healthy[here] = self.indices[healthy.argmax(1).numpy()]
        if self.probabilities is not None:
            self.probabilities[here] = chance.half().numpy()
        if self.entropy is not None:
            nats = -torch.special.xlogy(chance, chance).sum(1)
            self.entropy[here] = (nats / np.log(chance.shape[1])).clamp(0, 1).numpy()

    def expected_dice(self, calibration: Sequence[float], by_region: np.ndarray) -> np.ndarray:
        """Return the Dice (R,) that the labels are expected to have with a reference, see ``expected_dice.py``.

        Args:
            by_region: what the calibration adds for each region (R,).
        """
        estimate = estimated(self.labels, self.certainty, self.soft, indices=self.indices)
        return calibrated(estimate, calibration, by_region)

    def marked(self, rule: LesionRule, *, place: Place) -> np.ndarray:
        """Return which voxels (P,) are lesions under a rule, after giving others than these a healthy region.

        A voxel that becomes a lesion has the value of the first lesion of the protocol.
        """
        assert self.lesion_chance is not None and self.healthy is not None
        named = self.indices[list(self.lesions)]
        before: np.ndarray = np.isin(self.labels, named)
        probable = before if rule.threshold is None else self.lesion_chance >= rule.threshold
        kept = selected(
            place.filled(probable), place.filled(self.lesion_chance), rule, voxel_mm3=place.volume.voxel_volume_mm3
        )
        found: np.ndarray = kept.reshape(-1)[place.voxels]
        self.labels = np.where(before & ~found, self.healthy, np.where(found & ~before, named[0], self.labels))
        return found


def flat(voxels: np.ndarray, shape: tuple[int, ...], low: np.ndarray, *, whole: tuple[int, ...]) -> np.ndarray:
    """Return flat positions (P,) in a box of a shape as positions in the whole, where the box begins at low (3,)."""
    inside = np.array(np.unravel_index(voxels, shape)) + low[:, None]
    positions: np.ndarray = np.ravel_multi_index((inside[0], inside[1], inside[2]), whole)
    return positions
