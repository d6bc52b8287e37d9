"""A protocol is a list of regions, kept as a BIDS ``dseg.tsv`` table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from bidsseg.errors import DataError
from bidsseg.reading import read_table

FOLDER = Path(__file__).parent / "protocols"
SIDES = {"Left": "Right", "Right": "Left"}
LESION = 7
"""Value of lesions in the generic BIDS table."""


@dataclass(frozen=True)
class Region:
    """One row of a look-up table.

    Attributes:
        index: value in the label map.
        mapping: value in the generic BIDS table (0 background, 1 grey matter, 2 white matter, 3 CSF, ...) or None.
        scored: False for values that an annotation may hold but that no network learns or is measured on.
    """

    index: int
    name: str
    abbreviation: str
    color: str
    mapping: int | None
    scored: bool = True


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

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """The value of every region, in table order."""
        return tuple(region.index for region in self.regions)

    @cached_property
    def lesions(self) -> tuple[int, ...]:
        """The values of lesions."""
        return tuple(region.index for region in self.regions if region.mapping == LESION)

    def scored(self) -> Protocol:
        """The same protocol without the regions that are never scored: what a head speaks."""
        return Protocol(self.name, tuple(region for region in self.regions if region.scored))

    def region(self, index: int) -> Region:
        """The region with that value; DataError if there is none."""
        for region in self.regions:
            if region.index == index:
                return region
        raise DataError(f"protocol {self.name} has no region with index {index}")

    def partners(self) -> tuple[int, ...]:
        """For each region its position in the table after a left-right mirroring (itself on the midline)."""
        position = {region.name: i for i, region in enumerate(self.regions)}
        mirrored = []
        for i, region in enumerate(self.regions):
            side, _, rest = region.name.partition(" ")
            mirrored.append(position.get(f"{SIDES[side]} {rest}", i) if side in SIDES else i)
        return tuple(mirrored)

    def to_tsv(self) -> str:
        """The look-up table as BIDS wants it beside a label map."""
        lines = ["index\tname\tabbreviation\tcolor\tmapping"]
        for r in self.regions:
            mapping = "n/a" if r.mapping is None else r.mapping
            lines.append(f"{r.index}\t{r.name}\t{r.abbreviation}\t{r.color}\t{mapping}")
        return "\n".join(lines) + "\n"


def shipped_protocols() -> list[str]:
    """Names of the protocols in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.tsv"))


@cache
def load_protocol(name_or_path: str) -> Protocol:
    """The shipped protocol of that name, or the one in that ``dseg.tsv`` file.

    A file needs the columns index and name; abbreviation, color, mapping and scored are optional.
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
        mapping = row.get("mapping") or "n/a"
        yield Region(
            index=int(row["index"]),
            name=row["name"],
            abbreviation=row.get("abbreviation") or row["name"],
            color=row.get("color") or "#808080",
            mapping=None if mapping == "n/a" else int(mapping),
            scored=(row.get("scored") or "1") == "1",
        )
