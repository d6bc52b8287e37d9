"""The content of an output folder: results of scans, and outcomes of scans without a result."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from bidsseg.bids.annotations import find_label_maps
from bidsseg.bids.index import folders
from bidsseg.bids.names import build_name, natural, parse_name, with_extension
from bidsseg.bids.outputs import root_path
from bidsseg.bids.scan import Scan, without_added
from bidsseg.derivative import sidecar_keys
from bidsseg.derivative.volumes import BRAIN_MASK, BRAIN_MASK_COLUMN, FORMER_BRAIN_MASK, INTRACRANIAL
from bidsseg.errors import BidssegError, listed
from bidsseg.reading import NOT_AVAILABLE, number_or_none, object_or_empty, read_table
from bidsseg.settings import LESION_FLAGS

PAGE_MARK = b'<meta name="generator" content="bidsseg'
PAGE_HEAD = 4096
"""Number of bytes at the beginning of a page that contain its mark."""


@dataclass(frozen=True)
class Result:
    """The segmentation of one scan by one model, under one protocol.

    Attributes:
        source: entities of the T1w by their pybids names, in BIDS order.
        path: its table of volumes.
    """

    source: dict[str, str]
    model: str
    protocol: str
    path: Path

    @property
    def key(self) -> str:
        """The source entities as in file names: ``sub-01_ses-1_run-1``."""
        return build_name(self.source)

    @property
    def dseg(self) -> Path:
        """The label map; its sidecar and look-up table have the extensions ``.json`` and ``.tsv``."""
        return self.path.with_name(build_name(self._entities, "dseg", ".nii.gz"))

    @property
    def _entities(self) -> dict[str, str]:
        return {**self.source, "segmentation": self.protocol, "desc": self.model}

    def sidecar(self) -> sidecar_keys.Sidecar:
        """Return the content of the sidecar of the label map; empty if it cannot be read."""
        return sidecar_keys.read_sidecar(with_extension(self.dseg, ".json"))

    @property
    def manual(self) -> bool:
        """Whether the label map was corrected by hand."""
        return sidecar_keys.is_manual(self.sidecar())

    @property
    def has_correction(self) -> bool:
        """Whether the label map, or the brain mask in the table of volumes, was corrected by hand."""
        about = sidecar_keys.read_sidecar(with_extension(self.path, ".json"))
        return self.manual or sidecar_keys.has_correction(about)

    def model_name(self) -> str:
        """Return the name of the model, without a ``desc`` of the T1w before it."""
        names = [str(model["Name"]) for model in sidecar_keys.models(self.sidecar())]
        return names[0] if names and names[0] and self.model.endswith(names[0]) else self.model

    def quality(self) -> float | None:
        """Return the quality, 0 to 1, see ``Segmentation.quality``; None if the sidecar lacks it."""
        return sidecar_keys.quality(self.sidecar())

    def is_calibrated(self, volumes: Iterable[Volume]) -> bool:
        """Return whether the quality is an expected Dice, which a table of volumes of the scan then contains.

        Args:
            volumes: those of this result, which are tested first, without reading a table.
        """
        paths = (result.path for result in self._in_all_protocols() if result.path != self.path)
        others = (volume for path in paths for volume in _volumes_or_none(path))
        return any(volume.expected_dice is not None for volume in chain(volumes, others))

    def is_corrected(self) -> bool:
        """Return whether a label map of the scan by this model, in any protocol, was corrected by hand."""
        return any(result.manual for result in self._in_all_protocols())

    def _in_all_protocols(self) -> Iterator[Result]:
        """Yield the results of the scan by this model, in all protocols."""
        for path in sorted(self.path.parent.glob(f"sub-*_seg-*_desc-{self.model}_morph.tsv")):
            parsed = parse_name(path.name)
            if parsed and {**parsed[0], "segmentation": self.protocol} == self._entities:
                yield replace(self, protocol=parsed[0]["segmentation"], path=path)

    def findings(self) -> list[str]:
        """Return the codes of the findings in the scan and its result, those of the result first."""
        return sidecar_keys.finding_codes(self.sidecar())

    def volumes(self) -> list[Volume]:
        """Return the table of volumes, at least one row; ValueError if it cannot be read or is not such a table."""
        return _volumes(self.path)


def _volumes(path: Path) -> list[Volume]:
    """Return the rows of a table of volumes, see `Result.volumes`."""
    try:
        volumes = [_volume(row) for row in read_table(path)]
    except (KeyError, BidssegError) as error:
        raise ValueError(f"not a table of volumes: {error}") from error
    if not volumes:
        raise ValueError("an empty table")
    return volumes


def _volume(row: Mapping[str, str]) -> Volume:
    """Return a row of a table of volumes; the brain mask had another name in tables of versions before 0.17."""
    is_former = row["name"] == FORMER_BRAIN_MASK
    name, abbreviation = (BRAIN_MASK, BRAIN_MASK_COLUMN) if is_former else (row["name"], row["abbreviation"])
    unknown = name == INTRACRANIAL and row["volume-mm3"] == NOT_AVAILABLE
    return Volume(
        name,
        abbreviation,
        math.nan if unknown else float(row["volume-mm3"]),
        number_or_none(row["softvolume-mm3"]),
        number_or_none(row.get("expected-dice", "")),
    )


def _volumes_or_none(path: Path) -> list[Volume]:
    """Return the rows of a table of volumes; none if it cannot be read."""
    try:
        return _volumes(path)
    except (OSError, ValueError):
        return []


@dataclass(frozen=True)
class Volume:
    """One row of a table of volumes; the volume is NaN if it is an intracranial one that is not known."""

    name: str
    abbreviation: str
    volume_mm3: float
    soft_mm3: float | None
    expected_dice: float | None = None

    @property
    def is_brain_mask(self) -> bool:
        """Whether the row is the brain mask instead of a region."""
        return self.name == BRAIN_MASK

    @property
    def is_intracranial(self) -> bool:
        """Whether the row is the estimated intracranial volume instead of a region."""
        return self.name == INTRACRANIAL

    @property
    def is_region(self) -> bool:
        """Whether the row is a region of the protocol."""
        return not (self.is_brain_mask or self.is_intracranial)

    @property
    def is_known(self) -> bool:
        """Whether the volume is a number."""
        return not math.isnan(self.volume_mm3)


def brain_mask_mm3(volumes: Iterable[Volume]) -> float | None:
    """Return the volume of the brain mask of a table; None if the table lacks it."""
    return next((volume.volume_mm3 for volume in volumes if volume.is_brain_mask), None)


def intracranial_mm3(volumes: Iterable[Volume]) -> float | None:
    """Return the estimated intracranial volume of a table; None if it is not known."""
    return next((volume.volume_mm3 for volume in volumes if volume.is_intracranial and volume.is_known), None)


@dataclass(frozen=True)
class Fate:
    """The outcome of a scan without a result at its last run: ``failed`` or ``passed over``, and the reason."""

    outcome: str
    reason: str


def participant_folders(output_dir: Path, participants: Iterable[str] = ()) -> list[Path]:
    """Return the folders of participants in an output folder, in natural order; no labels mean all."""
    wanted = [output_dir / f"sub-{label}" for label in dict.fromkeys(participants)]
    existing = [folder for folder in wanted if folder.is_dir()] if wanted else folders(output_dir, "sub-")
    return sorted(existing, key=lambda folder: natural(folder.name))


def find_results(output_dir: Path, participants: Iterable[str] = (), sessions: Iterable[str] = ()) -> Iterator[Result]:
    """Yield every result in an output folder, one participant at a time in natural order.

    Args:
        participants: labels; none means all.
        sessions: labels; none means all.
    """
    wanted_sessions = set(sessions)
    for participant in participant_folders(output_dir, participants):
        found = [result for folder in anat_folders(participant) for result in _in_folder(folder)]
        for result in sorted(found, key=lambda result: (natural(result.key), natural(result.path.name))):
            if not wanted_sessions or result.source.get("session") in wanted_sessions:
                yield result


@dataclass(frozen=True)
class NativeMap:
    """A label map or mask on the grid of its scan.

    Attributes:
        model: name of the model.
        scan: entities of the T1w that the sidecar names, and the map in place of the image.
        manual: whether the map was corrected by hand, or its lesions were given, so that it is not the model's.
        weights: checksum of the weights of the model; empty if it is not recorded.
    """

    model: str
    scan: Scan
    manual: bool
    weights: str


def find_native_maps(output_dir: Path, protocol: str) -> Iterator[NativeMap]:
    """Yield the label maps or masks of a protocol that lie on the grids of their scans, each from one scan alone."""
    for found in find_label_maps(output_dir, protocol):
        about = sidecar_keys.read_sidecar(with_extension(found.path, ".json"))
        images, models = sidecar_keys.sources(about), sidecar_keys.models(about)
        if not (images and images[0] == about.get("SpatialReference")):
            continue  # on the grid of a template, from a comparison of sessions, or incomplete
        parsed = parse_name(sidecar_keys.source_paths(about)[0].name)
        if models:
            source = parsed[0] if parsed and "subject" in parsed[0] else without_added(found.entities)
            manual = sidecar_keys.is_manual(about) or sidecar_keys.has_given_lesions(about)
            yield NativeMap(str(models[0]["Name"]), Scan(source, found.path), manual, sidecar_keys.weights(about))


def mixed_weights(weights: Mapping[str, str]) -> str:
    """Return a warning if scans were segmented with other weights than most, by a model of the same name; or nothing.

    Args:
        weights: checksum of the weights by key of the scan; empty if it is not recorded.
    """
    others = _unlike_most(weights)
    if not others:
        return ""
    return (
        f"another model of the same name segmented {listed(others)}: segment all scans with one model (--overwrite), "
        "or give each model its own output folder"
    )


def mixed_modalities(modalities: Mapping[str, str]) -> str:
    """Return a warning if images of another contrast than most were segmented; or nothing.

    Args:
        modalities: modality of the segmented image by key of the scan; empty if it is not recorded.
    """
    others = _unlike_most(modalities)
    if not others:
        return ""
    found = listed([f"{key} ({modalities[key]})" for key in others])
    return f"images of other contrasts than most were segmented: {found}; volumes differ between contrasts"


def mixed_passes(fast: Mapping[str, bool]) -> str:
    """Return a warning if only some results were made with ``--fast``; or nothing.

    Args:
        fast: whether each result was, by the key of the scan or participant.
    """
    others = _unlike_most({key: str(each) for key, each in fast.items()})
    if not others:
        return ""
    how = "with" if fast[others[0]] else "without"
    return f"{listed(others)} made {how} --fast, unlike most: volumes differ a little; use the flag for all or none"


def mixed_rules(about: Iterable[sidecar_keys.Sidecar], level: str, what: str) -> str:
    """Return a warning if lesions were found by different rules; or nothing.

    Args:
        about: the sidecars of results.
        level: the level that made them.
        what: what they are of, such as "scans".
    """
    if len({tuple(str(each.get(key)) for key in sidecar_keys.LESION_RULE) for each in about}) < 2:
        return ""
    return (
        f"the lesions of the {what} cannot be compared, since {', '.join(LESION_FLAGS[:-1])} or {LESION_FLAGS[-1]} "
        f"differed: run the level {level} on all {what} with the same values"
    )


def _unlike_most(values: Mapping[str, str]) -> list[str]:
    """Return the keys whose value is known and not the most frequent one."""
    usual = [each for each, _ in Counter(filter(None, values.values())).most_common(1)]
    return [key for key, each in values.items() if each and each not in usual]


def find_fates(output_dir: Path) -> dict[tuple[str, str], Fate]:
    """Return the scans that failed or were skipped for a missing input, by model name and key of the scan."""
    fates: dict[tuple[str, str], Fate] = {}
    manifests = map(object_or_empty, sorted((output_dir / root_path("logs")).glob("run-*.json")))
    for manifest in sorted(manifests, key=_started):
        about, entries = manifest.get("model"), manifest.get("scans")
        model = str(about.get("name", "")) if isinstance(about, dict) else ""
        for entry in entries if isinstance(entries, list) else []:
            if not isinstance(entry, dict):
                continue
            place = (model, str(entry.get("scan")))
            if entry.get("outcome") in ("failed", "passed over"):
                fates[place] = Fate(entry["outcome"], str(entry.get("reason", "")))
            else:
                fates.pop(place, None)
    return fates


def _started(manifest: Mapping[str, Any]) -> float:
    """Return when a run began, in seconds; the names of manifests have local times, and containers another zone."""
    try:
        return datetime.fromisoformat(str(manifest.get("started"))).timestamp()
    except ValueError:
        return -math.inf


def is_own_page(path: Path) -> bool:
    """Return whether a page was made by this program."""
    try:
        with path.open("rb") as stream:
            return PAGE_MARK in stream.read(PAGE_HEAD)
    except OSError:
        return False


def anat_folders(participant: Path) -> list[Path]:
    """Return the folders of a participant, and of their sessions, that contain results."""
    above = [participant, *folders(participant, "ses-")]
    return [folder / "anat" for folder in above if (folder / "anat").is_dir()]


def _in_folder(folder: Path) -> Iterator[Result]:
    for path in folder.glob("sub-*_morph.tsv"):
        parsed = parse_name(path.name)
        if parsed is None:
            continue
        source, _, _ = parsed
        protocol, model = source.pop("segmentation", ""), source.pop("desc", "")
        result = Result(source, model, protocol, path)
        # Sidecars are written last: without this one, the run was killed earlier.
        if protocol and model and with_extension(result.dseg, ".json").is_file():
            yield result
