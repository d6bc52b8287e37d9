"""The anatomy that places of lesions refer to, found in any protocol by classes and names of its regions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bidsseg.labels.protocol import LESION, Protocol, Region

GREY, WHITE, FLUID = 1, 2, 3
CORTEX, DEEP_GREY, BRAIN_STEM, CEREBELLUM = 8, 9, 10, 11
"""Values in the generic BIDS table."""

VENTRICLE = re.compile(r"\bvent(ricle)?s?\b|choroid[ -]plexus", re.IGNORECASE)
MIDLINE = re.compile(r"\b(3rd|third|4th|fourth)\b", re.IGNORECASE)
"""Ventricles that do not make a lesion periventricular."""
INFRATENTORIAL = re.compile(r"cerebell|vermis|vermal|brain[ -]?stem|\b(pons|medulla|midbrain)\b", re.IGNORECASE)
CORTICAL = re.compile(r"cortex|gyrus|\bctx\b", re.IGNORECASE)
NOT_CORTICAL = re.compile(
    r"accumbens|amygdala|basal|caudate|claustrum|hippocamp|pallid|putamen|thalam|striat|nucle|substan[ct]ia|"
    r"ventral[ -]?dc|gr[ae]y matter",
    re.IGNORECASE,
)
"""Grey matter that is not cortex, and the grey matter of tissue maps, which does not distinguish it."""


@dataclass(frozen=True)
class Anatomy:
    """The regions of a protocol that places of lesions refer to, by their values in the label map.

    Attributes:
        ventricles: lateral ventricles, with the choroid plexus where it is a region.
        cortex: cortex of the cerebrum.
        infratentorial: cerebellum and brain stem.
        cerebrum: all other tissue: white matter and deep grey matter of the cerebrum.
    """

    ventricles: tuple[int, ...]
    cortex: tuple[int, ...]
    infratentorial: tuple[int, ...]
    cerebrum: tuple[int, ...]


def find_anatomy(protocol: Protocol) -> Anatomy | None:
    """Return the anatomy of a protocol; None if it lacks ventricles, cortex, or cerebellum and brain stem."""
    found: dict[str, list[int]] = {"ventricles": [], "cortex": [], "infratentorial": [], "cerebrum": []}
    for region in protocol.regions:
        if part := _part(region):
            found[part].append(region.index)
    if not (found["ventricles"] and found["cortex"] and found["infratentorial"]):
        return None
    return Anatomy(**{part: tuple(indices) for part, indices in found.items()})


def _part(region: Region) -> str:
    """Return the attribute of `Anatomy` that a region belongs to; empty for none, such as the fluid outside."""
    name, kind = region.name.replace("_", " "), region.mapping
    if region.index == 0 or kind == LESION:
        return ""
    if VENTRICLE.search(name) and kind in (FLUID, None):
        return "" if MIDLINE.search(name) else "ventricles"
    if kind in (BRAIN_STEM, CEREBELLUM) or (INFRATENTORIAL.search(name) and kind != FLUID):
        return "infratentorial"
    if kind == CORTEX or (kind in (GREY, None) and CORTICAL.search(name)):
        return "cortex"
    if kind == GREY and not NOT_CORTICAL.search(name):
        return "cortex"
    return "cerebrum" if kind in (GREY, WHITE, DEEP_GREY) else ""
