"""Values of another image in every region of a scan, from the files in the output folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine

from bidsseg.bids.measured import find_measured
from bidsseg.bids.names import modality_of, parse_name, suffix_of, with_extension
from bidsseg.bids.outputs import measure_path
from bidsseg.bids.scan import Image
from bidsseg.derivative.job import Job
from bidsseg.derivative.links import bids_uri
from bidsseg.derivative.results import Result
from bidsseg.derivative.sidecar_keys import TOOL, Sidecar, fingerprints, is_manual, is_record, models, read_sidecar
from bidsseg.derivative.volumes import BRAIN_MASK, BRAIN_MASK_COLUMN, values_by_region
from bidsseg.errors import BidssegError, OutputNotWritable
from bidsseg.files import fingerprint, remove, replacing, table_text, write_json_atomic
from bidsseg.image.nifti import read_image, read_labels, read_usable
from bidsseg.image.volume import Volume, in_order_of
from bidsseg.labels.protocol import Protocol
from bidsseg.reading import read_table
from bidsseg.registration.align import align

STATISTICS: dict[str, str] = {
    "mean": "Mean of the values in the voxels of the region",
    "median": "Median of the values in the voxels of the region",
    "sd": "Standard deviation of the values in the voxels of the region (of a sample: N - 1)",
    "voxels": "Number of voxels of the region in which the image has a value",
}
"""Columns of values, with their descriptions."""
INVALID = {"NAN_VALUES", "HUGE_VALUES"}
"""Findings of images with voxels whose values were replaced."""


def measure(job: Job, name: str, where: str | Path) -> None:
    """Write the values of an image in the regions of a finished scan, unless this was done before.

    Args:
        name: name of the measure.
        where: see ``find_measured``.

    Raises:
        InputMissing, DataError: the image is missing, cannot be read or does not overlap the T1w.
        UsageError: SimpleITK is needed and not installed.
        OutputNotWritable, IOFailure: the tables cannot be written, or a file is of another program.
    """
    image = find_measured(job.scan.entities, name, where, bids_dir=job.bids_dir)
    tables = {
        protocol: job.output_dir / measure_path(job.scan, job.card.name, protocol, measure=name)
        for protocol in job.paths.dseg
    }
    made_of = {protocol: _made_of(job, protocol, image) for protocol in tables}
    records = {protocol: read_sidecar(with_extension(path, ".json")) for protocol, path in tables.items()}
    for protocol, path in tables.items():
        if path.exists() and not is_record(records[protocol]):
            raise OutputNotWritable(f"{path} exists and was not written by {TOOL}: choose another OUTPUT_DIR")
    if all(fingerprints(records[p]) == made_of[p] and tables[p].is_file() for p in tables):
        return
    brain = read_labels(job.output_dir / job.paths.brain)
    brain_record = read_sidecar(with_extension(job.output_dir / job.paths.brain, ".json"))
    labels = {protocol: read_labels(job.output_dir / path).data for protocol, path in job.paths.dseg.items()}
    inside = np.logical_or.reduce([brain.data > 0, *(each > 0 for each in labels.values())])
    values, note = sampled(image, job.scan.t1w, inside)
    for protocol, path in tables.items():
        rows = list(_rows(job.protocols[protocol], values, labels=labels[protocol][inside], brain=brain.data[inside]))
        record = read_sidecar(with_extension(job.output_dir / job.paths.dseg[protocol], ".json"))
        kept: dict[str, Any] = {key: value for key, value in record.items() if key in ("Models", "SoftwareVersion")}
        kept |= {"Manual": True} if is_manual(record) else {}
        address = bids_uri(image.path, job.bids_dir)
        text = f"Values of {name} in the regions of the {protocol} protocol and in the brain mask"
        text += _about_mask(brain_record, job.card.name)
        made: Sidecar = {"InputFingerprints": made_of[protocol]}
        content = {"Description": text, **_sidecar(address=address, note=note), **kept, **made}
        with replacing(path) as stream:  # both files or none, the sidecar first: a later run recognises the table by it
            stream.write(table_text(_frame(rows), float_format="%.6g").encode())
            stream.flush()
            remove([path, with_extension(path, ".json")])
            write_json_atomic(with_extension(path, ".json"), content)


def sampled(image: Image, t1w: Path, inside: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the values of an image in voxels of a T1w, and how it was brought there.

    An image on another grid is aligned rigidly, unless the ``space-`` in its name is that of the T1w (``space-T1w``,
    the suffix of the image in its place, or the ``space-`` in the name of this image).

    Args:
        inside: booleans on the grid of the T1w, (X, Y, Z).

    Returns:
        Values (V,) in the order of the voxels of inside, float32, linearly interpolated; NaN outside of the image and
        where its value is not a number.
    """
    fixed, _ = read_image(t1w)
    moving, findings = read_image(image.path)
    values, suffix = moving, suffix_of(t1w) or "T1w"
    if INVALID & {finding.code for finding in findings}:
        values = Volume(np.where(read_usable(image.path), moving.data, np.float32(np.nan)), moving.affine)
    if (same := in_order_of(values, fixed)) is not None:
        return same.data[inside], f"on the grid of the {suffix}"
    motion, note = np.eye(4), f"on another grid in the space of the {suffix}; linearly interpolated"
    if image.entities.get("space") not in _spaces(t1w):
        _, moved = align(moving, fixed)
        if moved is not None:
            motion, note = moved.matrix, f"{moved} to match the {suffix}; linearly interpolated"
    return _interpolated(values, fixed, inside, motion=motion), note


