"""The anatomical images of a dataset, listed by pybids without visiting more folders than needed."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bidsseg.bids.names import IMAGE_EXTENSIONS, parse_name, sort_entities
from bidsseg.bids.scan import Image
from bidsseg.errors import BidssegError, InputMissing, OutputNotWritable, UsageError

INDEXED = {
    "name": "images",
    "entities": [
        {"name": "subject", "pattern": r"[/\\]+sub-([a-zA-Z0-9+]+)"},
        {"name": "extension", "pattern": r"(\.nii(?:\.gz)?)$"},  # also of names with further dots, which are reported
    ],
}
"""Entities that pybids stores of each file, similar to its own configuration; `_places` asks for no others."""

INDEX = "layout_index.sqlite"
"""File of a pybids index."""

NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""Surrogates by which Python represents bytes that it cannot decode."""

MANY = 1000
"""Number of participants from which one query for all is faster than a query by label."""


def participant_labels(dataset_dir: Path) -> list[str]:
    """Return the labels of the ``sub-*`` folders, sorted, without reading these folders."""
    return [path.name[4:] for path in folders(dataset_dir, "sub-")]


def folders(parent: Path, prefix: str) -> list[Path]:
    """Return the folders (or links to folders) whose names start with a prefix, sorted."""
    try:
        with os.scandir(parent) as entries:
            return sorted(Path(e.path) for e in entries if e.name.startswith(prefix) and _is_dir(e))
    except NotADirectoryError as error:
        raise InputMissing(f"{parent} is a file: give the folder of a BIDS dataset") from error
    except OSError as error:
        raise InputMissing(f"cannot read the folder {parent}: {error.strerror}") from error


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def anat_files(dataset_dir: Path, label: str) -> Iterator[tuple[str, ...]]:
    """Yield the files in the ``anat`` folders of a participant as parts of their paths below the dataset.

    Broken links are included; the content of unreadable folders is not.
    """
    subject = dataset_dir / f"sub-{label}"
    with suppress(BidssegError):
        for place in (subject, *folders(subject, "ses-")):
            above = place.relative_to(dataset_dir).parts
            with suppress(OSError), os.scandir(place / "anat") as entries:
                yield from ((*above, "anat", e.name) for e in entries if not (e.name.startswith(".") or _is_dir(e)))


def closed_folders(bids_dir: Path, participants: Sequence[str]) -> dict[Path, str]:
    """Return the unreadable folders of participants and sessions, relative to the dataset, with the error messages."""
    closed: dict[Path, str] = {}
    for label in participants:
        participant = bids_dir / f"sub-{label}"
        if _closed(participant, bids_dir, closed):
            continue
        for above in (participant, *folders(participant, "ses-")):
            if not _closed(above, bids_dir, closed) and os.path.lexists(above / "anat"):
                _closed(above / "anat", bids_dir, closed)
    return closed


def _closed(folder: Path, bids_dir: Path, closed: dict[Path, str]) -> bool:
    """Return whether a folder cannot be listed or entered, and record the reason."""
    try:
        os.scandir(folder).close()
        (folder / ".").lstat()
    except NotADirectoryError:
        return False
    except OSError as error:
        closed[folder.relative_to(bids_dir)] = str(error.strerror)
        return True
    return False


def anatomical_images(
    bids_dir: Path,
    participants: Sequence[str] | None,
    database_dir: Path | None = None,
    *,
    store_index: bool = True,
    closed: Iterable[Path] = (),
) -> tuple[list[Image], list[str]]:
    """Return the images in ``sub-*/[ses-*/]anat``, and notes on T1w images whose names are not valid in BIDS.

    pybids reads entities from absolute paths, so that a folder ``sub-9`` above the dataset would hide the real label.
    Here, pybids only lists the files; the entities come from the path below the dataset.

    Args:
        participants: labels of the participants to search; None means all.
        database_dir: folder of the pybids index.
        store_index: whether to create the index if there is none that matches the dataset.
        closed: folders relative to the dataset that must not be read.

    Raises:
        OSError: a folder cannot be read, see :func:`closed_folders`.
    """
    if database_dir is not None:
        places, notes = _from_database(bids_dir, participants, database_dir, store_index=store_index)
    else:
        with _named_in_utf8(bids_dir) as named:
            places, notes = _places(_index(named, participants, closed=closed), participants), []
    images = []
    for parts in places:
        image = read_image_name(bids_dir, parts)
        if image:
            images.append(image)
        elif parts[-1].endswith(("_T1w.nii", "_T1w.nii.gz")):
            reason = "its name contradicts its folder" if parse_name(parts[-1]) else "not a BIDS file name"
            notes.append(f"{'/'.join(parts)} is skipped: {reason}")
    return images, notes


def read_image_name(
    dataset_dir: Path, parts: Sequence[str], extensions: Sequence[str] = IMAGE_EXTENSIONS
) -> Image | None:
    """Return the image ``sub-*/[ses-*/]anat/NAME``; None if its name is not a BIDS name or contradicts its folders."""
    parsed = parse_name(parts[-1])
    if parsed is None or parsed[2] not in extensions:
        return None
    above = {"subject": parts[0].removeprefix("sub-")}
    if len(parts) == 4:
        above["session"] = parts[1].removeprefix("ses-")
    if any(parsed[0].get(name, label) != label for name, label in above.items()):
        return None
    return Image(dataset_dir.joinpath(*parts), sort_entities({**parsed[0], **above}), parsed[1])


