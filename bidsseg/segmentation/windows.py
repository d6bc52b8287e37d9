"""A network over a volume that may not fit into memory: whole, in windows, or on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bidsseg.errors import lacks_memory
from bidsseg.networks.network import Network
from bidsseg.segmentation.features import Features, cells_of

if TYPE_CHECKING:
    from bidsseg.segmentation.engine import Engine

HALO = 32
"""Margin of a window in voxels that is computed and discarded."""
SMALLEST_WINDOW = 64


def features_of(
    network: Network, image: Tensor, position: Tensor | None, *, wanted: Tensor | None, engine: Engine, notes: list[str]
) -> Features:
    """Return features of an image (1, C, D, H, W) with coordinates (1, 3, D/2, H/2, W/2) or None.

    Args:
        wanted: booleans (D, H, W), the voxels whose features will be read; None for all.
    """
    everywhere = torch.ones(image.shape[2:], dtype=torch.bool)
    cells = cells_of(everywhere if wanted is None else wanted, network.cell)
    sizes = list(image.shape[2:]) if network.whole else window_sizes(image.shape[2:], network, engine)
    smaller = [min(s, max(SMALLEST_WINDOW, s // 2)) for s in sizes]
    attempts = [(engine.device, sizes)] + ([] if network.whole else [(engine.device, smaller)])
    attempts += [("cpu", sizes)] if engine.device != "cpu" else []
    for number, (device, window) in enumerate(attempts):
        if any(w < s for w, s in zip(window, image.shape[2:], strict=True)):
            notes.append(f"predicted in windows of {'x'.join(map(str, window))} voxels on {device} to save memory")
        # A processor that takes over from a GPU may only emulate the GPU's precision, which is very slow.
        dtype = engine.dtype if device == engine.device else torch.float32
        try:
            rows = in_windows(network, image, position, cells=cells, window=window, device=device, dtype=dtype)
            return Features.of_cells(network, rows, cells)
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error) or number == len(attempts) - 1:
                raise
            notes.append(f"out of memory on {device}")
    raise AssertionError("unreachable")


def window_sizes(shape: Sequence[int], network: Network, engine: Engine) -> list[int]:
    """Return the largest window within the memory limit: the longest axis is halved until it fits."""
    sizes, multiple = list(shape), network.multiple
    bytes_per_voxel = network.numbers_per_voxel * engine.dtype.itemsize
    limit = float("inf") if engine.memory_mb is None else engine.memory_mb * 1e6 / bytes_per_voxel
    smallest = max(SMALLEST_WINDOW, multiple)
    while torch.Size(sizes).numel() > limit and max(sizes) > smallest:
        axis = sizes.index(max(sizes))
        half = -(-sizes[axis] // 2)
        sizes[axis] = max(smallest, -(-half // multiple) * multiple)
    return sizes


@torch.inference_mode()
def in_windows(
    network: Network,
    image: Tensor,
    position: Tensor | None,
    *,
    cells: Tensor,
    window: Sequence[int],
    device: str,
    dtype: torch.dtype,
) -> Tensor:
    """Return rows (B, K), on the CPU, of the True cells (D/cell, H/cell, W/cell) of an image.

    They are assembled from windows that overlap by a halo; one window if it covers the image.
    """
    network = network.to(device=device, memory_format=network.memory_format)  # type: ignore[call-overload]
    shape, edge = image.shape[2:], network.cell
    halo = -(-HALO // network.multiple) * network.multiple
    number = torch.full(cells.shape, -1)
    count = int(cells.sum())
    number[cells] = torch.arange(count)
    target: Tensor | None = None
    for cores in itertools.product(
        *(steps(n, w, halo, multiple=network.multiple) for n, w in zip(shape, window, strict=True))
    ):
        outer = [(max(0, a - halo), min(n, b + halo)) for (a, b), n in zip(cores, shape, strict=True)]
        core = tuple(slice(a // edge, b // edge) for a, b in cores)
        here = torch.zeros([(b - a) // edge for a, b in outer], dtype=torch.bool)
        inner = tuple(slice((a - oa) // edge, (b - oa) // edge) for (a, b), (oa, _) in zip(cores, outer, strict=True))
        here[inner] = cells[core]
        if not here.any():
            continue
        part = image[:, :, *(slice(a, b) for a, b in outer)].to(device)
        where = None if position is None else position[:, :, *(slice(a // 2, b // 2) for a, b in outer)].to(device)
        with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
            found = network.rows(part, where, here.to(device)).cpu()
        if len(found) == count:
            return found
        if target is None:
            target = torch.empty((count, found.shape[-1]), dtype=found.dtype)
        target[number[core][cells[core]]] = found
    assert target is not None
    return target


def steps(size: int, window: int, halo: int, *, multiple: int) -> list[tuple[int, int]]:
    """Return cores of windows along an axis, [start, end): core and halo are no longer than the window, if possible."""
    if window >= size:
        return [(0, size)]
    core = max(multiple, (window - 2 * halo) // multiple * multiple)
    return [(start, min(size, start + core)) for start in range(0, size, core)]
