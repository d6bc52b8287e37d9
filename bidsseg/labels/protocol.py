"""A protocol is a list of regions, stored as a BIDS ``dseg.tsv`` table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from bidsseg.errors import DataError, listed
from bidsseg.labels import sides
from bidsseg.reading import NOT_AVAILABLE, read_table, read_text

FOLDER = Path(__file__).parent / "protocols"
LESION = 7
"""Value of lesions in the generic BIDS table."""


ENTITIES = ("seg", "atlas", "desc")
"""Entities of a file name that name its protocol, the first that it has."""


@dataclass(frozen=True)
class Region:
    """One row of a look-up table.

    Attributes:
        index: value in the label map.
        color: ``#rrggbb``.
        mapping: value in the generic BIDS table (0 background, 1 grey matter, 2 white matter, 3 CSF, ...) or None.
        scored: False for values that an annotation may contain but that no network is trained or evaluated on.
        hemisphere: L, R, or empty to derive it from the name.
        partner: value of the same region on the other side, its own on the midline; None to derive it from the names.
    """

    index: int
    name: str
    abbreviation: str
    color: str
    mapping: int | None
    scored: bool = True
    hemisphere: str = ""
    partner: int | None = None

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        red, green, blue = bytes.fromhex(self.color[1:])
        return red, green, blue


BACKGROUND = Region(0, "Background", "BG", "#000000", 0)


@dataclass(frozen=True)
class Protocol:
    """A named list of regions; the background (index 0) comes first."""

    name: str
    regions: tuple[Region, ...]

    def __post_init__(self) -> None:
        indices = [region.index for region in self.regions]
        if not indices or indices[0] != 0:
            raise DataError(f"protocol {self.name}: the first region must be the background, index 0")
        if len(set(indices)) != len(indices) or min(indices) < 0:
            raise DataError(f"protocol {self.name}: indices must be unique and not negative")
        named = {region.index: region.partner for region in self.regions if region.partner is not None}
        for index, partner in named.items():
            if named.get(partner, index) != index:
                raise DataError(f"protocol {self.name}: {index} has the partner {partner}, which has {named[partner]}")

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """Value of every region, in table order."""
        return tuple(region.index for region in self.regions)

    @cached_property
    def lesions(self) -> tuple[int, ...]:
        """Values of lesions."""
        return tuple(region.index for region in self.regions if region.mapping == LESION)

    def scored(self) -> Protocol:
        """Return the protocol without the regions that are never scored: the regions that a head predicts."""
        return Protocol(self.name, tuple(region for region in self.regions if region.scored))

    def region(self, index: int) -> Region:
        """Return the region with a value; DataError if there is none."""
        for region in self.regions:
            if region.index == index:
                return region
        raise DataError(f"protocol {self.name} has no region with index {index}")

    @cached_property
    def sides(self) -> tuple[int | None, ...]:
        """Position of the partner of each region on the other side, itself on the midline, None where unknown."""
        found = list(sides.partners([r.name for r in self.regions], [r.hemisphere for r in self.regions]))
        for i, region in enumerate(self.regions):
            if region.partner is not None:
                found[i] = self.indices.index(region.partner) if region.partner in self.indices else None
                if (partner := found[i]) is not None:
                    found[partner] = i
        return sides.mutual(found)

    @cached_property
    def hemispheres(self) -> tuple[str, ...]:
        """Side of each region: L, R, or empty on the midline or where unknown."""
        return tuple(region.hemisphere or sides.side_of(region.name) for region in self.regions)

    @cached_property
    def unpaired(self) -> tuple[str, ...]:
        """Names of the scored regions on one side whose partner is not known."""
        pairs = zip(self.regions, self.sides, strict=True)
        return tuple(region.name for region, partner in pairs if partner is None and region.scored)

    def partners(self) -> tuple[int, ...]:
        """Return the position of each region in the table after a left-right mirroring (itself on the midline).

        DataError if a scored region has no known partner, since mirrored labels would then be wrong.
        """
        if self.unpaired:
            raise DataError(f"{self.one_sided}; name it in the column partner of the table")
        return tuple(i if partner is None else partner for i, partner in enumerate(self.sides))

    @cached_property
    def repeated(self) -> tuple[str, ...]:
        """Names that more than one scored region has."""
        counts = Counter(region.name for region in self.regions if region.scored)
        return tuple(name for name, count in counts.items() if count > 1)

    @property
    def one_sided(self) -> str:
        """Description of the problem with ``unpaired`` regions."""
        return f"protocol {self.name}: no region of the other side is known for {listed(self.unpaired, 3)}"

    def to_tsv(self, *, scored: bool = False) -> str:
        """Return the look-up table in the form that BIDS requires beside a label map.

        Args:
            scored: whether it has the column scored.
        """
        rows: list[list[Any]] = [["index", "name", "abbreviation", "color", "mapping"]]
        rows += [[r.index, r.name, r.abbreviation, r.color, _cell(r.mapping)] for r in self.regions]
        if any(r.hemisphere for r in self.regions):
            _add_column(rows, "hemi", [r.hemisphere or "n/a" for r in self.regions])
        if any(r.partner is not None for r in self.regions):
            _add_column(rows, "partner", [_cell(r.partner) for r in self.regions])
        if scored:
            _add_column(rows, "scored", [int(r.scored) for r in self.regions])
        return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def _add_column(rows: list[list[Any]], title: str, cells: Iterable[Any]) -> None:
    for row, cell in zip(rows, [title, *cells], strict=True):
        row.append(cell)


def _cell(number: int | None) -> str:
    return "n/a" if number is None else str(number)


def _number(cell: str | None) -> int | None:
    return _integer(cell) if cell else None


def _integer(cell: str) -> int:
    """Return an integer, which spreadsheets may write as ``1.0``."""
    value = float(cell)
    if not value.is_integer():
        raise ValueError(f"{cell} is not an integer")
    return int(value)


def shipped_protocols() -> list[str]:
    """Return the names of the protocols in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.tsv"))


