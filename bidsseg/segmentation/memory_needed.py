"""Estimates of the memory that segmenting a scan needs."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from bidsseg.errors import MemoryTooSmall, UsageError

if TYPE_CHECKING:
    from bidsseg.models.library import Model

HELD_MB = 1150
"""Memory (MB) of a process without the network: libraries, and scans of usual size that are read and written."""
USUAL_VOXELS = 20_000_000
"""Number of voxels of a scan for which HELD_MB is enough."""
VOXEL_BYTES = 24
"""Memory for each further voxel of a scan."""
BRAIN_MM = (176, 208, 192)
"""Box around a large brain."""
WINDOW = 128
"""Edge, in voxels, of the smallest windows that give a prediction in reasonable time."""


def network_mb(model: Model, number_bytes: int) -> int:
    """Return the least memory (MB) for the network of a model, or of its locator.

    Args:
        number_bytes: size of the numbers in the computation.
    """
    network = model.network
    box = [round(n / model.card.spacing_mm) for n in BRAIN_MM]
    window = prod(box if network.whole else [min(n, WINDOW) for n in box])
    own = int(window * network.numbers_per_voxel * number_bytes / 1e6)
    return max(own, network_mb(model.locator, number_bytes) if model.locator else 0)


def usual_mb(model: Model, number_bytes: int) -> int:
    """Return the least memory (MB) of a process that segments a usual scan."""
    return HELD_MB + network_mb(model, number_bytes)


def require_memory(model: Model, memory_mb: int, number_bytes: int) -> None:
    """Raise UsageError if a usual scan cannot be segmented within a limit (MB)."""
    least = usual_mb(model, number_bytes)
    if memory_mb < least:
        raise UsageError(
            f"cannot be done in {gigabytes(memory_mb)}: the model {model.card.name} needs {gigabytes(least)} here; "
            "give --mem that much, or choose another model"
        )


def left_for_network(model: Model, memory_mb: int, voxels: int, *, number_bytes: int, strict: bool) -> int:
    """Return the memory (MB) for the network, within a limit for the process, for a scan with some number of voxels.

    Args:
        strict: whether to raise MemoryTooSmall if the memory is too small, instead of trying.
    """
    held = HELD_MB + max(0, voxels - USUAL_VOXELS) * VOXEL_BYTES // 10**6
    least = network_mb(model, number_bytes)
    if strict and memory_mb < held + least:
        needed = gigabytes(held + least)
        raise MemoryTooSmall(
            f"cannot be done in {gigabytes(memory_mb)}: a scan of {voxels / 1e6:.0f} million voxels needs {needed}: "
            "so much must be free, and the limit (--mem) must allow it"
        )
    return max(memory_mb - held, least)


def gigabytes(memory_mb: int) -> str:
    """Return a size in the form of --mem, rounded up to tenths."""
    return f"{-(-memory_mb // 100) / 10:g}G"
