"""One label map from two networks, one for tissues and one for lesions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bidsseg.errors import DataError
from bidsseg.labels import load_protocol
from bidsseg.segmentation.result import Segmentation

JOINT = load_protocol("FASTlesion")
"""Tissue as FAST names it, and lesions."""


def lesion_over_tissue(tissue: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """The lesion where there is one, else the tissue.

    This is how the Multi-UNet baseline of ACE (Roulet et al. 2019, arXiv 1903.03445) puts the answers of its two
    networks together: a lesion wins over any tissue, and over the tissue network's background.

    Args:
        tissue: (X, Y, Z) indices in a protocol that has the tissues and the lesions.
        lesion: (X, Y, Z) indices in the same protocol on the same grid, 0 where there is no lesion.
    """
    if tissue.shape != lesion.shape:
        raise DataError(f"cannot merge label maps of {tissue.shape} and {lesion.shape} voxels")
    if lesion.dtype == bool:  # True would become whatever region has the index 1
        raise DataError("a lesion mask must be given the index of its region before it is merged with tissues")
    return np.where(lesion != 0, lesion, tissue)


def with_lesions(tissue: Segmentation, lesion: Segmentation) -> Segmentation:
    """What a model for FAST's tissues says of a scan, with the lesions that another model finds in it, as JOINT."""
    if "FAST" not in tissue.labels or lesion.lesion is None:
        raise DataError("a model with the head FAST and one with the head lesion are needed to join their answers")
    (index,) = JOINT.lesions
    joined = lesion_over_tissue(tissue.labels["FAST"], np.where(lesion.lesion, index, 0).astype(np.uint8))
    return replace(tissue, labels={JOINT.name: joined}, lesion=lesion.lesion)
