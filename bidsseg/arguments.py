"""Conversion of the texts of flags to their values; every mistake is a UsageError that names the remedy."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Container, Sequence
from pathlib import Path

from bidsseg.errors import InputMissing, UsageError
from bidsseg.reading import read_text, unreadable


def megabytes(text: str) -> int:
    """Return megabytes; a number alone means megabytes.

    >>> megabytes("8000"), megabytes("7.5G"), megabytes("16GB"), megabytes("500000k")
    (8000, 7500, 16000, 500)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"memory '{text}': give a size such as 8000 (MB) or 8G")
    return int(float(match[1]) * {"K": 1e-3, "": 1, "M": 1, "G": 1e3, "T": 1e6}[match[2].upper()])


def gigabytes(text: str) -> int:
    """Return megabytes; a number alone means gigabytes."""
    return megabytes(f"{text}G")


def shard(text: str) -> tuple[int, int]:
    """Return the number of a shard and the number of shards.

    >>> shard("3/100")
    (3, 100)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match:
        raise UsageError(f"shard '{text}': give I/N, e.g. 3/100")
    return int(match[1]), int(match[2])


def suffix(text: str) -> str:
    """Return the suffix of images, with which their file names end.

    >>> suffix("_T2w.nii.gz")
    'T2w'
    """
    found = text.removeprefix("_").partition(".")[0]
    if not re.fullmatch(r"[A-Za-z0-9]+", found):
        raise UsageError(f"--anat-modality '{text}': give the end of the names of images, e.g. T2w")
    return found


def device_name(text: str) -> str:
    """Return the name of a device: auto, cpu, cuda, cuda:N or mps."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", text):
        raise UsageError(f"device '{text}': give auto, cpu, cuda, cuda:N or mps")
    return text


def absolute(path: str | Path) -> Path:
    """Return an absolute path, since workers may have another working folder, and without ``..``, which is no name.

    Names of links are kept after the last ``..``; what precedes it is resolved, as the system does.

    >>> str(absolute("/code/../bids"))
    '/bids'
    """
    parts = Path(path).absolute().parts
    above = max((number for number, part in enumerate(parts) if part == ".."), default=0) + 1
    return Path(*parts[:above]).resolve().joinpath(*parts[above:])


def standard_spaces(names: Sequence[str]) -> list[str]:
    """Return the names without ``T1w``, the space of every output."""
    return [name for name in names if name != "T1w"]


def datasets(folders: Sequence[str]) -> list[Path]:
    """Return the absolute paths; InputMissing if one is not a readable folder."""
    return [dataset(Path(folder)) for folder in folders]


def dataset(path: Path) -> Path:
    """Return the absolute path; InputMissing if it is not a readable folder."""
    try:
        with os.scandir(path) as entries:
            next(entries, None)
    except FileNotFoundError as error:
        raise InputMissing(f"no folder {path}: give the top folder of a BIDS dataset") from error
    except NotADirectoryError as error:
        raise InputMissing(f"{path} is not a folder: give the top folder of a BIDS dataset") from error
    except OSError as error:
        raise InputMissing(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    return absolute(path)


def image(path: Path) -> Path:
    """Return the absolute path; an error if it does not exist or is a folder."""
    try:
        if path.is_dir():
            raise InputMissing(f"{path} is a folder: give an image, or a dataset with a level, e.g. participant")
        path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    return path.parent.resolve() / path.name  # the name of a link to the image names the scan


def labels(entity: str, words: Sequence[str], *, patterns: bool = False) -> list[str]:
    """Return labels without their prefix, from words, from lists separated by commas, and from text files of labels.

    Args:
        patterns: whether a word may be a pattern of labels, with the wildcards of file names.

    >>> labels("sub", ["sub-01,sub-03", "02", "01"])
    ['01', '03', '02']
    >>> labels("sub", ["sub-both*"], patterns=True)
    ['both*']
    """
    others, or_pattern = (r"*?!\[\]-", " or pattern of labels") if patterns else ("", "")
    found: dict[str, None] = {}
    for word in words:
        is_file = _is_file(word)
        entries = _entries(Path(word), entity) if is_file else [part for part in word.split(",") if part.strip()]
        for entry in entries or [word]:
            label = entry.strip().removeprefix(f"{entity}-").rstrip("/")
            if not re.fullmatch(rf"[A-Za-z0-9+{others}]+", label):
                place, other = (f"{word}: ", "") if is_file else ("", " and not a text file of labels")
                raise UsageError(f"{place}'{entry}' is not a {entity}- label (letters and digits){or_pattern}{other}")
            found[label] = None
    return list(found)


def condition(text: str, flag: str = "--where") -> tuple[str, list[str], bool]:
    """Return the column of a condition, its values, and whether one of them is wanted or none of them.

    Args:
        flag: for the message if it is not a condition.

    >>> condition("use!=0"), condition("site=Bonn, Jena")  # which may also be one value
    (('use', ['0'], False), ('site', ['Bonn, Jena', 'Bonn', 'Jena'], True))
    """
    column, equals, values = text.partition("=")
    name = column.removesuffix("!").strip()
    if not (name and equals and values.strip()):
        raise UsageError(f"{flag} '{text}': give COLUMN=VALUE or COLUMN!=VALUE, e.g. qc=pass")
    each = dict.fromkeys(value.strip() for value in (values, *values.split(",")))
    return name, list(each), not column.endswith("!")


def conditions(flag: str, words: Sequence[str]) -> list[str]:
    """Return the texts of conditions, after checking them."""
    return [word for word in words if condition(word, flag)]


def _is_file(word: str) -> bool:
    """Return whether a word names a file. A list of labels may be longer than a valid file name."""
    try:
        return Path(word).is_file()
    except (OSError, ValueError):
        return False


def _entries(path: Path, entity: str) -> list[str]:
    """Return the labels in a file: a table with the column ``participant_id`` (``session_id``), or one on each line.

    Columns are separated by tabs, commas, semicolons or blanks. Without a header, all cells with a prefix are labels,
    otherwise the first cell of each line, or all cells of a single line.
    """
    lines = [line for line in read_text(path, UsageError).splitlines() if line.strip() and not line.startswith("#")]
    rows = _cells(lines)
    column = {"sub": "participant_id", "ses": "session_id"}[entity]
    header = [cell.lower() for cell in rows[0]] if rows else []
    if column in header:
        place = header.index(column)
        entries = [row[place] for row in rows[1:] if len(row) > place]
    else:
        prefixed = [cell for row in rows for cell in row if cell.startswith(f"{entity}-")]
        entries = prefixed or (rows[0] if len(rows) == 1 else [row[0] for row in rows])
    entries = [entry for entry in entries if entry not in ("", "n/a")]
    if not entries:
        raise UsageError(f"{path} contains no label: write one on each line")
    return entries


def _cells(lines: Sequence[str]) -> list[list[str]]:
    """Return the cells of each line, separated by tabs, else by commas, semicolons or blanks."""
    separator = next((mark for mark in "\t,;" if any(mark in line for line in lines)), None)
    if separator is None:
        return [line.replace('"', " ").split() for line in lines]
    return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]


