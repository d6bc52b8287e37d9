"""The label maps that the entries of ``--labels`` name: where they are, and their protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bidsseg.bids.annotations import BRAIN, annotation_names, annotations_of_scan, find_label_maps
from bidsseg.bids.label_kinds import SUFFIXES, Kind, kinds_of, tables_of
from bidsseg.bids.names import as_label
from bidsseg.bids.recons import Recons, freesurfer_protocol, recons_in
from bidsseg.bids.scan import Image, LabelMap, Scan
from bidsseg.errors import DataError, UsageError
from bidsseg.labels import Protocol, Region, load_protocol, shipped_protocols
from bidsseg.labels.protocol import BACKGROUND, is_shipped, read_protocol

SIMILAR = 0.8
"""Least share of equal names among equal values of a table that lists the regions of a shipped protocol."""


@dataclass(frozen=True)
class LabelSource:
    """The label maps of one protocol in one folder.

    Attributes:
        given: the entry of ``--labels`` as typed.
        protocol: protocol of the maps.
        wanted: the files: those of a protocol by its name, those of a kind, or those of FreeSurfer.
        notes: what the user should know about the choice of files and table.
    """

    given: str
    protocol: Protocol
    folder: Path
    wanted: str | Kind | Recons
    notes: Sequence[str] = field(default=(), compare=False)

    @property
    def files(self) -> str:
        """Patterns of the names of its files, for messages."""
        if isinstance(self.wanted, Recons):
            return "mri/*.mgz"
        names = [str(self.wanted)] if isinstance(self.wanted, Kind) else annotation_names(self.wanted)
        return " or ".join(names)

    def find(self, scan: Scan, among: Sequence[Scan]) -> list[Path]:
        """Return the label maps that fit a scan best: none, one, or several that fit equally well.

        Args:
            among: all scans of its dataset.
        """
        if isinstance(self.wanted, Recons):
            path = self.wanted.find(scan, among)
            return [] if path is None else [path]
        return annotations_of_scan(self.folder, scan, self.wanted)

    def label_maps(self) -> list[LabelMap]:
        """Return all its label maps."""
        if isinstance(self.wanted, Recons):
            return self.wanted.label_maps()
        return find_label_maps(self.folder, self.wanted)


def label_sources(labels: Mapping[str, Sequence[Path]]) -> list[LabelSource]:
    """Return the label maps that the entries of ``--labels`` name (see ``Settings.labels``).

    Raises:
        UsageError: a folder has several kinds of label maps, and the entry does not choose one; or two folders have
            different protocols of one name.
        DataError: a folder has no label maps, or their table is missing or cannot be used.
        InputMissing: a folder does not exist.
    """
    return _unified([_label_source(name, folder) for name, folders in labels.items() for folder in folders])


def _unified(sources: Sequence[LabelSource]) -> list[LabelSource]:
    """Return sources in which a name stands for one protocol; shipped ones have the further values of all tables."""
    protocols: dict[str, Protocol] = {}
    for source in sources:
        ours, known = source.protocol, protocols.setdefault(source.protocol.name, source.protocol)
        if ours != known and not (is_shipped(ours) and is_shipped(known)):
            raise UsageError(
                f"{source.given}: another folder has a protocol of the same name, {ours.name}, with other regions: "
                "give it another name, NAME=DIR"
            )
        regions = {region.index: region for region in (*ours.regions, *known.regions)}
        protocols[ours.name] = replace(known, regions=tuple(regions[index] for index in sorted(regions)))
    return [replace(source, protocol=protocols[source.protocol.name]) for source in sources]


def _label_source(name: str, folder: Path) -> LabelSource:
    given = f"--labels {name}={folder}" if name else f"--labels {folder}"
    is_table = name not in shipped_protocols() and (Path(name).is_file() or name.endswith((".tsv", ".csv")))
    protocol = load_protocol(name) if is_table or name in shipped_protocols() else None
    recons = recons_in(folder) if folder.is_dir() else []
    if recons:
        return _freesurfer(given, name, recons)
    notes = read_protocol(Path(name))[1] if is_table else []
    if protocol is not None and find_label_maps(folder, protocol.name):
        return LabelSource(given, protocol, folder, protocol.name, notes)
    kinds = kinds_of(folder)
    kind = _chosen(given, protocol.name if protocol else name, kinds, folder=folder)
    if protocol is not None and (is_table or kind is None):
        notes += [] if kind is None else [f"{given}: takes the files *_{kind}"]
        return LabelSource(given, protocol, folder, kind or protocol.name, notes)
    assert kind is not None
    name = name or kind.label or folder.resolve().name
    protocol, notes = _protocol(given, name, kind, folder=folder, images=kinds[kind])
    return LabelSource(given, protocol, folder, kind, [f"{given}: takes the files *_{kind}", *notes])


def _freesurfer(given: str, name: str, recons: Sequence[Recons]) -> LabelSource:
    """Return the label maps of a protocol in a ``SUBJECTS_DIR``. UsageError if there are several, or not this one."""
    wanted = freesurfer_protocol(name) if name else None
    fitting = [each for each in recons if each.protocol == wanted or not name]
    if len(fitting) != 1:
        choice = " or ".join(f"{each.protocol}={each.folder}" for each in recons)
        raise UsageError(f"{given}: has the labels of FreeSurfer: choose --labels {choice}")
    (found,) = fitting
    return LabelSource(given, load_protocol(found.protocol), found.folder, found)


def _chosen(given: str, name: str, kinds: Mapping[Kind, Sequence[Image]], *, folder: Path) -> Kind | None:
    """Return the only kind of label maps, or the one that the entry names.

    Masks count if there are no other label maps, maps of probabilities if there are no masks either, and brain masks if
    there is nothing else. None if an entry names a shipped protocol, and the folder has labels of other protocols or
    none.

    Raises:
        UsageError: there are several.
        DataError: there is none, and the entry names no shipped protocol.
    """
    named = [kind for kind in kinds if name and (name in (kind.label, str(kind)) or _same_atlas(name, kind.label))]
    by_suffix = ([kind for kind in kinds if kind.suffix == suffix and not _is_brain(kind)] for suffix in SUFFIXES)
    choice = named or next((found for found in by_suffix if found), list(kinds))
    if name in shipped_protocols() and not named:
        choice = [kind for kind in choice if not _is_of_shipped(kind)]
        if not choice:
            return None
    if not choice:
        raise DataError(
            f"{given}: has no label maps: give a folder with sub-*/[ses-*/]anat/*_dseg.nii.gz (or *_mask.nii.gz), or a "
            "SUBJECTS_DIR of FreeSurfer"
        )
    if len(choice) > 1:
        examples = " or ".join(f"{kind.label or kind.suffix}={folder}" for kind in choice[:2])
        listed = ", ".join(map(str, choice))
        raise UsageError(f"{given}: has several kinds of label maps ({listed}): choose one, e.g. --labels {examples}")
    return choice[0]


def _same_atlas(name: str, label: str) -> bool:
    """Return whether two names are those of one atlas of FreeSurfer."""
    protocol = freesurfer_protocol(name)
    return protocol is not None and protocol == freesurfer_protocol(label)


def _is_brain(kind: Kind) -> bool:
    return kind.suffix != "dseg" and kind.label.endswith(BRAIN)


def _is_of_shipped(kind: Kind) -> bool:
    """Return whether label maps are named after a shipped protocol."""
    return kind.label in shipped_protocols() or freesurfer_protocol(kind.label) is not None


def _protocol(
    given: str, name: str, kind: Kind, *, folder: Path, images: Sequence[Image]
) -> tuple[Protocol, list[str]]:
    """Return the protocol of label maps, that of their table or the shipped one with their name, and notes.

    Raises:
        DataError: there is no table, tables of several maps differ, or a table cannot be used.
    """
    name = as_label(name)
    shipped = freesurfer_protocol(name) or (name if name in shipped_protocols() else None)
    tables = tables_of(folder, images) if kind.suffix == "dseg" else []
    generic = kind == Kind("", "", "dseg") and shipped is not None and _reorders_tissues(load_protocol(shipped))
    if not tables and shipped is not None and not generic:
        return load_protocol(shipped), []
    if not tables and kind.suffix != "dseg":
        region = Region(1, kind.label or name, kind.label or name, "#e01010", None)
        return Protocol(name, (BACKGROUND, region)), []
    if not tables:
        place = folder / f"{str(kind).removesuffix('dseg')}dseg.tsv"
        reason = f"; without it, 1, 2, 3 are GM, WM, CSF in BIDS, not as in {shipped}" if generic else ""
        raise DataError(
            f"{given}: no table names the regions of the files *_{kind}: write {place} with the columns index and name"
            f"{reason}"
        )
    protocol, notes = read_protocol(tables[0], shipped or name)
    for other in tables[1:]:
        if read_protocol(other, protocol.name)[0] != protocol:
            raise DataError(f"{tables[0]} and {other} name different regions: keep one table for all label maps")
    if shipped is None:
        return protocol, [f"{given}: the regions are those of {tables[0]}", *notes]
    protocol, remark = as_shipped(protocol, load_protocol(shipped), tables[0])
    return protocol, [*notes, remark]


def _reorders_tissues(protocol: Protocol) -> bool:
    """Return whether a protocol has the values of tissues of BIDS (1 GM, 2 WM, 3 CSF) for other regions."""
    mappings = {region.index: region.mapping for region in protocol.regions if region.index in (1, 2, 3)}
    return len(mappings) == 3 and any(index != mapping for index, mapping in mappings.items())


def as_shipped(table: Protocol, shipped: Protocol, where: Path) -> tuple[Protocol, str]:
    """Return the shipped protocol whose name a table has, with further values of the table as values not
    trained on, and a note.

    Raises:
        DataError: the table names other regions than the shipped protocol.
    """
    shared = [region for region in table.regions if region.index in shipped.indices and region.index != 0]
    both = [(region, shipped.region(region.index)) for region in shared]
    equal = [
        ours.index for theirs, ours in both if _plain(theirs.name) in (_plain(ours.name), _plain(ours.abbreviation))
    ]
    if len(equal) < SIMILAR * len(both):
        theirs, ours = next(pair for pair in both if pair[1].index not in equal)
        raise DataError(
            f"{where}: {theirs.index} is '{theirs.name}', but '{ours.name}' in the shipped protocol {shipped.name}: "
            "give the labels another name, --labels NAME=DIR"
        )
    further = [replace(region, scored=False) for region in table.regions if region.index not in shipped.indices]
    regions = sorted([*shipped.regions, *further], key=lambda region: region.index)
    return replace(shipped, regions=tuple(regions)), f"{where} lists regions of the shipped protocol {shipped.name}"


def _plain(name: str) -> str:
    """Return the words of a name, joined, without case and with FreeSurfer's words for sides replaced."""
    words = re.findall("[a-z0-9]+", name.lower().replace("ctx-lh", "left").replace("ctx-rh", "right"))
    return "".join(words).removesuffix("proper")
