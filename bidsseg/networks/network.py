"""The interface of a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn

from bidsseg.schema import PositiveInt

Widths = Annotated[Sequence[PositiveInt], Len(1)]
"""Channels at each resolution of a network, the finest first."""


class OfHeads(nn.ModuleDict):
    """Modules by the name of the head, which may be that of an attribute of modules, such as ``train`` or ``float``."""

    def __setitem__(self, name: str, module: nn.Module) -> None:
        self._modules[name] = module


class Network(nn.Module):
    """Features of every voxel, and heads that read them with one linear map each.

    All heads end in a convolution of one voxel, so that features can be interpolated, or selected at some voxels,
    before the heads are applied: no array of regions x voxels is ever stored.
    """

    heads: nn.ModuleDict
    multiple = 1
    """The number of voxels by which each axis of the grid must be divisible."""

    numbers_per_voxel = 165
    """Approximate number of values stored for each voxel of the grid while the features are computed."""
    whole = False
    """Whether the network needs the whole brain, because windows would give other results."""
    positioned: bool | None = None
    """Whether the network requires coordinates or cannot read them; None if it ignores them."""
    last_layers: tuple[str, ...] = ("heads",)
    """Prefixes of the names of tensors after ``cells_at``; empty if these layers cannot be trained alone."""
    of_regions: tuple[str, ...] = ()
    """Prefixes of the names of tensors that belong to regions but do not name a protocol."""
    cell = 1
    """Edge, in voxels, of the cubes whose features are computed from one row of numbers."""
    memory_format = torch.channels_last_3d
    """Memory layout of kernels and images for fast 3-D convolutions."""

    def forward(self, image: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Return features (N, F, D, H, W) of images (N, C, D, H, W).

        Args:
            coordinates: (N, 3, D/2, H/2, W/2) positions in the frame of the brain, for networks that use them.
        """
        raise NotImplementedError  # every architecture overrides it

    def rows(self, image: Tensor, coordinates: Tensor | None, cells: Tensor) -> Tensor:
        """Return rows (B, K) of the True cells (D/cell, H/cell, W/cell) of one image (1, C, D, H, W), in order."""
        features: Tensor = self(image, coordinates)[0].permute(1, 2, 3, 0)
        return features.flatten(0, 2) if cells.all() else features[cells]

    def expand(self, rows: Tensor) -> Tensor:
        """Return features (B, cell³, F) of the voxels of cells, from their rows (B, K)."""
        return rows[:, None]

    def head(self, name: str) -> tuple[Tensor, Tensor]:
        """Return weight (R, F) and bias (R,) of a head: logits = features @ weight.T + bias."""
        linear = self.heads[name]
        assert isinstance(linear, nn.Linear)
        return linear.weight, linear.bias

    def logits_of(self, features: Tensor, heads: Iterable[str]) -> dict[str, Tensor]:
        """Return the logits (P, R) of some heads, from features (P, F)."""
        return {name: F.linear(features, *self.head(name)) for name in heads}

    def with_images(self, weights: dict[str, Tensor], before: int) -> dict[str, Tensor]:
        """Return the weights of this network with only its first images, extended to all images.

        The weights of the other images are 0, so that the prediction is the same. A network without this method
        returns the weights unchanged.

        Args:
            before: number of images that the network of the weights reads.
        """
        del before
        return weights

    def logits(self, image: Tensor, coordinates: Tensor | None = None) -> dict[str, Tensor]:
        """Return the logits (N, R, D, H, W) of every head, for images (N, C, D, H, W)."""
        features = self(image, coordinates)
        read = {name: self.head(name) for name in self.heads}
        return {name: F.conv3d(features, weight[:, :, None, None, None], bias) for name, (weight, bias) in read.items()}

    def at(self, image: Tensor, coordinates: Tensor | None, points: Tensor) -> Tensor:
        """Return features (P, F) at voxels (P, 3) of one image (1, C, D, H, W)."""
        return self.voxels(*self.cells_at(image, coordinates, points))

    def cells_at(self, image: Tensor, coordinates: Tensor | None, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows (P, K) of the cells that contain voxels (P, 3) of one image, and their places there (P,)."""
        x, y, z = points.T
        features: Tensor = self(image, coordinates)[0]
        return features.permute(1, 2, 3, 0)[x, y, z], torch.zeros_like(x)

    def voxels(self, rows: Tensor, within: Tensor) -> Tensor:
        """Return features (P, F) of voxels, from the rows (P, K) of their cells and their places in them (P,)."""
        return self.expand(rows)[torch.arange(len(rows), device=rows.device), within]
