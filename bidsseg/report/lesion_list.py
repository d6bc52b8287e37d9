"""The lesions of a scan as its page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bidsseg.bids.names import with_extension
from bidsseg.derivative.lesion_cohort import column_of, totals
from bidsseg.derivative.lesion_tables import PLACES, LesionFiles
from bidsseg.reading import NOT_AVAILABLE, object_or_empty, read_table

LISTED = 30
"""Largest number of lesions in the table on the page; the file contains all."""
LISTED_REGIONS = 12
"""Largest number of regions of a label map on the page, those with most lesion volume."""


@dataclass(frozen=True)
class ShownLesions:
    """The lesions of a scan on the page.

    Attributes:
        rows: the largest, by the columns of the table.
        count: number of all lesions.
        volume_mm3: volume of all lesions.
        places: name, number and volume (mm³) of the lesions at each place; empty without anatomy.
        anatomy: name of the label map that the places refer to.
        regions: for each label map its name and the regions with lesions, by the columns of the table.
        picture: slices of the largest lesions; empty without lesions.
    """

    rows: Sequence[Mapping[str, str]]
    count: int
    volume_mm3: float
    places: Sequence[tuple[str, int, float]]
    anatomy: str
    regions: Mapping[str, Sequence[Mapping[str, str]]]
    picture: str


def shown_lesions(files: LesionFiles, picture: str) -> ShownLesions:
    """Return the lesions of a scan for its page.

    Raises:
        BidssegError, KeyError, ValueError: the table cannot be read or is not such a table.
    """
    rows, found = read_table(files.table), totals(files)
    columns = [(name, column_of(name)) for name in PLACES]
    places = [(name, int(found[at]), float(found[f"{at}-mm3"])) for name, at in columns if at in found]
    anatomy = str(object_or_empty(with_extension(files.table, ".json")).get("Anatomy", ""))
    regions = {}
    for other in files.others():
        path = files.region_table(other.protocol.name, other.desc)
        if path.is_file() and (hit := [row for row in read_table(path) if float(row["volume-mm3"]) > 0]):
            name = f"{other.protocol.name} · {other.desc}"
            regions[name] = sorted(hit, key=lambda row: -float(row["volume-mm3"]))[:LISTED_REGIONS]
    listed = [{**row, "probability": _short(row["probability"])} for row in rows[:LISTED]]
    return ShownLesions(
        listed, len(rows), float(found["volume-mm3"]), places if anatomy else [], anatomy, regions, picture
    )


def _short(probability: str) -> str:
    return "" if probability == NOT_AVAILABLE else f"{float(probability):.2f}"
