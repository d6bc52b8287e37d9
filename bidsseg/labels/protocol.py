"""A protocol is a list of regions, stored as a BIDS ``dseg.tsv`` table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from bidsseg.errors import DataError
from bidsseg.labels import sides
from bidsseg.reading import read_table

FOLDER = Path(__file__).parent / "protocols"
LESION = 7
"""Value of lesions in the generic BIDS table."""


@dataclass(frozen=True)
class Region:
    """One row of a look-up table.

    Attributes:
        index: value in the label map.
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

    @property
    def one_sided(self) -> str:
        """Description of the problem with ``unpaired`` regions."""
        more = f" and {len(self.unpaired) - 3} more" if len(self.unpaired) > 3 else ""
        regions = ", ".join(self.unpaired[:3]) + more
        return f"protocol {self.name}: no region of the other side is known for {regions}"

    def to_tsv(self) -> str:
        """Return the look-up table in the form that BIDS requires beside a label map."""
        rows: list[list[Any]] = [["index", "name", "abbreviation", "color", "mapping"]]
        rows += [[r.index, r.name, r.abbreviation, r.color, _cell(r.mapping)] for r in self.regions]
        if any(r.hemisphere for r in self.regions):
            _add_column(rows, "hemi", [r.hemisphere or "n/a" for r in self.regions])
        if any(r.partner is not None for r in self.regions):
            _add_column(rows, "partner", [_cell(r.partner) for r in self.regions])
        return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def _add_column(rows: list[list[Any]], title: str, cells: Iterable[Any]) -> None:
    for row, cell in zip(rows, [title, *cells], strict=True):
        row.append(cell)


def _cell(number: int | None) -> str:
    return "n/a" if number is None else str(number)


def _number(cell: str | None) -> int | None:
    return None if cell in (None, "", "n/a") else int(cell)


def shipped_protocols() -> list[str]:
    """Return the names of the protocols in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.tsv"))


@cache
def load_protocol(name_or_path: str) -> Protocol:
    """Return the shipped protocol with a name, or the protocol in a ``dseg.tsv`` file.

    A file needs the columns index and name. Optional are abbreviation, color, mapping, scored, hemi (or hemisphere: L,
    R or n/a) and partner (the index of the region on the other side; its own index for a region on the midline).
    """
    path = FOLDER / f"{name_or_path}.tsv"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        choice = ", ".join(shipped_protocols())
        raise DataError(f"no protocol '{name_or_path}': choose one of {choice} or give a dseg.tsv")
    name = path.stem.removesuffix("_dseg").removeprefix("seg-")
    rows = read_table(path)
    try:
        return Protocol(name, tuple(sorted(_regions(rows), key=lambda region: region.index)))
    except (KeyError, ValueError, DataError) as error:
        raise DataError(f"{path}: not a look-up table with the columns index and name ({error})") from error


def _regions(rows: Iterable[dict[str, str]]) -> Iterable[Region]:
    for row in rows:
        yield Region(
            index=int(row["index"]),
            name=row["name"],
            abbreviation=row.get("abbreviation") or row["name"],
            color=row.get("color") or "#808080",
            mapping=_number(row.get("mapping")),
            scored=(row.get("scored") or "1") == "1",
            hemisphere=sides.side(row.get("hemi") or row.get("hemisphere") or ""),
            partner=_number(row.get("partner")),
        )
