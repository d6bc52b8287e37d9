"""NeuroNet: one encoder, and for each segmentation tool a decoder that learns to answer as the tool does.

Rajchl et al. 2018, "NeuroNet: Fast and robust reproduction of multiple brain image segmentation pipelines"
(arXiv 1806.04224), as its public code runs. The encoder is made of pre-activation residual units (He et al. 2016,
arXiv 1603.05027); each decoder is that of a fully convolutional network (Long et al. 2015, arXiv 1411.4038): it adds up
scores of all scales and has no non-linearity. The published input is a T1w image of 1 mm, aligned to MNI space with its
skull, of which the mean over all voxels is 0 and the standard deviation 1.

The padding of TensorFlow's "same" is symmetric in all these layers, because those of stride 2 have kernels of 4³.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bidsseg.networks.network import Network

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu6": nn.ReLU6, "lrelu0.1": partial(nn.LeakyReLU, 0.1)}
"""Of the residual units. The training script asks for the leaky ReLU, but the units never hear of it and use ReLU6."""


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv3d:
    """Convolution without a bias: (N, inputs, D, H, W) to (N, outputs, D, H, W), or half of each axis at stride 2."""
    return nn.Conv3d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=False)


def batch_norm(channels: int) -> nn.BatchNorm3d:
    """Batch normalisation with TensorFlow's defaults; it calls a momentum of 0.01 one of 0.99."""
    return nn.BatchNorm3d(channels, eps=1e-3, momentum=0.01)


class ResidualUnit(nn.Module):
    """Twice batch normalisation, activation and convolution, added to the input.

    (N, inputs, D, H, W) to (N, outputs, D, H, W), or half of each axis at stride 2. The input is passed on without
    parameters: halved by its maxima, and with channels of zeros before and after its own.

    Args:
        act: one of ACTIVATIONS.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, act: str) -> None:
        super().__init__()
        self.stride = stride
        before = (outputs - inputs) // 2
        self.zeros = before, outputs - inputs - before
        activation, kernel = ACTIVATIONS[act], 4 if stride == 2 else 3
        self.first = nn.Sequential(batch_norm(inputs), activation(), conv(inputs, outputs, kernel, stride))
        self.second = nn.Sequential(batch_norm(outputs), activation(), conv(outputs, outputs, 3))

    def forward(self, x: Tensor) -> Tensor:
        passed = F.max_pool3d(x, 2) if self.stride == 2 else x
        return F.pad(passed, (0,) * 6 + self.zeros) + self.second(self.first(x))


def upsample(x: Tensor) -> Tensor:
    """Twice the resolution by linear interpolation, as if zeros lay beyond: (N, C, D, H, W) to (N, C, 2D, 2H, 2W).

    The same as a transposed convolution of each channel, stride 2, with (1, 3, 3, 1) / 4 along each axis.
    """
    doubled = F.interpolate(F.pad(x, (1,) * 6), scale_factor=2, mode="trilinear")
    return doubled[..., 2:-2, 2:-2, 2:-2]


class Tail(nn.Module):
    """Scores of one head's regions, summed from the coarsest scale to the finest.

    Args:
        widths: channels of the encoder's features, the finest first.
    """

    def __init__(self, widths: Sequence[int], regions: int) -> None:
        super().__init__()
        self.coarsest = nn.Identity() if widths[-1] == regions else conv(widths[-1], regions, 1)
        self.skips = nn.ModuleList(nn.Sequential(conv(width, regions, 1), batch_norm(regions)) for width in widths[:-1])

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(N, regions, D, H, W), of the encoder's features at 1, 1/2, 1/4 ... of the grid's resolution."""
        x = self.coarsest(levels[-1])
        for skip, level in zip(reversed(self.skips), reversed(levels[:-1]), strict=True):
            x = upsample(x) + skip(level)
        return x


class NeuroNet(Network):
    """Voxel features of each head's tail, side by side; its 1³ convolution reads its own alone.

    The paper's variants differ in their outputs alone: FSL FAST (4 regions), FSL FIRST (16), SPM (4), MALP-EM (139) and
    MALP-EM's tissues (6), each with the background. "all" has the five (2,493,171 parameters), "tissue" has FAST, SPM
    and MALP-EM's tissues (2,435,464), and the others have one each.

    Args:
        outputs: number of regions of each head.
        images: number of input images (channels).
        widths: channels at 1, 1/2, 1/4 ... of the grid's resolution.
        act: one of ACTIVATIONS.
    """

    def __init__(
        self,
        outputs: dict[str, int],
        images: int = 1,
        widths: Sequence[int] = (16, 32, 64, 128),
        act: str = "relu6",
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(f"act is '{act}', not one of {', '.join(ACTIVATIONS)}")
        self.multiple = 2 ** (len(widths) - 1)
        self.numbers_per_voxel = 4 * widths[0] + 3 * sum(outputs.values())
        self.stem = conv(images, widths[0], 3)
        self.scales = nn.ModuleList(
            nn.Sequential(ResidualUnit(a, b, 2, act), ResidualUnit(b, b, 1, act)) for a, b in itertools.pairwise(widths)
        )
        self.tails = nn.ModuleDict({name: Tail(widths, regions) for name, regions in outputs.items()})
        self.heads = nn.ModuleDict({name: conv(regions, regions, 1) for name, regions in outputs.items()})
        self.apply(initialise)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Features (N, widths[s], D/2ˢ, H/2ˢ, W/2ˢ) of each scale s, of images (N, C, D, H, W)."""
        levels = [self.stem(image)]
        for scale in self.scales:
            levels.append(scale(levels[-1]))
        return levels

    def forward(self, image: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Features (N, F, D, H, W) of images (N, C, D, H, W); F is the sum of the regions of all heads."""
        levels = self.encode(image)
        return torch.cat([tail(levels) for tail in self.tails.values()], 1)

    def head(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight (R, F), zero for the features of other heads, and bias (R,), all zero, of a head."""
        weights = {key: next(module.parameters()).flatten(1) for key, module in self.heads.items()}
        own = weights[name]
        others = [own if key == name else own.new_zeros(len(own), len(weight)) for key, weight in weights.items()]
        return torch.cat(others, 1), own.new_zeros(len(own))

    def logits(self, image: Tensor, coordinates: Tensor | None = None) -> dict[str, Tensor]:
        """Those of every head, (N, R, D, H, W), of images (N, C, D, H, W)."""
        levels = self.encode(image)
        return {name: self.heads[name](tail(levels)) for name, tail in self.tails.items()}


def initialise(module: nn.Module) -> None:
    """Draws a kernel from ±√(3 / connections of an output), uniformly: it keeps the variance of what it is given."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