def check_split(given: Container[str]) -> None:
    """Raise UsageError if more than one flag says who is held out of a training.

    Args:
        given: fields of the settings of a training whose flags were given.

    >>> check_split(["recipe", "folds", "fold"])
    """
    ways = (
        ("cross_validate", "--cross-validate holds out every participant once", ("folds", "fold", "hold_out")),
        ("hold_out", "--hold-out names the participants instead of a fold", ("folds", "fold")),
    )
    for name, meaning, instead in ways:
        others = [f"--{other.replace('_', '-')}" for other in instead if other in given]
        if name in given and others:
            raise UsageError(f"{meaning}: leave out {' and '.join(others)}")


def derivative(where: str, derivatives: Sequence[str], bids_dir: Path, *, flag: str) -> Path:
    """Return the absolute path of a derivative dataset: a folder, the name of a ``-d`` or of one in ``derivatives``."""
    named = {}
    for entry in derivatives:
        name, equals, path = entry.rpartition("=")
        folder = dataset(Path(path))
        named[name if equals else folder.name] = folder
    places = [named.get(where), Path(where), bids_dir / "derivatives" / where]
    found = next((place for place in places if place is not None and place.is_dir()), None)
    if found is None:
        raise InputMissing(f"{flag}: there is no derivative dataset {where}: give its folder, or name it with -d")
    return absolute(found)


def annotation_folders(pairs: Sequence[str], derivatives: Sequence[str], bids_dir: Path) -> dict[str, list[Path]]:
    """Return for each protocol its derivative datasets; an empty name for those given without a protocol."""
    found: dict[str, list[Path]] = {}
    for pair in pairs:
        protocol, equals, where = ("", "", pair) if _is_derivative(pair, derivatives, bids_dir) else pair.partition("=")
        if not where or bool(equals) != bool(protocol):
            problem = "" if equals else "there is no such folder; "
            raise UsageError(
                f"--labels '{pair}': {problem}give the folder of a derivative dataset, DIR or PROTOCOL=DIR, "
                "e.g. FAST=/data/derivatives/fast"
            )
        folder = derivative(where, derivatives, bids_dir, flag="--labels")
        found[protocol] = list(dict.fromkeys([*found.get(protocol, []), folder]))
    return found


def measures(words: Sequence[str], derivatives: Sequence[str], bids_dir: Path) -> dict[str, str | Path]:
    """Return for the name of each measure a suffix of images in the dataset, or a folder.

    A suffix alone is also the name.
    """
    words = [word if "=" in word else f"{word}={word}" for word in words]
    found: dict[str, str | Path] = {}
    for name, where in _named(words, "NAME=SUFFIX or NAME=DIR", "FLAIR=FLAIR or T1map=/data/maps").items():
        is_suffix = re.fullmatch(r"[A-Za-z0-9]+", where) and not _is_derivative(where, derivatives, bids_dir)
        found[name] = where if is_suffix else derivative(where, derivatives, bids_dir, flag="--measure")
    return found


def measured_images(words: Sequence[str]) -> dict[str, str | Path]:
    """Return for the name of each measure the image file, an absolute path; InputMissing if there is none."""
    return {name: image(Path(where)) for name, where in _named(words, "NAME=FILE", "T1map=t1map.nii.gz").items()}


def _named(words: Sequence[str], form: str, example: str) -> dict[str, str]:
    """Return what is measured by the name of the measure.

    Args:
        form, example: for the message if a word is not NAME=WHERE.
    """
    found: dict[str, str] = {}
    for word in words:
        name, _, where = word.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9]+", name) or not where:
            raise UsageError(f"--measure '{word}': give {form} with a name of letters and digits, e.g. {example}")
        if name in found:
            raise UsageError(f"--measure: the name {name} is given twice")
        found[name] = where
    return found


def _is_derivative(where: str, derivatives: Sequence[str], bids_dir: Path) -> bool:
    """Return whether `derivative` finds a folder under this name."""
    try:
        derivative(where, derivatives, bids_dir, flag="--labels")
    except InputMissing:
        return False
    return True
