"""The tables of a cohort: a row for each scan, a column for each region, for any number of scans.

Rows are streamed from the files of the scans to the table. Only the names of scans are kept in memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bidsseg.bids.names import build_name, entity_cells, entity_column, in_order, natural
from bidsseg.bids.scan import without_desc
from bidsseg.derivative.results import Fate, Result
from bidsseg.derivative.sidecars import group_sidecar
from bidsseg.derivative.volumes import BRAIN_MASK, BRAIN_MASK_COLUMN, INTRACRANIAL, INTRACRANIAL_COLUMN
from bidsseg.files import table_writer
from bidsseg.reading import NOT_AVAILABLE

STATUS, QUALITY, FINDINGS = "status", "quality", "findings"
EXPECTED_DICE, CONFIDENCE = "expected mean Dice", "mean confidence in the brain"
"""What the quality of a scan is: with a calibrated model, and with another."""
MISSING = Fate("missing", "not processed yet")
UNREADABLE = "unreadable"
CORRECTED = "corrected"
GIVEN = "given"
NO_MASK = Fate("no mask", "no mask of lesions was given")
STATUSES = {
    "done": "the scan was segmented",
    CORRECTED: "the label map or the brain mask of the scan was corrected by hand",
    GIVEN: "the lesions are those of a given mask",
    NO_MASK.outcome: "the scan was segmented, but no mask of its lesions was given",
    "failed": "the last run could not segment the scan",
    "passed over": "an image that the model needs is missing",
    "missing": "the scan is in the dataset, but was not processed",
    UNREADABLE: "the table of volumes of the scan cannot be read",
}


@dataclass(frozen=True)
class Absent:
    """A scan without a result, and the reason."""

    source: dict[str, str]
    fate: Fate

    @property
    def key(self) -> str:
        """The source entities as in file names."""
        return build_name(self.source)


class Joined(Protocol):
    """Further columns of the table of a cohort."""

    @property
    def columns(self) -> Mapping[str, Mapping[str, Any]]:
        """Names of the columns, each with its entry in the data dictionary."""

    def cells(self, item: Result | Absent) -> Mapping[str, str]:
        """Return the cells of a scan by column; those left out are not available."""


@dataclass
class Cohort:
    """The content of a table before it is written.

    Attributes:
        model: the ``desc-`` label of its files: the model's name, after the ``desc`` of the T1w.
        desc: ``desc`` of the T1w images, if they are derivatives themselves; otherwise empty.
        entities: entities of any of its scans, in BIDS order.
        done: keys of the scans with a result.
        absent: scans without a result, in natural order.
        regions: full name of the region of each column of volumes, from the first result.
        joined: further columns, behind those of volumes.
        quality: what the quality of its scans is, EXPECTED_DICE or CONFIDENCE; both, or none, are possible.
        uncounted: keys of the scans with a result that do not count, by their marks or because another run does.
    """

    model: str
    protocol: str
    desc: str = ""
    entities: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    absent: list[Absent] = field(default_factory=list)
    regions: dict[str, str] = field(default_factory=dict)
    joined: list[Joined] = field(default_factory=list)
    quality: Sequence[str] = ()
    uncounted: set[str] = field(default_factory=set)

    @property
    def ids(self) -> list[str]:
        """Columns that identify the scans."""
        return [entity_column(entity) for entity in self.entities]

    def data_dictionary(self) -> dict[str, Any]:
        """Return the meaning of each column of the table, as a BIDS sidecar."""
        columns = group_sidecar(self.protocol, self.ids, self.regions)
        more = {name: entry for joined in self.joined for name, entry in joined.columns.items()}
        return {**columns, STATUS: {"Description": "Outcome of the scan", "Levels": STATUSES}, **more}


def collect(
    results: Iterable[Result], expected: Iterable[Mapping[str, str]], fates: Mapping[tuple[str, str], Fate]
) -> list[Cohort]:
    """Return the cohorts of an output folder: one for each protocol of each model.

    Args:
        results: all results in the folder.
        expected: source entities of the scans that should have a result.
        fates: outcomes of scans without a result, by model name and key.
    """
    cohorts: dict[tuple[str, str], Cohort] = {}
    used: dict[tuple[str, str], set[str]] = {}
    with_lesions: set[tuple[str, str]] = set()
    for result in results:
        place = (result.model, result.protocol)
        if place not in cohorts:
            cohorts[place] = Cohort(*place, desc=result.model.removesuffix(result.model_name()))
        cohort = cohorts[place]
        cohort.done.add(result.key)
        has_lesions = has_lesion_table(result)
        if not cohort.regions or (has_lesions and place not in with_lesions):
            cohort.regions |= _regions(result)
        if has_lesions:
            with_lesions.add(place)
        used.setdefault(place, set()).update(result.source)
    sources = [dict(source) for source in expected]
    for place, cohort in cohorts.items():
        cohort.absent = sorted(_absent(cohort, sources, fates), key=lambda absent: natural(absent.key))
        used[place].update(name for absent in cohort.absent for name in absent.source)
        cohort.entities = in_order(used[place])
    return [cohorts[place] for place in sorted(cohorts)]


def write_table(path: Path, cohort: Cohort, results: Iterable[Result]) -> list[str]:
    """Write the table of a cohort and return the problems of single results, one line each.

    Args:
        path: a TSV file.
        results: results of the cohort, in natural order.
    """
    problems: list[str] = []
    columns = [*cohort.ids, STATUS, QUALITY, FINDINGS, *cohort.regions]
    columns += [name for joined in cohort.joined for name in joined.columns]
    with table_writer(path, columns) as writer:
        streams: tuple[Iterable[Result | Absent], ...] = (results, cohort.absent)
        for item in heapq.merge(*streams, key=lambda item: natural(item.key)):
            more = {name: cell for joined in cohort.joined for name, cell in joined.cells(item).items()}
            writer.writerow({**_row(item, cohort, problems), **more})
    return problems


def status_of(*, manual: bool) -> str:
    """Return the status of a scan with a result, which was corrected by hand or not."""
    return CORRECTED if manual else "done"


def has_lesion_table(result: Result) -> bool:
    """Return whether there are lesions beside a result: if they are given, its label map may have a region more."""
    table = {**result.source, "label": "lesion", "desc": result.model}
    return result.path.with_name(build_name(table, "morph", ".tsv")).is_file()


def _regions(result: Result) -> dict[str, str]:
    """Return full names by abbreviation, or by name if abbreviations are not unique.

    The brain mask is first, the estimated intracranial volume second, also if tables of earlier versions lack it.
    """
    try:
        volumes = result.volumes()
    except (OSError, ValueError):
        return {}
    whole = {BRAIN_MASK_COLUMN: BRAIN_MASK, INTRACRANIAL_COLUMN: INTRACRANIAL}
    regions = [volume for volume in volumes if volume.is_region]
    short = {volume.abbreviation: volume.name for volume in regions}
    unique = len(short) == len(regions) and short.keys().isdisjoint(whole)
    return {**whole, **short} if unique else {**whole, **{volume.name: volume.name for volume in regions}}


def _absent(
    cohort: Cohort, sources: Sequence[dict[str, str]], fates: Mapping[tuple[str, str], Fate]
) -> Iterator[Absent]:
    model = cohort.model.removeprefix(cohort.desc)
    for source in sources:
        if source.get("desc", "") == cohort.desc:
            fate = fates.get((model, build_name(source)), MISSING)
            absent = Absent(without_desc(source), fate)
            if absent.key not in cohort.done:
                yield absent


def _row(item: Result | Absent, cohort: Cohort, problems: list[str]) -> dict[str, Any]:
    ids = entity_cells(item.source)
    if isinstance(item, Absent):
        return {**ids, STATUS: item.fate.outcome}
    try:
        volumes = {volume.name: volume for volume in item.volumes()}
    except (OSError, ValueError) as error:
        problems.append(f"{item.path.name}: {error}")
        return {**ids, STATUS: UNREADABLE}
    if unknown := volumes.keys() - cohort.regions.values():
        problems.append(f"{item.path.name}: regions that are not in other scans: {', '.join(sorted(unknown))}")
    known = {name: volume.volume_mm3 for name, volume in volumes.items() if volume.is_known}
    row = {column: f"{known[name]:.10g}" for column, name in cohort.regions.items() if name in known}
    quality = item.quality()
    shown = NOT_AVAILABLE if quality is None else f"{quality:.4g}"
    return {
        **ids,
        STATUS: status_of(manual=item.has_correction),
        QUALITY: shown,
        FINDINGS: " ".join(item.findings()) or NOT_AVAILABLE,
        **row,
    }
