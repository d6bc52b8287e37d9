"""The page of a cohort: scans without a result, distributions of volumes, and unusual scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidsseg.bids.names import entity_column, with_extension
from bidsseg.bids.outputs import FURTHER_TABLES, group_report, group_table, report_path
from bidsseg.bids.scan import Scan
from bidsseg.derivative.cohort import CORRECTED, QUALITY, STATUS, Absent, Cohort
from bidsseg.derivative.results import is_own_page
from bidsseg.report.distributions import Distribution, Line, bars, distributions, lines
from bidsseg.report.page import write_page
from bidsseg.report.scan_page import COHORT, cohort_ranges, participant_page

AT_MOST = 1000
"""Largest number of scans in a list on the page; the table contains all."""
HEIGHT = 40.0
"""Height of the highest bar of a distribution."""


@dataclass(frozen=True)
class Table:
    """The content of the page about one table.

    Attributes:
        lines: each scan, and the scan whose page exists, otherwise None.
        distributions: quality first, then volumes (mm³), each with the full name of its region and its bars.
    """

    cohort: Cohort
    address: str
    lines: list[tuple[Line, Scan | None]]
    distributions: list[tuple[Distribution, str, list[tuple[int, float, float]]]]

    def data_dictionary(self) -> dict[str, Any]:
        """Return the meaning of each column, and the distribution of its values."""
        columns = self.cohort.data_dictionary()
        return {**columns, **{d.name: {**columns[d.name], COHORT: d.summary()} for d, _, _ in self.distributions}}


def read_table(output_dir: Path, cohort: Cohort) -> Table:
    """Return the content of the page about the table of a cohort, which must exist."""
    path = group_table(cohort.model, cohort.protocol)
    found = distributions(output_dir / path, [QUALITY, *cohort.regions])
    volumes = [distribution for distribution in found if distribution.name != QUALITY]
    shown = [
        (line, _with_page(output_dir, line, cohort.entities))
        for line in lines(output_dir / path, volumes, AT_MOST)
        if line.cells[STATUS] in ("done", CORRECTED)
    ]
    full = {QUALITY: "Quality", **cohort.regions}
    drawn = [(distribution, full[distribution.name], bars(distribution.counts, HEIGHT)) for distribution in found]
    return Table(cohort, path.as_posix(), shown, drawn)


def group_page(output_dir: Path, tables: Sequence[Table]) -> Path:
    """Write the page and return its path."""
    page = output_dir / group_report()
    content = {
        "title": "Cohort",
        "tables": tables,
        "absent": _absent([table.cohort for table in tables]),
        "at_most": AT_MOST,
        "height": HEIGHT,
        "dictionary": lambda table: with_extension(Path(table.address), ".json").as_posix(),
        "further": lambda table: _further(output_dir, table.cohort),
        "id_of": entity_column,
        "page_of": lambda scan: report_path(scan).as_posix(),
    }
    write_page(page, "group.html", content)
    return page


def compare_pages(output_dir: Path, tables: Sequence[Table]) -> int:
    """Rewrite the pages that the cohort's page links to, with the ranges of the cohort; return their number."""
    if not any(cohort_ranges(output_dir, table.cohort.model, table.cohort.protocol) for table in tables):
        return 0
    pages = {report_path(scan): scan for table in tables for _, scan in table.lines if scan is not None}
    own = [scan for page, scan in pages.items() if is_own_page(output_dir / page)]
    for scan in own:
        participant_page(output_dir, scan)
    return len(own)


def _further(output_dir: Path, cohort: Cohort) -> list[str]:
    """Return the other tables of a cohort that exist."""
    paths = [group_table(cohort.model, cohort.protocol, kind) for kind in FURTHER_TABLES]
    return [path.as_posix() for path in paths if (output_dir / path).is_file()]


def _with_page(output_dir: Path, line: Line, entities: Sequence[str]) -> Scan | None:
    source = {entity: line.cells[entity_column(entity)].partition("-")[2] for entity in entities}
    scan = Scan({entity: label for entity, label in source.items() if label}, Path())
    return scan if (output_dir / report_path(scan)).is_file() else None


def _absent(cohorts: Sequence[Cohort]) -> list[tuple[str, Absent]]:
    """Return scans without a result with the name of the model, each once even if a model has several protocols."""
    return list({(c.model, absent.key): (c.model, absent) for c in cohorts for absent in c.absent}.values())
