"""The page of a participant: pictures, volumes and warnings of each scan.

The page is made from the output folder alone, so that it contains scans of earlier runs beside those of this
run. The pictures are made while the image is in memory.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from bidsseg.bids.names import build_name, with_extension
from bidsseg.bids.outputs import group_table, output_paths, report_path
from bidsseg.bids.scan import Scan
from bidsseg.derivative.cohort import CONFIDENCE, EXPECTED_DICE
from bidsseg.derivative.lesion_tables import LesionFiles, find_lesions
from bidsseg.derivative.results import Result, anat_folders, brain_mask_mm3, find_results, intracranial_mm3
from bidsseg.derivative.results import Volume as Row
from bidsseg.derivative.series import comparisons_of
from bidsseg.derivative.sidecar_keys import MESSAGES, Sidecar, messages, quality, read_sidecar
from bidsseg.errors import BidssegError
from bidsseg.image.volume import Volume
from bidsseg.labels.protocol import Protocol, load_protocol
from bidsseg.models.card import BRAIN, LESION
from bidsseg.reading import NOT_AVAILABLE, object_or_empty, read_table
from bidsseg.report.control_scores import ControlScores, control_scores
from bidsseg.report.distributions import FAR, FEWEST, SUMMARY, Distribution
from bidsseg.report.lesion_list import ShownLesions, shown_lesions
from bidsseg.report.methods import Methods, methods
from bidsseg.report.mosaic import Overlay, write_mosaics
from bidsseg.report.page import write_page

COHORT = "Cohort"
"""Key of the distribution of a column in the data dictionary of the table of a cohort."""
CLOSE = "largest lesions"
"""Key of the picture of the largest lesions."""
UNLISTED = "#808080"
"""Colour of a region without a colour."""
HIDDEN = ("Description", "Sources", "SpatialReference", "Manual", "Quality", *MESSAGES)
"""Keys of the sidecar that are shown elsewhere on the page, or not at all."""


def write_figures(
    output_dir: Path,
    scan: Scan,
    model: str,
    *,
    image: Volume,
    labels: Mapping[str, np.ndarray],
    protocols: Mapping[str, Protocol],
    brain: np.ndarray,
    lesion: np.ndarray | None = None,
) -> None:
    """Write the pictures of a scan: one mosaic for each protocol, for the brain mask and for lesions if there are any.

    Args:
        model: name on the card of the model.
        image: the T1w.
        labels: label map of each protocol on the grid of the image.
        protocols: each protocol of ``labels``, for its colours.
        brain: mask on the same grid.
        lesion: mask on the same grid.
    """
    maps = {**labels, BRAIN: brain, **({} if lesion is None else {LESION: lesion})}
    overlays = {}
    for name, path in output_paths(scan, model, maps).figures.items():
        protocol = protocols.get(name) or load_protocol(name)
        colors = {region.index: region.color for region in protocol.regions}
        overlays[output_dir / path] = Overlay(maps[name], colors, outline=name == BRAIN, hollow=name == LESION)
    write_mosaics(image, overlays)


def participant_page(output_dir: Path, scan: Scan) -> Path:
    """Write the page of a scan, with all scans on the same page, and return its path.

    Scans share the page of their participant, or of their session if they have one. They are compared with the cohort
    of the latest run of the level group.
    """
    subject, session = scan.entities["subject"], scan.entities.get("session")
    results = find_results(output_dir, [subject], [session] if session else [])
    scans: dict[tuple[str, str], _Scan] = {}
    for result in results:
        if result.source.get("session") == session:
            shown = scans.setdefault((result.key, result.model), _Scan(result.key, result.model))
            shown.add(result, output_dir)
    for folder in anat_folders(output_dir / build_name({"subject": subject})):
        for files in find_lesions(folder):
            if files.source.get("session") == session:
                shown = scans.setdefault((files.key, files.model), _Scan(files.key, files.model))
                shown.add_lesions(files, output_dir)
    page = output_dir / report_path(scan)
    descriptions = {shown.methods() for shown in scans.values()} - {None}
    pages = comparisons_of(subject, output_dir) if session else []
    compared = [(path.name, path.stem.split("_desc-")[1].removesuffix("_longitudinal")) for path in pages]
    content = {"title": page.stem.replace("_", " · "), "scans": list(scans.values()), "compared": compared}
    write_page(page, "participant.html", {**content, "methods": sorted(descriptions, key=lambda entry: entry.text)})
    return page


def cohort_ranges(output_dir: Path, model: str, protocol: str) -> dict[str, Distribution]:
    """Return volumes (mm³) in the cohort by the full name of the region; empty for a cohort with too few scans."""
    columns = object_or_empty(output_dir / with_extension(group_table(model, protocol), ".json"))
    found = {
        str(column["LongName"]): Distribution.of(name, column[COHORT])
        for name, column in columns.items()
        if isinstance(column, dict) and {"LongName", COHORT} <= column.keys() and _is_summary(column[COHORT])
    }
    return {name: distribution for name, distribution in found.items() if distribution.n >= FEWEST}


@dataclass(frozen=True)
class _Shown:
    """A row of volumes on the page.

    Attributes:
        mask_mm3: volume of the brain mask.
        cohort: volumes of the same region in the cohort.
    """

    row: Row
    color: str
    mask_mm3: float | None
    cohort: Distribution | None

    @property
    def percent(self) -> float | None:
        """Share of the volume of the brain mask."""
        return 100 * self.row.volume_mm3 / self.mask_mm3 if self.mask_mm3 else None

    @property
    def distance(self) -> float:
        """Distance from the mean of the cohort, in its standard deviations; 0 without a cohort."""
        return self.cohort.distance(self.row.volume_mm3) if self.cohort else 0.0

    @property
    def is_far(self) -> bool:
        """Whether the volume is unusual in the cohort."""
        return abs(self.distance) > FAR


@dataclass
class _Scan:
    """A scan on the page, segmented by one model.

    Attributes:
        base: background picture: the image with the outline of the brain.
        pictures: picture of each protocol.
        viewer: address of the 3-D page, if there is one.
        tables: rows of volumes of each protocol.
        controls: z scores of each protocol that has them.
        corrected: protocols whose label maps were corrected by hand.
        unusual: rows of all protocols that are far from the mean of the cohort, the farthest first.
        warnings: findings of the image guard and notes of the run.
        details: the rest of the sidecar.
        files: name and address of each result.
        sidecar: sidecar of one of the label maps.
        lesions: the lesions; None for a model without lesions.
    """

    key: str
    model: str
    quality: float | None = None
    mask_mm3: float | None = None
    intracranial_mm3: float | None = None
    intracranial_note: str = NOT_AVAILABLE
    base: str = ""
    pictures: dict[str, str] = field(default_factory=dict)
    viewer: str = ""
    tables: dict[str, list[_Shown]] = field(default_factory=dict)
    controls: dict[str, ControlScores] = field(default_factory=dict)
    corrected: list[str] = field(default_factory=list)
    unusual: list[_Shown] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    sidecar: Sidecar = field(default_factory=Sidecar)
    lesions: ShownLesions | None = None

    @property
    def quality_name(self) -> str:
        """What the quality is."""
        rows = [entry.row for rows in self.tables.values() for entry in rows]
        return EXPECTED_DICE if any(row.expected_dice is not None for row in rows) else CONFIDENCE

    def methods(self) -> Methods | None:
        """Return the text about the scan for a paper."""
        protocols = [protocol for protocol in self.tables if protocol not in (BRAIN, LESION)]
        return methods(self.sidecar, protocols, self.corrected)

    def add(self, result: Result, output_dir: Path) -> None:
        """Add the result of one protocol."""
        ranges = cohort_ranges(output_dir, result.model, result.protocol)
        sidecar = self.sidecar = result.sidecar()
        quality = result.quality()
        self.quality = self.quality if quality is None else quality
        self.corrected += [result.protocol] if result.manual else []
        self.warnings = list(dict.fromkeys([*self.warnings, *messages(sidecar)]))
        self.details = {key: _plain(value) for key, value in sidecar.items() if key not in HIDDEN}
        paths = output_paths(Scan(result.source, Path()), result.model, [result.protocol, BRAIN, LESION], viewer=True)
        figures = paths.figures
        if paths.viewer is not None and (output_dir / paths.viewer).is_file():
            self.viewer = _address(paths.viewer)
        present = {name: embedded(path) for name in figures if (path := output_dir / figures[name]).is_file()}
        self.base = present.pop(BRAIN, "")
        lesion = {LESION: present.pop(LESION)} if LESION in present and result.protocol != LESION else {}
        self.pictures = {**self.pictures, **present, **lesion}
        try:
            rows = result.volumes()
        except (OSError, ValueError) as error:
            self.warnings.append(f"{result.path.name}: {error}")
            rows = []
        self.mask_mm3, self.intracranial_mm3 = brain_mask_mm3(rows), intracranial_mm3(rows)
        about = object_or_empty(with_extension(result.path, ".json"))
        self.intracranial_note = str(about.get("EstimatedTotalIntracranialVolume", NOT_AVAILABLE))
        colors, controls = _colors(result), control_scores(output_dir, result)
        if controls is not None:
            self.controls[result.protocol] = controls
        shown = [
            _Shown(row, colors.get(row.name, UNLISTED), self.mask_mm3, ranges.get(row.name))
            for row in rows
            if row.is_region
        ]
        self.tables[result.protocol] = shown
        far = [entry for entry in shown if entry.is_far]
        self.unusual = sorted([*self.unusual, *far], key=lambda entry: -abs(entry.distance))
        for path in (result.dseg, result.path):
            self.files[path.name] = _address(Path(os.path.relpath(path, output_dir)))

    def add_lesions(self, files: LesionFiles, output_dir: Path) -> None:
        """Add the lesions, also of a model that has no label map."""
        paths = output_paths(Scan(files.source, Path()), files.model, [BRAIN, LESION])
        figures = {**paths.figures, CLOSE: paths.lesion_figure}
        present = {name: embedded(path) for name in figures if (path := output_dir / figures[name]).is_file()}
        self.base = self.base or present.get(BRAIN, "")
        if LESION in present:
            self.pictures.setdefault(LESION, present[LESION])
        if not self.sidecar:
            self.sidecar = read_sidecar(with_extension(files.lesion_map, ".json"))
            self.quality = quality(self.sidecar)
            self.warnings = messages(self.sidecar)
            self.details = {key: _plain(value) for key, value in self.sidecar.items() if key not in HIDDEN}
        try:
            self.lesions = shown_lesions(files, present.get(CLOSE, ""))
        except (BidssegError, KeyError, ValueError) as error:
            self.warnings.append(f"{files.table.name}: {error}")
        for path in (
            files.lesion_map,
            files.table,
            *(files.region_table(one.protocol.name, one.desc) for one in files.others()),
        ):
            if path.is_file():
                self.files[path.name] = _address(Path(os.path.relpath(path, output_dir)))


def _colors(result: Result) -> dict[str, str]:
    """Return the colour of each region from the look-up table of the label map; empty if it is missing."""
    try:
        return {row["name"]: row["color"] for row in read_table(with_extension(result.dseg, ".tsv"))}
    except (BidssegError, KeyError):
        return {}


def _is_summary(value: Any) -> bool:
    """Return whether a value is the distribution of a cohort; a table may have been edited by hand."""
    return isinstance(value, Mapping) and all(isinstance(value.get(key), int | float) for key in SUMMARY)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)


def embedded(picture: Path) -> str:
    """Return a picture embedded in the page, as an address without special characters."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _address(path: Path) -> str:
    """Return the relative URL of a path in the output."""
    return quote(path.as_posix(), safe="/+")
