"""Checks for implausible results, which should be inspected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bidsseg.image.guard import Finding, is_cut
from bidsseg.labels import Protocol, covers_brain
from bidsseg.models.card import BRAIN
from bidsseg.segmentation.result import Segmentation

if TYPE_CHECKING:
    from bidsseg.models.library import Model

CODES = ("CONFIDENCE_LOW", "BRAIN_VOLUME_UNUSUAL", "TISSUE_UNUSUAL", "SIDES_UNEQUAL")
"""Codes of the findings of this file."""
BRAIN_CM3 = 700.0, 2200.0
"""Range of brain volumes of adults and of children from about one year of age."""
SHARES = {1: ("grey matter", 0.2, 0.75), 2: ("white matter", 0.15, 0.65)}
"""By generic BIDS value: usual range of the share of a brain, including fluid, at any age."""
UNEQUAL = 0.25
"""Largest sum of the differences between sides, relative to the sum of volumes; in healthy people about .05."""


def implausible_findings(
    result: Segmentation, model: Model, voxel_mm3: float, *, protocols: Mapping[str, Protocol] | None = None
) -> Iterator[Finding]:
    """Yield findings on a doubtful result. The volumes of a brain that is known to be cut are not checked.

    Args:
        voxel_mm3: volume of a voxel of the native grid.
        protocols: protocols of the label maps, if they are not those of the heads.
    """
    protocols = model.heads if protocols is None else protocols
    least = model.card.least_quality
    if least is not None and result.quality < least:
        yield Finding(
            "CONFIDENCE_LOW",
            f"The result is probably less accurate than usual (quality {result.quality:.4f}, usually at least "
            f"{least:g}): check it before you use it.",
        )
    if is_cut(result.findings):
        return
    brain_cm3 = float(result.brain.sum()) * voxel_mm3 / 1000
    if has_brain(model) and not BRAIN_CM3[0] <= brain_cm3 <= BRAIN_CM3[1]:
        yield Finding("BRAIN_VOLUME_UNUSUAL", f"The brain volume of {brain_cm3:.0f} ml is unusual: check the mask.")
    for name, volumes in result.soft_mm3.items():
        yield from _unusual_shares(volumes, protocols[name])
    pairs = {name: difference_of_sides(volumes, protocols[name]) for name, volumes in result.soft_mm3.items()}
    name, most = max(pairs.items(), key=lambda pair: pair[1], default=("", 0.0))
    if most > UNEQUAL:
        yield Finding(
            "SIDES_UNEQUAL",
            f"The volumes of left and right regions differ by {most:.0%} ({name}): check whether a side is missing, "
            "or a lesion is labelled as healthy tissue.",
        )


def has_brain(model: Model) -> bool:
    """Return whether the mask of a model is a brain, and not some regions of it, see ``heads.brain_of_labels``."""
    return BRAIN in model.heads or model.locator is not None or any(map(covers_brain, model.heads.values()))


def _unusual_shares(volumes_mm3: Sequence[float] | np.ndarray, protocol: Protocol) -> Iterator[Finding]:
    """Yield a finding for each tissue with an unusual share of all tissue, for protocols with only tissues."""
    meant = [region.mapping for region in protocol.regions]
    if len(meant) > 6 or not set(SHARES) <= set(meant):
        return
    volumes = np.asarray(volumes_mm3, float)
    whole = volumes[1:].sum()
    for value, (tissue, low, high) in SHARES.items():
        share = float(volumes[[mapping == value for mapping in meant]].sum() / whole) if whole else 0.0
        if not low <= share <= high:
            yield Finding(
                "TISSUE_UNUSUAL", f"{share:.0%} of the brain is {tissue} ({protocol.name}): check the result."
            )


def difference_of_sides(volumes_mm3: Sequence[float] | np.ndarray, protocol: Protocol) -> float:
    """Return the sum of the differences between partners over the sum of their volumes; 0 without pairs."""
    volumes = np.asarray(volumes_mm3, float)
    pairs = [(i, j) for i, j in enumerate(protocol.sides) if j is not None and i < j]
    both = sum(volumes[i] + volumes[j] for i, j in pairs)
    return float(sum(abs(volumes[i] - volumes[j]) for i, j in pairs) / both) if both else 0.0
