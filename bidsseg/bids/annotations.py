"""Label maps from other sources: the annotations of scans, and label maps without an image."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from bidsseg.bids.label_kinds import NATIVE_SPACES, Kind, anat_images, places
from bidsseg.bids.names import build_name, unpadded
from bidsseg.bids.scan import ADDED, Image, LabelMap, Scan, in_space_of, source_key, without_added
from bidsseg.errors import DataError, InputMissing

BRAIN = "brain"
"""The protocol of brain masks."""
LESION = "lesion"
"""Beginning of the labels of masks of lesions."""
LESION_SUFFIXES = ("mask", "dseg", "roi", "probseg")
"""Suffixes of masks of lesions, the preferred one first."""


def find_annotations(derivatives_dir: Path, scan: Scan, wanted: str | Kind) -> Path | None:
    """Return the annotation of a scan in a protocol: a ``seg-<protocol>`` label map or a ``label-<protocol>`` mask.

    A ``desc-brain`` mask belongs to the protocol ``brain``, too. A kind of label maps may be wanted instead. See
    `annotations_of_scan`.

    Raises:
        InputMissing: the folder does not exist.
        DataError: several annotations match equally well.
    """
    fitting = annotations_of_scan(derivatives_dir, scan, wanted)
    if len(fitting) > 1:
        raise DataError(f"{fitting[0]} and {fitting[1].name} both annotate {scan.key}: keep only one")
    return fitting[0] if fitting else None


def annotations_of_scan(derivatives_dir: Path, scan: Scan, wanted: str | Kind) -> list[Path]:
    """Return the annotations of a scan in a protocol or of a kind that match best, sorted by name.

    They must have exactly the entities of the scan, apart from those that derivatives add; without such a file,
    ``run-1`` and ``run-01`` are one. An annotation in the ``space`` of the scan matches best; one in another space
    counts only if it has the grid of the scan. Among several, those with the fewest added entities match best. The
    folder may lack participants and a ``dataset_description.json``.

    Raises:
        InputMissing: the folder does not exist.
        DataError: the only annotation is in another space and cannot be read.
    """
    fitting = _best_of(derivatives_dir, scan, lambda image: annotates(image, wanted), rank=_rank)
    return [image.path for image in fitting]


def find_lesion_mask(derivatives_dir: Path, scan: Scan) -> Path | None:
    """Return the mask of the lesions of a scan; None if there is none.

    Its ``label-``, its ``seg-`` or, without these, its ``desc-`` begins with ``lesion``, and its suffix is ``mask``,
    ``dseg``, ``roi`` or ``probseg``. Otherwise, the rules are those of `annotations_of_scan`.

    Raises:
        InputMissing: the folder does not exist.
        DataError: several masks match equally well, or the only one is in another space and cannot be read.
    """

    def rank(image: Image) -> tuple[int, int]:
        return LESION_SUFFIXES.index(image.suffix), sum(name in ADDED for name in image.entities)

    fitting = _best_of(derivatives_dir, scan, shows_lesions, rank=rank)
    if len(fitting) > 1:
        raise DataError(f"{fitting[0].path} and {fitting[1].path.name} both show lesions of {scan.key}: keep only one")
    return fitting[0].path if fitting else None


def shows_lesions(image: Image) -> bool:
    """Return whether a file is a mask of lesions by its name."""
    named = [image.entities[name] for name in ("label", "segmentation", "desc") if name in image.entities]
    return image.suffix in LESION_SUFFIXES and any(label.lower().startswith(LESION) for label in named[:1])


def _best_of(
    derivatives_dir: Path, scan: Scan, accepted: Callable[[Image], bool], *, rank: Callable[[Image], tuple[int, int]]
) -> list[Image]:
    """Return the accepted files of a scan of the first rank: of exactly its run first, then in its space, then others.

    Headers are read only if no file is in its space: in a dataset of DataLad, those in other spaces may be missing.
    """

    def order(image: Image) -> tuple[bool, bool, tuple[int, int]]:
        return without_added(image.entities) != without_added(scan.entities), not _in_space_of(image, scan), rank(image)

    equals = groupby(sorted(_of_scan(derivatives_dir, scan, accepted), key=order), key=order)
    fitting = ([one for one in group if not elsewhere or _on_grid(one, scan)] for (_, elsewhere, _), group in equals)
    return next(filter(None, fitting), [])


def _of_scan(derivatives_dir: Path, scan: Scan, accepted: Callable[[Image], bool]) -> list[Image]:
    """Return the accepted files with the entities of a scan, whatever the zeros of the run.

    InputMissing if the folder does not exist.
    """
    if not derivatives_dir.is_dir():
        raise InputMissing(f"no folder {derivatives_dir} with annotations")
    source = without_added(scan.entities)
    place = derivatives_dir / build_name({"subject": source["subject"]})
    if "session" in source:
        place /= build_name({"session": source["session"]})
    key = unpadded(build_name(source))
    images = anat_images(derivatives_dir, place)
    return [image for image in images if accepted(image) and unpadded(source_key(image.entities)) == key]


def find_label_maps(dataset_dir: Path, wanted: str | Kind) -> list[LabelMap]:
    """Return all label maps of a raw or derivative dataset: ``seg-<protocol>`` and ``label-<protocol>``, or of a kind.

    Raises:
        InputMissing: the folder does not exist.
    """
    return [
        LabelMap(image.entities, image.path)
        for place in places(dataset_dir)
        for image in anat_images(dataset_dir, place)
        if annotates(image, wanted)
    ]


def _rank(image: Image) -> tuple[int, int]:
    """Return the number of entities added to those of the source: the image with the fewest is preferred."""
    return sum(name in ADDED for name in image.entities), len(_described(image))


def annotation_names(protocol: str) -> tuple[str, ...]:
    """Return the two kinds of files that annotate scans in a protocol."""
    described = ("desc-brain_mask",) if protocol == BRAIN else ()
    return f"seg-{protocol}_dseg", f"label-{protocol}_mask", *described


def annotates(image: Image, wanted: str | Kind) -> bool:
    """Return whether a file is a label map of a protocol, or of a kind."""
    if isinstance(wanted, Kind):
        return Kind.of(image) == wanted
    entity = {"dseg": "segmentation", "mask": "label"}.get(image.suffix)
    if wanted == BRAIN and _described(image):
        return True
    return entity is not None and image.entities.get(entity) == wanted


def _described(image: Image) -> str:
    """Return the ``desc-`` of a brain mask without ``label-``, as most programs name it; otherwise an empty text."""
    desc = image.entities.get("desc", "")
    return desc if image.suffix == "mask" and "label" not in image.entities and desc.endswith(BRAIN) else ""


def _in_space_of(image: Image, scan: Scan) -> bool:
    """Return whether an annotation is in the space of a scan by its name; in a template, with the same resolution."""
    same_resolution = image.entities.get("res") == scan.entities.get("res")
    is_native = scan.entities.get("space", "orig") in NATIVE_SPACES
    return in_space_of(scan.entities, image.entities, native=NATIVE_SPACES) and (is_native or same_resolution)


def _on_grid(image: Image, scan: Scan) -> bool:
    """Return whether an annotation is on the grid of the scan. DataError if one of them cannot be read."""
    from bidsseg.image.nifti import read_grid
    from bidsseg.image.volume import same_grid

    try:
        return same_grid(read_grid(image.path), read_grid(scan.t1w))
    except InputMissing as error:  # of this file, not of the folder: it fails its scan, not the others
        raise DataError(str(error)) from error
