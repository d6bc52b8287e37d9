"""Volumes of the regions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsseg.labels.protocol import Protocol, Region

if TYPE_CHECKING:
    import pandas as pd

BRAIN_MASK, BRAIN_MASK_COLUMN = "brain mask", "BrainMask"
"""Name and abbreviation of the row of the brain mask."""
INTRACRANIAL, INTRACRANIAL_COLUMN = "estimated total intracranial volume", "eTIV"
"""Name and abbreviation of the row of the intracranial volume, as in FreeSurfer."""
FORMER_BRAIN_MASK = "intracranial volume"
"""Name of the row of the brain mask in tables of versions before 0.17."""


def volume_table(
    protocol: Protocol,
    labels: np.ndarray,
    soft_mm3: np.ndarray,
    *,
    voxel_volume_mm3: float,
    brain: np.ndarray,
    expected_dice: np.ndarray | None = None,
    intracranial_mm3: float | None = None,
) -> pd.DataFrame:
    """Return one row for each region except the background, then one for the brain mask.

    Args:
        labels: label map, integers, shape (X, Y, Z).
        soft_mm3: sum of the probabilities over all voxels times the volume of a voxel (mm³), shape (R,), for each
            region of the protocol including the background. A voxel shared by two regions counts partly
            for each, so that this volume changes less than the hard volume when the grid moves.
        brain: brain mask, shape (X, Y, Z).
        expected_dice: Dice that each region is expected to have with a reference, shape (R,); None if it is not known.
        intracranial_mm3: estimated intracranial volume, the last row; NaN if it is not known, None for no such row.

    Returns:
        Columns index, name, abbreviation, voxels, volume-mm3, softvolume-mm3, expected-dice; all to three decimals.
    """
    import pandas as pd

    counts = count_voxels(labels, max(protocol.indices) + 1)
    dice = np.full(len(protocol.regions), np.nan) if expected_dice is None else expected_dice
    rows: list[tuple[Any, ...]] = [
        (r.index, r.name, r.abbreviation, counts[r.index], counts[r.index] * voxel_volume_mm3, soft, expected)
        for r, soft, expected in zip(protocol.regions, soft_mm3, dice, strict=True)
        if r.index != 0
    ]
    inside = int(np.count_nonzero(brain))
    whole = (np.nan, np.nan)
    rows.append((pd.NA, BRAIN_MASK, BRAIN_MASK_COLUMN, inside, inside * voxel_volume_mm3, *whole))
    if intracranial_mm3 is not None:
        rows.append((pd.NA, INTRACRANIAL, INTRACRANIAL_COLUMN, pd.NA, intracranial_mm3, *whole))
    columns = ["index", "name", "abbreviation", "voxels", "volume-mm3", "softvolume-mm3", "expected-dice"]
    table = pd.DataFrame(rows, columns=columns).astype({"index": "Int64", "voxels": "Int64"})
    return table.round({"volume-mm3": 3, "softvolume-mm3": 3, "expected-dice": 3})


def volumes_mm3(labels: np.ndarray, protocol: Protocol, voxel_mm3: float) -> np.ndarray:
    """Return the counted volume (mm³) of each region, also of the background, of a label map (X, Y, Z), shape (R,)."""
    return count_voxels(labels, max(protocol.indices) + 1)[list(protocol.indices)] * voxel_mm3


def values_by_region(values: np.ndarray, labels: np.ndarray, protocol: Protocol) -> Iterator[tuple[Region, np.ndarray]]:
    """Yield each region except the background with the values of its voxels.

    Args:
        values, labels: values and labels of N voxels.
    """
    order = np.argsort(labels, kind="stable")
    labels, values = labels[order], values[order]
    for region in protocol.regions:
        if region.index != 0:
            begin, end = np.searchsorted(labels, [region.index, region.index + 1])
            yield region, values[begin:end]


def count_voxels(labels: np.ndarray, size: int) -> np.ndarray:
    """Return the number of voxels with each value from 0 to ``size`` - 1, slice by slice to save memory."""
    counts = np.zeros(size, dtype=np.int64)
    for k in range(labels.shape[-1]):
        counts += np.bincount(labels[..., k].ravel(), minlength=size)
    return counts
