"""Detection of single lesions: a lesion is a connected component of a region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bidsseg.evaluation.agreement import ratio
from bidsseg.segmentation.lesions import TOUCHING


@dataclass(frozen=True, eq=False)
class Lesions:
    """Numbers of lesions of one brain, floats of shape (R,); NaN for regions that are not lesions.

    Attributes:
        found, reference: lesions in each map.
        confirmed: found lesions that share a voxel with a lesion of the reference.
        detected: lesions of the reference that share a voxel with a found lesion.
    """

    found: np.ndarray
    reference: np.ndarray
    confirmed: np.ndarray
    detected: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """Share of the found lesions that are confirmed; NaN if none is found."""
        return ratio(self.confirmed, self.found)

    @property
    def recall(self) -> np.ndarray:
        """Share of the lesions of the reference that are detected; NaN if the reference has none."""
        return ratio(self.detected, self.reference)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall; 0 if no lesion is matched, NaN if neither map has one."""
        precision, recall = np.nan_to_num(self.precision), np.nan_to_num(self.recall)
        mean = np.nan_to_num(ratio(2 * precision * recall, precision + recall))
        return np.where(self.found + self.reference > 0, mean, np.nan)


def count_lesions(
    found: np.ndarray, reference: np.ndarray, indices: Sequence[int], *, lesions: Sequence[int]
) -> Lesions:
    """Count the lesions of two label maps (X, Y, Z) on one grid.

    Args:
        indices: all regions, in the order of the result.
        lesions: the indices of lesions.
    """
    counts = np.full((4, len(indices)), np.nan)
    for place, index in enumerate(indices):
        if index in lesions:
            one, other = found == index, reference == index
            pieces, count = ndimage.label(one, TOUCHING)
            pieces_other, count_other = ndimage.label(other, TOUCHING)
            both = one & other
            matched = len(np.unique(pieces[both])), len(np.unique(pieces_other[both]))
            counts[:, place] = count, count_other, *matched
    return Lesions(*counts)
