"""PyTorch layers in equivalent forms that are faster with channels last in memory."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class InstanceNorm(nn.InstanceNorm3d):
    """Instance normalisation (Ulyanov et al. 2016, arXiv 1607.08022), with a slope and a shift for each channel.

    (N, C, D, H, W) to the same shape. For a single image, batch normalisation gives the same result and
    keeps the memory layout, which instance normalisation does not.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps, affine=True)

    def forward(self, input: Tensor) -> Tensor:
        if len(input) > 1:
            return super().forward(input)
        return F.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)


class TransposedConv(nn.ConvTranspose3d):
    """Transposed 3³ convolution of stride 1, computed as a convolution: (N, inputs, D, H, W) to (N, outputs, …)."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=1, groups=groups)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        kernel = as_convolution(self.weight, self.groups).flip(2, 3, 4)
        return F.conv3d(input, kernel, self.bias, padding=1, groups=self.groups)


class DoublingConv(nn.ConvTranspose3d):
    """Transposed 3³ convolution of stride 2: (N, inputs, D, H, W) to (N, outputs, 2D, 2H, 2W).

    As with TensorFlow's "same" padding, the last plane along each axis is omitted. Even voxels of the output come from
    two input voxels, by the first and the last weight, odd ones from one, by the middle weight. So the eight kinds of
    voxels are channels of one convolution of 2³, in whose 4³ weights those beyond 3³ are 0.
    """

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, 2, groups=groups)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        groups, (depth, height, width) = self.groups, input.shape[2:]
        weight = F.pad(as_convolution(self.weight, groups), (0, 1) * 3)
        # (outputs, inputs, 4, 4, 4) to (group, kind of voxel, output of the group, inputs, 2, 2, 2)
        by_kind = weight.unflatten(4, (2, 2)).unflatten(3, (2, 2)).unflatten(2, (2, 2)).unflatten(0, (groups, -1))
        kernel = by_kind.permute(0, 4, 6, 8, 1, 2, 3, 5, 7).flip(6, 7, 8).flatten(0, 4)
        assert self.bias is not None
        bias = self.bias.view(groups, 1, -1).expand(-1, 8, -1).flatten()
        found = F.conv3d(F.pad(input, (1, 0) * 3), kernel, bias, groups=groups)
        kinds = found.movedim(1, -1).unflatten(-1, (groups, 2, 2, 2, -1))
        placed = kinds.permute(0, 1, 5, 2, 6, 3, 7, 4, 8)
        output: Tensor = placed.reshape(len(input), 2 * depth, 2 * height, 2 * width, -1).movedim(-1, 1)
        return output


def as_convolution(weight: Tensor, groups: int) -> Tensor:
    """Return the weight (I, O/groups, D, H, W) of a transposed convolution as (O, I/groups, D, H, W), not mirrored."""
    plain: Tensor = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return plain