def _spaces(t1w: Path) -> set[str]:
    """Return the labels of ``space-`` of images in the space of a T1w."""
    parsed = parse_name(t1w.name)
    return {modality_of(t1w), *([parsed[0]["space"]] if parsed and "space" in parsed[0] else [])}


def read_measures(result: Result) -> dict[str, dict[str, dict[str, str]]]:
    """Return the statistics of a result by measure and by the full name of the region."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for name, path in find_measures(result):
        if not fingerprints(read_sidecar(with_extension(path, ".json"))):
            continue
        try:
            rows = read_table(path)
            found[name] = {row["name"]: {column: row[column] for column in STATISTICS} for row in rows}
        except (BidssegError, KeyError):  # as if it had not been measured
            continue
    return found


def find_measures(result: Result) -> Iterator[tuple[str, Path]]:
    """Yield the name and the table of each measure of a result."""
    own = {**result.source, "segmentation": result.protocol, "desc": result.model}
    for path in sorted(result.path.parent.glob("sub-*_stats.tsv")):
        parsed = parse_name(path.name)
        if parsed is not None and (name := parsed[0].pop("meas", "")) and parsed[0] == own:
            yield name, path


def _interpolated(image: Volume, fixed: Volume, inside: np.ndarray, *, motion: np.ndarray) -> np.ndarray:
    from scipy.ndimage import map_coordinates

    to_voxel = np.linalg.inv(image.affine) @ np.linalg.inv(motion) @ fixed.affine
    places = apply_affine(to_voxel, np.argwhere(inside)).T
    values: np.ndarray = map_coordinates(image.data, places, order=1, mode="constant", cval=np.nan, prefilter=False)
    return values


def _rows(
    protocol: Protocol, values: np.ndarray, *, labels: np.ndarray, brain: np.ndarray
) -> Iterator[tuple[Any, ...]]:
    """Yield the row of each region, and of the brain mask; the arrays have one entry for each voxel."""
    for region, here in values_by_region(values, labels, protocol):
        yield region.index, region.name, region.abbreviation, *_statistics(here)
    yield None, BRAIN_MASK, BRAIN_MASK_COLUMN, *_statistics(values[brain > 0])


def _statistics(values: np.ndarray) -> tuple[float, float, float, int]:
    """Return mean, median, standard deviation and number of the finite values."""
    known = values[np.isfinite(values)].astype(np.float64)
    if not known.size:
        return np.nan, np.nan, np.nan, 0
    deviation = float(known.std(ddof=1)) if known.size > 1 else np.nan
    return float(known.mean()), float(np.median(known)), deviation, known.size


def _frame(rows: list[tuple[Any, ...]]) -> Any:
    import pandas as pd

    table = pd.DataFrame(rows, columns=["index", "name", "abbreviation", *STATISTICS])
    return table.astype({"index": "Int64", "voxels": "int64"})


def _about_mask(brain: Sidecar, model: str) -> str:
    """Return what is unusual about the brain mask in the folder, which all models write under the same name."""
    others = [used["Name"] for used in models(brain)[:1] if used["Name"] != model]
    by_hand = ", which was corrected by hand" if is_manual(brain) else ""
    return f"{''.join(f' of the model {name}' for name in others)}{by_hand}"


def _sidecar(*, address: str, note: str) -> Mapping[str, Any]:
    return {
        "Sources": [address],
        "Alignment": note,
        "index": {"Description": "Value of the region in the label map; n/a for the brain mask"},
        "name": {"Description": "Name of the region, or 'brain mask'"},
        "abbreviation": {"Description": "Short name of the region"},
        **{column: {"Description": text} for column, text in STATISTICS.items()},
    }


def _made_of(job: Job, protocol: str, image: Image) -> list[str]:
    """Return the checksums of the measured image and of the label map."""
    return [fingerprint(image.path), fingerprint(job.output_dir / job.paths.dseg[protocol])]
