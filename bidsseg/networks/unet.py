"""A plain 3-D U-Net for lesions with anatomy (ACE) and for partial annotations.

Neither ACE (Roulet et al. 2019, arXiv 1903.03445: "a standard U-Net") nor the work on partial annotations (Dai et al.
2019, arXiv 1908.10851) is known to publish its network's size, so the numbers here are a choice of this project: the
U-Net of Çiçek et al. 2016 (arXiv 1606.06650) with four levels of 32 to 256 channels, instance normalisation and leaky
ReLU.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from bidsseg.networks.layers import InstanceNorm
from bidsseg.networks.network import Network, OfHeads, Widths
from bidsseg.schema import PositiveInt

SLOPE = 0.01
"""Slope of the leaky ReLU below zero."""


class DoubleConv(nn.Sequential):
    """Two times 3³ convolution, instance normalisation, leaky ReLU. (N, inputs, D, H, W) to (N, outputs, D, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            # No bias: the normalisation would remove it.
            layers.append(nn.Conv3d(channels, outputs, 3, padding=1, bias=False))
            layers += [InstanceNorm(outputs), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers)


class UNet(Network):
    """Voxel features that every head shares; each head reads them with one 1³ convolution.

    For ACE, one head predicts tissues and lesions. For partial annotations, one head predicts the full protocol and
    another one the partial protocol, whose background is then a separate class and contradicts nothing.

    The statistics of the normalisation are those of the input image: a window and the whole volume differ by
    more than the receptive field explains, and training needs more than one voxel at the lowest level.

    Args:
        outputs: number of regions of each head.
        images: number of input images (channels).
        widths: channels at 1, 1/2, 1/4 ... of the grid's resolution; the first is also the number of features.
    """

    def __init__(self, outputs: dict[str, int], images: PositiveInt = 1, widths: Widths = (32, 64, 128, 256)) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.multiple = 2 ** len(pairs)
        self.numbers_per_voxel = 7 * widths[0]
        self.first = DoubleConv(images, widths[0])
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool3d(2), DoubleConv(a, b)) for a, b in pairs)
        self.enlarge = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2, bias=False) for a, b in pairs)
        self.up = nn.ModuleList(DoubleConv(2 * a, a) for a, _ in pairs)
        self.heads = OfHeads({name: nn.Linear(widths[0], regions) for name, regions in outputs.items()})

    def forward(self, image: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Return features (N, widths[0], D, H, W) of images (N, C, D, H, W)."""
        levels = [self.first(image)]
        for down in self.down:
            levels.append(down(levels[-1]))
        x: Tensor = levels.pop()
        for enlarge, up in zip(reversed(self.enlarge), reversed(self.up), strict=True):
            x = up(torch.cat([levels.pop(), enlarge(x)], 1))
        return x
