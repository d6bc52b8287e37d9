"""Further tables of a cohort: fractions, asymmetry and soft volumes by scan, and the long table by scan and region."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bidsseg.bids.names import entity_cells, with_extension
from bidsseg.bids.outputs import group_table
from bidsseg.derivative.cohort import FINDINGS, QUALITY, STATUS, Cohort, status_of
from bidsseg.derivative.cohort_numbers import LONG, WHOLE, Numbers
from bidsseg.derivative.measures import STATISTICS, read_measures
from bidsseg.derivative.norms import CONTROLS, SCORE, Norms, Z
from bidsseg.derivative.outliers import FAR
from bidsseg.files import table_writer, write_json_atomic
from bidsseg.reading import NOT_AVAILABLE

MASK_FRACTION = str(LONG["brainmask-fraction"]["Description"])


@dataclass(frozen=True, eq=False)
class Wide:
    """A table with a row for each scan and a column for each region or pair.

    Attributes:
        kind: its key in the patterns of outputs.
        columns: the full name for each column.
        values: shape (N, columns).
        entry: what the data dictionary says about each column, with ``{}`` for the full name.
        norms: the model, with further columns.
    """

    kind: str
    text: str
    columns: Mapping[str, str]
    values: np.ndarray
    entry: Mapping[str, str]
    norms: Norms | None = None


def wide_tables(numbers: Numbers, norms: Norms | None = None) -> list[Wide]:
    """Return the tables of a cohort beside that of its volumes; without that of asymmetry if no regions are paired."""
    regions = {region.column: region.name for region in numbers.regions[WHOLE:]}
    soft = {"Description": f"{LONG['softvolume-mm3']['Description']}: {{}}", "Units": "mm^3"}
    fraction = {"Description": f"Fraction of the brain mask: {{}}. {MASK_FRACTION}"}
    tables = [
        Wide("softvolume", "Sums of probabilities", regions, numbers.soft[:, WHOLE:], soft),
        Wide("fraction", "Volumes as fractions of the brain mask", regions, numbers.fractions[:, WHOLE:], fraction),
    ]
    if numbers.pairs:
        pairs = {pair.column: pair.name for pair in numbers.pairs}
        entry = {"Description": "(L - R) / ((L + R) / 2) of the counted volumes; n/a if both are 0: {}"}
        tables.append(Wide("asymmetry", "Asymmetry of paired regions", pairs, numbers.asymmetry, entry))
    if norms is not None:
        everything = {region.column: region.name for region in numbers.regions}
        entry = {"Description": f"{SCORE}: {{}}"}
        tables.append(Wide("zscore", "Volumes relative to controls", everything, norms.z, entry, norms))
    return tables


def write_wide(output_dir: Path, cohort: Cohort, numbers: Numbers, *, table: Wide) -> Path:
    """Write a table and its data dictionary, and return its path relative to the output folder."""
    path = group_table(cohort.model, cohort.protocol, table.kind)
    more = {} if table.norms is None else table.norms.columns
    with table_writer(output_dir / path, [*cohort.ids, STATUS, QUALITY, *more, *table.columns]) as writer:
        for row in np.flatnonzero(numbers.selected).tolist():
            result = numbers.results[row]
            cells = {} if table.norms is None else table.norms.cells(result)
            cells |= {name: _shown(value) for name, value in zip(table.columns, table.values[row], strict=True)}
            writer.writerow({**_scan(numbers, row), STATUS: status_of(manual=result.has_correction), **cells})
    described = {name: {"LongName": full, **_filled(table.entry, full)} for name, full in table.columns.items()}
    text = f"{table.text} in the {cohort.protocol} protocol, one row for each scan with a result"
    content = {"Description": text, **_model(table.norms), **_of_scan(cohort, STATUS, QUALITY), **more, **described}
    write_json_atomic(with_extension(output_dir / path, ".json"), content)
    return path


def write_long(output_dir: Path, cohort: Cohort, numbers: Numbers, *, norms: Norms | None = None) -> Path:
    """Write the table with a row for each scan and region, and its data dictionary; return its path as write_wide."""
    path = group_table(cohort.model, cohort.protocol, "long")
    joined = {name: entry for joined in cohort.joined for name, entry in joined.columns.items()}
    values = [read_measures(result) for result in numbers.results]
    measured = measured_columns({name for measures in values for name in measures})
    score = {} if norms is None else {Z: {"Description": SCORE}}
    columns = [*cohort.ids, *LONG, *score, *measured, QUALITY, FINDINGS, *joined]
    with table_writer(output_dir / path, columns) as writer:
        for row in np.flatnonzero(numbers.selected).tolist():
            result = numbers.results[row]
            more = {name: cell for joined in cohort.joined for name, cell in joined.cells(result).items()}
            shared = {**_scan(numbers, row), FINDINGS: " ".join(numbers.findings[row]) or NOT_AVAILABLE, **more}
            for place, cells in enumerate(_regions(numbers, row)):
                here = {
                    f"{measure}-{statistic}": cell
                    for measure, regions in values[row].items()
                    for statistic, cell in regions.get(cells["name"], {}).items()
                }
                if norms is not None:
                    here[Z] = _shown(norms.z[row, place])
                writer.writerow({**shared, **cells, **here})
    text = f"Numbers of the {cohort.protocol} protocol, one row for each scan with a result and each region"
    content = {
        "Description": text,
        **_model(norms),
        **_of_scan(cohort, QUALITY, FINDINGS),
        **LONG,
        **score,
        **measured,
        **joined,
    }
    write_json_atomic(with_extension(output_dir / path, ".json"), content)
    return path


def measured_columns(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the columns of measures, given by name, with their entries in the data dictionary."""
    return {
        f"{name}-{statistic}": {"Description": f"{name}: {text}"}
        for name in sorted(names)
        for statistic, text in STATISTICS.items()
    }


