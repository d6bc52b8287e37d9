"""The estimated total intracranial volume of a scan: the volume within the skull, with the fluid around the brain."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bidsseg.image.brightness import shows_brain_alone
from bidsseg.image.guard import Finding, is_cut
from bidsseg.image.volume import Volume
from bidsseg.models.card import Card
from bidsseg.segmentation.result import Intracranial

ESTIMATED = "volume of the brain mask of the model, which reaches the inner surface of the skull"


def estimate_intracranial(image: Volume, brain: np.ndarray, card: Card, *, findings: Iterable[Finding]) -> Intracranial:
    """Return the intracranial volume, or the reason why it is not known.

    It is the volume of the brain mask, if the model was trained on masks up to the skull and the image shows the skull.

    Args:
        image: first input of the model, as it is in its file.
        brain: brain mask of the model, booleans (X, Y, Z).
        findings: observations about the image.
    """
    if not card.mask_reaches_skull:
        return Intracranial(note=f"n/a: the brain mask of the model {card.name} is not known to reach the skull")
    if is_cut(findings):
        return Intracranial(note="n/a: the field of view cuts off a part of the brain")
    if shows_brain_alone(image.data, brain):
        return Intracranial(note="n/a: the image is skull-stripped, and does not show where the skull begins")
    return Intracranial(int(np.count_nonzero(brain)) * image.voxel_volume_mm3, ESTIMATED)
