"""Selection of the scans of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bidsseg.bids.alternatives import alternatives
from bidsseg.bids.index import anatomical_images, closed_folders, participant_labels
from bidsseg.bids.marks import Marks
from bidsseg.bids.names import ANATOMICAL, IMAGE_EXTENSIONS, build_name, entity_names, natural, number, parse_name
from bidsseg.bids.scan import Image, Scan, Selection
from bidsseg.errors import InputMissing, NothingSelected, UsageError, listed
from bidsseg.reading import read_object

Filters = Mapping[str, Mapping[str, Any]]
DEFAULT_FILTERS: Filters = {"t1w": {"suffix": "T1w"}, "flair": {"suffix": "FLAIR"}}


def find_scans(
    bids_dir: Path,
    *,
    participants: Iterable[str] | None = None,
    sessions: Iterable[str] | None = None,
    filters: Filters | None = None,
    where: Sequence[str] = (),
    database_dir: Path | None = None,
    store_index: bool = True,
) -> list[Scan]:
    """Return the scans of :func:`select_scans`, without its notes."""
    return select_scans(
        bids_dir,
        participants=participants,
        sessions=sessions,
        filters=filters,
        where=where,
        database_dir=database_dir,
        store_index=store_index,
    ).scans


def select_scans(
    bids_dir: Path,
    *,
    participants: Iterable[str] | None = None,
    sessions: Iterable[str] | None = None,
    filters: Filters | None = None,
    where: Sequence[str] = (),
    database_dir: Path | None = None,
    store_index: bool = True,
) -> Selection:
    """Return every T1w of the selection with its FLAIR; each run, acquisition and reconstruction is a separate scan.

    Args:
        bids_dir: only ``sub-*/[ses-*/]anat/*.nii[.gz]`` of the selected participants is read.
        participants: labels with or without ``sub-``; None means all.
        sessions: labels with or without ``ses-``; None means all. If given, files without a session are excluded.
        filters: for ``t1w`` and ``flair`` the values that entities must have: one value, a list of them, None for
            "absent" or ``"*"`` for "any". Files without an entity that is filtered by value are excluded, and so are
            ``part-phase``, ``part-real`` and ``part-imag`` unless the filter names ``part``.
        where: conditions that each T1w must meet in the tables of the dataset, see ``Marks``.
        database_dir: folder of the pybids index for later runs, which then lists all participants.
        store_index: whether to create the index if there is none that matches the dataset.

    Raises:
        InputMissing: the folder does not exist.
        NothingSelected: no T1w matches.
        UsageError: no table has the column of a condition.
    """
    filters = _complete(filters)
    existing = participant_labels(bids_dir)
    wanted = _labels(participants, "sub-")
    chosen = existing if wanted is None else [label for label in existing if label in wanted]
    notes = [f"no participant {label} in {bids_dir}" for label in sorted(set(wanted or ()) - set(existing))]
    if not chosen:
        what = f"no participant {', '.join(sorted(wanted))}" if wanted is not None else "no sub-* folder"
        raise NothingSelected(f"{what} in {bids_dir}{_some(existing)}")
    closed: dict[str, str] = {}
    indexed = None if wanted is None else chosen
    try:
        images, more_notes = anatomical_images(bids_dir, indexed, database_dir, store_index=store_index)
    except OSError:
        found = closed_folders(bids_dir, chosen)
        if not found:
            raise
        closed = {_key(folder): f"{bids_dir / folder} cannot be read: {reason}" for folder, reason in found.items()}
        images, more_notes = anatomical_images(bids_dir, chosen, closed=found)
    notes += more_notes
    wanted_sessions = _labels(sessions, "ses-")
    if wanted_sessions is not None:
        images, more_notes = _of_sessions(images, wanted_sessions)
        notes += more_notes
    suffixes = list(map(str, suffix if isinstance(suffix := filters["t1w"]["suffix"], list) else [suffix]))
    wanted_images = f"{' or '.join(suffixes)} image"
    t1ws, more_notes = _unique(*_matching(images, filters["t1w"]))
    flairs, _ = _unique(*_matching(images, filters["flair"]))
    notes += more_notes
    if closed and not t1ws:
        raise InputMissing(f"{'; '.join(closed.values())}; change the permissions")
    if not t1ws:
        others = alternatives(bids_dir, chosen, suffixes) or ": participants, sessions, filters?"
        raise NothingSelected(f"no {wanted_images} (.nii or .nii.gz) matches in {bids_dir}{others}")
    with_t1w = {image.entities["subject"] for image in t1ws} | {key[4:].partition("_")[0] for key in closed}
    without = [label for label in chosen if label not in with_t1w]
    notes += [
        f"sub-{label}: no {wanted_images} matches{alternatives(bids_dir, [label], suffixes)}" for label in without
    ]
    if where:
        t1ws, more_notes = _marked(t1ws, where, Marks(bids_dir))
        notes += more_notes
    return Selection(paired(t1ws, flairs), notes, closed)


def _key(folder: Path) -> str:
    """Return the name of a folder of a participant or session: ``sub-01_ses-1``."""
    return "_".join(part for part in folder.parts if part.startswith(("sub-", "ses-")))


def images_of(bids_dir: Path, source: Mapping[str, str]) -> Iterator[Path]:
    """Yield the anatomical images with exactly these entities, the T1w first."""
    for suffix in ANATOMICAL:
        paths = (_anat(bids_dir, source) / build_name(source, suffix, extension) for extension in IMAGE_EXTENSIONS)
        yield from (path for path in paths if path.is_file())


def _anat(bids_dir: Path, source: Mapping[str, str]) -> Path:
    """Return the folder of the images with these entities."""
    folders = [build_name({key: source[key]}) for key in ("subject", "session") if key in source]
    return bids_dir.joinpath(*folders, "anat")


def has_image(bids_dir: Path, source: Mapping[str, str]) -> bool:
    """Return whether a dataset has an image of any suffix with exactly these entities, or its folder cannot be read."""
    try:
        names = [path.name for path in _anat(bids_dir, source).iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return any(parsed[0] == source for name in names if (parsed := parse_name(name)))


def read_filters(path: Path) -> dict[str, dict[str, Any]]:
    """Return the content of a ``--bids-filter-file``: a JSON object of entity filters for ``t1w`` and ``flair``.

    Queries of other programs (``bold``, ...) in the file are ignored.
    """
    content = read_object(path, UsageError)
    if not all(isinstance(value, dict) for value in content.values()):
        raise UsageError(f'the filter file {path} must look like {{"t1w": {{"acquisition": "mprage", "run": null}}}}')
    return {key.lower(): value for key, value in content.items() if key.lower() in DEFAULT_FILTERS}


def paired(t1ws: Sequence[Image], flairs: Sequence[Image]) -> list[Scan]:
    """Return a scan for each T1w, with the FLAIR that belongs to it."""
    of_subject: dict[str, list[Image]] = {}
    for flair in flairs:
        of_subject.setdefault(flair.entities["subject"], []).append(flair)
    pairs = ((t1w, pair_flair(t1w, of_subject.get(t1w.entities["subject"], []))) for t1w in t1ws)
    return [Scan(t1w.entities, t1w.path, *pair) for t1w, pair in pairs]


def pair_flair(t1w: Image, flairs: Sequence[Image]) -> tuple[Path | None, str | None]:
    """Return the FLAIR that belongs to a T1w among those of its participant, or None and the reason.

    Rules, in this order:
      1. It is of the same session (both may have none).
      2. If exactly one of them has the same run (or, like the T1w, none), that one is used.
      3. If there is only one, that one is used, whatever its run.
      4. Otherwise none is used: the user selects one with a filter file.
    """
    session = t1w.entities.get("session")
    same = [flair for flair in flairs if flair.entities.get("session") == session]
    where = f"session {session} of sub-{t1w.entities['subject']}" if session else f"sub-{t1w.entities['subject']}"
    if not same:
        return None, f"no FLAIR image in {where}"
    run = number(t1w.entities.get("run"))
    same_run = [flair for flair in same if number(flair.entities.get("run")) == run]
    for fitting in (same_run, same):
        if len(fitting) == 1:
            return fitting[0].path, None
    names = ", ".join(flair.path.name for flair in same)
    return None, f"{len(same)} FLAIR images match in {where} ({names}): choose one with --bids-filter-file"


# -- selection ---------------------------------------------------------------------------------------------------------


def _labels(labels: Iterable[str] | None, prefix: str) -> set[str] | None:
    return None if labels is None else {label.removeprefix(prefix) for label in labels}


def _of_sessions(images: Sequence[Image], wanted: set[str]) -> tuple[list[Image], list[str]]:
    """Return the images of the given sessions, and notes on sessions that do not exist."""
    present = {image.entities["session"] for image in images if "session" in image.entities}
    if not wanted & present:
        raise NothingSelected(f"no anatomical image in session {', '.join(sorted(wanted))}{_some(sorted(present))}")
    notes = [f"no anatomical image in session {label}" for label in sorted(wanted - present)]
    return [image for image in images if image.entities.get("session") in wanted], notes


def _some(labels: Sequence[str], at_most: int = 6) -> str:
    if not labels:
        return ""
    return f"; there are {len(labels)}: {', '.join(labels[:at_most])}{', ...' if len(labels) > at_most else ''}"


def _complete(filters: Filters | None) -> dict[str, dict[str, Any]]:
    known = {*entity_names(), "suffix", "extension", "datatype"}
    complete = {query: {**default, **(filters or {}).get(query, {})} for query, default in DEFAULT_FILTERS.items()}
    for query, entities in complete.items():
        for name in entities.keys() - known:
            raise UsageError(f"the filter {query} has an unknown entity '{name}': use {', '.join(entity_names())}")
    return complete


def _matching(images: Iterable[Image], wanted: Mapping[str, Any]) -> tuple[list[Image], list[str]]:
    """Return the images that a filter selects, and notes on those that are not magnitude images."""
    matching = [image for image in images if _matches(image, wanted)]
    if "part" in wanted:
        return matching, []
    magnitudes = [image for image in matching if image.entities.get("part", "mag") == "mag"]
    others = [image for image in matching if image.entities.get("part", "mag") != "mag"]
    return magnitudes, [
        f"{image.path.name} is skipped: part-{image.entities['part']} is not a magnitude image" for image in others
    ]


def _matches(image: Image, wanted: Mapping[str, Any]) -> bool:
    """Return whether an image has the values; numbers are compared as numbers, so that 1 matches ``run-01``."""
    values = {
        **image.entities,
        "suffix": image.suffix,
        "extension": image.path.name[image.path.name.index(".") :],
        "datatype": "anat",
    }
    for name, choice in wanted.items():
        value = values.get(name)
        choices = choice if isinstance(choice, list) else [choice]
        if not any(_equal(name, value, one) for one in choices):
            return False
    return True


def _equal(name: str, value: str | None, wanted: Any) -> bool:
    if wanted is None or value is None:
        return value is wanted
    if wanted == "*":
        return True
    if isinstance(wanted, int) or name == "run":
        return number(value) == number(str(wanted))
    prefix = {"subject": "sub-", "session": "ses-"}.get(name, "")
    if name == "extension":
        return value.lstrip(".") == str(wanted).lstrip(".")
    return value == str(wanted).removeprefix(prefix)


def _marked(images: Sequence[Image], where: Sequence[str], marks: Marks) -> tuple[list[Image], list[str]]:
    """Return the images that meet all conditions, and notes on the others. NothingSelected if none does."""
    unmet = {image.path: marks.unmet(where, image.entities, image.path.name) for image in images}
    marks.check(where, "--where")
    others: dict[str, list[str]] = {}
    for path, reason in unmet.items():
        if reason:
            others.setdefault(reason, []).append(path.name)
    notes = [f"left out: {listed(names, 3)}: not --where {reason}" for reason, names in others.items()]
    if all(unmet.values()):
        raise NothingSelected("; ".join(notes))
    return [image for image in images if not unmet[image.path]], notes


def _unique(images: Iterable[Image], notes: Iterable[str] = ()) -> tuple[list[Image], list[str]]:
    """Return one image for each set of entities, sorted, ``.nii.gz`` before ``.nii``, and notes on the others."""
    chosen: dict[str, Image] = {}
    notes = list(notes)
    for image in sorted(images, key=lambda i: (natural(build_name(i.entities)), i.path.suffix, i.path)):
        key = build_name(image.entities)
        if key in chosen:
            notes.append(f"{image.path.name} is skipped: {chosen[key].path.name} has the same entities")
        chosen.setdefault(key, image)
    return list(chosen.values()), notes