def _index(
    bids_dir: Path, participants: Sequence[str] | None, database_dir: Path | None = None, *, closed: Iterable[Path] = ()
) -> Any:
    """Return a pybids layout of the ``anat`` folders of the participants (None: all)."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    without = [re.compile(rf"^/{re.escape(folder.as_posix())}(?:/|$)") for folder in closed]
    ignore = [_everything_but(participants), NOT_UTF8, *without]
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignore)
    return BIDSLayout(bids_dir, validate=False, indexer=indexer, database_path=database_dir, config=INDEXED)


@contextmanager
def _named_in_utf8(bids_dir: Path) -> Iterator[Path]:
    """Yield the dataset under a path that the database of pybids can store: its own path, or a link."""
    if not NOT_UTF8.search(str(bids_dir)):
        yield bids_dir
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "dataset"
        link.symlink_to(bids_dir)
        yield link


def _everything_but(participants: Sequence[str] | None) -> re.Pattern[str]:
    """Return a pattern of the paths (below the dataset) that pybids must skip: all but images of the participants."""
    labels = "[^/]+" if participants is None else f"(?:{'|'.join(map(re.escape, participants))})"
    return re.compile(rf"^(?!/sub-{labels}(?:/ses-[^/]+)?(?:/anat(?:/[^/]+\.nii(?:\.gz)?)?)?$)")


def _places(layout: Any, participants: Sequence[str] | None) -> list[tuple[str, ...]]:
    """Return the images in ``anat`` folders of a layout, as parts of their paths below the dataset."""
    root, labels = Path(layout.root), participants and set(participants)
    narrow = {"subject": list(labels)} if labels and len(labels) < MANY and "/sub-" not in layout.root else {}
    names = layout.get(extension=list(IMAGE_EXTENSIONS), return_type="filename", **narrow)
    return [
        parts
        for parts in (Path(name).relative_to(root).parts for name in names)
        if len(parts) in (3, 4) and parts[-2] == "anat" and not (labels and parts[0].removeprefix("sub-") not in labels)
    ]


def _from_database(
    bids_dir: Path, participants: Sequence[str] | None, folder: Path, *, store_index: bool
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the content of the index in a folder, as `_places`, and notes; one that is not current may be replaced.

    An index of pybids itself in the folder is complete and can be used. The index created here contains only anatomical
    images, so it is in a subfolder, where no other program takes it for a complete one.
    """
    own, notes = folder / "bidsseg", []
    for place in (folder, own):
        if not (place / INDEX).is_file():
            continue
        listed = _read_index(bids_dir, participants, place)
        if listed is None:
            notes.append(f"the index in {place} is damaged and not used; a new one is created in {own}")
        elif not _is_current(bids_dir, participants, listed):
            notes.append(f"the index in {place} does not match the dataset; a new one is created in {own}")
        else:
            return listed, notes
    if own.resolve().is_relative_to(bids_dir.resolve()):
        raise UsageError(f"--bids-database-dir {folder} is inside the dataset, which is never modified")
    if not store_index:
        return _places(_index(bids_dir, participants), participants), notes
    from sqlalchemy.exc import SQLAlchemyError

    try:
        own.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=own) as half:  # an incomplete index of a killed run is never used
            listed = _places(_index(bids_dir, None, Path(half)), participants)
            (Path(half) / INDEX).replace(own / INDEX)
        return listed, notes
    except (OSError, SQLAlchemyError) as error:
        if str(getattr(error, "filename", "")).startswith(f"{bids_dir}{os.sep}"):  # the error is in the dataset
            raise
        reason = f"cannot store an index in {folder}: {getattr(error, 'strerror', None) or error}"
        if not notes:
            raise OutputNotWritable(reason) from error
        return _places(_index(bids_dir, participants), participants), [*notes, reason]


def _read_index(bids_dir: Path, participants: Sequence[str] | None, place: Path) -> list[tuple[str, ...]] | None:
    """Return the content of the index in a folder, as `_places`; None if it is damaged."""
    from bids.layout import BIDSLayout

    try:
        layout = BIDSLayout(bids_dir, validate=False, database_path=place)
        root = Path(layout.root)
        listed = _places(layout, participants)
    except Exception:  # pybids passes on any exception of its database and its other parts
        return None
    if root.resolve() != bids_dir.resolve():
        raise UsageError(f"the index in {place} belongs to {root}: give another --bids-database-dir")
    return listed


def _is_current(bids_dir: Path, participants: Sequence[str] | None, listed: Iterable[tuple[str, ...]]) -> bool:
    """Return whether an index lists the present images of the dataset; times of copied files are useless."""
    labels = participant_labels(bids_dir) if participants is None else participants
    there = (parts for label in labels for parts in anat_files(bids_dir, label))
    indexed, found = ({parts for parts in some if read_image_name(bids_dir, parts)} for some in (listed, there))
    return indexed == found
