"""Volumes of the regions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsseg.labels.protocol import Protocol, Region

if TYPE_CHECKING:
    import pandas as pd

INTRACRANIAL = "intracranial volume"
"""Name of the last row: everything inside of the brain mask, including fluid."""


def volume_table(
    protocol: Protocol,
    labels: np.ndarray,
    soft_mm3: np.ndarray,
    *,
    voxel_volume_mm3: float,
    brain: np.ndarray,
    expected_dice: np.ndarray | None = None,
) -> pd.DataFrame:
    """Return one row for each region except the background, then one for the intracranial volume.

    Args:
        labels: label map, integers, shape (X, Y, Z).
        soft_mm3: sum of the probabilities over all voxels times the volume of a voxel (mm³), shape (R,), for each
            region of the protocol including the background. A voxel shared by two regions counts partly
            for each, so that this volume changes less than the hard volume when the grid moves.
        brain: brain mask, shape (X, Y, Z).
        expected_dice: Dice that each region is expected to have with a reference, shape (R,); None if it is not known.

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
    rows.append((pd.NA, INTRACRANIAL, "ICV", inside, inside * voxel_volume_mm3, np.nan, np.nan))
    columns = ["index", "name", "abbreviation", "voxels", "volume-mm3", "softvolume-mm3", "expected-dice"]
    table = pd.DataFrame(rows, columns=columns).astype({"index": "Int64", "voxels": "int64"})
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
