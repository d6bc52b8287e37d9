"""The official BIDS validator, applied to the part of the input that will be read.

The validator checks a view of the dataset: links to the files at its top, placeholders for the images of the scans, and
links to the JSON files that apply to them. The cost therefore depends on the number of scans, not on the size of the
dataset. The validator checks names, folders and metadata; the content of an image is checked when it is read, so that
one bad scan does not stop the others.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsseg.bids.index import NOT_UTF8
from bidsseg.bids.outputs import root_path
from bidsseg.errors import InvalidInputDataset, IOFailure
from bidsseg.reading import object_or_empty

if TYPE_CHECKING:
    from bidsseg.bids.scan import Scan

PROGRAM = "bids-validator-deno"

UNREADABLE = (
    "JSON_INVALID", "JSON_NOT_AN_OBJECT", "INVALID_JSON_ENCODING", "EMPTY_FILE", "FILE_READ", "SYMLINK_BROKEN",
)  # fmt: skip
"""Errors that make ``dataset_description.json`` useless; other errors in it do not matter."""

OF_THE_VIEW = ("SIDECAR_WITHOUT_DATAFILE", "SYMLINK_OUT_OF_TREE")
"""Errors of the view, not of the dataset: the view lacks the files of other modalities, and contains links."""


@dataclass(frozen=True)
class Issue:
    """An error reported by the validator.

    Attributes:
        location: path below the dataset, or empty.
        others: number of further files with the same error.
    """

    code: str
    location: str
    message: str
    others: int = 0

    def __str__(self) -> str:
        others = f" (and {self.others} more)" if self.others else ""
        return f"{self.location or 'input dataset'}{others}: {self.message} [{self.code}]"


def validate(bids_dir: Path, scans: Sequence[Scan], output_dir: Path | None = None) -> list[Issue]:
    """Return errors of the dataset that do not concern the files to be read; the caller shows them as warnings.

    Args:
        output_dir: folder for the view if the temporary folder is below ``/dev``, as in a container without another
            writable folder: the validator reads nothing there.

    Raises:
        InvalidInputDataset: the name or place of an image to be read is invalid, or ``dataset_description.json`` is
            missing or cannot be parsed.
    """
    program = _program()
    if program is None:
        return [Issue("NO_VALIDATOR", "", f"not validated, because {PROGRAM} is not installed")]
    images = sorted({path.relative_to(bids_dir) for scan in scans for path in (scan.t1w, scan.flair) if path})
    with _temporary(_place(output_dir)) as folder:
        view = folder / "dataset"
        try:
            _make_view(bids_dir, view, images)
        except OSError as error:
            if str(error.filename).startswith(str(bids_dir)):
                raise
            raise _temporary_failed(folder.parent, error) from error
        try:
            errors, meanings = _run(program, view)
        except (OSError, ValueError, LookupError, TypeError) as error:
            return [Issue("VALIDATOR_FAILED", "", f"not validated, because {PROGRAM} failed: {_line(str(error))}")]
    read = {image.as_posix() for image in images}
    understood = _is_understood(bids_dir / root_path("description"))
    fatal = _issues([entry for entry in errors if _is_fatal(entry, read, understood=understood)], meanings)
    if fatal:
        raise InvalidInputDataset(f"{'; '.join(map(str, fatal))}; correct it or use --skip-bids-validation")
    return _issues([entry for entry in errors if entry["code"] not in OF_THE_VIEW], meanings)


def _program() -> str | None:
    """Return the validator beside this Python, or the one on the search path."""
    return shutil.which(PROGRAM, path=Path(sys.executable).parent) or shutil.which(PROGRAM)


def _place(output_dir: Path | None) -> Path | None:
    """Return the folder for the view: the temporary folder (None), or the output folder."""
    if output_dir is not None and Path(tempfile.gettempdir()).is_relative_to("/dev"):
        with suppress(OSError):  # reported when the output is written
            output_dir.mkdir(parents=True, exist_ok=True)
            if os.access(output_dir, os.W_OK):
                return output_dir
    return None


@contextmanager
def _temporary(place: Path | None) -> Iterator[Path]:
    """Yield a temporary folder, in the given place or in the default place of temporary files."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=".bidsseg-", dir=place))
    except OSError as error:
        raise _temporary_failed(place or Path(tempfile.gettempdir()), error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary_failed(folder: Path, error: OSError) -> IOFailure:
    """Return the error for temporary files that cannot be written."""
    reason = error.strerror or str(error)
    return IOFailure(f"temporary files cannot be written to {folder}: {reason}; give another --work-dir")


def _make_view(bids_dir: Path, view: Path, images: Iterable[Path]) -> None:
    """Fill the folder ``view``; ``images`` are relative to the dataset."""
    view.mkdir()
    places = {Path()}
    for image in images:
        places.update(image.parents)
        (view / image).parent.mkdir(parents=True, exist_ok=True)
        (view / image).write_bytes(b"placeholder")
    for place in places:
        for file in _files(bids_dir / place):
            if place != Path() and file.suffix != ".json":
                continue
            if NOT_UTF8.search(str(file)):  # the validator cannot follow a link to such a file
                shutil.copyfile(file, view / place / NOT_UTF8.sub("_", file.name))
            else:
                (view / place / file.name).symlink_to(file.absolute())


def _files(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() or entry.is_file():
                path = Path(entry.path)
                if not path.is_dir():
                    yield path


def _run(program: str, view: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the errors that the validator reports, and the meanings of their codes; no image is opened."""
    done = subprocess.run(
        [program, str(view), "--format", "json", "--ignoreNiftiHeaders", "--ignoreWarnings"],
        capture_output=True,
        env={**os.environ, "NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1"},
        check=False,
    )
    if not done.stdout.strip():
        raise ValueError(done.stderr.decode(errors="replace") or f"it exited with code {done.returncode}")
    report = json.loads(done.stdout)["issues"]
    return [entry for entry in report["issues"] if entry["severity"] == "error"], report["codeMessages"]


def _is_understood(description: Path) -> bool:
    """Return whether this program can read a description that the validator may refuse, e.g. with a byte-order mark."""
    return bool(object_or_empty(description))


def _is_fatal(entry: dict[str, Any], read: set[str], *, understood: bool) -> bool:
    """Return whether an error concerns the files to be read, except for metadata of the images.

    Args:
        understood: whether ``dataset_description.json`` can be read.
    """
    code, location = entry["code"], _location(entry)
    if code == "MISSING_DATASET_DESCRIPTION":
        return True
    if location == root_path("description").as_posix():
        return code in UNREADABLE and not understood
    return location in read and not (entry.get("rule") or "").startswith("rules.sidecars")


def _issues(entries: Iterable[dict[str, Any]], meanings: dict[str, str]) -> list[Issue]:
    """Return one issue for each kind of error, located at the first of its files."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(entries, key=_location):
        kinds.setdefault("/".join(filter(None, (entry["code"], entry.get("subCode")))), []).append(entry)
    issues = []
    for code, (first, *others) in kinds.items():
        parts = (meanings.get(first["code"]), first.get("issueMessage"))
        text = _line(": ".join(part.partition("\n\n")[0].strip(" .") for part in parts if part))
        files = {_location(entry) for entry in others} - {_location(first)}
        issues.append(Issue(code, _location(first), text, len(files)))
    return issues


def _location(entry: dict[str, Any]) -> str:
    return (entry.get("location") or "").lstrip("/")


def _line(text: str) -> str:
    return " ".join(text.split())
