"""The inputs of SegNet for the voxels of a brain: patches, and distances to the centroids of the regions.

De Brébisson & Montana 2015, arXiv 1502.02445, sections 3.1 and 4. All grids are isotropic; lengths are in voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bidsseg.errors import DataError
from bidsseg.networks.segnet.network import CUBE, WIDTH

STEP = 3
"""Edge of the square of voxels whose mean is a pixel of a compressed patch."""
MARGIN = 1 + STEP * WIDTH // 2
"""Largest distance in voxels of a compressed patch from the brain."""


@dataclass(frozen=True)
class Surroundings:
    """A brain cropped with the margin that the patches of its voxels need.

    Attributes:
        image: (X, Y, Z) intensity; mean 0 and standard deviation 1 over the brain.
        origin: (3,) first voxel of the image in the scan; negative if it was padded.
    """

    image: Tensor
    origin: Tensor

    @cached_property
    def averaged(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each axis the image (X, Y, Z) averaged over 3×3 voxels in the plane normal to the axis."""
        means = []
        for axis in range(3):
            slices = self.image.movedim(axis, 0)[:, None]
            means.append(F.avg_pool2d(slices, STEP, 1, STEP // 2)[:, 0].movedim(0, axis))
        return means[0], means[1], means[2]

    def local(self, points: Tensor) -> Tensor:
        """Return voxels (P, 3) of the scan as voxels of the image; they must be in the box around the brain."""
        points = points - self.origin
        size = torch.tensor(self.image.shape, device=points.device)
        if (points < MARGIN).any() or (points >= size - MARGIN).any():
            raise ValueError("voxels outside the box around the brain have no patches")
        return points


def surroundings(image: Tensor, brain: Tensor) -> Surroundings:
    """Crop an image (X, Y, Z) to a brain (X, Y, Z) of booleans and scale it by its voxels; outside the scan it is 0."""
    found = torch.nonzero(brain)
    if len(found) == 0:
        raise DataError("the brain has no voxels")
    inside = image[brain].float()
    mean, deviation = inside.mean(), inside.std(correction=0).clamp(min=1e-6)
    low, high = found.amin(0) - MARGIN, found.amax(0) + MARGIN + 1
    size = torch.tensor(image.shape, device=image.device)
    kept = image[tuple(slice(max(0, int(a)), int(b)) for a, b in zip(low, high, strict=True))].float()
    before, after = (-low).clamp(min=0).tolist(), (high - size).clamp(min=0).tolist()
    padded = F.pad(kept, [n for axis in (2, 1, 0) for n in (before[axis], after[axis])])
    return Surroundings((padded - mean) / deviation, low)


# -- the groups of inputs ----------------------------------------------------------------------------------------------


def describe(
    seen: Surroundings,
    points: Tensor,
    groups: Sequence[str],
    *,
    planes: Sequence[int] = (0, 1, 2),
    centroids: Tensor | None = None,
    scale: str = "both",
) -> dict[str, Tensor]:
    """Return the inputs of a network with some groups and planes, for voxels (P, 3) of the scan.

    Args:
        centroids: (N, 3), needed only for the distances.
        scale: scale of the distances, as in the network.
    """
    inputs = {}
    local = seen.local(points)
    for group in groups:
        if group == "fine":
            inputs[group] = torch.stack([patches(seen.image, local, axis, step=1) for axis in planes], 1)
        elif group == "compressed":
            inputs[group] = torch.stack([patches(seen.averaged[axis], local, axis, step=STEP) for axis in planes], 1)
        elif group == "cube":
            inputs[group] = cubes(seen.image, local)
        elif group == "coordinates":
            inputs[group] = coordinates(seen, local)
        elif centroids is None:
            raise ValueError("distances are requested but no centroids are given")
        else:
            inputs[group] = distances(points, centroids, scale)
    return inputs


def patches(image: Tensor, points: Tensor, axis: int, *, step: int) -> Tensor:
    """Return patches (P, 29, 29) of an image (X, Y, Z), every step-th voxel around voxels (P, 3) in a plane."""
    slices = image.movedim(axis, 0)
    reach = step * (WIDTH // 2)
    s, h, w = slices.shape
    a, b, c = slices.stride()
    windows = slices.as_strided(
        (s, h - 2 * reach, w - 2 * reach, WIDTH, WIDTH), (a, b, c, step * b, step * c), slices.storage_offset()
    )
    row, column = (points[:, i] - reach for i in range(3) if i != axis)
    return windows[points[:, axis], row, column]


def cubes(image: Tensor, points: Tensor) -> Tensor:
    """Return patches (P, 13, 13, 13) around voxels (P, 3) of an (X, Y, Z) image."""
    windows = image.unfold(0, CUBE, 1).unfold(1, CUBE, 1).unfold(2, CUBE, 1)
    x, y, z = (points - CUBE // 2).unbind(1)
    return windows[x, y, z]


def coordinates(seen: Surroundings, points: Tensor) -> Tensor:
    """Return voxels (P, 3) of the image in the frame of the brain, from -1 to 1 along each axis."""
    half = (torch.tensor(seen.image.shape, device=points.device) - 1) / 2
    return (points - half) / (half - MARGIN).clamp(min=1)


# -- centroids ---------------------------------------------------------------------------------------------------------


def centroids_of(labels: Tensor, count: int) -> Tensor:
    """Return the centres of mass (N, 3), in voxels, of the regions 1 to N of a label map (X, Y, Z).

    A missing region gets the mean of those present. DataError if all are missing.
    """
    voxels = torch.nonzero(labels)
    regions = labels[tuple(voxels.unbind(1))].long()
    sizes = torch.bincount(regions, minlength=count + 1)[1:]
    if not sizes.any():
        raise DataError("the segmentation has no region to compute a centroid of")
    sums = [torch.bincount(regions, voxels[:, i].double(), count + 1)[1:] for i in range(3)]
    centres = torch.stack(sums, 1) / sizes[:, None]
    centres[sizes == 0] = centres[sizes > 0].mean(0)
    return centres.float()


def mean_distance(centroids: Tensor) -> Tensor:
    """Return D: the mean distance of two of N centroids (N, 3), over the N(N+1)/2 pairs i ≤ j.

    The paper's formula multiplies by the number of pairs, which would not normalise the size of brains.
    """
    n = len(centroids)
    return torch.cdist(centroids, centroids, compute_mode="donot_use_mm_for_euclid_dist").triu().sum() * 2 / (n * n + n)


def distances(points: Tensor, centroids: Tensor, scale: str) -> Tensor:
    """Return distances (P, N) of voxels (P, 3) to centroids (N, 3).

    They are divided by D unless the scale is "zscore"; the network itself applies the mean and deviation of its
    training sample.
    """
    found = torch.cdist(points.to(centroids), centroids, compute_mode="donot_use_mm_for_euclid_dist")
    return found if scale == "zscore" else found / mean_distance(centroids).clamp(min=1)


# -- sampling ----------------------------------------------------------------------------------------------------------


def draw_voxels(labels: Tensor, count: int, generator: Generator) -> Tensor:
    """Draw different voxels (count, 3) of a label map (X, Y, Z), uniformly among labelled ones; all if fewer."""
    labelled = torch.nonzero(labels)
    return labelled[torch.randperm(len(labelled), generator=generator)[:count]]
