"""The page of a cohort: which scans are there, how their volumes are distributed, and which deserve a look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bidsseg.bids.names import group_report, group_table, report_path, with_extension
from bidsseg.bids.query import Scan
from bidsseg.cohort import QUALITY, STATUS, Absent, Cohort, entity_column
from bidsseg.report.distributions import Distribution, Line, bars, distributions, lines
from bidsseg.report.page import write_page

AT_MOST = 1000
"""Scans that a list on the page shows; the table has all."""
HEIGHT = 40.0
"""Of the highest bar of a distribution."""


@dataclass(frozen=True)
class _Table:
    """What the page shows of one table.

    Attributes:
        lines: each scan with the address of its page, empty if it has none.
        distributions: quality first, then volumes (mm³), each with the full name of its region and its bars.
    """

    cohort: Cohort
    address: str
    lines: list[tuple[Line, str]]
    distributions: list[tuple[Distribution, str, list[tuple[int, float, float]]]]


def group_page(output_dir: Path, cohorts: Sequence[Cohort]) -> Path:
    """Write the page from the tables of the cohorts, which must be there, and return its path."""
    page = output_dir / group_report()
    content = {
        "title": "Cohort",
        "tables": [_table(output_dir, cohort) for cohort in cohorts],
        "absent": _absent(cohorts),
        "at_most": AT_MOST,
        "height": HEIGHT,
        "dictionary": lambda table: with_extension(Path(table.address), ".json").as_posix(),
        "id_of": entity_column,
    }
    write_page(page, "group.html", content)
    return page


def _table(output_dir: Path, cohort: Cohort) -> _Table:
    path = group_table(cohort.model, cohort.protocol)
    found = distributions(output_dir / path, [QUALITY, *cohort.regions])
    volumes = [distribution for distribution in found if distribution.name != QUALITY]
    shown = [
        (line, _page(output_dir, line.cells, cohort.entities))
        for line in lines(output_dir / path, volumes, AT_MOST)
        if line.cells[STATUS] == "done"
    ]
    full = {QUALITY: "Quality", **cohort.regions}
    drawn = [(distribution, full[distribution.name], bars(distribution.counts, HEIGHT)) for distribution in found]
    return _Table(cohort, path.as_posix(), shown, drawn)


def _page(output_dir: Path, cells: Mapping[str, str], entities: Sequence[str]) -> str:
    """Address of the page of a scan, empty if there is none."""
    source = {entity: cells[entity_column(entity)].partition("-")[2] for entity in entities}
    path = report_path(Scan({entity: label for entity, label in source.items() if label}, Path()))
    return path.as_posix() if (output_dir / path).is_file() else ""


def _absent(cohorts: Sequence[Cohort]) -> list[tuple[str, Absent]]:
    """Scans without a result with the name of the model, each once though a model has several protocols."""
    return list({(c.model, absent.key): (c.model, absent) for c in cohorts for absent in c.absent}.values())
