"""Labelled scans in the form of the training, and random samples of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import torch
from torch import Generator, Tensor

from bidsseg.image.brightness import normalise, normalise_each
from bidsseg.image.grid import brain_frame, coordinates
from bidsseg.labels import Protocol
from bidsseg.learning.augment import (
    Intensity,
    Spatial,
    Warp,
    blurred_for,
    change_intensity,
    draw_warp,
    sample_image,
    sample_labels,
    uniform,
)
from bidsseg.learning.region_centres import Centres, region_centres
from bidsseg.learning.synthesis import CONTRASTS, noise_around, strip, synthesise_each
from bidsseg.schema import NonNegativeInt, PositiveInt, Share, ShareBelowOne, one_of

VENTRICLES = 3
"""Value of fluid in the generic BIDS table."""
CUT_UNCERTAINTY = 2.5
"""Factor of the uncertainty of the frame of a cut brain, which is estimated from its regions."""


@dataclass(frozen=True)
class Annotation:
    """A label map of a protocol: values (X, Y, Z) are positions in its table."""

    protocol: Protocol
    values: Tensor


class ListedCase(ABC):
    """A scan of a training, in memory or in a file, whose arrays are opened when they are needed.

    Attributes:
        name: dataset/participant, with session and run.
    """

    name: str

    @property
    @abstractmethod
    def protocols(self) -> Sequence[Protocol]:
        """The protocols of its annotations, in their order."""

    @property
    @abstractmethod
    def centres(self) -> Sequence[Centres]:
        """Sizes and centres of the regions of each of its annotations."""

    @property
    @abstractmethod
    def has_image(self) -> bool:
        """Whether it has an image and not only a label map."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of its arrays."""

    @property
    def dataset(self) -> str:
        """The dataset of the case: a name is dataset/participant."""
        return self.name.split("/")[0]

    @cached_property
    def kind(self) -> tuple[str, ...]:
        """The protocols of its annotations, by name and sorted."""
        return tuple(sorted(protocol.name for protocol in self.protocols))

    @abstractmethod
    def opened(self) -> Case:
        """Return the case with its arrays."""


@dataclass(frozen=True)
class Case(ListedCase):
    """One scan on a 1 mm RAS grid (X, Y, Z).

    Attributes:
        image: (C, X, Y, Z) brightness, one channel for each input, 0 everywhere for a missing input; or None for a
            label map without an image, from which images are synthesised.
        annotations: label maps on the same grid; the first drives the synthesis. None for an unlabelled scan.
        brain: booleans.
        widening: (3, x, y, z) direction towards the ventricles on a 4 mm grid, or None.
    """

    name: str
    image: Tensor | None
    annotations: tuple[Annotation, ...]
    brain: Tensor
    widening: Tensor | None = None

    def opened(self) -> Case:
        return self

    @property
    def protocols(self) -> Sequence[Protocol]:
        return [annotation.protocol for annotation in self.annotations]

    @property
    def centres(self) -> Sequence[Centres]:
        return [region_centres(each.values, len(each.protocol.regions), self.brain) for each in self.annotations]

    @property
    def has_image(self) -> bool:
        return self.image is not None

    @property
    def size(self) -> int:
        maps = [annotation.values for annotation in self.annotations]
        return sum(array.nbytes for array in (self.image, self.brain, self.widening, *maps) if array is not None)

    def to(self, device: str | torch.device) -> Case:
        """Return the case on a device; the case itself if it is there."""
        if self.brain.device == torch.device(device):
            return self
        image = None if self.image is None else self.image.to(device)
        widening = None if self.widening is None else self.widening.to(device)
        maps = tuple(Annotation(each.protocol, each.values.to(device)) for each in self.annotations)
        return Case(self.name, image, maps, self.brain.to(device), widening)

    @cached_property
    def centre(self) -> Tensor:
        """Voxel (3,) at the centre of the brain."""
        return torch.tensor(brain_frame(self.brain)[0], dtype=torch.float32)


