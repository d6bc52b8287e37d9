"""The memory that segmenting a scan takes, known before it is taken."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from bidsseg.errors import TemporaryFailure, UsageError

if TYPE_CHECKING:
    from bidsseg.models.library import Model

HELD_MB = 1150
"""Memory (MB) of a process beside the network's: libraries, and scans of usual size that are read and written."""
USUAL_VOXELS = 20_000_000
"""Voxels of a scan, for which HELD_MB is enough."""
VOXEL_BYTES = 24
"""Memory that each further voxel of a scan takes."""
BRAIN_MM = (176, 208, 192)
"""Box around a large brain."""
WINDOW = 128
"""Edge, in voxels, of the smallest windows with which a prediction still ends in reasonable time."""


def network_mb(model: Model, number_bytes: int) -> int:
    """Memory (MB) that the network of a model, or that of its locator, needs at least.

    Args:
        number_bytes: size of the numbers that it computes with.
    """
    network = model.network
    box = [round(n / model.card.spacing_mm) for n in BRAIN_MM]
    window = prod(box if network.whole else [min(n, WINDOW) for n in box])
    own = int(window * network.numbers_per_voxel * number_bytes / 1e6)
    return max(own, network_mb(model.locator, number_bytes) if model.locator else 0)


def require_memory(model: Model, memory_mb: int, number_bytes: int) -> None:
    """UsageError if a usual scan cannot be segmented within a limit (MB)."""
    least = HELD_MB + network_mb(model, number_bytes)
    if memory_mb < least:
        raise UsageError(
            f"cannot be done in {gigabytes(memory_mb)}: the model {model.card.name} needs {gigabytes(least)} here; "
            "give --mem that much, or choose another model"
        )


def left_for_network(model: Model, memory_mb: int, voxels: int, number_bytes: int, strict: bool) -> int:
    """Memory (MB) of the network, within a limit for the process, at a scan of that many voxels.

    Args:
        strict: whether to raise TemporaryFailure if it is too little, instead of trying.
    """
    held = HELD_MB + max(0, voxels - USUAL_VOXELS) * VOXEL_BYTES // 10**6
    least = network_mb(model, number_bytes)
    if strict and memory_mb < held + least:
        needed = gigabytes(held + least)
        raise TemporaryFailure(
            f"cannot be done in {gigabytes(memory_mb)}: a scan of {voxels / 1e6:.0f} million voxels needs {needed}; "
            "give --mem that much"
        )
    return max(memory_mb - held, least)


def gigabytes(memory_mb: int) -> str:
    """As --mem takes it, rounded up to tenths."""
    return f"{-(-memory_mb // 100) / 10:g}G"
