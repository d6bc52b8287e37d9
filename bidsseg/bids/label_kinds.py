"""The kinds of label maps in a derivative dataset, and the look-up tables that belong to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bidsseg.bids.index import folders, read_image_name
from bidsseg.bids.names import IMAGE_EXTENSIONS, parse_name
from bidsseg.bids.scan import Image

LABEL_EXTENSIONS = (*IMAGE_EXTENSIONS, ".mgz", ".mgh")
SHORT = {"segmentation": "seg", "atlas": "atlas", "label": "label", "desc": "desc"}
"""Entities that name a kind of label maps, as in file names, the first that a file has."""
SUFFIXES = ("dseg", "mask", "probseg")
"""Suffixes of label maps, the preferred one first."""
NATIVE_SPACES = ("orig", "T1w", "FLAIR")
"""Spaces of the images of a scan."""


@dataclass(frozen=True)
class Kind:
    """A kind of label maps: a suffix (``dseg``, ``mask``, ``probseg``) and the entity that distinguishes it."""

    entity: str
    label: str
    suffix: str

    def __str__(self) -> str:
        return f"{SHORT[self.entity]}-{self.label}_{self.suffix}" if self.entity else self.suffix

    @staticmethod
    def of(image: Image) -> Kind | None:
        """Return the kind of a file; None if it is not a label map."""
        if image.suffix not in SUFFIXES:
            return None
        entity = next((name for name in SHORT if name in image.entities), "")
        return Kind(entity, image.entities.get(entity, ""), image.suffix)


def anat_images(dataset_dir: Path, place: Path) -> list[Image]:
    """Return the images in the ``anat`` folder of a participant or session, sorted by name."""
    parts = place.relative_to(dataset_dir).parts
    try:
        names = sorted(path.name for path in (place / "anat").iterdir())
    except OSError:
        return []
    found = (read_image_name(dataset_dir, (*parts, "anat", name), LABEL_EXTENSIONS) for name in names)
    return [image for image in found if image is not None]


def places(dataset_dir: Path) -> list[Path]:
    """Return the folders of all participants and sessions. InputMissing if the dataset does not exist."""
    return [place for subject in folders(dataset_dir, "sub-") for place in (subject, *folders(subject, "ses-"))]


def kinds_of(dataset_dir: Path) -> dict[Kind, list[Image]]:
    """Return the label maps of a derivative dataset by kind, in the order of their names.

    Maps in a standard space are omitted, unless there are no others. InputMissing if the folder does not exist.
    """
    images = [image for place in places(dataset_dir) for image in anat_images(dataset_dir, place)]
    native = [image for image in images if image.entities.get("space", "orig") in NATIVE_SPACES]
    return _by_kind(native) or _by_kind(images)


def _by_kind(images: Iterable[Image]) -> dict[Kind, list[Image]]:
    found: dict[Kind, list[Image]] = {}
    for image in images:
        kind = Kind.of(image)
        if kind is not None:
            found.setdefault(kind, []).append(image)
    return dict(sorted(found.items(), key=lambda entry: str(entry[0])))


def tables_of(dataset_dir: Path, images: Sequence[Image]) -> list[Path]:
    """Return the look-up tables that belong to label maps by the inheritance principle of BIDS, without repetition.

    A table ``*_dseg.tsv`` belongs to a label map if it is in the same folder or above, and the map has all entities in
    its name. The nearest counts, and among several in one folder the one with the most entities.
    """
    listed: dict[Path, list[tuple[Path, dict[str, str]]]] = {}
    found = (_table_of(dataset_dir, image, listed) for image in images)
    return list(dict.fromkeys(path for path in found if path is not None))


def _table_of(dataset_dir: Path, image: Image, listed: dict[Path, list[tuple[Path, dict[str, str]]]]) -> Path | None:
    folder = image.path.parent
    while True:
        if folder not in listed:
            listed[folder] = _tables_in(folder)
        fitting = [
            (len(entities), path) for path, entities in listed[folder] if entities.items() <= image.entities.items()
        ]
        if fitting:
            return max(fitting)[1]
        if folder == dataset_dir or folder == folder.parent:
            return None
        folder = folder.parent


def _tables_in(folder: Path) -> list[tuple[Path, dict[str, str]]]:
    """Return the look-up tables in a folder with the entities of their names."""
    tables = []
    for path in sorted(folder.glob("*dseg.tsv")):
        parsed = parse_name(path.name)
        if parsed is not None and parsed[1] == "dseg":
            tables.append((path, parsed[0]))
    return tables
