"""Files that a participant has instead of a readable image of the selected suffix, and their remedies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from bidsseg.bids.index import anat_files, read_image_name
from bidsseg.bids.names import ANATOMICAL, IMAGE_EXTENSIONS, T1W_LIKE, parse_name

RENAMED = "its name must end in {}: rename it"
MISNAMED = "not a BIDS file name: rename it"
MISPLACED = "its name contradicts its folder: rename it"
CONVERTED = "convert it to .nii.gz"
SAME_CONTRAST = "select it by --anat-modality {}"
NO_MAGNITUDE = "not a magnitude image"
LEFT_OUT = "excluded by the selection or the filters: --session-label, --bids-filter-file"
SELECTED = "segment it with --model open --anat-modality {}"
OTHER = "no model reads it"
"""Remedies, in the order of the message."""


def alternatives(bids_dir: Path, labels: Iterable[str], suffixes: Collection[str]) -> str:
    """Return the end of a message: an example of each kind of image in ``anat``, and its remedy; empty without images.

    Args:
        suffixes: those that are selected, "*" for any.

    >>> alternatives(Path("/nowhere"), ["01"], ["T1w"])
    ''
    """
    examples: dict[str, tuple[str, int]] = {}
    files = sorted((parts for label in labels for parts in anat_files(bids_dir, label)), key=lambda parts: parts[-1])
    for parts in files:
        remedy = _remedy(parts, suffixes)
        if remedy is not None:
            example, count = examples.get(remedy, (parts[-1], 0))
            examples[remedy] = example, count + 1
    found = [
        f"{example}{f' and {count - 1} more' if count > 1 else ''} ({remedy})"
        for remedy, (example, count) in sorted(examples.items(), key=lambda item: _rank(item[0]))
    ]
    return f"; found {'; '.join(found)}" if found else ""


def _rank(remedy: str) -> int:
    same = map(SAME_CONTRAST.format, T1W_LIKE)
    order = (MISNAMED, MISPLACED, CONVERTED, *same, NO_MAGNITUDE, LEFT_OUT, *map(SELECTED.format, ANATOMICAL), OTHER)
    return order.index(remedy) + 1 if remedy in order else 0


def _remedy(parts: Sequence[str], suffixes: Collection[str]) -> str | None:
    """Return the remedy for a file, given as parts of its path below the dataset; None if it is not an image."""
    parsed = parse_name(parts[-1])
    if parsed is None:
        return MISNAMED if parts[-1].endswith(tuple(f"_T1w{extension}" for extension in IMAGE_EXTENSIONS)) else None
    entities, suffix, extension = parsed
    t1w = suffix.upper() in ("T1W", "UNIT1")
    if extension in IMAGE_EXTENSIONS:
        if read_image_name(Path(), parts) is None:
            return MISPLACED
        if suffix in suffixes or "*" in suffixes:
            return LEFT_OUT if entities.get("part", "mag") == "mag" else NO_MAGNITUDE
        if suffix in T1W_LIKE:
            return SAME_CONTRAST.format(suffix)
        if suffix in ANATOMICAL:
            return SELECTED.format(suffix)
        return RENAMED.format(f"_{_spelled(suffix)}{extension}") if t1w else OTHER
    if not t1w or extension.lower() in ("", ".json", ".tsv"):
        return None
    if extension.lower() in IMAGE_EXTENSIONS:
        return RENAMED.format(f"_{_spelled(suffix)}{extension.lower()}")
    return CONVERTED


def _spelled(suffix: str) -> str:
    return "T1w" if suffix.upper() == "T1W" else "UNIT1"
