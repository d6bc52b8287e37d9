"""SegNet over a whole brain: classification of every voxel of a mask, in stages that improve each other.

De Brébisson & Montana 2015, arXiv 1502.02445, section 3.4. The patches of neighbouring voxels overlap, so the planar
pathways are not computed patch by patch. A convolution gives the same value for the same pixels; two patches differ
only in the phase of the pooling. Pooling at every pixel, followed by convolutions whose kernels
are dilated by the stride of the pooling, computes all phases at once (Giusti et al. 2013, arXiv 1302.1700; Li et al.
2014, arXiv 1412.4526), and each patch's map is read from it at every fourth pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor

from bidsseg.networks.network import Network
from bidsseg.networks.segnet.network import GROUPS, MAP, PLANAR, POOL, SCALES, WIDTH, SegNet
from bidsseg.networks.segnet.surroundings import STEP, Surroundings, centroids_of, describe, distances, surroundings
from bidsseg.schema import NonNegativeFloat, NonNegativeInt, PositiveInt, one_of

SLAB = 16
"""Slices of the first axis whose voxels are classified together, so that the maps of the planes need about 1 GB.

Maps of the whole brain would take six times 50 numbers per voxel. In return, slices of the other two axes are computed
in windows that overlap from slab to slab, which costs little compared with the fully connected layers.
"""
SLICES = 8
"""Number of slices in one batch of the convolutions."""
VOXELS = 4096
"""Number of voxels in one batch of the fully connected layers."""
STAGES = 5
"""Largest number of segmentations with distances."""
SURE = 20.0
"""Logit of the background outside of the brain."""


# -- stages ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Staged:
    """The last segmentation.

    Attributes:
        labels: (X, Y, Z), 0 outside the mask.
        stages: number of stages, each with the centroids of the one before.
        settled: whether the last two segmentations are equal.
        first: labels before any stage.
    """

    labels: Tensor
    stages: int
    settled: bool
    first: Tensor


def segment_in_stages(
    first: SegNet,
    second: SegNet,
    image: Tensor,
    *,
    mask: Tensor,
    dtype: torch.dtype = torch.float32,
    most: int = STAGES,
) -> tuple[Staged, Tensor]:
    """Return labels of the P True voxels of a mask (X, Y, Z), and their last logits (P, N+1) on the CPU.

    Args:
        first: network without distances.
        second: network that also reads the distances to the centroids of the previous segmentation.
        image: (X, Y, Z) on an isotropic grid; it is scaled by the voxels of the mask.
        dtype: float32, or bfloat16 for matrix products and convolutions.
    """
    seen = surroundings(image, mask)
    logits = voxel_logits(first, seen, mask, dtype=dtype)
    known = first_layer(second, seen, mask, dtype=dtype)

    def refine(labels: Tensor) -> Tensor:
        nonlocal logits
        centroids = centroids_of(labels, len(second.distance_mean))
        logits = with_distances(second, known, mask, centroids=centroids, dtype=dtype)
        return painted(mask, logits)

    return until_settled(painted(mask, logits), refine, most), logits


def until_settled(labels: Tensor, refine: Callable[[Tensor], Tensor], most: int = STAGES) -> Staged:
    """Refine labels until nothing changes, or up to the maximal number of stages."""
    first = labels
    for stage in range(1, most + 1):
        before, labels = labels, refine(labels)
        if torch.equal(before, labels):
            return Staged(labels, stage, settled=True, first=first)
    return Staged(labels, most, settled=False, first=first)


class StagedSegNet(Network):
    """Both networks of SegNet as one, which segments a whole brain.

    Its features are the logits of the last stage, so that they can be interpolated and read like those of any network.
    Outside of the brain, where the image is 0, they predict background.

    Args:
        outputs: number of regions of the one head.
        groups: inputs of the first network; the second also reads the distances.
        hidden, scale, noise, cube_neurons: see SegNet.
        stages: largest number of segmentations with distances.
    """

    numbers_per_voxel = 400
    whole = True  # centroids are those of a whole brain
    memory_format = torch.preserve_format  # its convolutions are 2-D

    def __init__(
        self,
        outputs: dict[str, int],
        groups: Annotated[Sequence[Annotated[str, one_of(GROUPS)]], Len(1)] = ("fine", "compressed", "cube"),
        hidden: Sequence[PositiveInt] = (3000, 3000),
        *,
        scale: Annotated[str, one_of(SCALES)] = "both",
        noise: NonNegativeFloat = 0.2,
        cube_neurons: PositiveInt = 1000,
        stages: NonNegativeInt = STAGES,
    ) -> None:
        super().__init__()
        self.first = SegNet(outputs, groups, hidden=hidden, scale=scale, cube_neurons=cube_neurons)
        self.second = SegNet(
            outputs, (*groups, "distances"), hidden=hidden, scale=scale, noise=noise, cube_neurons=cube_neurons
        )
        ((self.name, self.regions),) = outputs.items()
        self.stages = stages
        last = f"joint.{2 * len(hidden)}."
        self.of_regions = (f"first.{last}", f"second.{last}", "second.joint.0.", "second.distance_", "first.distance_")

    def stage(self, number: int) -> SegNet:
        """Return the first network (0) or the second (1)."""
        return self.second if number else self.first

    def head(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the identity (R, R), and a zero bias (R,)."""
        return torch.eye(self.regions), torch.zeros(self.regions)

    def logits(self, image: Tensor, coordinates: Tensor | None = None) -> dict[str, Tensor]:
        """Return the logits (1, R, D, H, W) of the one head."""
        return {self.name: self(image, coordinates)}

    def forward(self, image: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Return logits (1, R, D, H, W) of a brain (1, 1, D, H, W)."""
        kind, mask = image.device.type, image[0, 0] != 0
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):  # enabled inside where needed
            _, last = segment_in_stages(self.first, self.second, image[0, 0], mask=mask, dtype=dtype, most=self.stages)
        found = torch.zeros((*mask.shape, self.regions), dtype=dtype)
        found[..., 0] = SURE
        found[mask.cpu()] = last.to(found.dtype)
        return found.permute(3, 0, 1, 2)[None]


# -- one network over a brain ------------------------------------------------------------------------------------------


def voxel_logits(
    network: SegNet,
    seen: Surroundings,
    mask: Tensor,
    *,
    centroids: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return logits (P, N+1) of the P True voxels of a mask (X, Y, Z), float32 (or float16, as dtype) on the CPU.

    The network is moved to the device of the image, and put into evaluation mode.

    Args:
        centroids: (N, 3) voxels, for a network with distances.
    """
    return with_distances(
        network, first_layer(network, seen, mask, dtype=dtype), mask, centroids=centroids, dtype=dtype
    )


@torch.inference_mode()
def first_layer(network: SegNet, seen: Surroundings, mask: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Return the first joint layer's output for all groups but the distances, (P, neurons), on the CPU.

    It is the same in every stage, and nearly all of the work; 1.2 million voxels with 800 neurons need 2 GB.
    """
    device = seen.image.device
    network = network.to(device).eval()
    voxels = torch.nonzero(mask).cpu()
    found = torch.empty((len(voxels), network.joint[0].out_features), dtype=dtype)  # type: ignore[arg-type]
    done = 0
    for points in voxels.split(voxels_of_slabs(mask)):
        found[done : done + len(points)] = slab_layer(network, seen, points.to(device), dtype=dtype)
        done += len(points)
    return found


@torch.inference_mode()
def with_distances(
    network: SegNet, known: Tensor, mask: Tensor, *, centroids: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return logits (P, N+1), as ``voxel_logits`` does, from the distances and the output of the first layer."""
    device = network.distance_mean.device
    found = []
    for points, layer in zip(torch.nonzero(mask).cpu().split(VOXELS), known.split(VOXELS), strict=True):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            layer = layer.to(device)
            if "distances" in network.groups:
                if centroids is None:
                    raise ValueError("distances are requested but no centroids are given")
                far = distances(points.to(device), centroids.to(device), network.scale)
                layer = layer + network.joined_distances(network.pathway("distances", far))
            logits = network.joint[1:](layer)
        found.append(logits.to("cpu", torch.float32 if dtype == torch.float32 else torch.float16))
    return torch.cat(found)


def painted(mask: Tensor, logits: Tensor) -> Tensor:
    """Return the label map (X, Y, Z), int16 on the CPU, of logits (P, N+1) at the P True voxels of a mask."""
    labels = torch.zeros(mask.shape, dtype=torch.int16)
    labels[mask.cpu()] = logits.argmax(1).to(torch.int16)
    return labels


def slab_layer(network: SegNet, seen: Surroundings, voxels: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Return the first joint layer's output without distances for voxels (P, 3) of the scan that are close together."""
    groups = [group for group in network.groups if group != "distances"]
    others = [group for group in groups if group not in PLANAR]
    found = []
    with torch.autocast(voxels.device.type, dtype, enabled=dtype != torch.float32):
        maps = PlanarMaps(network, seen, voxels)
        for points in voxels.split(VOXELS):
            inputs = describe(seen, points, others)
            parts = [
                maps.at(group, points) if group in PLANAR else network.pathway(group, inputs[group]) for group in groups
            ]
            joined = torch.cat([part.to(dtype) for part in parts], 1) if parts else seen.image.new_zeros(len(points), 0)
            found.append(network.joined(joined))
    return torch.cat(found)


def voxels_of_slabs(mask: Tensor) -> list[int]:
    """Return the number of True voxels in each slab of slices along the first axis, without empty slabs."""
    counts = [int(slab.count_nonzero()) for slab in mask.split(SLAB)]
    return [count for count in counts if count]


class PlanarMaps:
    """The planar pathways of all patches around the voxels of a slab.

    Args:
        points: (P, 3) voxels of the scan.
    """

    def __init__(self, network: SegNet, seen: Surroundings, points: Tensor) -> None:
        self.planes = network.planes
        self.seen = seen
        local = seen.local(points)
        self.low, high = local.amin(0), local.amax(0) + 1
        self.maps: dict[str, list[Tensor]] = {}
        for group in (group for group in network.groups if group in PLANAR):
            step = step_of(group)
            reach = step * (WIDTH // 2)
            self.maps[group] = []
            for i, axis in enumerate(self.planes):
                image = seen.image if group == "fine" else seen.averaged[axis]
                around = [0 if other == axis else reach for other in range(3)]
                window = tuple(slice(int(a) - r, int(b) + r) for a, b, r in zip(self.low, high, around, strict=True))
                slices = image[window].movedim(axis, 0)[:, None]
                parts = [dense_plane(network, group, i, slices=part) for part in slices.split(SLICES)]
                self.maps[group].append(torch.cat(parts))

    def at(self, group: str, points: Tensor) -> Tensor:
        """Return the output (P, planes × 800) of ``SegNet.pathway`` for the group's patches around voxels (P, 3)."""
        every = torch.arange(MAP, device=points.device) * POOL**2 * step_of(group)
        found = []
        for axis, maps in zip(self.planes, self.maps[group], strict=True):
            local = self.seen.local(points) - self.low
            row, column = (local[:, i, None] + every for i in range(3) if i != axis)
            read = maps[local[:, axis, None, None], row[:, :, None], column[:, None, :]]
            found.append(read.permute(0, 3, 1, 2).flatten(1))
        return torch.cat(found, 1)


def dense_plane(network: SegNet, group: str, i: int, *, slices: Tensor) -> Tensor:
    """Return the output of ``SegNet.plane`` for every patch, (S, H', W', 50), from slices (S, 1, H, W).

    The map of the patch whose first pixel is (h, w) is at (h + 4ai, w + 4aj), i and j from 0 to 3, where a is the
    distance of the pixels of a patch in voxels.
    """
    step = step_of(group)
    first, second = network.first[group], network.second[group][i]  # type: ignore[index]
    x = F.conv2d(slices, first.weight, first.bias, dilation=step)  # type: ignore[arg-type]
    x = F.relu(greatest(x, step))
    x = F.conv2d(x, second.weight, second.bias, dilation=POOL * step)
    x = F.relu(greatest(x, POOL * step))
    return x.permute(0, 2, 3, 1).contiguous()


def greatest(x: Tensor, step: int) -> Tensor:
    """Max-pool (S, C, H, W) at every pixel over 2×2 pixels with a distance of step; torch's own pooling is slower."""
    x = torch.maximum(x[:, :, step:], x[:, :, :-step])
    return torch.maximum(x[..., step:], x[..., :-step])


def step_of(group: str) -> int:
    """Return the distance in voxels of the pixels of a patch of a planar group."""
    return STEP if group == "compressed" else 1
