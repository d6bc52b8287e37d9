"""The tables of the lesions of a cohort: totals and places of each scan, and lesions by region of other label maps.

Rows by region are streamed from the tables of the scans, since there are a hundred for each scan.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bidsseg.bids.names import build_name, entity_cells, entity_column, in_order, natural, with_extension
from bidsseg.bids.outputs import group_lesion_regions, group_lesions
from bidsseg.bids.scan import without_desc
from bidsseg.derivative.cohort import GIVEN, MISSING, NO_MASK, STATUS, STATUSES, UNREADABLE, status_of
from bidsseg.derivative.cohort_numbers import chosen_runs
from bidsseg.derivative.lesion_tables import PLACES, REGIONS, LesionFiles, find_lesions
from bidsseg.derivative.results import Fate, anat_folders, mixed_rules, participant_folders
from bidsseg.derivative.sidecar_keys import (
    Sidecar,
    has_given_lesions,
    is_manual,
    models,
    quality,
    read_sidecar,
)
from bidsseg.errors import BidssegError, DataError
from bidsseg.files import table_writer
from bidsseg.reading import NOT_AVAILABLE, columns, read_table
from bidsseg.settings import Runs

TOTALS: dict[str, dict[str, Any]] = {
    "lesions": {"Description": "Number of lesions"},
    "volume-mm3": {"Description": "Volume of all lesions", "Units": "mm^3"},
    "largest-mm3": {"Description": "Volume of the largest lesion", "Units": "mm^3"},
}
OF_REGION = ("index", "name", "abbreviation", "lesions", "volume-mm3", "nearest-mm3")


@dataclass
class LesionCohort:
    """The lesions that a model found in the scans of an output folder.

    Attributes:
        model: the ``desc-`` label of its results.
        scans: results of the scans, in natural order.
        absent: source entities of the scans without a result, and the outcome of each.
        others: tables by region: protocol and ``desc-`` label of each label map that any scan has.
    """

    model: str
    scans: list[LesionFiles] = field(default_factory=list)
    absent: list[tuple[dict[str, str], Fate]] = field(default_factory=list)
    others: set[tuple[str, str]] = field(default_factory=set)

    @property
    def entities(self) -> list[str]:
        """Entities of any of its scans, in BIDS order."""
        sources = [*(files.source for files in self.scans), *(source for source, _ in self.absent)]
        return in_order(name for source in sources for name in source)

    @property
    def table(self) -> Path:
        """The table with a row for each scan."""
        return group_lesions(self.model)

    def leave_out(self, uncounted: Container[str]) -> None:
        """Leave out the scans that do not count, given by their keys."""
        self.scans = [files for files in self.scans if files.key not in uncounted]
        self.absent = [(source, fate) for source, fate in self.absent if build_name(source) not in uncounted]

    def other_runs(self, runs: Runs, unmarked: Container[str]) -> set[str]:
        """Return the keys of the scans that do not count because another run does, see `chosen_runs`.

        Args:
            unmarked: keys of the scans that the user left out (``--where``).
        """
        scans = [files for files in self.scans if files.key not in unmarked] if runs != "all" else []
        about = [read_sidecar(with_extension(files.table, ".json")) for files in scans]
        rank = [np.inf if is_manual(each) else quality(each) for each in about]
        counts = chosen_runs([files.source for files in scans], np.array(rank, float), runs)
        return {files.key for files, is_chosen in zip(scans, counts, strict=True) if not is_chosen}

    def region_table(self, other: tuple[str, str]) -> Path:
        """Return the table with a row for each scan and region of a label map."""
        protocol, desc = other
        return group_lesion_regions(self.model, desc, protocol)

    @property
    def tables(self) -> list[Path]:
        """All tables, relative to the output folder."""
        return [self.table, *map(self.region_table, sorted(self.others))]


def find_all_lesions(
    output_dir: Path, participants: Iterable[str] = (), sessions: Iterable[str] = ()
) -> Iterator[LesionFiles]:
    """Yield every result about lesions in an output folder, in natural order; no labels mean all."""
    wanted_sessions = set(sessions)
    for participant in participant_folders(output_dir, participants):
        found = [files for folder in anat_folders(participant) for files in find_lesions(folder)]
        for files in sorted(found, key=lambda files: (natural(files.key), natural(files.table.name))):
            if not wanted_sessions or files.source.get("session") in wanted_sessions:
                yield files


def collect_lesions(
    found: Iterable[LesionFiles],
    expected: Sequence[Mapping[str, str]],
    fates: Mapping[tuple[str, str], Fate],
    *,
    segmented: Container[tuple[str, str]] = (),
) -> list[LesionCohort]:
    """Return the cohorts of the results about lesions, one for each model.

    Args:
        expected: source entities of the scans that should have a result.
        fates: outcomes of scans without a result, by model name and key.
        segmented: scans with a label map: ``desc-`` label of the results, and key of the scan without ``desc``.
    """
    cohorts: dict[str, LesionCohort] = {}
    desc_of: dict[str, str] = {}
    for files in found:
        cohort = cohorts.setdefault(files.model, LesionCohort(files.model))
        cohort.scans.append(files)
        cohort.others.update((one.protocol.name, one.desc) for one in files.others())
        if files.model not in desc_of:
            named = [model["Name"] for model in models(read_sidecar(files.table.with_suffix(".json")))]
            desc_of[files.model] = files.model.removesuffix(named[0]) if named else ""
    for model, cohort in cohorts.items():
        desc, done = desc_of[model], {files.key for files in cohort.scans}
        for source in expected:
            fate = fates.get((model.removeprefix(desc), build_name(source)), MISSING)
            own = without_desc(source)
            fate = NO_MASK if (model, build_name(own)) in segmented else fate
            if source.get("desc", "") == desc and build_name(own) not in done:
                cohort.absent.append((own, fate))
    return [cohorts[model] for model in sorted(cohorts)]


def outdated_tables(output_dir: Path, current: Iterable[LesionCohort]) -> list[Path]:
    """Return the tables of an earlier cohort that no scan in the output folder has any more.

    Args:
        current: the cohorts that are written now.
    """
    patterns = group_lesions("*"), group_lesion_regions("*", "*", "*")
    tables = {path for pattern in patterns for path in output_dir.glob(str(pattern))}
    tables -= {output_dir / table for cohort in current for table in cohort.tables}
    if tables:  # scans that are not selected now may have them
        every = collect_lesions(find_all_lesions(output_dir), [], {})
        tables -= {output_dir / table for cohort in every for table in cohort.tables}
    return sorted(tables)


def write_lesion_table(path: Path, cohort: LesionCohort) -> list[str]:
    """Write the table with a row for each scan, and return the problems of single results, one line each."""
    problems: list[str] = []
    with table_writer(path, [*map(entity_column, cohort.entities), STATUS, *_totals()]) as writer:
        writer.writerows(row for _, row in sorted(_rows(cohort, problems), key=lambda pair: natural(pair[0])))
    return problems


def write_region_table(path: Path, cohort: LesionCohort, other: tuple[str, str]) -> list[str]:
    """Write the table with a row for each scan and region of a label map, and return the problems of single results."""
    problems: list[str] = []
    with table_writer(path, [*map(entity_column, cohort.entities), *OF_REGION]) as writer:
        writer.writerows(_region_rows(cohort, other, problems))
    return problems


def lesion_dictionary(cohort: LesionCohort) -> dict[str, Any]:
    """Return the meaning of each column of the table with a row for each scan."""
    return {
        "Description": f"Lesions found by {cohort.model} or given, one row for each scan",
        **_identifiers(cohort),
        STATUS: {"Description": "Outcome of the scan", "Levels": STATUSES},
        **_totals(),
    }


def region_dictionary(cohort: LesionCohort, other: tuple[str, str]) -> dict[str, Any]:
    """Return the meaning of each column of the table with a row for each scan and region."""
    text = f"Lesions found by {cohort.model} or given, in each region of the {other[0]} protocol, from {other[1]}"
    return {"Description": text, **_identifiers(cohort), **REGIONS}


def _identifiers(cohort: LesionCohort) -> dict[str, Any]:
    return {entity_column(name): {"Description": f"{name} of the scan"} for name in cohort.entities}


def _totals() -> dict[str, dict[str, Any]]:
    """Return the columns of a scan: totals, then number and volume at each place."""
    described = dict(TOTALS)
    for place in PLACES:
        described[column_of(place)] = {"Description": f"Number of {place} lesions; n/a without anatomy"}
        described[f"{column_of(place)}-mm3"] = {"Description": f"Volume of {place} lesions", "Units": "mm^3"}
    return described


def column_of(place: str) -> str:
    """Return the column with the number of lesions at a place."""
    return place.replace(" ", "-")


def rules_differ(cohort: LesionCohort) -> list[str]:
    """Return a problem if scans differ in the rule that lesions were found by, or in who found them."""
    every: list[Sidecar] = [read_sidecar(with_extension(files.table, ".json")) for files in cohort.scans]
    about = [each for each in every if not has_given_lesions(each)]
    if 0 < len(about) < len(every):
        return [f"{cohort.model}: the lesions of {len(about)} scans were found by the model, those of the others given"]
    mixed = mixed_rules(about, "participant", "scans")
    return [f"{cohort.model}: {mixed}"] if mixed else []


def _rows(cohort: LesionCohort, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the row of each scan with its key."""
    for source, fate in cohort.absent:
        yield build_name(source), {**entity_cells(source), STATUS: fate.outcome}
    for files in cohort.scans:
        try:
            yield files.key, {**entity_cells(files.source), STATUS: _status(files), **totals(files)}
        except (BidssegError, KeyError, ValueError) as error:
            problems.append(f"{files.table.name}: not a table of lesions: {error}")
            yield files.key, {**entity_cells(files.source), STATUS: UNREADABLE}


