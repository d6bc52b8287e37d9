"""Tables of the level ``evaluate``: one row for each scan and region, and a summary, each with a data dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bidsseg.bids.names import build_name, entity_column, in_order, with_extension
from bidsseg.bids.outputs import AgreementPaths
from bidsseg.evaluation.bootstrap import Estimate
from bidsseg.evaluation.pairs import About
from bidsseg.evaluation.summary import ABSOLUTE, LESION_MEASURES, MEASURES, Study
from bidsseg.files import write_json_atomic, write_table

ALL = "all regions"
"""Name of the first row of the summary."""
LESION_COUNTS = {"lesions-found": "found", "lesions-reference": "reference"}
DESCRIPTIONS = {
    "index": ("Value of the region in the label maps", None),
    "name": ("Name of the region", None),
    "abbreviation": ("Short name of the region", None),
    "dice": ("Dice overlap: 0 for a region that only one map has, n/a for one that neither has", None),
    "hausdorff95-mm": ("95 % Hausdorff distance: the larger of both directions' 95th percentiles", "mm"),
    "surface-distance-mm": ("Mean distance between the surfaces, over the voxels of both", "mm"),
    "found-mm3": ("Volume in {found}", "mm^3"),
    "reference-mm3": ("Volume in {reference}", "mm^3"),
    "volume-difference-mm3": ("Volume in {found} minus volume in {reference}", "mm^3"),
    "volume-difference-percent": ("Volume difference in percent of the volume in {reference}", "%"),
    ABSOLUTE: ("Absolute volume difference in percent of the volume in {reference}", "%"),
    "voxel-error": ("Share of the voxels labelled in {reference} that have another label or none in {found}; one "
                    "value for all regions of a scan", None),
    "lesions-found": ("Lesions (connected voxels, corners included) in {found}", None),
    "lesions-reference": ("Lesions in {reference}", None),
    "lesion-precision": ("Share of the lesions in {found} that share a voxel with one in {reference}", None),
    "lesion-recall": ("Share of the lesions in {reference} that share a voxel with one in {found}", None),
    "lesion-f1": ("Harmonic mean of both shares; 0 if no lesion is matched", None),
    "scans": ("Scans in which either map has the region", None),
    "correlation": ("Pearson's correlation of the volumes over scans", None),
    "volume-limit-low-mm3": ("Lower limit of agreement: mean difference of volumes minus 1.96 SD, over scans", "mm^3"),
    "volume-limit-high-mm3": ("Upper limit of agreement: mean difference plus 1.96 SD, over scans", "mm^3"),
    "only-found": ("Scans in which only {found} has the region", None),
    "only-reference": ("Scans in which only {reference} has the region", None),
}  # fmt: skip
"""Description and unit of each column."""


def write_tables(output_dir: Path, paths: AgreementPaths, study: Study) -> None:
    """Write the table of the scans and the summary, and their data dictionaries beside them."""
    entities = in_order(name for case in study.cases for name in case.pair.source)
    table, summary, name = output_dir / paths.table, output_dir / paths.summary, study.protocol.name
    _write(table, scan_rows(study, entities), [*map(entity_column, entities), *scan_columns(study)])
    text = f"Agreement of label maps in the {name} protocol, one row for each scan and region"
    ids = {entity_column(entity): {"Description": f"{entity} of the scan"} for entity in entities}
    columns = _dictionary(scan_columns(study), study.about)
    write_json_atomic(with_extension(table, ".json"), {**_description(text, study), **ids, **columns})
    rows = summary_rows(study)
    _write(summary, rows, list(rows[0]))
    text = (
        f"Agreement of label maps in the {name} protocol, one row for each region and, first, the mean over regions. "
        "Means are over the regions of a scan, the scans of a participant, and participants; -low and -high are the "
        "ends of the 95 % bootstrap interval over participants"
    )
    columns = _dictionary(list(rows[0]), study.about)
    write_json_atomic(with_extension(summary, ".json"), {**_description(text, study), **columns})


def scan_columns(study: Study) -> list[str]:
    """Return the columns of the first table after those that identify the scan."""
    lesions = [*LESION_COUNTS, *LESION_MEASURES] if study.protocol.lesions else []
    volumes = ["found-mm3", "reference-mm3"]
    return ["index", "name", "abbreviation", *MEASURES, *volumes, "voxel-error", *lesions]


def scan_rows(study: Study, entities: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row for each scan and each region that either of its maps has."""
    rows = []
    for number, case in enumerate(study.cases):
        source = case.pair.source
        ids = {entity_column(name): build_name({name: source[name]}) if name in source else None for name in entities}
        for place, region in enumerate(study.regions):
            if np.isnan(study.measures["dice"][number, place]):
                continue
            row = {**ids, "index": region.index, "name": region.name, "abbreviation": region.abbreviation}
            row |= {name: study.measures[name][number, place] for name in MEASURES}
            row |= {"found-mm3": study.volumes[0][number, place], "reference-mm3": study.volumes[1][number, place]}
            row["voxel-error"] = study.voxel_errors[number]
            if case.lesions is not None:
                row |= {column: getattr(case.lesions, name)[place] for column, name in LESION_COUNTS.items()}
                row |= {name: study.measures[name][number, place] for name in LESION_MEASURES}
            rows.append(row)
    return rows


