"""The anatomical images of a dataset, listed by pybids without walking more than is asked for."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidsseg.bids.names import IMAGE_EXTENSIONS, parse_name, sort_entities
from bidsseg.errors import InputMissing, OutputNotWritable, UsageError

INDEX = "layout_index.sqlite"
"""File in which pybids keeps an index."""

NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""What Python puts in place of the bytes of a name that it cannot decode."""

MANY = 1000
"""Participants for which a query by label is no longer faster than one for all."""


@dataclass(frozen=True)
class Image:
    """One NIfTI file with the entities of its name (as pybids calls them, in BIDS order, labels to the letter)."""

    path: Path
    entities: dict[str, str]
    suffix: str


def participant_labels(dataset_dir: Path) -> list[str]:
    """Labels of the ``sub-*`` folders, sorted, without looking into them."""
    return [path.name[4:] for path in folders(dataset_dir, "sub-")]


def folders(parent: Path, prefix: str) -> list[Path]:
    """Folders (or links to them) whose name starts so, sorted."""
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
    except OSError:  # a link that points at itself
        return False


def closed_folders(bids_dir: Path, participants: Sequence[str]) -> dict[Path, str]:
    """Folders of participants and sessions that cannot be read, relative to the dataset, and what the system says."""
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
    """Whether a folder cannot be listed or entered, which is then noted."""
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
    closed: Iterable[Path] = (),
) -> tuple[list[Image], list[str]]:
    """Images in ``sub-*/[ses-*/]anat``, and notes on T1w images whose names are not of BIDS form.

    pybids reads entities from absolute paths, so that a folder ``sub-9`` above the dataset would hide the real label.
    It lists the files here; the entities come from the path below the dataset.

    Args:
        participants: labels of those to look into; None means all.
        database_dir: where the index of pybids is kept.
        closed: folders relative to the dataset that must not be looked into.

    Raises:
        OSError: a folder cannot be read, see :func:`closed_folders`.
    """
    with _named_in_utf8(bids_dir) as root_dir:
        layout = _database(bids_dir, database_dir) if database_dir else _index(root_dir, participants, closed=closed)
    root, labels = Path(layout.root), participants and set(participants)
    narrow = {"subject": list(labels)} if labels and len(labels) < MANY and "/sub-" not in layout.root else {}
    images, notes = [], []
    for name in layout.get(extension=list(IMAGE_EXTENSIONS), return_type="filename", **narrow):
        parts = Path(name).relative_to(root).parts
        if len(parts) not in (3, 4) or parts[-2] != "anat" or (labels and parts[0].removeprefix("sub-") not in labels):
            continue
        image = read_image_name(bids_dir, parts)
        if image:
            images.append(image)
        elif name.endswith(("_T1w.nii", "_T1w.nii.gz")):
            notes.append(f"{'/'.join(parts)} is passed over: not a BIDS file name")
    return images, notes


def read_image_name(dataset_dir: Path, parts: Sequence[str]) -> Image | None:
    """The image ``sub-*/[ses-*/]anat/NAME``; None if its name is no BIDS name or contradicts its folders."""
    parsed = parse_name(parts[-1])
    if parsed is None or parsed[2] not in IMAGE_EXTENSIONS:
        return None
    above = {"subject": parts[0].removeprefix("sub-")}
    if len(parts) == 4:
        above["session"] = parts[1].removeprefix("ses-")
    if any(parsed[0].get(name, label) != label for name, label in above.items()):
        return None
    return Image(dataset_dir.joinpath(*parts), sort_entities({**parsed[0], **above}), parsed[1])


def _index(
    bids_dir: Path, participants: Sequence[str] | None, database_dir: Path | None = None, closed: Iterable[Path] = ()
) -> Any:
    """A pybids layout of the ``anat`` folders of the participants (None: all)."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    without = [re.compile(rf"^/{re.escape(folder.as_posix())}(?:/|$)") for folder in closed]
    ignore = [_everything_but(participants), NOT_UTF8, *without]
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignore)
    return BIDSLayout(bids_dir, validate=False, indexer=indexer, database_path=database_dir)


@contextmanager
def _named_in_utf8(bids_dir: Path) -> Iterator[Path]:
    """The dataset under a name that the database of pybids can hold: its own, or else a link."""
    if not NOT_UTF8.search(str(bids_dir)):
        yield bids_dir
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "dataset"
        link.symlink_to(bids_dir)
        yield link


def _everything_but(participants: Sequence[str] | None) -> re.Pattern[str]:
    """Pattern of the paths (below the dataset) that pybids must not walk: all but images of the participants."""
    labels = "[^/]+" if participants is None else f"(?:{'|'.join(map(re.escape, participants))})"
    return re.compile(rf"^(?!/sub-{labels}(?:/ses-[^/]+)?(?:/anat(?:/[^/]+\.nii(?:\.gz)?)?)?$)")


def _database(bids_dir: Path, folder: Path) -> Any:
    """The layout kept in that folder, made first if it is not there.

    An index that pybids itself wrote into the folder is complete and serves us. Ours holds only anatomical images, so
    it goes into a subfolder, where no other program takes it for a complete one.
    """
    from bids.layout import BIDSLayout

    place = folder if (folder / INDEX).is_file() else folder / "bidsseg"
    if not (place / INDEX).is_file():
        if place.resolve().is_relative_to(bids_dir.resolve()):
            raise UsageError(f"--bids-database-dir {folder} is inside the dataset, which is never written to")
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place) as half:  # a killed run leaves no index that looks complete
                _index(bids_dir, None, Path(half))
                (Path(half) / INDEX).replace(place / INDEX)
        except OSError as error:
            if str(error.filename).startswith(f"{bids_dir}{os.sep}"):
                raise
            raise OutputNotWritable(f"cannot keep an index in {folder}: {error.strerror}") from error
    layout = BIDSLayout(bids_dir, validate=False, database_path=place)
    if Path(layout.root).resolve() != bids_dir.resolve():
        raise UsageError(f"the index in {place} is of {layout.root}: give another --bids-database-dir")
    return layout
