"""The processing of one scan: its input images, its outputs (label maps, masks, volumes), and their record."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsseg.bids.names import with_extension
from bidsseg.bids.outputs import OutputPaths, SpacePaths, output_paths
from bidsseg.bids.scan import Scan
from bidsseg.derivative import sidecars
from bidsseg.derivative.corrections import Corrections, read_corrections
from bidsseg.derivative.given_lesions import GivenLesions, read_given_lesions
from bidsseg.derivative.lesion_tables import (
    lesion_lookup,
    lesion_sidecar,
    lesion_table,
    planned_region_tables,
    update_lesion_tables,
)
from bidsseg.derivative.links import given_uri
from bidsseg.derivative.on_request import Earlier, earlier_lesions, earlier_outputs
from bidsseg.derivative.sidecar_keys import CORRECTIONS, LESIONS, Sidecar, drawn_on, is_fast, lesion_mask
from bidsseg.derivative.sidecar_keys import corrections as corrections_in
from bidsseg.derivative.volumes import volume_table
from bidsseg.errors import DataError, UsageError
from bidsseg.files import fingerprint, remove, remove_halves, write_json_atomic, write_table, write_text_atomic
from bidsseg.image.nifti import write_changed, write_field, write_labels, write_map, write_maps
from bidsseg.image.volume import Volume
from bidsseg.labels.protocol import Protocol
from bidsseg.models.card import BRAIN, LESION, Card, written_protocols
from bidsseg.models.lesion_rule import LesionRule
from bidsseg.registration.align import Images, read_aligned
from bidsseg.registration.spaces import Fit, Space, fit_to, labels_at, template_brain

if TYPE_CHECKING:
    from bidsseg.segmentation.result import Segmentation

LONGEST_NAME = 255 - len("..000000000000.part")
"""Largest length of a file name that leaves space for the name of a temporary file; file systems allow 255."""


@dataclass(frozen=True, eq=False)
class Job:
    """One scan to be segmented by one model.

    Attributes:
        card: card of the model.
        output_dir: top of the output.
        probseg: whether probabilities are requested.
        entropy: whether maps of uncertainty are requested.
        spaces: standard spaces in which label maps and masks are requested.
        viewer: whether the 3-D page is requested.
        fast: whether the pass over the mirror image is omitted.
        corrections: label maps of this scan that were corrected by hand.
        lesions: which voxels are lesions, if the model finds them.
        given: the given mask of the lesions of this scan.
        filled: whether the T1w with filled lesions is requested.
    """

    scan: Scan
    card: Card
    bids_dir: Path
    output_dir: Path
    probseg: bool = False
    entropy: bool = False
    spaces: Sequence[Space] = ()
    viewer: bool = False
    fast: bool = False
    corrections: Corrections = field(default_factory=Corrections)
    lesions: LesionRule = field(default_factory=LesionRule)
    given: GivenLesions = field(default_factory=GivenLesions)
    filled: bool = False

    @cached_property
    def paths(self) -> OutputPaths:
        """Every output, relative to the output folder."""
        return output_paths(
            self.scan,
            self.card.name,
            self.card.protocols,
            probseg=self.probseg,
            entropy=self.entropy,
            lesion=self.has_lesions,
            filled=self.filled and self.has_lesions,
            spaces=[space.words for space in self.spaces],
            viewer=self.viewer,
        )

    @property
    def has_lesions(self) -> bool:
        """Whether there is a mask of lesions, given or found by the model."""
        return self.card.lesion is not None or self.given.file is not None

    @cached_property
    def protocols(self) -> dict[str, Protocol]:
        """The protocol of each label map."""
        return written_protocols(self.card, given_lesions=self.given.file is not None)

    @property
    def region_tables(self) -> list[Path]:
        """Tables of lesions by region that the run writes with the label maps in the folder of the scan, absolute."""
        desc = f"{self.scan.entities.get('desc', '')}{self.card.name}"
        given = self.given.file is not None
        protocols = {name: of for name, of in self.protocols.items() if not (given and of.lesions)}
        folder = (self.output_dir / self.paths.brain).parent
        return planned_region_tables(folder, self.scan.entities, desc, protocols=protocols, lesions=self.has_lesions)

    @property
    def region_labels(self) -> set[str]:
        """The ``desc-`` labels of those tables that are in the output."""
        return {path.stem.partition("_desc-")[2].partition("_")[0] for path in self.region_tables if path.is_file()}

    @property
    def pictures(self) -> list[Path]:
        """Pictures of the page, relative to the output folder."""
        shown = [*self.card.protocols, BRAIN, *([LESION] if self.has_lesions else [])]
        figures = output_paths(self.scan, self.card.name, shown).figures.values()
        return [*figures, *([self.paths.lesion_figure] if self.has_lesions else [])]

    @property
    def sources(self) -> list[Path]:
        """Images that the model reads, the T1w first."""
        return list(self.scan.images(self.card.inputs).values())

    @cached_property
    def provenance(self) -> Sidecar:
        """The model, images and masks that determine the result; when they change, the scan is recomputed."""
        checksums, given = self.corrections.fingerprints(), self.given.checksum
        corrections: Sidecar = {"CorrectionFingerprints": checksums} if checksums else {}
        mask: Sidecar = {"LesionMaskFingerprint": given} if given else {}
        images, rule = [fingerprint(path) for path in self.sources], None if given else self.lesions
        return {**sidecars.provenance(self.card, images, fast=self.fast, lesions=rule), **corrections, **mask}

    @property
    def record(self) -> Path:
        """The sidecar written last; its presence marks the scan as complete, see ``finished.py``."""
        last = list(self.paths.dseg.values())[-1] if self.paths.dseg else self.paths.lesion or self.paths.brain
        return self.output_dir / with_extension(last, ".json")

    def check_names(self) -> None:
        """Raise DataError if a file name of the scan would be too long for file systems."""
        longest = max((path.name for path in (*self.paths.files, *self.paths.figures.values())), key=len)
        if len(longest) > LONGEST_NAME:
            raise DataError(f"{longest} would be too long for a file name; shorten the labels of {self.scan.t1w.name}")

    def read(self) -> Images:
        """Return the images that the model reads, on the grid of the T1w."""
        return read_aligned(self.scan.images(self.card.inputs))

    def read_corrections(self, images: Images) -> dict[str, np.ndarray]:
        """Return the corrected label maps (X, Y, Z) of the scan, by output, see ``corrections.read_corrections``."""
        if not self.corrections.files:
            return {}
        more = written_protocols(self.card, given_lesions=True)
        return read_corrections(self.corrections, images, scan=self.scan, protocols=self.protocols, with_lesions=more)

    def read_given_lesions(self, images: Images) -> np.ndarray | None:
        """Return the given lesions (X, Y, Z), booleans; None if there is no mask."""
        return read_given_lesions(self.given, images, scan=self.scan)

    def agrees_with(self, found: Sidecar) -> bool:
        """Return whether a sidecar names the model, images, corrections, mask of lesions and passes of this job."""
        if is_fast(found) != self.fast or corrections_in(found).keys() != self.corrections.files.keys():
            return False
        if lesion_mask(found) != self.given.checksum:
            return False
        if drawn_on(found) not in ("", self._flair_checksum):
            return False
        return all(found.get(key) == value for key, value in self.provenance.items())

    def outdated(self) -> list[Earlier]:
        """Return the outputs on request of an earlier run that the label maps of this job will contradict.

        These are all exports (``--measure``, ``--freesurfer``), and images that this job does not write and that were
        made of other images, by another model or with other corrections, or that a killed run has not completed.
        """
        own = {self.output_dir / path for path in self.paths.files}
        found = earlier_outputs(self.output_dir, self.scan, self.card.name, record=self.record)
        return [
            each
            for each in found
            if each.is_export
            or (own.isdisjoint(each.files) and not (each.files[0].is_file() and self.agrees_with(each.record)))
        ]

    def clear(self) -> None:
        """Remove the record of an earlier run, so that a mixture never looks finished, and files of killed runs.

        So are the files by which the level ``group`` recognises a result, a filled T1w, which may be impossible this
        time, and what an earlier run has made on request and this run would contradict, see `outdated`.
        """
        outdated, table = self.outdated(), self.paths.lesion_table
        results = [with_extension(path, ".json") for path in self.paths.dseg.values()] + ([table] if table else [])
        filled = [self.paths.filled, with_extension(self.paths.filled, ".json")] if self.paths.filled else []
        remove([self.record, *(self.output_dir / path for path in (*results, *filled))])
        remove(file for each in outdated for file in each.files)
        remove(
            earlier_lesions(
                self.output_dir, self.scan, self.card.name, kept=self.paths.files, keep_tables=self.has_lesions
            )
        )
        remove_halves(self.folder.rglob(".*.part"))

    @property
    def folder(self) -> Path:
        """The folder of the participant in the output."""
        return self.output_dir / f"sub-{self.scan.entities['subject']}"

    def write(self, images: Images, result: Segmentation, filled: Volume | None = None) -> None:
        """Write images, tables and sidecars; the record comes last.

        Args:
            filled: the T1w with filled lesions, if it is requested.
        """
        t1w, places, protocols = images.volumes["T1w"], self.paths, self.protocols
        ways = {space.template: "affine" if space.affine else "deformable" for space in self.spaces}
        spaces: Sidecar = {"OutputSpaces": ways} if ways else {}
        details: Sidecar = {
            **self.provenance,
            **self._drawn_on(images),
            **sidecars.carried_over(self.scan.t1w, self.bids_dir),
            **spaces,
            **sidecars.result_details(images, result),
        }
        origin = self._origin(details)
        origins = self._origins(origin, result)
        write_labels(self._place(places.brain), result.brain, t1w)
        self._sidecar(places.brain, sidecars.mask_sidecar("Brain", origins[BRAIN]))
        if places.lesion is not None and result.lesion is not None:
            write_labels(self._place(places.lesion), result.lesion, t1w)
            self._sidecar(places.lesion, sidecars.mask_sidecar("Lesion", origins[LESION]))
            self._write_lesions(result.lesion, result.lesion_probability, t1w, origin=origins[LESION])
            if places.filled is not None and filled is not None:
                self._write_filled(places.filled, filled, t1w, result=result, origin=origins[LESION])
        for name, place in places.probseg.items():
            regions = [region.abbreviation for region in protocols[name].scored().regions]
            self._claim(place, sidecars.probseg_sidecar(name, regions, origin))
            write_maps(self._place(place), result.probabilities[name].maps(), len(regions), like=t1w)
        for name, place in places.entropy.items():
            self._claim(place, sidecars.entropy_sidecar(name, origin))
            write_map(self._place(place), result.entropy[name], t1w)
        for name, place in places.dseg.items():
            protocol = protocols[name]
            write_labels(self._place(place), result.labels[name], t1w)
            write_text_atomic(self._place(with_extension(place, ".tsv")), protocol.to_tsv())
            table = volume_table(
                protocol,
                result.labels[name],
                result.soft_mm3[name],
                voxel_volume_mm3=t1w.voxel_volume_mm3,
                brain=result.brain,
                expected_dice=result.expected_dice.get(name),
                intracranial_mm3=result.intracranial.mm3,
            )
            write_table(self._place(places.morph[name]), table)
            sidecar = sidecars.morph_sidecar(name, origins[name], origins[BRAIN], intracranial=result.intracranial.note)
            self._sidecar(places.morph[name], sidecar)
        fits: dict[str, Fit] = {}  # shared by all resolutions of a template
        for space, in_space in zip(self.spaces, places.spaces, strict=True):
            known = fits.get(space.template)
            fit = replace(known, grid=template_brain(space)[0]) if known else fit_to(space, t1w, result.brain)
            if not known:
                self._write_transform(in_space.transform, fit)
            fits[space.template] = fit
            self._write_in(space, in_space, fit, t1w=t1w, result=result, details=details)
        update_lesion_tables((self.output_dir / places.brain).parent, self.scan.entities)
        for name, place in places.dseg.items():
            self._sidecar(place, sidecars.dseg_sidecar(name, origins[name]))

    def _origin(self, details: Sidecar) -> sidecars.Origin:
        given, folder = self.given.file, self.given.folder
        mask = "" if given is None else self._given_uri(given, LESIONS, folder)
        flair = [self.scan.flair] if drawn_on(details) and self.scan.flair is not None else []
        return sidecars.Origin([*self.sources, *flair], self.bids_dir, details, lesions=mask)

    def _drawn_on(self, images: Images) -> Sidecar:
        """Return the checksum of the FLAIR if a given mask or correction was drawn on it, unless the model reads it."""
        flair = self.scan.flair
        needed = flair in images.guides and flair not in self.sources
        return {"FlairFingerprint": self._flair_checksum} if needed else {}

    @cached_property
    def _flair_checksum(self) -> str:
        return fingerprint(self.scan.flair) if self.scan.flair is not None else ""

    def _origins(self, origin: sidecars.Origin, result: Segmentation) -> dict[str, sidecars.Origin]:
        """Return the origin of each output: that of the model's, or one that names what was given instead."""
        origins = dict.fromkeys([BRAIN, LESION, *result.labels], origin)
        if self.given.file is not None:
            with_lesions = [name for name in result.labels if self.protocols[name].scored().lesions]
            origins |= dict.fromkeys(with_lesions, origin.given(is_drawn=False))
            origins[LESION] = origin.given(is_drawn=self.given.manual).without_quality()
        for name, other in result.manual.items():
            uri = self._given_uri(self.corrections.files[other], CORRECTIONS, self.corrections.folder)
            origins[name] = origins[name].corrected(uri)
        return origins

    def _given_uri(self, path: Path, name: str, folder: Path) -> str:
        return given_uri(path, name, folder, output_dir=self.output_dir, bids_dir=self.bids_dir)

    def _write_lesions(
        self, mask: np.ndarray, probability: np.ndarray | None, t1w: Volume, *, origin: sidecars.Origin
    ) -> None:
        """Write the map of lesions and their table, without the places, which `update_lesion_tables` adds."""
        from bidsseg.segmentation.lesions import describe, numbered

        lesion_map, table = self.paths.lesions, self.paths.lesion_table
        assert lesion_map is not None and table is not None
        lesions = numbered(mask)
        found = describe(lesions, t1w.affine, probability)
        write_labels(self._place(lesion_map), lesions, t1w)
        write_text_atomic(self._place(with_extension(lesion_map, ".tsv")), lesion_lookup(len(found)).to_tsv())
        self._sidecar(lesion_map, sidecars.lesions_sidecar(origin))
        write_table(self._place(table), lesion_table(found))
        self._sidecar(table, lesion_sidecar(origin))

    def _write_filled(
        self, place: Path, filled: Volume, t1w: Volume, *, result: Segmentation, origin: sidecars.Origin
    ) -> None:
        """Write the T1w with filled lesions; its voxels outside of lesions are those of the source, bit by bit."""
        from bidsseg.image.brightness import shows_brain_alone

        assert result.lesion is not None
        stripped, voxels = shows_brain_alone(t1w.data, result.brain), int(np.count_nonzero(result.lesion))
        self._claim(place, sidecars.filled_sidecar(origin, voxels=voxels, skull_stripped=stripped))
        write_changed(self._place(place), self.scan.t1w, filled, changed=result.lesion)

    def _write_in(
        self,
        space: Space,
        places: SpacePaths,
        fit: Fit,
        *,
        t1w: Volume,
        result: Segmentation,
        details: Sidecar,
    ) -> None:
        """Write label maps and masks on the grid of a standard space."""
        resolution = f"resolution {space.resolution} of the template in TemplateFlow"
        more: Sidecar = {**details, "SpatialReference": space.reference, "Resolution": resolution}
        origins = self._origins(self._origin(more), result)
        images = [(places.brain, result.brain, sidecars.mask_sidecar("Brain", origins[BRAIN]))]
        if places.lesion is not None and result.lesion is not None:
            images.append((places.lesion, result.lesion, sidecars.mask_sidecar("Lesion", origins[LESION])))
        for name, place in places.dseg.items():
            images.append((place, result.labels[name], sidecars.dseg_sidecar(name, origins[name])))
        for place, labels, sidecar in images:
            self._claim(place, sidecar)
            write_labels(self._place(place), labels_at(labels, t1w.affine, fit.points), fit.grid)
        for name, place in places.dseg.items():
            write_text_atomic(self._place(with_extension(place, ".tsv")), self.protocols[name].to_tsv())

    def _write_transform(self, path: Path, fit: Fit) -> None:
        """Write the transform to a space, replacing one of another kind."""
        from bidsseg.registration.linear import as_text

        transform = self._place(path)
        remove(transform.parent.glob(f"{glob.escape(transform.name.partition('.')[0])}.*"))
        if fit.field is None:
            write_text_atomic(transform, as_text(fit.motion))
        else:
            write_field(transform, fit.field)

    def _place(self, path: Path) -> Path:
        return self.output_dir / path

    def _claim(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write the sidecar of an output on request before its image.

        A later run removes outputs on request by their sidecars, also if this run is killed before the image.
        """
        remove([self._place(path)])
        self._sidecar(path, content)

    def _sidecar(self, path: Path, content: Mapping[str, Any]) -> None:
        write_json_atomic(self._place(with_extension(path, ".json")), content)


def check_apart(jobs: Iterable[Job]) -> None:
    """Raise UsageError if results in a standard space would have the names of other results."""
    owners: dict[Path, str] = {}
    for job in jobs:
        native, spaces = job.paths, job.paths.spaces
        maps = [path for places in (native.dseg, *(space.dseg for space in spaces)) for path in places.values()]
        for path in (*maps, native.brain, *(space.brain for space in spaces)):
            if path in owners:
                both = " and ".join(dict.fromkeys([owners[path], job.scan.key]))
                raise UsageError(
                    f"--output-spaces: two results would be {path}, from {both}: exclude images that are in a "
                    'standard space already, by --bids-filter-file with {"t1w": {"space": null}}'
                )
            owners[path] = job.scan.key