def summary_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row for all regions, then one for each region."""
    rows = []
    for summary in study.summaries:
        region = summary.region
        row: dict[str, Any] = {"index": None, "name": ALL, "abbreviation": None}
        if region is not None:
            row = {"index": region.index, "name": region.name, "abbreviation": region.abbreviation}
        row |= {"scans": summary.scans, "participants": summary.measures["dice"].brains}
        for name in study.scan_means:
            row |= _interval(name, summary.measures.get(name))
        row |= {"found-mm3": summary.found_mm3, "reference-mm3": summary.reference_mm3}
        row |= _interval("correlation", summary.correlation)
        row |= {"volume-limit-low-mm3": summary.volumes.low, "volume-limit-high-mm3": summary.volumes.high}
        row |= {"only-found": summary.only_found, "only-reference": summary.only_reference}
        rows.append(row)
    return rows


def _interval(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    ends = (None, None, None) if estimate is None else (estimate.mean, estimate.low, estimate.high)
    return dict(zip((name, f"{name}-low", f"{name}-high"), ends, strict=True))


def _write(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(columns)).astype({"index": "Int64"})
    write_table(path, table, float_format=_shown)


def _shown(value: float) -> str:
    """Return a number with six digits, or with all digits before the point if there are more."""
    return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"


def _description(text: str, study: Study) -> dict[str, Any]:
    """Return the entries of a data dictionary that describe the whole table."""
    about = study.about
    return {
        "Description": text,
        "Found": about.found if about.against is None else str(about.against),
        "Reference": [str(folder) for folder in about.folders],
        "Mask": about.mask,
        "NotCompared": [{"Scan": left.key, "Reason": left.reason} for left in study.left],
    }


def _dictionary(columns: Sequence[str], about: About) -> dict[str, Any]:
    """Return the entries of a data dictionary that describe the columns."""
    found: dict[str, Any] = {}
    for column in columns:
        base = column.removesuffix("-low").removesuffix("-high") if column not in DESCRIPTIONS else column
        if base != column:
            end, (_, unit) = "Lower" if column.endswith("-low") else "Upper", DESCRIPTIONS[base]
            text = f"{end} end of the 95 % interval of {base}"
            found[column] = {"Description": text, **({"Units": unit} if unit else {})}
        elif column == "participants":
            found[column] = {"Description": "Number of participants in the mean Dice"}
        else:
            text, unit = DESCRIPTIONS[column]
            text = text.format(found=about.found, reference=about.reference)
            found[column] = {"Description": text, **({"Units": unit} if unit else {})}
    return found