@dataclass(frozen=True)
class Sampling:
    """The form of a training sample.

    Attributes:
        shape: (D, H, W) voxels of the sample; all axes divisible by the multiple of the network.
        points: number of voxels of the sample that the loss reads; 0 for all.
        inside: share of these voxels drawn inside the brain.
        balance: a region of n voxels is drawn in proportion to n ** (1 - balance) (0: by volume; 1: all equally often).
        anywhere: the sample may be anywhere in the scan and not around the brain; its brightness is that of the whole
            scan, normalised, without cuts or other changes.
        whole_head: the sample shows the whole head and not only the brain.
        realistic: share of synthetic images with a contrast near that of their kind; the others have any contrast.
        contrasts: kinds of contrast that the first synthetic image alternates between, by suffix; empty for its own.
        stripped: share of whole-head samples that are skull-stripped.
        cut: share of samples in which a part of the field of view is missing.
        deepest_cut: largest share of the field of view that is missing.
        noise_around: share of samples with strong noise in the air, as in MP2RAGE (UNIT1) images; in real images,
            where they are 0.
        missing: share of the samples without all images but the first, so that a network learns to work without them.
    """

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    points: NonNegativeInt = 65536
    inside: Share = 0.85
    balance: Share = 0.3
    whole_head: bool = False
    realistic: Share = 0.6
    contrasts: tuple[Annotated[str, one_of(CONTRASTS)], ...] = ()
    stripped: Share = 0.35
    cut: Share = 0.0
    deepest_cut: ShareBelowOne = 0.35
    noise_around: Share = 0.0
    anywhere: bool = False
    missing: Share = 0.0


@dataclass(frozen=True)
class View:
    """Settings of the presentation of cases in training.

    Attributes:
        sampling, spatial, intensity: position of a sample, its motion, and the changes of its brightness.
        spacing_mm: spacing of the sample's grid.
        normalisation: normalisation of the brightness, see ``image.brightness``.
        contrasts: contrast of each image, by suffix, if it is synthesised.
    """

    sampling: Sampling
    spatial: Spatial
    intensity: Intensity
    spacing_mm: float
    normalisation: str = "percentile"
    contrasts: Sequence[str] = ("T1w",)


