"""What the program asks of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn

from bidsseg.schema import PositiveInt

Widths = Annotated[Sequence[PositiveInt], Len(1)]
"""Channels at each resolution of a network, the finest first."""


class Network(nn.Module):
    """Features of every voxel, and heads that read them with one linear map each.

    All heads end in a convolution of one voxel, so that features can be interpolated, or picked at some voxels, before
    the regions are read: regions x voxels numbers are never held.
    """

    heads: nn.ModuleDict
    multiple = 1
    """The number of voxels by which each axis of the grid must be divisible."""

    numbers_per_voxel = 165
    """About how many numbers are held for each voxel of the grid while the features are computed."""
    whole = False
    """Whether it must be given the whole brain, since windows of it would say something else."""
    of_regions: tuple[str, ...] = ()
    """Beginnings of the names of tensors that belong to regions and do not tell of which protocol."""
    cell = 1
    """Edge, in voxels, of the cubes whose features are computed from one row of numbers."""
    memory_format = torch.channels_last_3d
    """How kernels and images lie in memory where 3-D convolutions are quick."""

    def forward(self, image: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Features (N, F, D, H, W) of images (N, C, D, H, W).

        Args:
            coordinates: (N, 3, D/2, H/2, W/2) positions in the frame of the brain, for networks that take them.
        """
        raise NotImplementedError  # every architecture has its own

    def rows(self, image: Tensor, coordinates: Tensor | None, cells: Tensor) -> Tensor:
        """Rows (B, K) of the True cells (D/cell, H/cell, W/cell) of one image (1, C, D, H, W), in their order."""
        features = self(image, coordinates)[0].permute(1, 2, 3, 0)
        return features.flatten(0, 2) if cells.all() else features[cells]

    def expand(self, rows: Tensor) -> Tensor:
        """Features (B, cell³, F) of the voxels of cells, from their rows (B, K)."""
        return rows[:, None]

    def head(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight (R, F) and bias (R,) of a head: logits = features @ weight.T + bias."""
        linear = self.heads[name]
        assert isinstance(linear, nn.Linear)
        return linear.weight, linear.bias

    def logits(self, image: Tensor, coordinates: Tensor | None = None) -> dict[str, Tensor]:
        """Those of every head, (N, R, D, H, W), of images (N, C, D, H, W)."""
        features = self(image, coordinates)
        read = {name: self.head(name) for name in self.heads}
        return {name: F.conv3d(features, weight[:, :, None, None, None], bias) for name, (weight, bias) in read.items()}

    def at(self, image: Tensor, coordinates: Tensor | None, points: Tensor) -> Tensor:
        """Features (P, F) at voxels (P, 3) of one image (1, C, D, H, W)."""
        x, y, z = points.T
        return self(image, coordinates)[0].permute(1, 2, 3, 0)[x, y, z]
