"""Conversion of label maps to the protocol of a reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bidsseg.errors import DataError
from bidsseg.labels.protocol import Protocol
from bidsseg.labels.relation import load_relation, named_regions

Conversion = Mapping[int, int]
"""The value in the reference's protocol for each value of a label map; empty if they are equal."""


def conversion(found: Protocol, reference: Protocol) -> dict[int, int] | None:
    """Return how label maps of one protocol are converted to another; None if this is not possible.

    It is possible if each value means one region of the reference, or if the reference names some of the regions: the
    others are then background, as are unscored values that the reference lacks.
    """
    ours, theirs = ({r.index: r.name for r in each.regions if r.scored and r.index} for each in (found, reference))
    if ours == theirs:
        known = set(reference.indices)
        return {} if known >= set(found.indices) else {index: index * (index in known) for index in found.indices}
    relation = None if found.name == reference.name else load_relation(found, reference)
    if relation is not None and (relation.allowed.sum(1) == 1).all():
        meant = np.array(reference.indices)[relation.allowed.argmax(1)]
        return dict(zip(found.indices, map(int, meant), strict=True))
    named = named_regions(reference)
    if not named or not named <= set(ours.values()):
        return None
    values = {name: index for index, name in theirs.items()}
    return {index: values.get(ours.get(index, ""), 0) for index in found.indices}


def converted(labels: np.ndarray, values: Conversion) -> np.ndarray:
    """Return a label map (X, Y, Z) with converted values. DataError for a value that its protocol lacks."""
    if not values:
        return labels
    shown = np.unique(labels)
    unknown = [int(value) for value in shown if value not in values]
    if unknown:
        raise DataError(f"the label map has the values {unknown[:5]}, which its protocol lacks")
    table = np.zeros(int(shown.max()) + 1, np.min_scalar_type(max(values.values())))
    table[shown] = [values[int(value)] for value in shown]
    result: np.ndarray = table[labels]
    return result
