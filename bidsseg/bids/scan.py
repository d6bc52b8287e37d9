"""Files of a dataset: images, scans, and label maps without an image."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bidsseg.bids.names import as_label, build_name, modality_of, parse_name, sort_entities

ADDED = ("meas", "space", "atlas", "segmentation", "scale", "res", "den", "label", "desc")
"""Entities that a derivative adds to those of its source."""


def without_added(entities: Mapping[str, str]) -> dict[str, str]:
    """Return the entities of the source of a derivative.

    >>> without_added({"subject": "01", "run": "2", "desc": "preproc"})
    {'subject': '01', 'run': '2'}
    """
    return {name: label for name, label in entities.items() if name not in ADDED}


def source_key(entities: Mapping[str, str]) -> str:
    """Return the entities of the source of a derivative as in file names.

    >>> source_key({"subject": "01", "run": "2", "desc": "preproc"})
    'sub-01_run-2'
    """
    return build_name(without_added(entities))


def in_space_of(source: Mapping[str, str], entities: Mapping[str, str], *, native: Collection[str]) -> bool:
    """Return whether an image is in the space of a scan by its name: ``space-X`` for a scan in X, else a native space.

    >>> in_space_of({}, {"space": "T1w"}, native=("orig", "T1w")), in_space_of({"space": "ACPC"}, {}, native=("orig",))
    (True, False)
    """
    own, space = source.get("space", "orig"), entities.get("space", "orig")
    return space in native if own in native else space == own


def without_desc(entities: Mapping[str, str]) -> dict[str, str]:
    """Return entities without the description, whose place those of an output take.

    >>> without_desc({"subject": "01", "desc": "preproc"})
    {'subject': '01'}
    """
    return {name: label for name, label in entities.items() if name != "desc"}


@dataclass(frozen=True)
class Image:
    """One NIfTI file with the entities of its name (pybids names, in BIDS order, labels unchanged)."""

    path: Path
    entities: dict[str, str]
    suffix: str


@dataclass(frozen=True)
class Scan:
    """One T1w image with its FLAIR.

    Attributes:
        entities: entities of the T1w by their pybids names, in BIDS order, labels unchanged.
        flair: the FLAIR that belongs to the T1w, on its own grid; None if there is none or several match.
        flair_reason: why ``flair`` is None.
    """

    entities: dict[str, str]
    t1w: Path
    flair: Path | None = None
    flair_reason: str | None = None

    @staticmethod
    def of_files(t1w: Path, flair: Path | None = None) -> Scan:
        """Return the scan of images outside of a dataset.

        The entities are those in the name of the T1w; without a BIDS name, the participant is named after the file.

        >>> Scan.of_files(Path("sub-01_ses-2_T1w.nii.gz")).key, Scan.of_files(Path("my scan.mgz")).key
        ('sub-01_ses-2', 'sub-myscan')
        """
        parsed = parse_name(t1w.name)
        if parsed is not None and "subject" in parsed[0]:
            return Scan(sort_entities(parsed[0]), t1w, flair)
        label = as_label(re.sub(r"\.(nii|mgh|mgz)(\.gz)?$", "", t1w.name, flags=re.IGNORECASE))
        return Scan({"subject": label or "scan"}, t1w, flair)

    @property
    def key(self) -> str:
        """The source entities as in file names: ``sub-01_ses-1_run-1``."""
        return build_name(self.entities)

    @property
    def modality(self) -> str:
        """Suffix of the image in the place of the T1w; T1w for a UNIT1 and for a name that is no BIDS name."""
        return modality_of(self.t1w)

    def images(self, suffixes: Iterable[str]) -> dict[str, Path]:
        """Return the paths of the requested suffixes ``T1w`` and ``FLAIR``, in that order, without missing images."""
        found = {"T1w": self.t1w, "FLAIR": self.flair}
        return {suffix: path for suffix in suffixes if (path := found[suffix]) is not None}


@dataclass(frozen=True)
class Selection:
    """Scans, sorted by participant, session and other entities, and notes for the user on excluded files.

    Attributes:
        closed: why folders of participants or sessions (``sub-01_ses-1``) cannot be read.
    """

    scans: list[Scan]
    notes: list[str]
    closed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelMap:
    """A label map that is used without the image on which it was drawn."""

    entities: dict[str, str]
    path: Path

    @property
    def key(self) -> str:
        """Its source entities as in file names."""
        return source_key(self.entities)
