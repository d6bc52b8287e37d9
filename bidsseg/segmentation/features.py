"""Features of a volume, stored as rows of the relevant cells and computed from these rows on demand.

An array of every voxel's features would need gigabytes. Most of a box around a brain is background, and one row of a
network that works at half resolution is enough for eight voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bidsseg.networks.network import Network

CELLS = 1 << 14
"""Number of cells whose features are computed together."""


@dataclass(frozen=True)
class Features:
    """Features on a model grid (D, H, W), known in some of its cells.

    Attributes:
        network: computes features (B, cell³, F) from rows.
        table: rows (B + 1, K) of the cells; the last row represents all unknown cells.
        lookup: (D, H, W) int32, index of each voxel's features among those of all rows.
    """

    network: Network
    table: Tensor
    lookup: Tensor

    @staticmethod
    def of_cells(network: Network, rows: Tensor, cells: Tensor) -> Features:
        """Return features from the rows (B, K) of the True cells (D/cell, H/cell, W/cell), in their order."""
        edge = network.cell
        number = torch.full(cells.shape, len(rows), dtype=torch.int32)
        number[cells] = torch.arange(len(rows), dtype=torch.int32)
        place = torch.arange(edge**3, dtype=torch.int32).reshape(1, edge, 1, edge, 1, edge)
        lookup = edge**3 * number[:, None, :, None, :, None] + place
        shape = [edge * n for n in cells.shape]
        return Features(network, torch.cat([rows, rows.new_zeros(1, rows.shape[1])]), lookup.reshape(shape))

    def mirrored(self, steps: int) -> Features:
        """Return the features with left and right exchanged, on a grid that begins some voxels earlier."""
        lookup = torch.full_like(self.lookup, self.network.cell**3 * (len(self.table) - 1))
        n = slice(None, -steps or None)
        lookup[steps:, steps:, steps:] = self.lookup.flip(0)[n, n, n]
        return Features(self.network, self.table, lookup)

    def known(self) -> Tensor:
        """Return booleans (D, H, W): the voxels with features."""
        return self.lookup < (len(self.table) - 1) * self.network.cell**3

    def linear(self, weight: Tensor, elsewhere: float) -> Tensor:
        """Return the product of features and a weight (F,), float32 (D, H, W), a constant without features."""
        parts = [(part @ weight.to(part.dtype)).float() for part in self._parts()]
        values = torch.cat([*parts, torch.full((self.network.cell**3,), elsewhere)])
        return values[self.lookup.view(-1)].view(self.lookup.shape)

    def _parts(self) -> Iterator[Tensor]:
        """Yield features (V, F) of all voxels of known cells, some cells at a time."""
        for rows in self.table[:-1].split(CELLS):
            yield self._expand(rows).flatten(0, 1)

    def interpolated(self, voxels: Tensor, share: Tensor) -> Tensor:
        """Return weighted sums (P, F), float32, of the features at flat voxels (P, N) of the grid, weights (P, N)."""
        places = self.lookup.view(-1)[voxels]
        size = self.network.cell**3
        used = torch.zeros(len(self.table), size, dtype=torch.bool)
        used.view(-1)[places] = True
        cells = used.any(1).nonzero()[:, 0]
        renumbered = torch.empty(len(self.table), size, dtype=torch.int32)
        renumbered[cells] = torch.arange(len(cells) * size, dtype=torch.int32).view(-1, size)
        values = self._expand(self.table[cells]).flatten(0, 1)
        rows = renumbered.view(-1)[places]
        if rows.shape[1] == 1:
            return values[rows[:, 0]].float()
        return F.embedding_bag(rows, values, per_sample_weights=share.to(values.dtype), mode="sum").float()

    @torch.inference_mode()
    def _expand(self, rows: Tensor) -> Tensor:
        """Return features (B, cell³, F) of rows (B, K), on the CPU."""
        device = next(self.network.parameters()).device
        return self.network.expand(rows.to(device)).cpu()


def cells_of(mask: Tensor, edge: int) -> Tensor:
    """Return booleans (D/edge, H/edge, W/edge): the cells in which a mask (D, H, W) has True voxels."""
    d, h, w = (n // edge for n in mask.shape)
    return mask.view(d, edge, h, edge, w, edge).any(5).any(3).any(1)
