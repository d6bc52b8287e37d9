"""The comparison of the sessions of a participant: its input, its outputs, and their record."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsseg.bids.names import parse_name, with_extension
from bidsseg.bids.outputs import series_log_path
from bidsseg.bids.scan import Scan
from bidsseg.bids.series import ORIGINAL, SPACE, TOGETHER, Series, SeriesPaths, series_paths
from bidsseg.derivative import sidecars
from bidsseg.derivative.changes import CHANGES, LESION_CHANGES, Visits, change_table, lesion_table
from bidsseg.derivative.corrections import Corrections, find_halfway_corrections
from bidsseg.derivative.links import given_uri
from bidsseg.derivative.ownership import ELSEWHERE, Manifests, without_sidecar
from bidsseg.derivative.results import is_own_page
from bidsseg.derivative.sidecar_keys import CORRECTIONS, TOOL, Sidecar, is_fast, is_of_model, is_record, read_sidecar
from bidsseg.derivative.sidecar_keys import corrections as corrections_in
from bidsseg.errors import OutputNotWritable
from bidsseg.files import fingerprint, remove, remove_halves, write_json_atomic, write_table, write_text_atomic
from bidsseg.image.nifti import write_labels, write_map
from bidsseg.image.volume import Volume
from bidsseg.labels.protocol import Protocol
from bidsseg.models.card import BRAIN, LESION, Card
from bidsseg.models.lesion_rule import LesionRule
from bidsseg.models.rescan import smallest_changes
from bidsseg.registration.align import Images

if TYPE_CHECKING:
    from bidsseg.segmentation.result import Segmentation

KINDS = ((SPACE, ""), (SPACE, "brain"), (ORIGINAL, TOGETHER))
"""Space of the images of a session in a comparison, and what follows the name of the model in ``desc-``."""


@dataclass(frozen=True, eq=False)
class Visit:
    """One session in the halfway space.

    Attributes:
        images: images in the space, brightness from 0 to 1, by suffix; with findings and notes about the scan.
        motion: (4, 4) from points of the T1w to those of the space, RAS+ mm.
        native: label map of each protocol on the grid of the T1w.
    """

    images: Images
    motion: np.ndarray
    result: Segmentation
    native: Mapping[str, Volume]

    @cached_property
    def shows_brain_alone(self) -> bool:
        """Whether the T1w is skull-stripped."""
        from bidsseg.image.brightness import shows_brain_alone

        return shows_brain_alone(self.images.volumes["T1w"].data, self.result.brain)


@dataclass(frozen=True, eq=False)
class SeriesJob:
    """The sessions of one participant to be compared by one model.

    Attributes:
        fast: whether the pass over the mirror image is omitted.
        lesions: which voxels are lesions.
        corrections_dir: derivative dataset with corrected label maps.
    """

    series: Series
    card: Card
    bids_dir: Path
    output_dir: Path
    fast: bool = False
    lesions: LesionRule = field(default_factory=LesionRule)
    corrections_dir: Path | None = None

    @cached_property
    def paths(self) -> SeriesPaths:
        """Every output, relative to the output folder."""
        return series_paths(self.series, self.card.name, self.card.protocols, lesion=self.card.lesion is not None)

    @property
    def sources(self) -> list[list[Path]]:
        """Images that the model reads at each session, the T1w first."""
        return [list(scan.images(self.card.inputs).values()) for scan in self.series.scans]

    @cached_property
    def checksums(self) -> list[list[str]]:
        """Checksums of the images of each session."""
        return [[fingerprint(path) for path in paths] for paths in self.sources]

    @cached_property
    def corrections(self) -> list[Corrections]:
        """The corrected label maps of each session."""
        folder, sessions = self.corrections_dir, self.paths.sessions
        return [Corrections() if folder is None else find_halfway_corrections(folder, places) for places in sessions]

    @cached_property
    def correction_checksums(self) -> dict[str, str]:
        """Checksum of each corrected label map, by session and output: ``ses-1 FAST``."""
        of_sessions = zip(self.series.sessions, self.corrections, strict=True)
        return {f"{label} {name}": value for label, each in of_sessions for name, value in each.fingerprints().items()}

    def lost_corrections(self) -> list[str]:
        """Return the corrected label maps that the present tables contain, and this job does not have any more."""
        return sorted(corrections_in(read_sidecar(self.record)).keys() - self.correction_checksums.keys())

    def provenance(self, checksums: Iterable[str]) -> Sidecar:
        """Return the model and the images that determine a result."""
        return sidecars.provenance(self.card, checksums, fast=self.fast, lesions=self.lesions)

    @property
    def record(self) -> Path:
        """The sidecar written last; its presence marks the comparison as complete."""
        return self._records[-1]

    @property
    def _records(self) -> list[Path]:
        """The sidecars of the tables, in the order in which they are written."""
        tables = [*self.paths.tables.values(), *([self.paths.lesions] if self.paths.lesions else [])]
        return [self.output_dir / with_extension(table, ".json") for table in tables]

    def is_finished(self) -> bool:
        """Return whether all outputs are present, made by this model from these images, dates and corrections."""
        found = read_sidecar(self.record)
        wanted = self.provenance(checksum for each in self.checksums for checksum in each)
        if not found or is_fast(found) != self.fast or any(found.get(key) != value for key, value in wanted.items()):
            return False
        if found.get("Years") != self._years or corrections_in(found) != self.correction_checksums:
            return False
        if not is_own_page(self.output_dir / self.paths.page):
            return False
        return all((self.output_dir / path).is_file() for path in self.paths.files)

    def check_files(self) -> None:
        """Raise OutputNotWritable if a file of another program would be replaced."""
        files = dict.fromkeys(self.output_dir / path for path in self.paths.files)
        present = [place for place in files if os.path.lexists(place)]
        records = {place: is_record(read_sidecar(place)) for place in present if place.suffix == ".json"}
        foreign = [place for place, is_own in records.items() if not is_own]
        manifests = Manifests(self.output_dir, series_log_path("*").name)
        doubtful = without_sidecar(files) if records else present
        if doubtful and not manifests.claim(self.series.key, self.card.name):
            foreign += doubtful
        page = self.output_dir / self.paths.page
        if os.path.lexists(page) and not is_own_page(page):
            foreign.append(page)
        if foreign:
            raise OutputNotWritable(f"{foreign[0]} exists and was not written by {TOOL}: {ELSEWHERE}")

    def outdated(self) -> list[Path]:
        """Return the files of an earlier comparison by this model that this one does not write, in a new space.

        They are those of a session, or of a T1w, that is no longer compared.
        """
        own = {self.output_dir / path for path in self.paths.files}
        label = f"{self.series.source.get('desc', '')}{self.card.name}"
        found: list[Path] = []
        for folder in sorted((self.output_dir / self.series.key).glob("ses-*/anat")):
            for sidecar in sorted(folder.glob("sub-*_ses-*_space-*.json")):
                parsed, content = parse_name(sidecar.name), read_sidecar(sidecar)
                if parsed is None or not (is_record(content) and is_of_model(content, self.card.name)):
                    continue
                kind = parsed[0].get("space"), parsed[0].get("desc", "").removeprefix(label)
                if kind in KINDS and parsed[0].get("desc", "").startswith(label):
                    found += [with_extension(sidecar, extension) for extension in (".nii.gz", ".tsv", ".json")]
            found += folder.glob(f"sub-*_from-T1w_to-{SPACE}_mode-image_desc-{label}_xfm.txt")
        return [path for path in found if path not in own and path.is_file()]

    def clear(self) -> None:
        """Remove the records of the tables of an earlier run, files that would contradict this one, and halves."""
        remove([*self._records, *self.outdated()])
        remove_halves((self.output_dir / self.series.key).rglob(".*.part"))

    def write(self, visits: Sequence[Visit], mean: Volume, protocols: Mapping[str, Protocol]) -> None:
        """Write images, tables and sidecars; the record comes last.

        Args:
            visits: the sessions, in their order.
            mean: mean T1w, brightness from 0 to 1, whose grid is the halfway space.
            protocols: protocols of the model's heads.
        """
        paths, series = self.paths, self.series
        images = [path for each in self.sources for path in each]
        details = self.provenance(checksum for each in self.checksums for checksum in each)
        corrections: Sidecar = {"CorrectionFingerprints": found} if (found := self.correction_checksums) else {}
        whole = sidecars.Origin(images, self.bids_dir, {**details, "Years": self._years, **corrections})
        write_map(self.output_dir / paths.mean, mean.data, mean)
        stripped = all(visit.shows_brain_alone for visit in visits)
        of_mean: Sidecar = {**details, "SpatialReference": self._reference, "SkullStripped": stripped}
        text = "Mean T1w of all sessions in the halfway space, brightness from 0 to 1"
        self._sidecar(paths.mean, sidecars.image_sidecar(text, sidecars.Origin(images, self.bids_dir, of_mean)))
        for number, visit in enumerate(visits):
            self._write_session(number, visit, protocols)
        compared = Visits(series.sessions, series.years, [visit.result for visit in visits], mean.affine)
        for name, place in paths.tables.items():
            smallest, scans = smallest_changes(self.card, name)
            write_table(self.output_dir / place, change_table(compared, protocols[name], smallest))
            text = f"Volumes of the regions of the {name} protocol at each session, and their changes"
            noise = {"NoiseMeasuredOn": scans} if scans else {}
            sources = self._sources(whole, visits, name, BRAIN)
            self._sidecar(place, {"Description": text, **sources, **CHANGES, **noise, **whole.details})
        if paths.lesions is not None:
            masks = [visit.result.lesion for visit in visits if visit.result.lesion is not None]
            sources = self._sources(whole, visits, LESION)
            table = lesion_table(compared, masks, corrected=sources.get("CorrectedSessions", ()))
            write_table(self.output_dir / paths.lesions, table)
            text = "Lesions at each session"
            self._sidecar(paths.lesions, {"Description": text, **sources, **LESION_CHANGES, **whole.details})

    @property
    def _reference(self) -> str:
        """URI of the image that defines the grid of the space."""
        return f"bids::{self.paths.mean.as_posix()}"

    @property
    def _years(self) -> list[float | None]:
        return [None if years is None else round(years, 4) for years in self.series.years]

    def _sources(self, whole: sidecars.Origin, visits: Sequence[Visit], *outputs: str) -> Sidecar:
        """Return the sources of a table of some outputs, and the sessions at which one of them was corrected."""
        manual = [{other for name, other in visit.result.manual.items() if name in outputs} for visit in visits]
        uris = [self._correction(number, output) for number, found in enumerate(manual) for output in sorted(found)]
        sessions = [label for label, found in zip(self.series.sessions, manual, strict=True) if found]
        sources: Sidecar = {"Sources": [*whole.uris, *uris]}
        return {**sources, "CorrectedSessions": sessions} if sessions else sources

    def _correction(self, number: int, output: str) -> str:
        """Return the URI of a corrected label map of a session."""
        corrections = self.corrections[number]
        file, folder = corrections.files[output], corrections.folder
        return given_uri(file, CORRECTIONS, folder, output_dir=self.output_dir, bids_dir=self.bids_dir)

    def _write_session(self, number: int, visit: Visit, protocols: Mapping[str, Protocol]) -> None:
        """Write the images of one session."""
        from bidsseg.registration.linear import as_text

        scan, places, corrections = self.series.scans[number], self.paths.sessions[number], self.corrections[number]
        t1w, result = visit.images.volumes["T1w"], visit.result
        given: Sidecar = {"CorrectionFingerprints": found} if (found := corrections.fingerprints()) else {}
        details: Sidecar = {
            **self.provenance(self.checksums[number]),
            **given,
            **sidecars.carried_over(scan.t1w, self.bids_dir),
            **sidecars.result_details(visit.images, result),
        }
        sources = list(scan.images(self.card.inputs).values())
        origin = sidecars.Origin(sources, self.bids_dir, {**details, "SpatialReference": self._reference})

        def made(name: str, origin: sidecars.Origin) -> sidecars.Origin:
            corrected = result.manual.get(name)
            return origin if corrected is None else origin.corrected(self._correction(number, corrected))

        text = "T1w in the halfway space of all sessions, with the brightness of their mean, from 0 to 1"
        write_map(self.output_dir / places.t1w, t1w.data, t1w)
        self._sidecar(places.t1w, sidecars.image_sidecar(text, origin, {"SkullStripped": visit.shows_brain_alone}))
        write_text_atomic(self.output_dir / places.transform, as_text(visit.motion))
        write_labels(self.output_dir / places.brain, result.brain, t1w)
        self._sidecar(places.brain, sidecars.mask_sidecar("Brain", made(BRAIN, origin)))
        if places.lesion is not None and result.lesion is not None:
            write_labels(self.output_dir / places.lesion, result.lesion, t1w)
            self._sidecar(places.lesion, sidecars.mask_sidecar("Lesion", made(LESION, origin)))
        for name, place in places.dseg.items():
            write_labels(self.output_dir / place, result.labels[name], t1w)
            write_text_atomic(self.output_dir / with_extension(place, ".tsv"), protocols[name].to_tsv())
            self._sidecar(place, sidecars.dseg_sidecar(name, made(name, origin)))
        native = sidecars.Origin(sources, self.bids_dir, {**details, "SpatialReference": ORIGINAL})
        for name, place in places.native.items():
            write_labels(self.output_dir / place, visit.native[name].data, visit.native[name])
            write_text_atomic(self.output_dir / with_extension(place, ".tsv"), protocols[name].to_tsv())
            table = self.paths.tables[name].name
            self._sidecar(place, sidecars.native_sidecar(name, made(name, native), table=table))

    def _sidecar(self, path: Path, content: Mapping[str, Any]) -> None:
        write_json_atomic(self.output_dir / with_extension(path, ".json"), content)


def crash_source(series: Series) -> Scan:
    """Return the participant as a scan, for the name of the file of a crash."""
    return Scan({"subject": series.source["subject"]}, series.scans[0].t1w)


def comparisons_of(subject: str, output_dir: Path) -> list[Path]:
    """Return the pages that compare the sessions of a participant, by name."""
    return sorted(path for path in output_dir.glob(f"sub-{subject}_desc-*_longitudinal.html") if is_own_page(path))
