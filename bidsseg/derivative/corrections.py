"""Label maps that were corrected by hand (``--corrections``): found, read, and put in the place of the model's.

Those of a scan are on the grid of its T1w, those of a comparison of sessions on the grid of the halfway space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bidsseg.bids.annotations import annotates, annotations_of_scan
from bidsseg.bids.label_kinds import SUFFIXES, anat_images, kinds_of, places
from bidsseg.bids.names import parse_name, unpadded
from bidsseg.bids.scan import Image, Scan, source_key
from bidsseg.bids.series import SPACE, TOGETHER, SessionPaths
from bidsseg.derivative.volumes import volumes_mm3
from bidsseg.errors import DataError, UsageError, listed
from bidsseg.files import fingerprint
from bidsseg.labels.protocol import Protocol, load_protocol
from bidsseg.models.card import BRAIN, LESION, Card, shipped
from bidsseg.registration.align import Images

if TYPE_CHECKING:
    from bidsseg.models.library import Model
    from bidsseg.segmentation.result import Segmentation


@dataclass(frozen=True)
class Corrections:
    """The corrected label maps of one scan, or of one session in a comparison.

    Attributes:
        folder: the derivative dataset that they are in.
        files: the file for each output: a protocol, ``brain`` or ``lesion``.
    """

    folder: Path = Path()
    files: Mapping[str, Path] = field(default_factory=dict)

    def fingerprints(self) -> dict[str, str]:
        """Return the checksum of each file."""
        return {name: fingerprint(path) for name, path in self.files.items()}


def correctable(card: Card, *, given_lesions: bool) -> dict[str, str]:
    """Return the outputs of a model that can be corrected, each with the end of its file names, for messages.

    Args:
        given_lesions: whether there is a lesion mask even if the model finds no lesions.
    """
    lesion = {LESION: "label-lesion_*mask"} if given_lesions or card.lesion is not None else {}
    return {**{name: f"seg-{name}_*dseg" for name in card.protocols}, **lesion, BRAIN: "desc-brain_mask"}


def find_corrections(folder: Path, scan: Scan, card: Card, *, given_lesions: bool) -> Corrections:
    """Return the corrected label maps of a scan.

    Of several label maps that fit equally well, the one with the ``desc-`` of the model's output is used.

    Raises:
        DataError: the choice is ambiguous.
    """
    found = {}
    for name in correctable(card, given_lesions=given_lesions):
        fitting = annotations_of_scan(folder, scan, name)
        fitting = [path for path in fitting if not is_of_another_model(path, scan, card.name)]
        own = scan.entities.get("desc", "") + (BRAIN if name == BRAIN else card.name)
        if len(fitting) > 1:
            fitting = [path for path in fitting if _desc(path) == own] or fitting
        if len(fitting) > 1:
            raise DataError(f"{fitting[0]} and {fitting[1].name} both correct {scan.key}: keep only one")
        if fitting:
            found[name] = fitting[0]
    return Corrections(folder, found)


def find_halfway_corrections(folder: Path, places: SessionPaths) -> Corrections:
    """Return the corrected label maps of a session in the halfway space, which have the names of the outputs."""
    outputs = {**places.dseg, LESION: places.lesion, BRAIN: places.brain}
    files = {name: folder / place for name, place in outputs.items() if place is not None}
    return Corrections(folder, {name: path for name, path in files.items() if path.is_file()})


def maps_of_comparisons(folder: Path) -> list[Image]:
    """Return the label maps and masks in a folder that are, by their names, those of comparisons of sessions."""
    found = (image for place in places(folder) for image in anat_images(folder, place) if image.suffix in SUFFIXES)
    return [image for image in found if is_halfway(image) or image.entities.get("desc", "").endswith(TOGETHER)]


def is_halfway(image: Image) -> bool:
    """Return whether an image is, by its name, in the halfway space of a comparison."""
    return image.entities.get("space") == SPACE


def is_of_another_model(path: Path, scan: Scan, model: str, *, others: Set[str] = frozenset()) -> bool:
    """Return whether the ``desc-`` of a label map names a comparison, or another model: a shipped one, or of others."""
    name = _desc(path).removeprefix(scan.entities.get("desc", ""))
    return name != model and name.removesuffix(TOGETHER) in {model} | _shipped_names() | others


@cache
def _shipped_names() -> set[str]:
    return {card.name for card in shipped()}


def _desc(path: Path) -> str:
    parsed = parse_name(path.name)
    return parsed[0].get("desc", "") if parsed else ""


@dataclass(frozen=True)
class Search:
    """The search for corrections of the scans of a run.

    Attributes:
        found: each scan that can be segmented, with its corrections.
        other: the other scans of the run, whose files are not looked at.
        all_selected: whether the run has all scans of the dataset, so that label maps of further scans are mistakes.
        given_lesions: whether any scan has a given mask of lesions.
    """

    folder: Path
    card: Card
    found: Sequence[tuple[Scan, Corrections]]
    other: Sequence[Scan]
    all_selected: bool
    given_lesions: bool

    def warnings(self) -> list[str]:
        """Return a warning for each reason why label maps in the folder are not used. UsageError if none is used."""
        left: dict[str, list[str]] = {}
        for image, reason in self._unused():
            left.setdefault(reason, []).append(image.path.name)
        is_wrong = not self._used and not self.other and (left or self.all_selected)
        if is_wrong and not any(map(is_halfway, maps_of_comparisons(self.folder))):
            wanted = " or ".join(self._correctable.values())
            names = listed([name for files in left.values() for name in files]) or "no label maps"
            raise UsageError(
                f"--corrections {self.folder}: no file fits a scan: looked for sub-*/[ses-*/]anat/<T1w>_X.nii.gz, "
                f"where <T1w> is e.g. {self.found[0][0].key} and X is {wanted}; found {names}"
            )
        return [f"--corrections: {listed(names)} not used: {reason}" for reason, names in left.items()]

    @cached_property
    def _correctable(self) -> dict[str, str]:
        return correctable(self.card, given_lesions=self.given_lesions)

    @cached_property
    def _used(self) -> set[Path]:
        return {path for _, corrections in self.found for path in corrections.files.values()}

    def _unused(self) -> Iterator[tuple[Image, str]]:
        """Yield the label maps that are not used, each with the reason."""
        found = {unpadded(source_key(scan.entities)): (scan, corrections) for scan, corrections in self.found}
        others = {unpadded(source_key(scan.entities)) for scan in self.other}
        places = {_place(scan.entities) for scan, _ in self.found}
        for image in _label_maps(self.folder):
            key = unpadded(source_key(image.entities))
            if image.path in self._used or key in others:
                continue
            if key not in found:
                if self.all_selected or _place(image.entities) in places:
                    yield image, "there is no scan of this name"
                continue
            scan, corrections = found[key]
            if is_of_another_model(image.path, scan, self.card.name):
                yield image, f"it is a label map of another model than {self.card.name}, or of a comparison (desc-)"
            elif names := [name for name in self._correctable if annotates(image, name)]:
                replaced = any(name in corrections.files for name in names)
                yield image, "another file of the scan is used" if replaced else "it is not in the folder of its scan"
            else:
                yield image, f"the model {self.card.name} writes no such label map"


def _place(entities: Mapping[str, str]) -> tuple[str, str]:
    return entities["subject"], entities.get("session", "")


def _label_maps(folder: Path) -> list[Image]:
    found = (image for kind, images in kinds_of(folder).items() if kind.suffix != "probseg" for image in images)
    return [image for image in found if not is_halfway(image)]


def read_corrections(
    corrections: Corrections,
    images: Images,
    *,
    scan: Scan,
    protocols: Mapping[str, Protocol],
    with_lesions: Mapping[str, Protocol],
) -> dict[str, np.ndarray]:
    """Return the corrected label maps (X, Y, Z) on the grid of the T1w, by output; masks are booleans.

    Differences are accepted, with a note among those of the images, as in training (``read_on_grid``).

    Args:
        protocols: protocol of each label map.
        with_lesions: the same, with the region of lesions that label maps with given lesions have.

    Raises:
        DataError: a file is not a label map, is on another grid, is empty or has unknown values.
    """
    from bidsseg.registration.label_files import read_on_grid, with_known_values

    found = {}

    def note(path: Path, text: str) -> None:
        images.notes.append(f"{path.name}: {text}")

    for name, path in corrections.files.items():
        is_mask = name in (BRAIN, LESION)
        protocol = load_protocol(name).scored() if is_mask else protocols[name]
        volume = read_on_grid(path, images, t1w=scan.t1w, flair=scan.flair, note=note)
        lesions = () if is_mask else {*with_lesions[name].lesions} - {*protocol.indices}
        if shown := [index for index in lesions if (volume.data == index).any()]:
            raise DataError(
                f"{path}: the values {shown} are lesions, which the model does not label: give --lesions with the "
                "masks, as in the run that the label map is from, or paint other regions there"
            )
        values = with_known_values(volume.data, protocol, path, note=note)
        if name != LESION and not values.any():
            raise DataError(f"{path}: is empty: every voxel is background")
        found[name] = values > 0 if is_mask else values.astype(np.min_scalar_type(max(protocol.indices)))
    return found


def corrected(
    result: Segmentation,
    labels: Mapping[str, np.ndarray],
    model: Model,
    *,
    protocols: Mapping[str, Protocol],
    files: Mapping[str, Path],
    spacing_mm: np.ndarray,
    voxel_mm3: float,
    by_region: bool = False,
) -> Segmentation:
    """Return a segmentation with corrected label maps and masks in the place of the model's.

    There are no probabilities of a corrected label map, so that its soft volumes are NaN and no Dice is expected.
    Requested probabilities and uncertainty remain the model's. A lesion mask follows from the corrected label map of
    the head with lesions, and label maps with lesions follow from a corrected lesion mask, unless both are corrected.
    Findings about volumes are those of the corrected label maps.

    Args:
        labels: corrected label maps (X, Y, Z), see ``read_corrections``. Those equal to the model's are ignored.
        protocols: protocol of each label map.
        files: the file of each.
        spacing_mm: size of a voxel, (3,).
        voxel_mm3: volume of a voxel.
        by_region: whether the regions of a corrected label map that were not touched keep their soft volumes.
    """
    from bidsseg.segmentation.given_lesions import with_lesions_of
    from bidsseg.segmentation.plausibility import CODES, implausible_findings

    before = {**result.labels, BRAIN: result.brain, LESION: result.lesion}
    new = {name: values for name, values in labels.items() if not _equal(before[name], values)}
    lesion, head, manual = new.get(LESION, result.lesion), model.card.lesion, {name: name for name in new}
    drawn = set(new)
    if head in drawn and LESION not in drawn:
        lesion = np.isin(new[head], protocols[head].lesions)
        manual |= {} if _equal(result.lesion, lesion) else {LESION: head}
    for name, values in result.labels.items() if LESION in drawn else ():
        if name not in drawn and protocols[name].lesions:
            new[name] = with_lesions_of(new[LESION], values, protocols[name], spacing_mm=spacing_mm)
            manual[name] = LESION
    maps = {name: new.get(name, values) for name, values in result.labels.items()}
    counted = {name: volumes_mm3(maps[name], protocols[name], voxel_mm3) for name in maps if name in new}
    found = replace(
        result,
        labels=maps,
        soft_mm3={**result.soft_mm3, **counted},
        brain=new.get(BRAIN, result.brain),
        lesion=lesion,
        expected_dice={name: values for name, values in result.expected_dice.items() if name not in new},
        quality=float("nan") if maps and maps.keys() <= new.keys() else result.quality,
        notes=[*result.notes, *(_note(name, files[name], is_new=name in drawn) for name in labels)],
        findings=[finding for finding in result.findings if finding.code not in CODES],
        manual=manual,
    )
    found.findings.extend(implausible_findings(found, model, voxel_mm3, protocols=protocols))
    soft = {name: np.full_like(volumes, np.nan) for name, volumes in counted.items()}
    if by_region:
        soft = {name: _untouched(result, name, maps[name], protocol=protocols[name]) for name in counted}
    return replace(found, soft_mm3={**found.soft_mm3, **soft})


def _untouched(result: Segmentation, name: str, labels: np.ndarray, *, protocol: Protocol) -> np.ndarray:
    """Return the soft volumes of a protocol, NaN for regions that lost or gained voxels in corrected labels."""
    before = result.labels[name]
    edited = before != labels
    touched = np.union1d(before[edited], labels[edited])
    return np.where(np.isin(protocol.indices, touched), np.nan, result.soft_mm3[name])


def _equal(ours: np.ndarray | None, theirs: np.ndarray) -> bool:
    return ours is not None and np.array_equal(ours, theirs)


def _note(name: str, path: Path, *, is_new: bool) -> str:
    what = f"{name} mask" if name in (BRAIN, LESION) else f"label map {name}"
    return (
        f"the {what} was corrected by hand ({path.name})" if is_new else f"{path.name} is equal to the model's {what}"
    )
