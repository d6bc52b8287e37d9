"""NeuroNet: one encoder, and for each segmentation tool a decoder that reproduces the tool.

Rajchl et al. 2018, "NeuroNet: Fast and robust reproduction of multiple brain image segmentation pipelines"
(arXiv 1806.04224), following its public code. The encoder consists of pre-activation residual units (He et al. 2016,
arXiv 1603.05027); each decoder is that of a fully convolutional network (Long et al. 2015, arXiv 1411.4038): it adds up
scores of all scales and has no non-linearity. The published input is a T1w image of 1 mm, aligned to MNI space with its
skull, with mean 0 and standard deviation 1 over all voxels.

The published network segments windows of 128³ voxels with half of each shared with the next, and averages their
results. Here the network segments the whole brain at once, since its layers are the same at every voxel, or windows
when memory is short.

The padding of TensorFlow's "same" is symmetric in all these layers, because those of stride 2 have kernels of 4³.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn

from bidsseg.networks.network import Network, OfHeads, Widths
from bidsseg.schema import PositiveInt, one_of

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu6": nn.ReLU6, "lrelu0.1": partial(nn.LeakyReLU, 0.1)}
"""Activation of the residual units. The training script sets the leaky ReLU, but the units ignore it and use ReLU6."""

AT_ONCE = 32
"""Number of channels that are upsampled together outside of training."""


def conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> nn.Conv3d:
    """Return a convolution without bias: (N, inputs, D, H, W) to (N, outputs, D, H, W), half of it at stride 2."""
    return nn.Conv3d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=False)


def batch_norm(channels: int) -> nn.BatchNorm3d:
    """Return batch normalisation with TensorFlow's defaults, which calls a momentum of 0.01 one of 0.99."""
    return nn.BatchNorm3d(channels, eps=1e-3, momentum=0.01)


