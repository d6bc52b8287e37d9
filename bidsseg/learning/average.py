"""The regions of an average brain, from annotated scans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bidsseg.errors import DataError
from bidsseg.image.grid import brain_frame
from bidsseg.image.pose import Reference
from bidsseg.labels import Protocol, Relation, load_relation
from bidsseg.learning.cases import VENTRICLES, Annotation, Case, ListedCase
from bidsseg.learning.region_centres import sizes_and_centres

FEWEST = 8
"""Fewest regions that an annotation must define to be used."""


def average_brain(cases: Sequence[ListedCase], head: Protocol) -> Reference:
    """Return the mean position and volume of each region of a head that is fully defined in some annotation.

    Scans are used unrotated: random rotations cancel in the mean. DataError with too few regions.
    """
    rows, halves = [], []
    for case in (listed.opened() for listed in cases if listed.protocols):
        rows += [row for annotation in case.annotations if (row := measured(case, annotation, head))]
        halves.append(brain_frame(case.brain)[1])
    if not rows:
        raise DataError(f"no annotation knows the regions of {head.name}, which are to tell the pose of a head")
    centres, volumes = (known_mean(np.stack(values)) for values in zip(*rows, strict=True))
    known = np.isfinite(volumes)
    return Reference(np.array(head.indices)[known], centres[known], volumes[known], np.mean(halves, 0))


def known_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean along the first axis without NaN; NaN where all values are NaN."""
    count = np.isfinite(values).sum(0)
    return np.where(count > 0, np.nansum(values, 0) / np.maximum(count, 1), np.nan)


def measured(case: Case, annotation: Annotation, head: Protocol) -> tuple[np.ndarray, np.ndarray] | None:
    """Return centres (R, 3) in mm from the centre of the brain and volumes (R,) in mm³, NaN for undefined regions.

    None if fewer than FEWEST regions are defined. Fluid is excluded, because it varies most between people.
    """
    relation = load_relation(annotation.protocol, head)
    known = None if relation is None else whole_regions(relation)
    if relation is None or known is None or known.sum() < FEWEST:
        return None
    region = np.where(relation.allowed.sum(1) == 1, relation.allowed.argmax(1), 0)[annotation.values.numpy()]
    volumes, centres = sizes_and_centres(region, len(known))
    absent = ~known | (volumes == 0)
    centres[absent], volumes[absent] = np.nan, np.nan
    return centres - brain_frame(case.brain)[0], volumes


def whole_regions(relation: Relation) -> np.ndarray:
    """Return for each solid region of the head (R,) whether it is fully defined: no value is ambiguous about it."""
    sure = relation.allowed.sum(1) == 1
    scored = np.array([region.scored for region in relation.annotation.regions])
    known = relation.allowed[sure].any(0) & ~relation.allowed[~sure & scored].any(0)
    fluid = np.array([region.mapping == VENTRICLES for region in relation.head.regions])
    whole: np.ndarray = known & ~fluid & (np.array(relation.head.indices) > 0)
    return whole
