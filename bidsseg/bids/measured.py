"""Further images of a scan, in the dataset or in another folder, that are measured in its regions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bidsseg.bids.names import IMAGE_EXTENSIONS, build_name, number, parse_name
from bidsseg.bids.scan import Image, in_space_of
from bidsseg.errors import InputMissing, listed

NO_VALUES = ("dseg", "mask", "probseg", "xfm")
"""Suffixes of images without measured values."""
SAME_SPACES = ("T1w", "orig", "individual")
"""Labels of ``space-`` of images that show the scan itself, not a template."""
Filter = Callable[[Image], bool]


def find_measured(source: Mapping[str, str], name: str, where: str | Path, *, bids_dir: Path) -> Image:
    """Return the image of a scan that is measured.

    It has the participant, session and space of the scan. Among several images in a folder, those of which a label or
    the suffix is the name of the measure are preferred, then those of the same run, then of the same resolution.

    Args:
        source: entities of the T1w.
        name: name of the measure.
        where: suffix of images in the dataset, a folder with ``sub-*/[ses-*/]``, or the image itself.

    Raises:
        InputMissing: there is no such image, or there are several.
    """
    if isinstance(where, Path) and where.is_file():
        parsed = parse_name(where.name)
        return Image(where, *(parsed[:2] if parsed else ({}, "")))
    folder, suffix = (where, None) if isinstance(where, Path) else (bids_dir, where)
    images = [image for image in _images(folder, source) if suffix in (None, image.suffix)]
    named = name.casefold()
    narrower: list[Filter] = [
        lambda image: named in {label.casefold() for label in (image.suffix, *image.entities.values())},
        lambda image: number(image.entities.get("run")) == number(source.get("run")),
        lambda image: image.entities.get("res") == source.get("res"),
    ]
    left = [image for image in images if in_space_of(source, image.entities, native=SAME_SPACES)]
    for fits in narrower:
        if len(left) > 1:
            left = [image for image in left if fits(image)] or left
    key = build_name({entity: source[entity] for entity in ("subject", "session") if entity in source})
    what = f"{suffix} image" if suffix else "image"
    if not left:
        elsewhere = listed([image.path.name for image in images])
        others = f"; in another space than the scan: {elsewhere}" if images else ""
        raise InputMissing(f"no {what} of {key} in {folder}{others}")
    if len(left) > 1:
        names = listed([image.path.name for image in left])
        raise InputMissing(f"{len(left)} images of {key} in {folder} match ({names}): leave one in the folder")
    return left[0]


def _images(folder: Path, source: Mapping[str, str]) -> Iterable[Image]:
    """Yield the images of the participant and session in the folders of a dataset, sorted."""
    place = folder.joinpath(*(build_name({key: source[key]}) for key in ("subject", "session") if key in source))
    for path in sorted({*place.glob("*.nii*"), *place.glob("*/*.nii*")}):
        parsed = parse_name(path.name)
        if parsed is None or parsed[2] not in IMAGE_EXTENSIONS or parsed[1] in NO_VALUES:
            continue
        entities, suffix, _ = parsed
        if all(entities.get(key) == source.get(key) for key in ("subject", "session")):
            yield Image(path, entities, suffix)