class ResidualUnit(nn.Module):
    """Two sequences of batch normalisation, activation and convolution, added to the input.

    (N, inputs, D, H, W) to (N, outputs, D, H, W), or half of each axis at stride 2. The shortcut has no
    parameters: it halves the input by max-pooling, and pads its channels with zeros on both sides.

    Args:
        act: one of ACTIVATIONS.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, act: str) -> None:
        super().__init__()
        self.stride = stride
        before = (outputs - inputs) // 2
        self.zeros = before, outputs - inputs - before
        activation, kernel = ACTIVATIONS[act], 4 if stride == 2 else 3
        self.first = nn.Sequential(batch_norm(inputs), activation(), conv(inputs, outputs, kernel, stride=stride))
        self.second = nn.Sequential(batch_norm(outputs), activation(), conv(outputs, outputs, 3))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.second(self.first(x))
        passed = F.max_pool3d(x, 2) if self.stride == 2 else x
        return F.pad(passed.to(changed.dtype), (0,) * 6 + self.zeros) + changed


def upsample(x: Tensor) -> Tensor:
    """Double the resolution by linear interpolation with zero padding: (N, C, D, H, W) to (N, C, 2D, 2H, 2W).

    Equals a transposed convolution of each channel, stride 2, with (1, 3, 3, 1) / 4 along each axis.
    """
    with torch.autocast(x.device.type, enabled=False):  # autocast would double the memory
        doubled = F.interpolate(F.pad(x, (1,) * 6), scale_factor=2, mode="trilinear")
    return doubled[..., 2:-2, 2:-2, 2:-2]


def upsampled_at(x: Tensor, points: Tensor) -> Tensor:
    """Return the result (P, C) of ``upsample`` for features (1, C, D, H, W) at voxels (P, 3) of the doubled grid."""
    padded = F.pad(x, (1,) * 6)[0].permute(1, 2, 3, 0)
    padded = padded.to(torch.promote_types(x.dtype, torch.float32))
    nearest = points // 2 + 1
    i, j, k = torch.stack([nearest, nearest + 2 * (points % 2) - 1], -1).unbind(1)  # each (P, 2): near and far
    _, height, width, _ = padded.shape
    voxels = (i[:, :, None, None] * height + j[:, None, :, None]) * width + k[:, None, None, :]
    taps = torch.tensor([0.75, 0.25]).to(padded)
    weights = torch.einsum("i,j,k->ijk", taps, taps, taps).flatten().repeat(len(points), 1)
    return F.embedding_bag(voxels.flatten(1), padded.flatten(0, 2), mode="sum", per_sample_weights=weights)


@dataclass(frozen=True)
class Moments:
    """Mean (C,) and covariance (C, C) of features over all their voxels, and the number of voxels."""

    mean: Tensor
    covariance: Tensor
    count: int

    @staticmethod
    def of(features: Tensor) -> Moments:
        """Return the moments of features (N, C, D, H, W), in single precision at least."""
        with torch.autocast(features.device.type, enabled=False):
            rows = features.movedim(1, -1).flatten(0, -2)
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            mean = rows.mean(0)
            rows = rows - mean
            return Moments(mean, rows.T @ rows / len(rows), len(rows))


def joined(levels: Sequence[Tensor]) -> Tensor:
    """Return features (N, C, D, H, W) of all scales but the finest, finer first, concatenated on the grid of the first.

    Each of these scales but the coarsest gets a channel of ones, which is smaller at the border of the grid after
    upsampling.
    """
    x = levels[-1]
    for level in reversed(levels[:-1]):
        x = beside(torch.cat([level, torch.ones_like(level[:, :1])], 1), x)
    return x


def beside(level: Tensor, coarse: Tensor) -> Tensor:
    """Return features (N, C + K, 2D, 2H, 2W): those of a scale, followed by coarser ones (N, K, D, H, W) upsampled.

    Outside of training, a few channels are upsampled at a time, directly into the result: the features of a scan are
    by far the largest array, and would otherwise be stored three times.
    """
    if torch.is_grad_enabled():
        return torch.cat([level, upsample(coarse)], 1)
    count = level.shape[1]
    shape = len(level), count + coarse.shape[1], *level.shape[2:]
    found = level.new_empty(shape).contiguous(memory_format=torch.channels_last_3d)
    found[:, :count] = level
    for start in range(0, coarse.shape[1], AT_ONCE):
        few = coarse[:, start : start + AT_ONCE]
        found[:, count + start : count + start + few.shape[1]] = upsample(few)
    return found


class Tail(nn.Module):
    """The final layers of one head: scores of its regions at each scale, normalised except at the coarsest, and added.

    Scores are linear in the encoder's features, and so is the upsampling, which treats all channels alike. The features
    can therefore be upsampled first, once for all heads, and the mean and deviation of a score follow from the moments
    of the features: no head ever stores its scores at all voxels.

    Args:
        widths: channels of the encoder's features, the finest first.
    """

    def __init__(self, widths: Sequence[int], regions: int) -> None:
        super().__init__()
        self.coarsest = nn.Identity() if widths[-1] == regions else conv(widths[-1], regions, 1)
        self.skips = nn.ModuleList(nn.Sequential(conv(width, regions, 1), batch_norm(regions)) for width in widths[:-1])

    def forward(self, moments: Sequence[Moments]) -> tuple[Tensor, Tensor]:
        """Return weight (R, F) and bias (R,) of the sum of the scores, for NeuroNet's features.

        Args:
            moments: moments of the encoder's features at each scale except the coarsest; not needed in evaluation,
                which uses running means.
        """
        columns, shifts = [], []
        for i, skip in enumerate(self.skips):
            score, norm = skip.children()
            assert isinstance(score, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d)
            weight, shift = normalised(score.weight.flatten(1), norm, moments[i] if self.training else None)
            columns.append(weight)
            shifts.append(shift)
        if isinstance(self.coarsest, nn.Conv3d):
            columns.append(self.coarsest.weight.flatten(1))
        else:
            columns.append(torch.eye(len(shifts[0])).to(shifts[0]))
        for i, shift in enumerate(shifts[1:], 1):
            columns[i] = torch.cat([columns[i], shift[:, None]], 1)
        return torch.cat(columns, 1), shifts[0]


def normalised(weight: Tensor, norm: nn.BatchNorm3d, moments: Moments | None) -> tuple[Tensor, Tensor]:
    """Return weight (R, C) and bias (R,) of scores that are batch-normalised after a linear map with that weight.

    Args:
        moments: moments of the input of the linear map, which also update the running means of the normalisation; None
            to use the running means.
    """
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
    if moments is None:
        mean, variance = norm.running_mean, norm.running_var
    else:
        mean, variance = weight @ moments.mean, ((weight @ moments.covariance) * weight).sum(1)
        with torch.no_grad():
            unbiased = variance * (moments.count / max(moments.count - 1, 1))
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(unbiased, norm.momentum)
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    slope = norm.weight * torch.rsqrt(variance + norm.eps)
    return slope[:, None] * weight, norm.bias - slope * mean


class NeuroNet(Network):
    """The encoder's features of all scales at every voxel, which each head reads through its tail.

    The paper's variants differ only in their outputs: FSL FAST (4 regions), FSL FIRST (16), SPM (4), MALP-EM (139) and
    MALP-EM's tissues (6), each with the background. "all" has all five (2,493,171 parameters), "tissue" has FAST, SPM
    and MALP-EM's tissues (2,435,464), and the others have one each.

    Args:
        outputs: number of regions of each head.
        images: number of input images (channels).
        widths: channels at 1, 1/2, 1/4 ... of the grid's resolution, at least two.
        act: one of ACTIVATIONS.
    """

    last_layers = ()  # heads depend on the statistics of the encoder's features

    def __init__(
        self,
        outputs: dict[str, int],
        images: PositiveInt = 1,
        widths: Annotated[Widths, Len(2)] = (16, 32, 64, 128),
        *,
        act: Annotated[str, one_of(ACTIVATIONS)] = "relu6",
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(f"act is '{act}', not one of {', '.join(ACTIVATIONS)}")
        self.multiple = 2 ** (len(widths) - 1)
        self.numbers_per_voxel = 8 * widths[0] + sum(widths)
        self.stem = conv(images, widths[0], 3)
        self.scales = nn.ModuleList(
            nn.Sequential(ResidualUnit(a, b, 2, act=act), ResidualUnit(b, b, 1, act=act))
            for a, b in itertools.pairwise(widths)
        )
        self.tails = OfHeads({name: Tail(widths, regions) for name, regions in outputs.items()})
        self.heads = OfHeads({name: conv(regions, regions, 1) for name, regions in outputs.items()})
        self.apply(initialise)
        self.moments: list[Moments] = []

    def encode(self, image: Tensor) -> list[Tensor]:
        """Return features (N, widths[s], D/2ˢ, H/2ˢ, W/2ˢ) of each scale s, of images (N, C, D, H, W).

        In training, their moments are stored for the heads.
        """
        levels = [self.stem(image)]
        for scale in self.scales:
            levels.append(scale(levels[-1]))
        if self.training:
            self.moments = [Moments.of(level) for level in levels[:-1]]
        return levels

    def forward(self, image: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Return features (N, F, D, H, W) of images (N, C, D, H, W)."""
        finest, *coarser = self.encode(image)
        return beside(finest, joined(coarser))

    def at(self, image: Tensor, coordinates: Tensor | None, points: Tensor) -> Tensor:
        """Return features (P, F) at voxels (P, 3) of one image (1, C, D, H, W), without upsampling all voxels."""
        finest, *coarser = self.encode(image)
        x, y, z = points.T
        return torch.cat([finest[0].permute(1, 2, 3, 0)[x, y, z], upsampled_at(joined(coarser), points)], 1)

    def head(self, name: str) -> tuple[Tensor, Tensor]:
        """Return weight (R, F) and bias (R,) of a head.

        In training, they depend on the latest features of ``encode``, because of batch normalisation.
        """
        last = next(self.heads[name].parameters()).flatten(1)
        with torch.autocast(last.device.type, enabled=False):
            weight, bias = self.tails[name](self.moments)
            return last @ weight, last @ bias


def initialise(module: nn.Module) -> None:
    """Initialise a kernel uniformly from ±√(3 / connections of an output), which preserves the variance."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