def _regions(numbers: Numbers, row: int) -> Iterator[dict[str, str]]:
    """Yield the cells of every region of a scan."""
    asymmetry = {place: n for n, pair in enumerate(numbers.pairs) for place in (pair.left, pair.right)}
    for place, region in enumerate(numbers.regions):
        score = numbers.scores[row, place]
        pair = asymmetry.get(place)
        yield {
            "region": region.column,
            "name": region.name,
            "hemisphere": region.side or NOT_AVAILABLE,
            "volume-mm3": _shown(numbers.volumes[row, place]),
            "softvolume-mm3": _shown(numbers.soft[row, place]),
            "brainmask-fraction": _shown(numbers.fractions[row, place]),
            "intracranial-fraction": _shown(numbers.intracranial_fractions[row, place]),
            "asymmetry": NOT_AVAILABLE if pair is None else _shown(numbers.asymmetry[row, pair]),
            "robust-z": _shown(score, 4),
            "outlier": NOT_AVAILABLE if math.isnan(score) else str(int(abs(score) > FAR)),
        }


def _model(norms: Norms | None) -> dict[str, Any]:
    """Return the entry of the data dictionary about the regression over the controls; nothing without controls."""
    return {} if norms is None else {CONTROLS: norms.about()}


def _scan(numbers: Numbers, row: int) -> dict[str, str]:
    """Return the cells that identify a scan, and its quality."""
    source = numbers.results[row].source
    return {**entity_cells(source), QUALITY: _shown(numbers.quality[row], 4)}


def _of_scan(cohort: Cohort, *columns: str) -> dict[str, Any]:
    """Return the entries of the data dictionary for the columns that identify a scan, and for further ones."""
    known = cohort.data_dictionary()
    return {name: known[name] for name in (*cohort.ids, *columns)}


def _filled(entry: Mapping[str, str], name: str) -> dict[str, str]:
    return {key: text.replace("{}", name) for key, text in entry.items()}


def _shown(value: float, digits: int = 8) -> str:
    return NOT_AVAILABLE if math.isnan(value) else f"{value:.{digits}g}"
