"""Merging of the label maps of two networks, one for tissues and one for lesions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bidsseg.errors import DataError
from bidsseg.labels import load_protocol
from bidsseg.segmentation.result import Segmentation

JOINT = load_protocol("FASTlesion")
"""The protocol with the tissues of FAST and lesions."""


def lesion_over_tissue(tissue: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """Return the lesion labels where there is a lesion, otherwise the tissue labels.

    The Multi-UNet baseline of ACE (Roulet et al. 2019, arXiv 1903.03445) merges the label maps of its two networks in
    this way: a lesion replaces any tissue and the background of the tissue network.

    Args:
        tissue: (X, Y, Z) indices in a protocol that has the tissues and the lesions.
        lesion: (X, Y, Z) indices in the same protocol on the same grid, 0 where there is no lesion.
    """
    if tissue.shape != lesion.shape:
        raise DataError(f"cannot merge label maps of {tissue.shape} and {lesion.shape} voxels")
    if lesion.dtype == bool:  # True would become the region with the index 1
        raise DataError("a lesion mask must be converted to the index of its region before it is merged with tissues")
    return np.where(lesion != 0, lesion, tissue)


def with_lesions(tissue: Segmentation, lesion: Segmentation) -> Segmentation:
    """Return the tissue segmentation of a model with the lesions of another model, in the protocol JOINT."""
    if "FAST" not in tissue.labels or lesion.lesion is None:
        raise DataError("merging needs one model with the head FAST and one with the head lesion")
    (index,) = JOINT.lesions
    joined = lesion_over_tissue(tissue.labels["FAST"], np.where(lesion.lesion, index, 0).astype(np.uint8))
    return replace(tissue, labels={JOINT.name: joined}, lesion=lesion.lesion)
