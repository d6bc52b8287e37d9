"""Noise of a model: how far its volumes differ between two scans of one head, measured by ``benchmarks/rescan.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bidsseg.models.card import Card
from bidsseg.reading import object_or_empty

RESCAN = "rescan.json"
"""File in a model folder: the weights that were measured, the scans, and the figures of each region."""


def smallest_changes(card: Card, protocol: str) -> tuple[dict[int, float], str]:
    """Return the smallest change (%) that noise does not explain, by the index of the region, and how it was measured.

    Nothing is known for other weights than those that were measured.
    """
    content = object_or_empty(card.folder / RESCAN)
    if content.get("sha256") != card.sha256:
        return {}, ""
    figures: Any = content.get("smallest_change_percent")
    table = figures.get(protocol) if isinstance(figures, Mapping) else None
    if not isinstance(table, Mapping):
        return {}, ""
    found = {int(index): float(value) for index, value in table.items() if str(index).isdigit() and value is not None}
    return found, str(content.get("scans", ""))
