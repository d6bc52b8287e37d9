"""Labelled scans warped onto scans without annotation (Oberoi et al. 2021, see ``networks.dfnet``).

The segmenter sees only the anatomy of an unlabelled scan: brightness and labels are those of the warped scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, overload

import torch
from torch import Generator, Tensor

from bidsseg.image.brightness import normalise
from bidsseg.learning.augment import UNMOVED, Warp, draw_warp, sample_image, sample_labels
from bidsseg.learning.cases import Case, ListedCase
from bidsseg.learning.optimiser import Optimiser, Schedule
from bidsseg.networks.dfnet import DFNet, warp_whole_voxels
from bidsseg.networks.eneuronet import NORMS
from bidsseg.schema import NonNegativeFloat, PositiveFloat, PositiveInt, Share, one_of


@dataclass(frozen=True)
class Registration:
    """Settings of the registration of samples to unlabelled scans.

    Attributes:
        share: share of the samples that are warped, without other motion.
        steps: steps of the training of DFNet, which ends earlier when a quarter of the run's time is used up.
        rate, kernel_rate, schedule: see ``Optimiser``; the paper uses Adam and does not report its rate.
        smoothness: weight of the displacement's roughness in its loss; whether the published loss has such a term is
            unknown.
        norm: see ``DFNet``.
    """

    share: Share = 0.3333
    steps: PositiveInt = 10_000
    rate: PositiveFloat = 1e-4
    kernel_rate: NonNegativeFloat = 0.0
    schedule: Schedule = "constant"
    smoothness: NonNegativeFloat = 1.0
    norm: Annotated[str, one_of(NORMS)] = "batch"

    @property
    def optimiser(self) -> Optimiser:
        """Return the optimiser of DFNet."""
        warm_up = 0.0 if self.schedule == "constant" else Optimiser.warm_up
        return Optimiser(self.rate, self.kernel_rate, weight_decay=0.0, warm_up=warm_up, schedule=self.schedule)


@dataclass(frozen=True)
class Mover:
    """Warps labelled scans onto unlabelled ones.

    Attributes:
        network: a trained DFNet.
        targets: unlabelled brains, see ``Placed``.
        share: share of the samples that are warped.
        precision: type of the network's activations.
    """

    network: DFNet
    targets: Sequence[Tensor]
    share: float
    precision: torch.dtype = torch.float32

    @torch.no_grad()
    def move(self, case: Case, warp: Warp, generator: Generator) -> Warp:
        """Return the placement of a sample, warped by whole voxels of its grid onto a random unlabelled brain.

        As each voxel takes the source of another one, image and labels move together and nothing is interpolated.
        """
        fixed = self.targets[int(torch.randint(len(self.targets), (), generator=generator))]
        moving = shown(case, warp)
        displacement = displace(self.network, moving, fixed, precision=self.precision).to(moving.device)
        source, _ = warp_whole_voxels(warp.source.permute(3, 0, 1, 2)[None], moving[0], displacement)
        return Warp(source[0].permute(1, 2, 3, 0).contiguous(), warp.mirrored)


@dataclass(frozen=True)
class Placed(Sequence[Tensor]):
    """Brains of scans as returned by ``placed``, each made when it is needed, so that they fill no memory."""

    cases: Sequence[ListedCase]
    shape: Sequence[int]
    spacing_mm: float

    def __len__(self) -> int:
        return len(self.cases)

    @overload
    def __getitem__(self, number: int) -> Tensor: ...
    @overload
    def __getitem__(self, number: slice) -> Placed: ...
    def __getitem__(self, number: int | slice) -> Tensor | Placed:
        if isinstance(number, slice):
            return Placed(self.cases[number], self.shape, self.spacing_mm)
        with torch.device("cpu"):  # samples are drawn with another default
            return placed(self.cases[number].opened(), self.shape, self.spacing_mm)


def displace(network: DFNet, moving: Tensor, fixed: Tensor, *, precision: torch.dtype) -> Tensor:
    """Return the displacement (N, 3, D, H, W), in voxels, from one image to another, on the network's device."""
    device = next(network.parameters()).device
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        displacement: Tensor = network(moving.to(device), fixed.to(device)).float()
        return displacement


def placed(case: Case, shape: Sequence[int], spacing_mm: float) -> Tensor:
    """Return the brain of a scan at the centre of a sample's grid, (1, 1, D, H, W), as input of DFNet."""
    return shown(case, draw_warp(UNMOVED, shape, spacing_mm, centre=case.centre, widening=None, generator=Generator()))


def shown(case: Case, warp: Warp) -> Tensor:
    """Return only the brain of a scan on a sample's grid (1, 1, D, H, W), brightness in about 0 to 1."""
    assert case.image is not None
    return normalise(sample_image(case.image[:1], warp)[0], sample_labels(case.brain, warp.source))[None, None]
