"""E-NeuroNet: an encoder and a decoder of residual blocks with eight paths, on the whole volume at once.

Oberoi et al. 2021, "E-NeuroNet: Efficient 3D CNN for Segmentation of Neuroimages", of which the code is public; it
extends the 2-D encoder of ResNeXt (Xie et al. 2017, arXiv 1611.05431) by a third dimension and a decoder. With 31
outputs it has 1,806,143 parameters. Images are not normalised: the published input is FreeSurfer's ``norm`` volume of
160 x 192 x 224 voxels with its brightness of 0 to 255.

Strided layers pad as TensorFlow's "same" does at even sizes: nothing before, one voxel after.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bidsseg.networks.layers import DoublingConv, InstanceNorm, TransposedConv
from bidsseg.networks.network import Network, OfHeads
from bidsseg.schema import PositiveInt, one_of

PATHS = 8
"""Groups of the 3³ convolution of a block; the paper's cardinality."""
SLOPE = 0.3
"""Slope of the leaky ReLU below zero."""
DROPOUT = {"as_run": 0.0, "as_stated": 0.8, "keep_0.8": 0.2}
"""Dropout rate. The published code sets 0.8 but trains in inference mode, in which nothing is dropped; 0.8 may also
have been meant as the share that is kept."""
ENCODER = ((3, 1, 32, 64), (4, 2, 64, 128), (6, 2, 128, 256))
"""Blocks, stride, channels inside of a block and after it, at 1/4, 1/8 and 1/16 of the grid's resolution."""
DECODER = ((6, 256, 128), (4, 128, 64), (3, 64, 32))
"""Blocks, channels inside of a block and after it, at 1/8, 1/4 and 1/2."""
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": partial(nn.BatchNorm3d, eps=1e-3, momentum=0.01),
    "pair": partial(InstanceNorm, eps=1e-3),
}
"""Normalisation in DFNet: over the batch, as published, or for each pair of images separately."""
MULTIPLE = 16
"""The number of voxels by which each axis of the grid must be divisible."""


class HalvingConv(nn.Conv3d):
    """3³ convolution of stride 2: (N, inputs, D, H, W) to (N, outputs, D/2, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, 2, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 1) * 3))


class Activation(nn.Sequential):
    """Leaky ReLU and dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__(nn.LeakyReLU(SLOPE, inplace=True), nn.Dropout(dropout))


class Block(nn.Module):
    """Bottleneck of eight paths added to its input, or to a projection of it, followed by a leaky ReLU.

    Args:
        inputs: channels of the input.
        inner: channels after the first 1³ convolution. Where the grouped convolution reads fewer, the rest is dead:
            its parameters exist and are never used.
        grouped: the convolution of eight paths, which may halve or double the resolution.
        outputs: channels of the output.
        shortcut: projects the input to the size of the output; None if the sizes are equal.
        norm: normalisation of the last convolution and of the shortcut, one of NORMS; None without.
    """

    def __init__(
        self,
        inputs: int,
        inner: int,
        grouped: nn.Conv3d | nn.ConvTranspose3d,
        *,
        outputs: int,
        shortcut: nn.Conv3d | nn.ConvTranspose3d | None,
        dropout: float,
        norm: str | None,
    ) -> None:
        super().__init__()
        self.first = nn.Conv3d(inputs, inner, 1)
        self.grouped = grouped
        self.last = with_norm(nn.Conv3d(grouped.out_channels, outputs, 1), norm)
        self.shortcut = nn.Identity() if shortcut is None else with_norm(shortcut, norm)
        self.activation = Activation(dropout)

    def forward(self, x: Tensor) -> Tensor:
        read = self.grouped.in_channels
        assert self.first.bias is not None
        inner = self.activation(F.conv3d(x, self.first.weight[:read], self.first.bias[:read]))
        added = self.last(self.activation(self.grouped(inner)))
        return F.leaky_relu(self.shortcut(x) + added, SLOPE, inplace=True)


def with_norm(conv: nn.Conv3d | nn.ConvTranspose3d, norm: str | None) -> nn.Module:
    """Return a convolution followed by its normalisation."""
    return conv if norm is None else nn.Sequential(conv, NORMS[norm](conv.out_channels))


def encoder_stage(
    blocks: int, stride: int, inputs: int, *, inner: int, outputs: int, dropout: float, norm: str | None
) -> nn.Sequential:
    """Return blocks, the first of which projects (N, inputs, D, H, W) to (N, outputs, D/stride, H/stride, W/stride)."""

    def even() -> nn.Conv3d:
        return nn.Conv3d(inner, inner, 3, padding=1, groups=PATHS)

    grouped = even() if stride == 1 else HalvingConv(inner, inner, PATHS)
    first = Block(
        inputs,
        inner,
        grouped,
        outputs=outputs,
        shortcut=nn.Conv3d(inputs, outputs, 1, stride),
        dropout=dropout,
        norm=norm,
    )
    return nn.Sequential(
        first,
        *(
            Block(outputs, inner, even(), outputs=outputs, shortcut=None, dropout=dropout, norm=norm)
            for _ in range(blocks - 1)
        ),
    )


