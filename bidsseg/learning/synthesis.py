"""Images of any contrast from label maps (Billot et al. 2023, SynthSeg, section 3.1).

Each region gets a random brightness and texture; shading, resolution and noise follow as for real scans. A share of
the draws is near the contrast of a T1w, the most common one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bidsseg.image.grid import dilate
from bidsseg.labels import Protocol, Region
from bidsseg.learning.augment import uniform

T1W = {0: None, 1: 0.55, 2: 0.85, 3: 0.15, 6: None, 7: 0.5, 8: 0.55, 9: 0.64, 10: 0.8, 11: 0.55}
"""Brightness of each class of the generic BIDS table in a T1w; None: any."""
FLAIR = {0: None, 1: 0.6, 2: 0.5, 3: 0.08, 6: None, 7: 0.9, 8: 0.62, 9: 0.58, 10: 0.52, 11: 0.6}
"""Brightness of each class in a FLAIR."""
T2W = {0: None, 1: 0.45, 2: 0.33, 3: 0.9, 6: None, 7: 0.55, 8: 0.38, 9: 0.36, 10: 0.35, 11: 0.46}
"""Brightness of each class in a T2w."""
NOT_BRAIN, BRIGHTEST = 6, 1.8
"""Tissue outside the brain, in which fat is brighter than anything inside."""
PATCH_MM = 24.0
"""Size of the patches where a skull-stripping leaves more than elsewhere."""
SPECIFIC = {"Thalamus": 0.7, "Pallidum": 0.78, "Ventral DC": 0.78, "Choroid": 0.35, "Vessel": 0.3, "Chiasm": 0.6}
"""Exceptions by name, in a T1w."""
CONTRASTS: Mapping[str, tuple[Mapping[int, float | None], Mapping[str, float]]] = {
    "T1w": (T1W, SPECIFIC),
    "FLAIR": (FLAIR, {"Pallidum": 0.5, "Choroid": 0.45, "Vessel": 0.2}),
    "T2w": (T2W, {"Pallidum": 0.28, "Choroid": 0.6, "Vessel": 0.2, "Chiasm": 0.45}),
}
"""Brightness of the classes, and exceptions by name, by the suffix of an image."""


def contrasts_of(inputs: Sequence[str], modality: str) -> tuple[str, ...]:
    """Return the contrast of the synthetic image for each input; a first one without a known contrast is a T1w."""
    return (modality if modality in CONTRASTS else "T1w", *inputs[1:])


def expected(region: Region, contrast: str) -> float | None:
    """Return the mean brightness of a region in an image with a suffix, about 0..1; None if it may be any."""
    classes, exceptions = CONTRASTS[contrast]
    return next((v for word, v in exceptions.items() if word in region.name), classes.get(region.mapping or 0))


def brightness(
    protocol: Protocol, *, realistic: bool, generator: Generator, contrast: str = "T1w"
) -> tuple[Tensor, Tensor]:
    """Draw mean and standard deviation of the brightness of each region, both (R,), equal on left and right.

    Args:
        realistic: near the contrast; otherwise any brightness.
    """
    means = torch.rand(len(protocol.regions), generator=generator)
    if realistic:
        outside = torch.tensor([region.mapping in (None, NOT_BRAIN) for region in protocol.regions])
        means[outside] *= BRIGHTEST
        jitter = 0.06 * torch.randn(len(means), generator=generator)
        for i, region in enumerate(protocol.regions):
            value = expected(region, contrast)
            if value is not None:
                means[i] = (value + jitter[i]).clamp(0.02, 1)
    spread = 0.01 + 0.07 * torch.rand(len(means), generator=generator)
    keep = torch.tensor([i if partner is None else min(i, partner) for i, partner in enumerate(protocol.sides)])
    means, spread = means[keep], spread[keep]
    if uniform(0, 1, generator) < 0.9:
        means[0], spread[0] = 0.0, 0.005
    return means, spread


def synthesise(
    labels: Tensor, protocol: Protocol, *, realistic: bool, generator: Generator, contrast: str = "T1w"
) -> Tensor:
    """Return an image (D, H, W) in about 0..1 from positions in the protocol's table, (D, H, W) integers.

    Args:
        realistic: near the contrast of the images with a suffix; otherwise any.
    """
    means, spread = brightness(protocol, realistic=realistic, generator=generator, contrast=contrast)
    return textured(labels, means, spread, generator=generator)


def textured(labels: Tensor, means: Tensor, spread: Tensor, *, generator: Generator) -> Tensor:
    """Return an image (D, H, W) of labels with mean and standard deviation of the brightness of each, both (R,)."""
    flat = labels.long()
    texture = torch.randn(labels.shape, generator=generator)
    image = means[flat] + spread[flat] * texture
    return smooth(image, uniform(0.3, 0.9, generator))


def synthesise_each(
    labels: Tensor, protocol: Protocol, *, realistic: bool, contrasts: Sequence[str], generator: Generator
) -> Tensor:
    """Return an image of the same labels in each contrast, (C, D, H, W)."""
    return torch.stack(
        [
            synthesise(labels, protocol, realistic=realistic, generator=generator, contrast=suffix)
            for suffix in contrasts
        ]
    )


def noise_around(images: Tensor, head: Tensor, generator: Generator) -> Tensor:
    """Return images (C, D, H, W) with noise of random mean and strength outside of the head (D, H, W).

    An MP2RAGE image is a ratio (Marques et al. 2010, doi:10.1016/j.neuroimage.2009.10.002): without
    signal, every value of its range is about equally probable. A missing image, 0 everywhere, is unchanged.
    """
    air = ~head & images.flatten(1).any(1)[:, None, None, None]
    noise = uniform(0.2, 0.8, generator) + uniform(0.03, 0.3, generator) * torch.randn(head.shape, generator=generator)
    return torch.where(air, noise.clamp(min=0.001), images)


def smooth(image: Tensor, sigma: float) -> Tensor:
    """Smooth an image (D, H, W) with a three-point kernel with a standard deviation in voxels."""
    side = math.exp(-0.5 / sigma**2)
    for axis in range(3):
        inner = image.movedim(axis, 0)
        blurred = inner.clone()
        blurred[1:] += side * inner[:-1]
        blurred[:-1] += side * inner[1:]
        image = (blurred / (1 + 2 * side)).movedim(0, axis)
    return image.contiguous()


def strip(brain: Tensor, inner_mm: float, outer_mm: float, *, spacing_mm: float, generator: Generator) -> Tensor:
    """Return an imperfect brain mask: dilated by about inner_mm, in random places by outer_mm more.

    Args:
        brain: booleans (D, H, W) on a grid of spacing_mm.

    Returns:
        Booleans (2D, 2H, 2W) on a grid twice as fine.
    """
    sure = dilate(brain, round(inner_mm / spacing_mm))
    size = [max(2, round(n * spacing_mm / PATCH_MM)) for n in brain.shape]
    places = F.interpolate(torch.randn((1, 1, *size), generator=generator), size=list(brain.shape), mode="trilinear")
    left = torch.where(places[0, 0] > 0.3, dilate(sure, round(outer_mm / spacing_mm)), sure)
    return F.interpolate(left[None, None].float(), scale_factor=2, mode="nearest")[0, 0] > 0
