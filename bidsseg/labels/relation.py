"""A relation defines, for each value of an annotation, which regions of a head it may be."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from bidsseg.errors import DataError
from bidsseg.labels.protocol import Protocol, load_protocol, shipped_protocols

FOLDER = Path(__file__).parent / "relations"


@dataclass(frozen=True)
class Relation:
    """``allowed[a, c]``: may a voxel annotated with the a-th region of ``annotation`` be the c-th region of ``head``?

    Regions of the annotation that are not scored may be any region.
    """

    annotation: Protocol
    head: Protocol
    allowed: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.annotation.regions), len(self.head.regions))
        if self.allowed.shape != shape or self.allowed.dtype != bool:
            raise DataError(f"a relation of {shape} booleans is needed, got {self.allowed.shape} {self.allowed.dtype}")
        empty = [r.name for r, row in zip(self.annotation.regions, self.allowed, strict=True) if not row.any()]
        if empty:
            pair = f"{self.annotation.name} to {self.head.name}"
            raise DataError(f"{pair}: no region is allowed for {', '.join(empty[:5])}")

    @cached_property
    def rows(self) -> np.ndarray:
        """Look-up table (max + 1,) from annotation value to row of ``allowed``, -1 for values outside the protocol."""
        table = np.full(max(self.annotation.indices) + 1, -1, np.int16)
        table[list(self.annotation.indices)] = np.arange(len(self.annotation.indices))
        return table


def identity(annotation: Protocol, head: Protocol) -> Relation:
    """Return the relation in which each value is itself; values that are not scored may be any region."""
    allowed = np.array([[a.index == c.index or not a.scored for c in head.regions] for a in annotation.regions])
    return Relation(annotation, head, allowed)


def open_background(annotation: Protocol, head: Protocol) -> Relation:
    """Return the relation of an annotation that names some of the head's regions, with an open background.

    The background of the annotation may be any region that it does not name.

    Regions are the same if they have the same name, whatever their index. With lesions as the named regions this is ACE
    (Roulet et al. 2019, arXiv 1903.03445): the background of a lesion dataset may be any non-lesion region.
    """
    named = named_regions(annotation)
    unknown = named - {region.name for region in head.regions}
    if unknown:
        raise DataError(f"{annotation.name} names regions that {head.name} lacks: {', '.join(sorted(unknown)[:5])}")
    allowed = np.array([[a.name == c.name or not a.scored for c in head.regions] for a in annotation.regions])
    allowed[annotation.indices.index(0)] = [region.name not in named for region in head.regions]
    return Relation(annotation, head, allowed)


def closed_background(relation: Relation) -> Relation:
    """Return the relation with the background taken literally: the naive baselines of ACE (Roulet et al. 2019)."""
    allowed = relation.allowed.copy()
    allowed[relation.annotation.indices.index(0)] = np.array(relation.head.indices) == 0
    return Relation(relation.annotation, relation.head, allowed)


def named_regions(annotation: Protocol) -> set[str]:
    """Return the names of the scored regions of a protocol, without its background."""
    return {region.name for region in annotation.regions if region.index != 0 and region.scored}


def load_relation(annotation: Protocol, head: Protocol) -> Relation | None:
    """Return the regions of a head that each value of an annotation may be; None if no relation is known.

    For equal protocols, this is the identity; otherwise the shipped table ``<annotation>_<head>.tsv``; otherwise, if
    the head has every region that the annotation names, an annotation of these regions alone, with an open background.

    The table has two columns named after the protocols: a value of the annotation, and the values it may be in the
    head, separated by blanks. Values without a row may be any region.
    """
    if annotation.name == head.name:
        return identity(annotation, head)
    path = FOLDER / f"{annotation.name}_{head.name}.tsv"
    if path.is_file():
        return read_relation(path, annotation, head)
    named = named_regions(annotation)
    return open_background(annotation, head) if named and named <= {region.name for region in head.regions} else None


@cache
def covers_brain(protocol: Protocol) -> bool:
    """Return whether the regions of a protocol make up the whole brain, which no head is without."""
    return load_relation(protocol, load_protocol("brain").scored()) is not None


def read_relation(path: Path, annotation: Protocol, head: Protocol) -> Relation:
    """Return the relation in a table (see load_relation).

    Rows of regions that are in the shipped protocol of the annotation's name, but not in the annotation, are skipped.
    """
    shipped = load_protocol(annotation.name).indices if annotation.name in shipped_protocols() else ()
    left_out = set(shipped) - set(annotation.indices)
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t"))
    if rows[:1] != [[annotation.name, head.name]]:
        raise DataError(f"{path}: the columns must be {annotation.name} and {head.name}")
    allowed = np.ones((len(annotation.regions), len(head.regions)), bool)
    for row in rows[1:]:
        try:
            value, targets = int(row[0]), [int(word) for word in row[1].split()]
            if value in left_out:
                continue
            allowed[annotation.indices.index(value)] = [index in targets for index in head.indices]
            missing = set(targets) - set(head.indices)
        except (ValueError, IndexError) as error:
            raise DataError(f"{path}: cannot read the row {row} ({error})") from error
        if missing:
            raise DataError(f"{path}: {head.name} has no region {sorted(missing)[0]} (row {row[0]})")
        if not targets:
            raise DataError(f"{path}: nothing is allowed for {row[0]}")
    return Relation(annotation, head, allowed)
