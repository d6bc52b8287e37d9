"""The lesions of a cohort as its page shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bidsseg.derivative.lesion_cohort import LesionCohort, column_of
from bidsseg.derivative.lesion_tables import PLACES
from bidsseg.report.distributions import Distribution, distributions

ALL = "all lesions"


@dataclass(frozen=True)
class Spread:
    """Number and volume (mm³) of the lesions at a place, over the scans where they are known."""

    place: str
    number: Distribution
    volume: Distribution


@dataclass(frozen=True)
class LesionTable:
    """The content of the page about the lesions that a model found.

    Attributes:
        address: of the table with a row for each scan.
        further: addresses of the tables by region of other label maps.
        spreads: all lesions first, then each place; only the first if no place is known.
    """

    cohort: LesionCohort
    address: str
    further: list[str]
    spreads: list[Spread]

    @property
    def placed(self) -> int:
        """Number of scans in which the places of lesions are known."""
        return self.spreads[1].number.n if len(self.spreads) > 1 else 0


def read_lesions(output_dir: Path, cohort: LesionCohort) -> LesionTable:
    """Return the content of the page about the lesions of a cohort, whose tables must exist."""
    columns = {ALL: ("lesions", "volume-mm3")}
    columns |= {place: (column_of(place), f"{column_of(place)}-mm3") for place in PLACES}
    found = distributions(output_dir / cohort.table, [name for both in columns.values() for name in both])
    known = {distribution.name: distribution for distribution in found}
    spreads = [
        Spread(place, known[number], known[volume])
        for place, (number, volume) in columns.items()
        if number in known and volume in known
    ]
    further = [path.as_posix() for path in cohort.tables[1:]]
    return LesionTable(cohort, cohort.table.as_posix(), further, spreads)
