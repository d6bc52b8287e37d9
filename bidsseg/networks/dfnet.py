"""DFNet: the displacement between two brains, to augment E-NeuroNet's annotated images.

Oberoi et al. 2021, "E-NeuroNet: Efficient 3D CNN for Segmentation of Neuroimages". An annotated image and its labels
are warped onto an image without annotation, so that the segmenter sees the anatomy of the latter. The
network is E-NeuroNet's with two inputs, normalisation and its own last layers: 1,800,723 parameters. It is trained on
pairs of images in 0 to 1, without labels, by their similarity after warping (``similarity_loss``) and by the smoothness
of the displacement (``roughness``). The latter, like the activation before the last layer, is a choice of this project,
since it was not published.

A displacement u (N, 3, D, H, W) is in voxels along the axes D, H, W: the warped image at v is the image at v + u(v).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bidsseg.networks.eneuronet import MULTIPLE, Activation, Trunk, initialise

EPSILON = 1e-8
"""Added to the sums of squares of the correlation."""


class DFNet(nn.Module):
    """Network that computes the displacement from one image to another.

    Args:
        norm: "batch" as published, whose running means fit no single pair with batches of one; or "pair".
    """

    multiple = MULTIPLE

    def __init__(self, norm: str = "batch") -> None:
        super().__init__()
        self.trunk = Trunk(images=2, norm=norm)
        self.before = nn.Sequential(nn.Conv3d(32, 16, 3, padding=1), Activation(0.0))
        self.displacement = nn.Conv3d(16, 3, 1)
        self.apply(initialise)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Return the displacement (N, 3, D, H, W), in voxels, from moving to fixed, both (N, 1, D, H, W) in 0 to 1."""
        displacement: Tensor = self.displacement(self.before(self.trunk(torch.cat([moving, fixed], 1))))
        return displacement


def similarity_loss(moved: Tensor, fixed: Tensor) -> Tensor:
    """Return one minus the squared correlation of two images (N, 1, D, H, W) over the whole volume, mean of the batch.

    Because of the square, an inverted contrast is as good as an equal one.
    """
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (moved, fixed))
    sizes = (a.square().sum(1) + EPSILON) * (b.square().sum(1) + EPSILON)
    return (1 - (a * b).sum(1).square() / sizes).mean()


def roughness(displacement: Tensor) -> Tensor:
    """Return the sum of the squares of the nine derivatives of a displacement (N, 3, D, H, W), mean of the voxels."""
    return torch.stack([displacement.diff(dim=axis).square().sum(1).mean() for axis in (2, 3, 4)]).sum()


def warp(image: Tensor, displacement: Tensor) -> Tensor:
    """Return the image (N, C, D, H, W) at v + displacement(v), trilinear; the border is repeated outside."""
    source = voxels(displacement) + displacement
    size = torch.tensor(image.shape[2:], device=source.device).view(3, 1, 1, 1)
    grid = (source / (size - 1) * 2 - 1).flip(1).permute(0, 2, 3, 4, 1)
    return F.grid_sample(image.to(grid.dtype), grid, mode="bilinear", padding_mode="border", align_corners=True)


def warp_whole_voxels(image: Tensor, labels: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image (N, C, D, H, W) and its labels (N, D, H, W), both warped by the displacement in whole voxels.

    No value is interpolated: each is that of the voxel v + round(displacement(v)), or of the nearest one in the volume.
    """
    depth, height, width = labels.shape[1:]
    source = voxels(displacement) + displacement.round()
    i, j, k = (x.clamp(0, n - 1).long() for x, n in zip(source.unbind(1), (depth, height, width), strict=True))
    flat = ((i * height + j) * width + k).flatten(1)
    moved = image.flatten(2).gather(2, flat[:, None].expand(-1, image.shape[1], -1)).view_as(image)
    return moved, labels.flatten(1).gather(1, flat).view_as(labels)


def voxels(displacement: Tensor) -> Tensor:
    """Return the position (3, D, H, W) of every voxel, in voxels."""
    axes = [torch.arange(n, dtype=torch.float32, device=displacement.device) for n in displacement.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))