def _status(files: LesionFiles) -> str:
    about = read_sidecar(with_extension(files.table, ".json"))
    return GIVEN if has_given_lesions(about) else status_of(manual=is_manual(about))


def totals(files: LesionFiles) -> dict[str, int | float]:
    """Return number and volume (mm³) of the lesions of a scan, in total and, where places are known, at each place.

    Raises:
        BidssegError, KeyError, ValueError: the table cannot be read or is not such a table.
    """
    if not {"place", "volume-mm3"} <= set(columns(files.table)):
        raise DataError("it has no columns place and volume-mm3")
    rows = [(row["place"], float(row["volume-mm3"])) for row in read_table(files.table)]
    volumes = [volume for _, volume in rows]
    found: dict[str, int | float] = {
        "lesions": len(rows),
        "volume-mm3": round(sum(volumes), 3),
        "largest-mm3": max(volumes, default=0.0),
    }
    if any(place == NOT_AVAILABLE for place, _ in rows):
        return found
    for name in PLACES:
        here = [volume for place, volume in rows if place == name]
        found |= {column_of(name): len(here), f"{column_of(name)}-mm3": round(sum(here), 3)}
    return found


def _region_rows(cohort: LesionCohort, other: tuple[str, str], problems: list[str]) -> Iterator[dict[str, Any]]:
    for files in cohort.scans:
        path = files.region_table(*other)
        if not path.is_file():
            continue
        try:
            for row in read_table(path):
                yield {**entity_cells(files.source), **{column: row[column] for column in OF_REGION}}
        except (BidssegError, KeyError) as error:
            problems.append(f"{path.name}: not a table of lesions by region: {error}")
