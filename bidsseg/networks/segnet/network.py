"""SegNet: predicts the region of one voxel from patches around it and its distances to the regions' centroids.

De Brébisson & Montana 2015, "Deep neural networks for anatomical brain segmentation", arXiv 1502.02445. The paper (its
figure 1) states 30,565,555 parameters for 135 outputs. That counts the first convolutions, which the three planes
share, once for each plane; the network has 2,080 fewer, 30,563,475.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = ("fine", "compressed", "cube", "coordinates", "distances")
"""Groups of inputs, in the order in which the network joins them."""
PLANAR = ("fine", "compressed")
"""The groups of 2-D patches."""
WIDTH, CUBE = 29, 13
"""Widths of the 2-D patches (either kind) and of the 3-D patch, in pixels and voxels."""
KERNEL, POOL = 5, 2
KERNELS = (20, 50)
MAP = 4
"""Width of a patch after two convolutions and poolings."""
SCALES = ("D", "zscore", "both")


class SegNet(nn.Module):
    """Logits of the regions of voxels, each described by groups of inputs.

    Args:
        outputs: number of regions N+1 of the one head, background first; N of them have a centroid.
        groups: the inputs, from GROUPS. The paper's final network has all but the coordinates; its
            first stage has no distances either (section 3.4). Table 1 uses other groups.
        planes: axes normal to the planes of the 2-D patches; a single one is the "2D patch" of table 1.
        hidden: neurons of the layers after the pathways are joined.
        scale: normalisation of distances between brains: "D" (mean distance of two centroids, section 3.1.2), "zscore"
            (mean and standard deviation over the training sample) or "both".
        cube_neurons: neurons in each of the two layers that read the 3-D patch.
        noise: standard deviation of the noise added to the scaled distances in training (section 3.4; the paper gives
            no value).
    """

    distance_mean: Tensor
    distance_sd: Tensor

    def __init__(
        self,
        outputs: Mapping[str, int],
        groups: Sequence[str] = ("fine", "compressed", "cube", "distances"),
        planes: Sequence[int] = (0, 1, 2),
        *,
        hidden: Sequence[int] = (3000, 3000),
        scale: str = "both",
        noise: float = 0.2,
        cube_neurons: int = 1000,
    ) -> None:
        super().__init__()
        if len(outputs) != 1 or not groups or not set(groups) <= set(GROUPS) or scale not in SCALES:
            raise ValueError(f"SegNet has one head, a scale of {SCALES} and some groups of {GROUPS}")
        self.groups = tuple(group for group in GROUPS if group in groups)
        self.planes, self.scale, self.noise = tuple(planes), scale, noise
        (regions,) = outputs.values()
        few, many = KERNELS
        planar = [group for group in self.groups if group in PLANAR]
        self.first = nn.ModuleDict({group: nn.Conv2d(1, few, KERNEL) for group in planar})
        self.second = nn.ModuleDict(
            {group: nn.ModuleList(nn.Conv2d(few, many, KERNEL) for _ in self.planes) for group in planar}
        )
        if "cube" in self.groups:
            self.cube = nn.Sequential(*connected(CUBE**3, cube_neurons, cube_neurons))
        self.register_buffer("distance_mean", torch.zeros(regions - 1))
        self.register_buffer("distance_sd", torch.ones(regions - 1))
        width = {
            **dict.fromkeys(PLANAR, len(self.planes) * many * MAP**2),
            "cube": cube_neurons,
            "coordinates": 3,
            "distances": regions - 1,
        }
        joined = sum(width[group] for group in self.groups)
        self.seen = joined - (width["distances"] if "distances" in self.groups else 0)
        self.joint = nn.Sequential(*connected(joined, *hidden), nn.Linear([joined, *hidden][-1], regions))
        self.apply(initialise)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def learn_distances(self, sample: Tensor) -> None:
        """Store the mean and deviation of each distance in a training sample (P, N), unless D is the only scale."""
        if self.scale != "D":
            self.distance_mean.copy_(sample.mean(0))
            self.distance_sd.copy_(sample.std(0, correction=0).clamp(min=1e-6))

    @torch.no_grad()
    def start_from(self, other: SegNet) -> None:
        """Copy the weights of the same network without distances; distances get zero weights at first."""
        own, given = self.state_dict(), other.state_dict()
        for name, value in own.items():
            if value.shape == given[name].shape:
                value.copy_(given[name])
            else:
                value.zero_()
                value[:, : given[name].shape[1]] = given[name]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return logits (P, N+1) of P voxels.

        Args:
            inputs: each of the network's groups; ``fine`` and ``compressed`` are (P, planes, 29, 29), ``cube`` is
                (P, 13, 13, 13), ``coordinates`` (P, 3), ``distances`` (P, N).
        """
        logits: Tensor = self.joint(torch.cat([self.pathway(group, inputs[group]) for group in self.groups], 1))
        return logits

    def pathway(self, group: str, x: Tensor) -> Tensor:
        """Return the output of the pathway of one group, before the pathways are joined, (P, neurons)."""
        if group in PLANAR:
            return torch.cat([self.plane(group, i, x[:, i]) for i in range(len(self.planes))], 1)
        if group == "cube":
            x = self.cube(x.flatten(1))
        if group == "distances":
            x = (x - self.distance_mean) / self.distance_sd
            return x + self.noise * torch.randn_like(x) if self.training else x
        return x

    def plane(self, group: str, i: int, patches: Tensor) -> Tensor:
        """Return two convolutions, each pooled, of patches (P, 29, 29) in the i-th plane, as (P, 800)."""
        x = F.relu(F.max_pool2d(self.first[group](patches[:, None]), POOL))
        return F.relu(F.max_pool2d(self.second[group][i](x), POOL)).flatten(1)  # type: ignore[index]

    def joined(self, seen: Tensor) -> Tensor:
        """Return the first joint layer's output for all groups but the distances, (P, neurons), before the ReLU."""
        return F.linear(seen, self.joint[0].weight[:, : self.seen], self.joint[0].bias)  # type: ignore[index,arg-type]

    def joined_distances(self, distances: Tensor) -> Tensor:
        """Return the contribution of the distances' pathway to that output."""
        return F.linear(distances, self.joint[0].weight[:, self.seen :])  # type: ignore[index]


def connected(*neurons: int) -> list[nn.Module]:
    """Return fully connected layers of the given sizes, input first, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(neurons):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers


def initialise(module: nn.Module) -> None:
    """Initialise weights uniformly within ±√(6 / (fan in + fan out)), counting outputs after pooling; biases 0.1."""
    if isinstance(module, nn.Conv2d):
        area = module.kernel_size[0] * module.kernel_size[1]
        fans = area * (module.in_channels + module.out_channels / POOL**2)
    elif isinstance(module, nn.Linear):
        fans = float(module.in_features + module.out_features)
    else:
        return
    nn.init.uniform_(module.weight, -((6 / fans) ** 0.5), (6 / fans) ** 0.5)
    assert module.bias is not None
    nn.init.constant_(module.bias, 0.1)
