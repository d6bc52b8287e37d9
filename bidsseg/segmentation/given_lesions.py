"""Lesions that are given, in the place of lesions that a model finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from bidsseg.errors import DataError
from bidsseg.image.guard import Finding
from bidsseg.labels.protocol import Protocol
from bidsseg.segmentation.lesions import TOUCHING
from bidsseg.segmentation.result import Segmentation

LEAST_SHARE = 0.5
"""Smallest share of the lesions in the brain that is not unusual."""


def with_given_lesions(
    result: Segmentation, lesion: np.ndarray, protocols: Mapping[str, Protocol], *, voxel_mm3: float
) -> Segmentation:
    """Return a segmentation with given lesions.

    The label map of each protocol with lesions has the first of them in all voxels of the mask, unless it has another
    lesion there. Lesions count as brain.

    Args:
        result: label maps of the scan with filled lesions, see ``predict.segment``.
        lesion: booleans (X, Y, Z).
        protocols: protocol of each label map, with the region of lesions that the head of the network may lack.
        voxel_mm3: volume of a voxel.

    Raises:
        DataError: there are lesions, and none of them is in the brain.
    """
    count = int(np.count_nonzero(lesion))
    inside = int(np.count_nonzero(lesion & result.brain)) / max(count, 1)
    if count and not inside:
        raise DataError("no lesion of the mask is in the brain: do the mask and the T1w match?")
    labels, soft, dice = dict(result.labels), dict(result.soft_mm3), dict(result.expected_dice)
    for name, protocol in protocols.items():
        if name not in labels or not protocol.lesions:
            continue
        labels[name] = marked(labels[name], lesion, protocol)
        if len(soft[name]) < len(protocol.regions):
            place = protocol.indices.index(protocol.lesions[0])
            soft[name] = np.insert(np.asarray(soft[name], float), place, count * voxel_mm3)
            if name in dice:
                dice[name] = np.insert(dice[name], place, np.nan)
    findings = list(result.findings)
    if count and inside < LEAST_SHARE:
        text = f"Only {inside:.0%} of the lesions are in the brain: check whether the mask and the T1w match."
        findings.append(Finding("LESIONS_OUTSIDE", text))
    return replace(
        result,
        labels=labels,
        soft_mm3=soft,
        expected_dice=dice,
        brain=result.brain | lesion,
        lesion=lesion,
        lesion_probability=None,
        findings=findings,
    )


def marked(labels: np.ndarray, lesion: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Return a label map (X, Y, Z) with the first lesion of its protocol in the voxels of a mask that show no lesion.

    Args:
        lesion: booleans (X, Y, Z).
    """
    missing = lesion & ~np.isin(labels, protocol.lesions)
    small = np.promote_types(labels.dtype, np.min_scalar_type(protocol.lesions[0]))
    found: np.ndarray = np.where(missing, small.type(protocol.lesions[0]), labels).astype(small)
    return found


def with_lesions_of(mask: np.ndarray, labels: np.ndarray, protocol: Protocol, *, spacing_mm: np.ndarray) -> np.ndarray:
    """Return a label map (X, Y, Z) that has lesions where a mask is, and nowhere else.

    A voxel that was a lesion and is none any more has the region of the nearest voxel that touches a lesion. One that
    becomes a lesion has the value of the first lesion of the protocol.

    Args:
        mask: booleans (X, Y, Z).
        spacing_mm: size of a voxel, (3,).
    """
    before, found = np.isin(labels, protocol.lesions), marked(labels, mask, protocol)
    lost = np.argwhere(before & ~mask)
    near = np.argwhere(ndimage.binary_dilation(before, TOUCHING) & ~before & (labels > 0))
    if len(lost) and len(near):
        _, nearest = cKDTree(near * spacing_mm).query(lost * spacing_mm)
        found[tuple(lost.T)] = labels[tuple(near[nearest].T)]
    elif len(lost):
        found[tuple(lost.T)] = 0
    return found
