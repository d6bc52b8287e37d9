"""The page of a cohort: scans without a result, distributions of volumes, and unusual scans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bidsseg.bids.names import entity_column, natural, parse_name, with_extension
from bidsseg.bids.outputs import FURTHER_TABLES, group_changes, group_report, group_table, report_path
from bidsseg.bids.scan import Scan
from bidsseg.derivative.change_cohort import Changes
from bidsseg.derivative.cohort import CORRECTED, NO_MASK, QUALITY, STATUS, Absent, Cohort
from bidsseg.derivative.cohort_numbers import DELIMITER
from bidsseg.derivative.lesion_cohort import LesionCohort
from bidsseg.derivative.norms import DEVIATIONS, EXTRAPOLATED, FAR, IN_CONTROLS, NORMAL, Norms
from bidsseg.derivative.results import is_own_page
from bidsseg.derivative.series import comparisons_of
from bidsseg.reading import NOT_AVAILABLE
from bidsseg.report.distributions import Distribution, Line, bars, distributions, lines
from bidsseg.report.lesion_cohort import LesionTable
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
        was_compared: whether pages of scans were compared with the cohort of an earlier run.
    """

    cohort: Cohort
    address: str
    lines: list[tuple[Line, Scan | None]]
    distributions: list[tuple[Distribution, str, list[tuple[int, float, float]]]]
    was_compared: bool

    @property
    def norms(self) -> Norms | None:
        """The norms of the cohort; None without controls."""
        return next((joined for joined in self.cohort.joined if isinstance(joined, Norms)), None)

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
    full = {QUALITY: _quality(cohort), **cohort.regions}
    drawn = [(distribution, full[distribution.name], bars(distribution.counts, HEIGHT)) for distribution in found]
    # The data dictionary is that of the earlier run until all tables are read.
    was_compared = bool(cohort_ranges(output_dir, cohort.model, cohort.protocol))
    return Table(cohort, path.as_posix(), shown, drawn, was_compared)


def group_page(output_dir: Path, tables: Sequence[Table], lesions: Sequence[LesionTable], *, changes: Changes) -> Path:
    """Write the page, with links to the comparisons of sessions that exist, and return its path."""
    page = output_dir / group_report()
    scans = [key for table in tables for key in table.cohort.done]
    scans += [files.key for table in lesions for files in table.cohort.scans]
    scans += [f"sub-{one.subject}" for compared in changes.values() for one in compared]
    content = {
        "title": "Cohort",
        "tables": tables,
        "lesions": lesions,
        "comparisons": _comparisons(output_dir, scans),
        "changes": [group_changes(*key).as_posix() for key in changes],
        "absent": _absent([table.cohort for table in tables], [table.cohort for table in lesions]),
        "at_most": AT_MOST,
        "height": HEIGHT,
        "bars": lambda distribution: bars(distribution.counts, HEIGHT),
        "dictionary": lambda table: with_extension(Path(table.address), ".json").as_posix(),
        "quality_of": _quality,
        "from_controls": _from_controls,
        "far": FAR,
        "normal": NORMAL,
        "further": lambda table: _further(output_dir, table.cohort),
        "id_of": entity_column,
        "page_of": lambda scan: report_path(scan).as_posix(),
    }
    write_page(page, "group.html", content)
    return page


def _quality(cohort: Cohort) -> str:
    """Return the name of the quality on the page."""
    return f"Quality: {' or '.join(cohort.quality)}" if cohort.quality else "Quality"


def _from_controls(line: Line) -> tuple[str, str, str]:
    """Return how a scan relates to the controls, the number of its z scores beyond the limit, and the farthest ones."""
    cells = line.cells
    names = [name for name in cells[DEVIATIONS].split(DELIMITER) if name != NOT_AVAILABLE]
    beyond = "" if cells[EXTRAPOLATED] == NOT_AVAILABLE else f"beyond: {cells[EXTRAPOLATED]}"
    relation = "control" if cells[IN_CONTROLS] == "1" else beyond
    return relation, str(len(names)), ", ".join(names[:3])


def _comparisons(output_dir: Path, scans: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Return the pages that compare the sessions of participants: name and address of each, by model."""
    found: dict[str, list[tuple[str, str]]] = {}
    for person in sorted({key.partition("_")[0] for key in scans}, key=natural):
        for page in comparisons_of(person.removeprefix("sub-"), output_dir):
            parsed = parse_name(page.name)
            if parsed is not None:
                found.setdefault(parsed[0]["desc"], []).append((person, quote(page.name)))
    return dict(sorted(found.items()))


def compare_pages(output_dir: Path, tables: Sequence[Table]) -> int:
    """Rewrite the pages that the cohort's page links to, with the ranges of the cohort; return their number.

    A cohort with too few scans has no ranges; pages then lose those of an earlier run.
    """
    compared = any(cohort_ranges(output_dir, table.cohort.model, table.cohort.protocol) for table in tables)
    if not (compared or any(table.was_compared for table in tables)):
        return 0
    pages = {report_path(scan): scan for table in tables for _, scan in table.lines if scan is not None}
    own = [scan for page, scan in pages.items() if is_own_page(output_dir / page)]
    for scan in own:
        participant_page(output_dir, scan)
    return len(own) if compared else 0


def _further(output_dir: Path, cohort: Cohort) -> list[str]:
    """Return the other tables of a cohort that exist."""
    paths = [group_table(cohort.model, cohort.protocol, kind) for kind in FURTHER_TABLES]
    return [path.as_posix() for path in paths if (output_dir / path).is_file()]


def _with_page(output_dir: Path, line: Line, entities: Sequence[str]) -> Scan | None:
    source = {entity: line.cells[entity_column(entity)].partition("-")[2] for entity in entities}
    scan = Scan({entity: label for entity, label in source.items() if label}, Path())
    return scan if (output_dir / report_path(scan)).is_file() else None


def _absent(cohorts: Iterable[Cohort], lesions: Iterable[LesionCohort]) -> list[tuple[str, Absent]]:
    """Return scans without a result with the name of the model, each once even if a model has several protocols.

    Those of a model without label maps are in the cohort of its lesions alone.
    """
    found = {(c.model, absent.key): (c.model, absent) for c in cohorts for absent in c.absent}
    for cohort in lesions:
        absent = (Absent(source, fate) for source, fate in cohort.absent if fate != NO_MASK)
        ordered = sorted(absent, key=lambda one: natural(one.key))
        found |= {(cohort.model, one.key): (cohort.model, one) for one in ordered}
    return list(found.values())
