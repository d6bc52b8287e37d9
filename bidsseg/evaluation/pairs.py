"""Pairing of the label maps of each scan with their references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bidsseg.bids.annotations import annotation_names, find_annotations, find_label_maps
from bidsseg.bids.label_kinds import Kind
from bidsseg.bids.names import build_name, unpadded
from bidsseg.bids.scan import ADDED, LabelMap, Scan, source_key, without_added
from bidsseg.errors import DataError, InputMissing
from bidsseg.evaluation.conversion import Conversion
from bidsseg.labels.protocol import Protocol
from bidsseg.reading import ANNEX
from bidsseg.settings import Mask


@dataclass(frozen=True)
class Pair:
    """Two label maps of one scan.

    Attributes:
        source: entities of the scan.
        found: the evaluated map.
        reference: the reference map.
        values: conversion of the evaluated map to the protocol of the reference, see ``conversion``.
    """

    source: Mapping[str, str]
    found: Path
    reference: Path
    values: Conversion = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The source entities as in file names: ``sub-01_ses-1_run-1``."""
        return build_name(self.source)


@dataclass(frozen=True)
class About:
    """The two sides of a comparison.

    Attributes:
        found: name of the evaluated side, a model or a folder.
        reference: name of the reference.
        folders: derivative datasets of the reference.
        against: the evaluated derivative dataset; None for the output folder.
        mask: which voxels count, see ``agreement.counted``.
        converted: protocol of the evaluated label maps, if they are converted to that of the reference.
    """

    found: str
    reference: str
    folders: Sequence[Path]
    against: Path | None
    mask: Mask
    converted: str = ""


@dataclass(frozen=True)
class Left:
    """A scan that is not compared, and the reason."""

    key: str
    reason: str


@dataclass
class Pairing:
    """The pairs of a protocol.

    Attributes:
        protocol: protocol of the reference.
        wanted: label maps in each folder of the reference, see ``annotations_of_scan``.
        values: conversion of the evaluated maps to the protocol of the reference.
        failed: scans whose maps cannot be compared.
        alone: scans without two different label maps to compare.
    """

    protocol: Protocol
    about: About
    wanted: Mapping[Path, str | Kind]
    values: Conversion = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    failed: list[Left] = field(default_factory=list)
    alone: list[Left] = field(default_factory=list)

    @property
    def left(self) -> list[Left]:
        """All scans without a pair."""
        return [*self.failed, *self.alone]

    def warnings(self) -> list[str]:
        """Return one line for each reason, with the scans to which it applies."""
        scans: dict[str, list[str]] = {}
        for left in self.left:
            scans.setdefault(left.reason, []).append(left.key)
        return [f"{self.protocol.name}: {', '.join(keys)} not compared: {reason}" for reason, keys in scans.items()]


def pair_up(judged: Iterable[Scan], references: Iterable[LabelMap], pairing: Pairing, *, lacking: str) -> None:
    """Find the reference of each scan, and add pairs and scans without a partner to a pairing.

    Args:
        judged: scans whose ``t1w`` is the evaluated label map.
        references: all label maps of the reference.
        lacking: reason for references without an evaluated label map.
    """
    waiting: dict[str, Path] = {}
    for label_map in references:
        waiting.setdefault(unpadded(label_map.key), label_map.path)
    for left in pairing.left:
        waiting.pop(unpadded(left.key), None)
    for scan in judged:
        elsewhere = waiting.pop(unpadded(source_key(scan.entities)), None)
        try:
            fitting = [find_annotations(folder, scan, wanted) for folder, wanted in pairing.wanted.items()]
        except DataError as error:
            pairing.failed.append(Left(scan.key, str(error)))
            continue
        found = [path for path in fitting if path is not None]
        if len(found) > 1:
            both = " and ".join(map(str, found))
            pairing.failed.append(Left(scan.key, f"{both} belong to one scan: give one folder with --labels"))
        elif found and _place(found[0]) == _place(scan.t1w):
            pairing.alone.append(Left(scan.key, f"{found[0].name} is on both sides: choose with --model or --labels"))
        elif found:
            pairing.pairs.append(Pair(scan.entities, scan.t1w, found[0], pairing.values))
        elif elsewhere is not None:
            pairing.failed.append(Left(scan.key, f"{elsewhere} is in another space than {scan.t1w.name}"))
        else:
            pairing.alone.append(Left(scan.key, f"no reference in {', '.join(map(str, pairing.wanted))}"))
    pairing.alone += [Left(key, lacking) for key in waiting]


def _place(path: Path) -> Path:
    """Return the place of a file. Links into git-annex are not followed: it stores equal files of two raters once."""
    while path.is_symlink() and ANNEX not in (target := path.readlink()).as_posix():
        path = path.parent / target
    return path.parent.resolve() / path.name


def check_holds(folder: Path, protocol: str, flag: str, *, wanted: str | Kind | None = None) -> None:
    """Raise InputMissing if a folder has no label map of a protocol.

    Args:
        wanted: its label maps; by default those with the name of the protocol.
    """
    if not find_label_maps(folder, wanted or protocol):
        files = " or ".join(f"*_{kind}.nii.gz" for kind in annotation_names(protocol))
        raise InputMissing(f"{flag}: {folder} has no label map of {protocol} (sub-*/[ses-*/]anat/{files})")


def one_of_each_scan(label_maps: Iterable[LabelMap], model: str) -> tuple[list[Scan], list[Left]]:
    """Return one label map for each scan of a derivative dataset, and the scans for which the choice is ambiguous.

    Of several label maps, the one of the model (``desc-``) is used, otherwise the one with the fewest added entities.
    """
    groups: dict[str, list[LabelMap]] = {}
    for label_map in label_maps:
        groups.setdefault(label_map.key, []).append(label_map)
    scans, failed = [], []
    for key, maps in groups.items():
        ranks = {label_map.path: _rank(label_map, model) for label_map in maps}
        first, *others = sorted(maps, key=lambda label_map: ranks[label_map.path])
        if others and ranks[first.path] == ranks[others[0].path]:
            reason = f"{first.path} and {others[0].path.name} belong to one scan: choose with --model, or keep only one"
            failed.append(Left(key, reason))
        else:
            place = {name: label for name, label in first.entities.items() if name in ("space", "res")}
            scans.append(Scan({**without_added(first.entities), **place}, first.path))
    return scans, failed


def _rank(label_map: LabelMap, model: str) -> tuple[bool, int]:
    return label_map.entities.get("desc") != model, sum(name in ADDED for name in label_map.entities)
