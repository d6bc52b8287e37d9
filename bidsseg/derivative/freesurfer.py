"""A result as FreeSurfer's tools read it: a folder in a ``SUBJECTS_DIR``, and ``desc-aseg_dseg`` as fMRIPrep names it.

Everything is made from the files in the output folder, so that finished scans can be exported as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from bidsseg import __version__
from bidsseg.bids.names import with_extension
from bidsseg.bids.outputs import aseg_path
from bidsseg.derivative.aseg_stats import Segmented, aseg_stats, color_table
from bidsseg.derivative.job import Job
from bidsseg.derivative.results import Result, brain_mask_mm3, intracranial_mm3
from bidsseg.derivative.sidecar_keys import TOOL, is_record, read_sidecar
from bidsseg.derivative.volumes import volumes_mm3
from bidsseg.errors import DataError, OutputNotWritable, UsageError
from bidsseg.files import fingerprint, remove, remove_halves, write_json_atomic, write_text_atomic
from bidsseg.image.conformed import ConformedGrid, write_mgh
from bidsseg.image.nifti import read_image, read_labels, write_labels
from bidsseg.image.volume import Volume
from bidsseg.labels.protocol import Protocol, load_protocol
from bidsseg.models.card import Card
from bidsseg.reading import object_or_empty

WITH_VALUES = ("aseg", "FreeSurfer")
"""Protocols with the values of FreeSurferColorLUT.txt, the preferred one first."""
RECORD = Path("scripts/bidsseg.json")
"""The file in the folder of a scan by which this program recognises its own folders."""
STATS = Path("stats/aseg.stats")


def values_of(card: Card) -> str:
    """Return the protocol of a model that has FreeSurfer's values; UsageError if it has none."""
    found = next((name for name in WITH_VALUES if name in card.protocols), None)
    if found is None:
        raise UsageError(
            f"--freesurfer: the model {card.name} has none of the protocols {' and '.join(WITH_VALUES)}: choose one "
            "that has, e.g. --model wholebrain"
        )
    return found


def check_subjects(subjects_dir: Path, jobs: Iterable[Job]) -> None:
    """Raise OutputNotWritable if the folder of a scan, or its ``desc-aseg`` label map, is of another program."""
    for job in jobs:
        folder = subjects_dir / job.scan.key
        try:
            foreign = os.path.lexists(folder) and any(folder.iterdir()) and not is_own(folder)
        except OSError as error:
            raise OutputNotWritable(f"{folder}: cannot be read: {error.strerror}; choose another folder") from error
        if foreign:
            raise OutputNotWritable(
                f"{folder} exists and was not written by {TOOL}: choose another folder for --freesurfer"
            )
        path = job.output_dir / aseg_path(job.scan)
        if os.path.lexists(path) and not is_record(read_sidecar(with_extension(path, ".json"))):
            raise OutputNotWritable(f"{path} exists and was not written by {TOOL}: choose another OUTPUT_DIR")


def is_own(folder: Path) -> bool:
    """Return whether the folder of a scan was written by this program."""
    return _record(folder).get("Name") == TOOL


def is_exported(job: Job, subjects_dir: Path) -> bool:
    """Return whether the folder of a scan is complete and of the present label map, and ``desc-aseg`` of this model."""
    folder, aseg = subjects_dir / job.scan.key, job.output_dir / aseg_path(job.scan)
    source = job.output_dir / job.paths.dseg[values_of(job.card)]
    of_this_model = job.agrees_with(read_sidecar(with_extension(aseg, ".json")))
    complete = (folder / STATS).is_file() and aseg.is_file() and of_this_model
    return complete and _record(folder).get("LabelMap") == fingerprint(source) != ""


def export(job: Job, subjects_dir: Path) -> None:
    """Write the folder of a finished scan, and its label map with FreeSurfer's names.

    Raises:
        InputMissing, DataError: the T1w or a file of the result cannot be read.
        OutputNotWritable, IOFailure: the files cannot be written.
    """
    own = values_of(job.card)
    folder, source = subjects_dir / job.scan.key, job.output_dir / job.paths.dseg[own]
    remove([folder / STATS])  # written last: an export without it is repeated
    remove_halves(folder.rglob(".*.part"))
    labels = read_labels(source)
    protocol = _named(job.protocols[own])
    _write_aseg(job, labels, protocol, record=with_extension(source, ".json"))

    made_by = {"Name": TOOL, "Version": __version__, "Model": job.card.name, "Protocol": own}
    write_json_atomic(folder / RECORD, {**made_by, "LabelMap": fingerprint(source)})
    t1w, _ = read_image(job.scan.t1w)
    brain = read_labels(job.output_dir / job.paths.brain)
    grid = ConformedGrid.of(t1w, (brain.data > 0) | (labels.data > 0))
    aseg, orig = grid.labels(labels), grid.intensities(t1w)
    write_mgh(folder / "mri/orig.mgz", orig, grid.affine)
    write_mgh(folder / "mri/brainmask.mgz", orig * (grid.labels(brain) > 0), grid.affine)
    write_mgh(folder / "mri/aseg.mgz", aseg, grid.affine)
    write_text_atomic(folder / "label/aseg.ctab", color_table(protocol))
    voxel = labels.voxel_volume_mm3
    volumes = dict(zip(protocol.indices, volumes_mm3(labels.data, protocol, voxel).tolist(), strict=True))
    mask_mm3, intracranial_mm3 = _whole_mm3(job, own)
    about = Segmented(job.scan.key, volumes, mask_mm3, intracranial_mm3, aseg, orig, protocol=protocol)
    write_text_atomic(folder / STATS, aseg_stats(about))


def _whole_mm3(job: Job, protocol: str) -> tuple[float, float | None]:
    """Return the volumes of the brain mask and within the skull, None if it is not known, from the table of volumes.

    Models share the mask's file, not this table.
    """
    path = job.output_dir / job.paths.morph[protocol]
    try:
        volumes = Result(job.scan.entities, job.card.name, protocol, path).volumes()
    except ValueError:
        volumes = []
    mask_mm3 = brain_mask_mm3(volumes)
    if mask_mm3 is None:
        raise DataError(f"{path} is not a table of volumes: recompute the scan with --overwrite")
    return mask_mm3, intracranial_mm3(volumes)


def _write_aseg(job: Job, labels: Volume, protocol: Protocol, *, record: Path) -> None:
    """Write the label map with its table; its sidecar first, by which a later run recognises the files."""
    path = job.output_dir / aseg_path(job.scan)
    text = "Label map with the values and names of FreeSurfer's aseg"
    write_json_atomic(with_extension(path, ".json"), {**read_sidecar(record), "Description": text})
    write_labels(path, labels.data, labels)
    write_text_atomic(with_extension(path, ".tsv"), protocol.to_tsv())


def _named(protocol: Protocol) -> Protocol:
    """Return a protocol with the names and colours of FreeSurfer for the same values."""
    known = {region.index: region for region in load_protocol("aseg").regions}
    regions = (
        replace(region, abbreviation=known[region.index].abbreviation, color=known[region.index].color)
        if region.index in known
        else region
        for region in protocol.regions
    )
    return Protocol("aseg", tuple(regions))


def _record(folder: Path) -> dict[str, object]:
    return object_or_empty(folder / RECORD)