def decoder_stage(
    blocks: int, inputs: int, inner: int, *, outputs: int, read: int, dropout: float, norm: str | None
) -> nn.Sequential:
    """Return blocks that read some channels; the first enlarges (N, inputs, D, H, W) to (N, outputs, 2D, 2H, 2W)."""

    def even() -> nn.ConvTranspose3d:
        return TransposedConv(read, outputs, PATHS)

    # A kernel of one voxel: the input is at the even voxels, the others contain only the bias.
    shortcut = nn.ConvTranspose3d(inputs, outputs, 1, 2, output_padding=1)
    first = Block(
        inputs,
        inner,
        DoublingConv(read, outputs, PATHS),
        outputs=outputs,
        shortcut=shortcut,
        dropout=dropout,
        norm=norm,
    )
    return nn.Sequential(
        first,
        *(
            Block(outputs, inner, even(), outputs=outputs, shortcut=None, dropout=dropout, norm=norm)
            for _ in range(blocks - 1)
        ),
    )


class Trunk(nn.Module):
    """The part shared with DFNet: (N, images, D, H, W) to (N, 32, D, H, W), with axes that are multiples of MULTIPLE.

    Args:
        images: number of input images (channels).
        dropout: share of the activations that is dropped in training.
        faithful: whether the decoder's grouped convolutions read only the first half of their input. The published
            code does so, because its input groups are as wide as its output groups.
        norm: normalisation of the blocks, one of NORMS; None without.
    """

    def __init__(self, images: int, dropout: float = 0.0, *, faithful: bool = True, norm: str | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(HalvingConv(images, 16), nn.Conv3d(16, 32, 3, padding=1), Activation(dropout))
        # Rounding up lets the last window reach one voxel beyond the volume, which is ignored.
        self.pool = nn.MaxPool3d(3, 2, ceil_mode=True)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        channels = 32
        for blocks, stride, inner, outputs in ENCODER:
            self.encoder.append(
                encoder_stage(blocks, stride, channels, inner=inner, outputs=outputs, dropout=dropout, norm=norm)
            )
            channels = outputs
        for blocks, inner, outputs in DECODER:
            read = outputs if faithful else inner
            self.decoder.append(
                decoder_stage(blocks, channels, inner, outputs=outputs, read=read, dropout=dropout, norm=norm)
            )
            channels = outputs
        self.enlarge = DoublingConv(channels, 32)

    def forward(self, image: Tensor) -> Tensor:
        if any(n % MULTIPLE for n in image.shape[2:]):  # some would not fail, but give a plane less
            raise ValueError(f"a grid of {tuple(image.shape[2:])} voxels: each axis must be divisible by {MULTIPLE}")
        levels = [self.stem(image)]
        x = self.pool(levels[0])
        for stage in self.encoder:
            x = stage(x)
            levels.append(x)
        levels.pop()
        for stage in self.decoder:
            x = stage(x) + levels.pop()
        features: Tensor = self.enlarge(x)
        return features


class ENeuroNet(Network):
    """Voxel features of each head's last 3³ convolution, concatenated; the 1³ convolution of a head reads only its own.

    The paper has one head. With several, all share the trunk up to its last enlargement.

    Args:
        outputs: number of regions of each head.
        images: number of input images (channels).
        dropout: one of DROPOUT.
        faithful: see Trunk.
    """

    multiple = MULTIPLE

    def __init__(
        self,
        outputs: dict[str, int],
        images: PositiveInt = 1,
        dropout: Annotated[str, one_of(DROPOUT)] = "as_run",
        *,
        faithful: bool = True,
    ) -> None:
        super().__init__()
        share = DROPOUT[dropout]
        self.outputs = dict(outputs)
        self.numbers_per_voxel = 64 + 3 * sum(outputs.values())
        self.trunk = Trunk(images, share, faithful=faithful)
        self.before = OfHeads(
            {name: nn.Sequential(nn.Conv3d(32, n, 3, padding=1), Activation(share)) for name, n in outputs.items()}
        )
        self.heads = OfHeads({name: nn.Linear(n, n) for name, n in outputs.items()})
        self.apply(initialise)

    def forward(self, image: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Return features (N, F, D, H, W) of images (N, C, D, H, W); F is the sum of the regions of all heads."""
        x = self.trunk(image)
        return torch.cat([before(x) for before in self.before.values()], 1)

    def head(self, name: str) -> tuple[Tensor, Tensor]:
        """Return weight (R, F), zero for the features of other heads, and bias (R,) of a head."""
        weight, bias = super().head(name)
        before = sum(self.outputs[other] for other in itertools.takewhile(lambda other: other != name, self.outputs))
        after = sum(self.outputs.values()) - before - self.outputs[name]
        return F.pad(weight, (before, after)), bias


def initialise(module: nn.Module) -> None:
    """Initialise kernels as in Glorot & Bengio 2010, for each path separately, and biases with zero."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
        shape, groups = module.weight.shape, getattr(module, "groups", 1)
        bound = math.sqrt(6 / (math.prod(shape[2:]) * (shape[0] / groups + shape[1])))
        nn.init.uniform_(module.weight, -bound, bound)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