@dataclass(frozen=True)
class Sample:
    """Network input and annotated voxels.

    Attributes:
        image: (1, C, D, H, W).
        coordinates: (1, 3, D/2, H/2, W/2) or None.
        points: (P, 3) voxels.
        values: for each annotation its protocol and the values (P,) at the points.
    """

    image: Tensor
    coordinates: Tensor | None
    points: Tensor
    values: list[tuple[Protocol, Tensor]] = field(default_factory=list)

    def to(self, device: str | torch.device) -> Sample:
        """Return the sample on a device."""
        coordinates = None if self.coordinates is None else self.coordinates.to(device)
        values = [(protocol, at_points.to(device)) for protocol, at_points in self.values]
        return Sample(self.image.to(device), coordinates, self.points.to(device), values)

    def used_by(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of the sample until this stream has used it, although another stream has written it."""
        for array in (self.image, self.coordinates, self.points, *(values for _, values in self.values)):
            if array is not None:
                array.record_stream(stream)


def draw_sample(case: Case, view: View, generator: Generator, *, move: Callable[[Warp], Warp] | None = None) -> Sample:
    """Draw one random view of a case; each of its images is changed and normalised separately.

    Args:
        move: applies a further motion to its voxels.
    """
    sampling, intensity, spacing_mm, normalisation = view.sampling, view.intensity, view.spacing_mm, view.normalisation
    centre, middle = case.centre, (torch.tensor(case.brain.shape, dtype=torch.float32) - 1) / 2
    if sampling.anywhere:
        reach = (torch.tensor(case.brain.shape) - torch.tensor(sampling.shape) * spacing_mm).clamp(min=0) / 2
        centre = middle + reach * (2 * torch.rand(3, generator=generator) - 1)
    elif sampling.whole_head:
        centre = centre + uniform(0, 1, generator) * (middle - centre)
    warp = draw_warp(
        view.spatial, sampling.shape, spacing_mm, centre=centre, widening=case.widening, generator=generator
    )
    if move is not None:
        warp = move(warp)
    brain = sample_labels(case.brain, warp.source[::2, ::2, ::2])
    image, head = drawn_images(case, view, warp, generator=generator)
    if sampling.noise_around and not sampling.anywhere and uniform(0, 1, generator) < sampling.noise_around:
        image = noise_around(image, head, generator)
    shown = torch.ones(sampling.shape, dtype=torch.bool)
    if not sampling.whole_head or uniform(0, 1, generator) < sampling.stripped:
        inner_mm, outer_mm = uniform(0, 6, generator), uniform(0, 16, generator)
        shown = strip(brain, inner_mm, outer_mm, spacing_mm=2 * spacing_mm, generator=generator)
    is_cut = sampling.cut > 0 and uniform(0, 1, generator) < sampling.cut
    if is_cut:
        shown = shown & field_of_view(sampling.shape, sampling.deepest_cut, generator)
    if len(view.contrasts) > 1 and uniform(0, 1, generator) < sampling.missing:
        image[1:] = 0
    if case.image is None or not sampling.anywhere:
        mask = shown if not sampling.whole_head else None
        there = [i for i, channel in enumerate(image) if i == 0 or channel.any()]
        changed = [
            change_intensity(normalise(image[i], mask), intensity, spacing_mm, generator=generator) for i in there
        ]
        image = torch.zeros_like(image)
        image[there] = normalise_each(torch.stack(changed) * shown, mask, normalisation)
    points = draw_points(brain & shown[::2, ::2, ::2], case, warp.source, sampling=sampling, generator=generator)
    source = warp.source[points[:, 0], points[:, 1], points[:, 2]]
    sample = Sample(
        image=image[None],
        coordinates=None if sampling.whole_head else jittered_coordinates(brain, is_cut=is_cut, generator=generator),
        points=points,
    )
    for annotation in case.annotations:
        sample.values.append((annotation.protocol, values_at(annotation, source, mirrored=warp.mirrored).long()))
    return sample


def drawn_images(case: Case, view: View, warp: Warp, *, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the images (C, D, H, W) of a case on the model grid, synthesised if it has none, and a mask of the head.

    The mask is booleans (D, H, W).
    """
    if case.image is not None:
        whole = blurred_for(case.image, view.spacing_mm)
        if view.sampling.anywhere:
            whole = normalise_each(whole, None, view.normalisation)
        images = sample_image(whole, warp)
        return images, images[0] != 0
    first = case.annotations[0]
    values = sample_labels(first.values, warp.source)
    realistic = uniform(0, 1, generator) < view.sampling.realistic
    contrasts = list(view.contrasts)
    if kinds := view.sampling.contrasts:
        contrasts[0] = kinds[int(uniform(0, len(kinds), generator))]
    return synthesise_each(
        values, first.protocol, realistic=realistic, contrasts=contrasts, generator=generator
    ), values != 0


def values_at(annotation: Annotation, source: Tensor, *, mirrored: bool) -> Tensor:
    """Return values (...) of an annotation nearest to source (..., 3) in its voxels, with sides swapped if mirrored."""
    values = sample_labels(annotation.values, source)
    return torch.tensor(annotation.protocol.partners(), dtype=values.dtype)[values.long()] if mirrored else values


def jittered_coordinates(brain: Tensor, *, is_cut: bool, generator: Generator) -> Tensor:
    """Return coordinates in the frame of a brain (D/2, H/2, W/2), as uncertain as the frame of an unseen scan."""
    centre, half = brain_frame(brain)
    noise = (CUT_UNCERTAINTY if is_cut else 1.0) * torch.randn(6, generator=generator).cpu().numpy()
    shape = [2 * n for n in brain.shape]
    return coordinates(shape, 2 * centre + 0.5 + 1.5 * noise[:3], 2 * half * (1 + 0.02 * noise[3:]))


def field_of_view(shape: Sequence[int], deepest: float, generator: Generator) -> Tensor:
    """Return booleans (D, H, W), False in a slab at one random side with at most some share of the axis."""
    seen = torch.ones(tuple(shape), dtype=torch.bool)
    axis = int(uniform(0, 3, generator))
    cut = int(uniform(0.05, deepest, generator) * shape[axis])
    index: list[slice] = [slice(None)] * 3
    index[axis] = slice(0, cut) if uniform(0, 1, generator) < 0.5 else slice(shape[axis] - cut, None)
    seen[tuple(index)] = False
    return seen


def draw_points(brain: Tensor, case: Case, source: Tensor, *, sampling: Sampling, generator: Generator) -> Tensor:
    """Draw voxels (P, 3) of the sample, mostly in the brain (D/2, H/2, W/2), with rare regions oversampled."""
    shape = torch.tensor(sampling.shape)
    if sampling.points == 0:
        return torch.cartesian_prod(*(torch.arange(n) for n in sampling.shape))
    count = round(sampling.points * sampling.inside)
    everywhere = (torch.rand((sampling.points - count, 3), generator=generator) * shape).long()
    blocks = torch.nonzero(brain)
    if count == 0 or len(blocks) == 0:
        return everywhere
    points = 2 * blocks[torch.randint(len(blocks), (3 * count,), generator=generator)]
    points += torch.randint(2, points.shape, generator=generator)
    weight = torch.zeros(len(points))
    for annotation in case.annotations:
        values = sample_labels(annotation.values, source[points[:, 0], points[:, 1], points[:, 2]]).long()
        weight = torch.maximum(weight, torch.bincount(values).float()[values] ** -sampling.balance)
    points = points[torch.multinomial(weight, count, generator=generator)]
    return torch.cat([points, everywhere])
