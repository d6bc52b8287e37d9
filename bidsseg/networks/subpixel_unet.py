"""A U-Net that works at half the resolution of its grid and predicts at the full resolution.

The image is folded into channels at half resolution (space to depth), so that no detail is lost and little work is done
at full resolution; the last layer unfolds its channels again (sub-pixel convolution: Shi et al. 2016,
arXiv 1609.05158). Between them is a residual U-Net (Ronneberger et al. 2015; He et al. 2016) normalised over the
channels of each voxel, which makes a prediction independent of distant parts of the volume: windows and whole volumes
agree up to the receptive field, and training and inference compute the same function.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bidsseg.networks.network import Network, OfHeads, Widths
from bidsseg.schema import PositiveInt

SLAB = 8
"""Number of planes of cells whose last convolution is computed together."""


class ChannelNorm(nn.Module):
    """Normalisation of the channels of each voxel. Input and output (N, C, D, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)

    def rows(self, x: Tensor) -> Tensor:
        """Return normalised voxels (..., C) with channels last."""
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), self.bias.to(x.dtype))


def conv(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, bias: bool = False) -> nn.Sequential:
    """Return convolution, normalisation and ReLU."""
    padding = 1 if kernel == 3 else 0
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=bias), ChannelNorm(outputs), nn.ReLU(inplace=True)
    )


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a convolution of one voxel, without bias, as a matrix product, which keeps channels last in memory."""
    assert isinstance(layer, nn.Conv3d)
    return F.linear(x.permute(0, 2, 3, 4, 1), layer.weight.flatten(1)).permute(0, 4, 1, 2, 3)


class Residual(nn.Module):
    """Two 3³ convolutions with a shortcut; the second is initialised with zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels)
        self.second = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm = ChannelNorm(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        change = self.norm(self.second(self.first(x)))
        change += x
        return F.relu_(change)


class SubpixelUNet(Network):
    """Voxel features on the grid of the input; heads read them with one linear map each.

    Args:
        images: number of input images (channels).
        coordinates: number of coordinate channels, given at half resolution.
        widths: channels at 1/2, 1/4, 1/8 ... of the grid's resolution.
        features: channels of the features at full resolution.
        last: channels of the last convolution, at half resolution.
        outputs: number of regions of each head.
    """

    last_layers = ("unfold", "heads")

    def __init__(
        self,
        outputs: dict[str, int],
        images: PositiveInt = 1,
        coordinates: Literal[0, 3] = 3,
        *,
        widths: Widths = (32, 64, 128, 192),
        features: PositiveInt = 32,
        last: PositiveInt = 64,
    ) -> None:
        super().__init__()
        self.cell, self.positioned = 2, coordinates > 0
        self.numbers_per_voxel = widths[0]  # four arrays at half resolution, and the same amount for all coarser scales
        self.features = features
        # Without the bias, the normalisation would make bright and dark tissue equal.
        self.images = images
        self.stem = conv(8 * images + coordinates, widths[0], bias=True)
        pairs = list(itertools.pairwise(widths))
        self.multiple = 2 ** len(widths)
        self.down = nn.ModuleList(nn.Sequential(conv(a, b, kernel=2, stride=2), Residual(b)) for a, b in pairs)
        self.bottom = Residual(widths[-1])
        self.reduce = nn.ModuleList(nn.Conv3d(b, a, 1, bias=False) for a, b in pairs)
        self.up = nn.ModuleList(Residual(a) for a, _ in pairs[1:])
        self.last = conv(widths[0], last)
        self.unfold = nn.Conv3d(last + 8 * images, 8 * features, 1)
        self.heads = OfHeads({name: nn.Linear(features, regions) for name, regions in outputs.items()})

    def with_images(self, weights: dict[str, Tensor], before: int) -> dict[str, Tensor]:
        stem, unfold = weights["stem.0.weight"], weights["unfold.weight"]
        last = self.last[0].out_channels
        assert isinstance(last, int)
        return weights | {
            "stem.0.weight": with_folded(stem, 0, before=before, now=self.images),
            "unfold.weight": with_folded(unfold, last, before=before, now=self.images),
        }

    def trunk(self, image: Tensor, coordinates: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the input of the last convolution, (N, widths[0], D/2, H/2, W/2), and the folded image (N, 8C, …)."""
        x = folded = fold(image)
        if coordinates is not None:
            x = torch.cat([x, coordinates.to(x.dtype).contiguous(memory_format=torch.channels_last_3d)], 1)
        levels = [self.stem(x.contiguous(memory_format=torch.channels_last_3d))]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = self.bottom(levels.pop())
        for i in reversed(range(len(self.down))):
            x = F.interpolate(pointwise(self.reduce[i], x), scale_factor=2, mode="trilinear")
            x = x.contiguous(memory_format=torch.channels_last_3d)  # on a GPU, interpolation moves the channels first
            x += levels.pop()
            x = self.up[i - 1](x) if i > 0 else x
        return x, folded

    def coarse(self, image: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Return features at half resolution, (N, last + 8C, D/2, H/2, W/2), of images (N, C, D, H, W).

        The brightness of the voxels is passed on unchanged: it distinguishes tissues at borders.
        """
        x, folded = self.trunk(image, coordinates)
        x = self.last(x)
        return torch.cat([x, folded.to(x.dtype)], 1)

    def rows(self, image: Tensor, coordinates: Tensor | None, cells: Tensor) -> Tensor:
        """Return rows (B, last + 8C) of the True cells (D/2, H/2, W/2) of one image: the result of ``coarse`` there.

        The last convolution, a third of the work, is computed in slabs, each within the box of its True cells.
        """
        trunk, folded = self.trunk(image, coordinates)
        convolution, norm = self.last[0], self.last[1]
        assert isinstance(convolution, nn.Conv3d) and isinstance(norm, ChannelNorm)
        found = trunk.new_empty(int(cells.sum()), convolution.out_channels + folded.shape[1])
        found[:, convolution.out_channels :] = folded[0].permute(1, 2, 3, 0)[cells].to(found.dtype)
        done = 0
        for start in range(0, cells.shape[0], SLAB):
            asked = cells[start : start + SLAB].nonzero()
            if not len(asked):
                continue
            asked[:, 0] += start
            low, high = asked.amin(0), asked.amax(0) + 1
            part = F.conv3d(surrounded(trunk, low.tolist(), high.tolist()), convolution.weight)[0].permute(1, 2, 3, 0)
            x, y, z = (asked - low).T
            found[done : done + len(asked), : convolution.out_channels] = F.relu_(norm.rows(part[x, y, z]))
            done += len(asked)
        return found

    def expand(self, rows: Tensor) -> Tensor:
        """Return features (B, 8, features) of the voxels of cells, from their rows (B, last + 8C)."""
        assert self.unfold.bias is not None
        unfolded = F.linear(rows, self.unfold.weight.flatten(1).to(rows.dtype), self.unfold.bias.to(rows.dtype))
        return F.relu_(unfolded).view(len(rows), 8, self.features)

    def cells_at(self, image: Tensor, coordinates: Tensor | None, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows (P, last + 8C) of the cells with voxels (P, 3) of one image, and their places there (P,)."""
        coarse = self.coarse(image, coordinates)
        _, height, width = coarse.shape[2:]
        half = points // 2
        flat = (half[:, 0] * height + half[:, 1]) * width + half[:, 2]
        rows = coarse[0].permute(1, 2, 3, 0).reshape(-1, coarse.shape[1])[flat]
        parity = 4 * (points[:, 0] % 2) + 2 * (points[:, 1] % 2) + points[:, 2] % 2
        return rows, parity

    def forward(self, image: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Return features (N, features, D, H, W) at full resolution, channels last in memory.

        ``unfold(self.unfold(coarse))`` would move every number separately; here, whole lines of voxels are moved.
        """
        coarse = self.coarse(image, coordinates).permute(0, 2, 3, 4, 1)
        n, d, h, w, channels = coarse.shape
        assert self.unfold.bias is not None
        weight = self.unfold.weight.view(2, 2, 2 * self.features, channels).to(coarse.dtype)
        bias = self.unfold.bias.view(2, 2, 2 * self.features).to(coarse.dtype)
        lines = coarse.new_empty((n, d, 2, h, 2, w, 2 * self.features))
        for i, j in itertools.product(range(2), range(2)):
            lines[:, :, i, :, j] = F.relu(F.linear(coarse, weight[i, j], bias[i, j]))
        return lines.view(n, 2 * d, 2 * h, 2 * w, self.features).permute(0, 4, 1, 2, 3)


def surrounded(x: Tensor, low: Sequence[int], high: Sequence[int]) -> Tensor:
    """Return the box from low to high (3,), exclusive, of (N, C, D, H, W), with a margin of one voxel, 0 outside."""
    sizes = list(zip(low, high, x.shape[2:], strict=True))
    box = x[:, :, *(slice(max(a - 1, 0), b + 1) for a, b, _ in sizes)]
    beyond = [(int(a == 0), int(b == n)) for a, b, n in sizes]
    box = F.pad(box, [n for pair in reversed(beyond) for n in pair]) if any(map(any, beyond)) else box
    return box.contiguous(memory_format=torch.channels_last_3d)


def fold(x: Tensor) -> Tensor:
    """Turn the voxels of 2³ blocks into channels: (N, C, D, H, W) to (N, 8C, D/2, H/2, W/2), channels last."""
    n, c, d, h, w = x.shape
    x = x.reshape(n, c, d // 2, 2, h // 2, 2, w // 2, 2)
    return x.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(n, d // 2, h // 2, w // 2, 8 * c).permute(0, 4, 1, 2, 3)


def with_folded(kernel: Tensor, first: int, *, before: int, now: int) -> Tensor:
    """Return a kernel (O, I, D, H, W) that reads more folded images, with 0 for the further ones.

    Args:
        first: position of the first channel of the folded images among the I.
        before, now: number of images.
    """
    start, folded, end = kernel.tensor_split([first, first + 8 * before], dim=1)
    blocks = folded.unflatten(1, (8, before))
    further = blocks.new_zeros((len(kernel), 8, now - before, *kernel.shape[2:]))
    return torch.cat([start, torch.cat([blocks, further], 2).flatten(1, 2), end], 1)


def unfold(x: Tensor) -> Tensor:
    """Invert fold: (N, 8C, D, H, W) to (N, C, 2D, 2H, 2W)."""
    n, c, d, h, w = x.shape
    x = x.view(n, 2, 2, 2, c // 8, d, h, w)
    return x.permute(0, 4, 5, 1, 6, 2, 7, 3).reshape(n, c // 8, 2 * d, 2 * h, 2 * w)