def is_shipped(protocol: Protocol) -> bool:
    """Return whether a protocol has the name and the scored regions of one in the package."""
    return protocol.name in shipped_protocols() and protocol.scored() == load_protocol(protocol.name).scored()


@cache
def load_protocol(name_or_path: str) -> Protocol:
    """Return the shipped protocol with a name, or the protocol in a ``dseg.tsv`` file (see `read_protocol`)."""
    path = FOLDER / f"{name_or_path}.tsv"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file() and path.suffix == ".tsv":
        raise DataError(f"no file {path.absolute()}")
    if not path.is_file():
        choice = ", ".join(shipped_protocols())
        raise DataError(f"no protocol '{name_or_path}': choose one of {choice} or give a dseg.tsv")
    return read_protocol(path)[0]


def read_protocol(path: Path, name: str | None = None) -> tuple[Protocol, list[str]]:
    """Return the protocol in a look-up table, and notes on what was changed to read it.

    The table needs the columns index and name. Optional are abbreviation, color, mapping, scored, hemi (or hemisphere:
    L, R or n/a) and partner (the index of the region on the other side; its own index for a region on the midline).
    Their cells may be n/a. A colour that is not written as ``#rrggbb`` is replaced by grey.
    Columns are separated by tabs, commas or semicolons. A missing row of the background, index 0, is added.

    Args:
        name: name of the protocol; by default the label of ``seg-``, ``atlas-`` or ``desc-`` in the name of the file.

    Raises:
        DataError: the table cannot be used.
    """
    name = name or protocol_name(path.stem)
    separator = _separator(path)
    rows = [row for row in read_table(path, separator=separator) if any(row.values())]
    notes = [] if separator == "\t" else [f"{path}: the columns are separated by '{separator}' instead of tabs"]
    try:
        cells = [{key.strip().lower(): cell.strip() for key, cell in row.items()} for row in rows]
        regions = sorted(_regions(cells), key=lambda region: region.index)
        if other := [cell for row in cells if (cell := row["index"]) != str(_integer(cell))]:
            notes.append(f"{path}: indices such as {other[0]} are read as integers")
        if regions and regions[0].index != 0:
            regions.insert(0, BACKGROUND)
            notes.append(f"{path}: has no row for the background; the value 0 was added")
        return Protocol(name, tuple(regions)), notes
    except (KeyError, ValueError, DataError) as error:
        reason = f"it has {listed(sorted(cells[0]))}" if isinstance(error, KeyError) else error
        raise DataError(f"{path}: not a look-up table with the columns index and name: {reason}") from error


def protocol_name(stem: str) -> str:
    """Return the name of the protocol in a file name without extension: letters and digits.

    >>> protocol_name("seg-Mine_dseg"), protocol_name("sub-01_desc-aseg_dseg"), protocol_name("my_labels")
    ('Mine', 'aseg', 'mylabels')
    """
    found = next((match for entity in ENTITIES if (match := re.search(rf"(?:^|_){entity}-([^_]+)", stem))), None)
    return re.sub("[^0-9a-zA-Z]", "", found[1] if found else stem.removesuffix("_dseg"))


def _separator(path: Path) -> str:
    """Return what separates the columns of a table: the first of tab, semicolon and comma in its first line."""
    first_line = read_text(path).lstrip("\n").partition("\n")[0]
    return next((mark for mark in "\t;," if mark in first_line), "\t")


def _regions(rows: Iterable[dict[str, str]]) -> Iterable[Region]:
    for row in rows:
        known = {column: cell for column, cell in row.items() if cell not in ("", NOT_AVAILABLE)}
        if "name" in row and "name" not in known:
            raise ValueError(f"the region {row['index']} has no name")
        yield Region(
            index=_integer(row["index"]),
            name=row["name"],
            abbreviation=known.get("abbreviation", row["name"]),
            color=_color(known.get("color", "")),
            mapping=_number(known.get("mapping")),
            scored=_integer(known.get("scored", "1")) == 1,
            hemisphere=sides.side(known.get("hemi") or known.get("hemisphere", "")),
            partner=_number(known.get("partner")),
        )


def _color(cell: str) -> str:
    """Return a colour as ``#rrggbb``; grey for a missing one and for one in another notation."""
    digits = re.fullmatch("#?([0-9a-fA-F]{6})", cell)
    return f"#{digits[1]}" if digits else "#808080"
