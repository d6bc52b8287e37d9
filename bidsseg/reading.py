"""Text files of users and tools, read with or without a byte-order mark, or one clear error.

Also detects placeholders of content that was not downloaded: pointers of git-annex or Git LFS, and web pages.
"""

from __future__ import annotations

import codecs
import csv
import errno
import io
import json
import tomllib
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from bidsseg.errors import BidssegError, DataError, InputMissing, IOFailure

NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
"""Error codes of the system for a path that does not exist."""

NOT_AVAILABLE = "n/a"
"""A missing value in a table of BIDS."""

NOT_ALLOWED = {errno.EACCES, errno.EPERM}

ANNEX = "annex/objects/"
"""Part of the target of every git-annex link, and of the text of every git-annex pointer."""

LFS = b"version https://git-lfs"

WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")
"""First bytes, in lower case, of pages that a server sends instead of a file, including errors of object stores."""

Kind = Callable[[str], BidssegError]
"""Class of the error raised when the content of a file cannot be used."""


def read_text(path: Path, kind: Kind = DataError) -> str:
    """Return the content of a text file, without a byte-order mark, with ``\\n`` at the end of each line.

    The encoding is UTF-8, or UTF-16 with a byte-order mark (the "Unicode text" of spreadsheets).

    Raises:
        InputMissing: the file does not exist, is not readable, or its content was not downloaded.
        IOFailure: the disk or the network failed.
        BidssegError: of the given kind, if the content is not text in these encodings.
    """
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    check_fetched(path, stored)
    wide = stored.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = stored.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeError as error:
        raise kind(f"{path} is not a text file in UTF-8: save it in that encoding") from error
    if "\0" in text:
        raise kind(f"{path} is not a text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_object(path: Path, kind: Kind = DataError) -> dict[str, Any]:
    """Return the JSON object in a file, as `read_text` reads it."""
    try:
        content = json.loads(read_text(path, kind))
    except (ValueError, RecursionError) as error:
        raise kind(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise kind(f"{path} is not a JSON object {{…}}")
    return content


def object_or_empty(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty dictionary if it cannot be read."""
    try:
        return read_object(path)
    except BidssegError:
        return {}


def read_toml(path: Path, kind: Kind = DataError) -> dict[str, Any]:
    """Return the content of a TOML file, as `read_text` reads it."""
    try:
        return tomllib.loads(read_text(path, kind))
    except tomllib.TOMLDecodeError as error:
        raise kind(f"{path} is not TOML: {error}") from error


def read_table(
    path: Path, kind: Kind = DataError, *, quotes: bool = True, separator: str = "\t"
) -> list[dict[str, str]]:
    """Return the rows of a tab-separated table with a header; missing cells are empty.

    Columns without a name are left out; of columns with the same name, the last one counts. Blanks around names and
    cells are no part of them.

    Args:
        quotes: whether quotation marks enclose cells; otherwise, they are ordinary characters.
        separator: the character between cells.
    """
    header, *rows = read_cells(path, kind, quotes=quotes, separator=separator) or [[]]
    names = [name.strip() for name in header]
    return [{name: cell.strip() for name, cell in zip_longest(names, row, fillvalue="") if name} for row in rows]


def columns(table: Path) -> list[str]:
    """Return the names in the first line of a tab-separated table; none if it cannot be read."""
    try:
        with table.open(encoding="utf-8-sig") as stream:
            return stream.readline().rstrip("\n").split("\t")
    except (OSError, ValueError):
        return []


def read_cells(path: Path, kind: Kind = DataError, *, quotes: bool = True, separator: str = "\t") -> list[list[str]]:
    """Return the cells of each line of a table, see `read_table`; empty lines are left out."""
    lines = io.StringIO(read_text(path, kind), newline="")
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    try:
        return [row for row in csv.reader(lines, delimiter=separator, quoting=quoting) if row]
    except csv.Error as error:
        raise kind(f"{path} is not a table: {error}") from error


def unreadable(path: Path, error: OSError) -> BidssegError:
    """Return the error for a file that cannot be opened or read."""
    if error.errno == errno.ENAMETOOLONG:
        return InputMissing(f"{path}: no such file, its name is too long")
    if error.errno in NOT_THERE:
        if not path.is_symlink():
            return InputMissing(f"{path}: no such file")
        if ANNEX in str(path.readlink()):
            return _not_fetched(path, "a link of git-annex")
        return InputMissing(f"{path}: a broken link; download its content, e.g. with `datalad get`")
    if error.errno in NOT_ALLOWED:
        return InputMissing(f"{path}: not readable by this user; change its permissions")
    return IOFailure(f"{path}: reading failed: {error.strerror}")


def check_fetched(path: Path, start: bytes) -> None:
    """Raise InputMissing if a file, given by at least its first 512 bytes, is a pointer of git-annex or Git LFS."""
    first_line = start[:512].partition(b"\n")[0]
    if ANNEX.encode() in first_line and b"\0" not in first_line:
        raise _not_fetched(path, "a pointer of git-annex")
    if start.startswith(LFS):
        raise _not_fetched(path, "a pointer of Git LFS", "git lfs pull")


def is_web_page(start: bytes) -> bool:
    """Return whether a file with these first bytes is a web page that a server sent instead of the file."""
    return start[:512].removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith(WEB_PAGE)


def _not_fetched(path: Path, what: str, command: str = "datalad get") -> InputMissing:
    hint = f"`{command} {path}`" if command == "datalad get" else f"`{command}` in its folder"
    return InputMissing(f"{path}: its content was not downloaded, this is {what}: run {hint} [NOT_FETCHED]")


def number_or_none(text: str) -> float | None:
    """Return the number in a cell of a table; None where it is missing."""
    return None if text in ("", NOT_AVAILABLE) else float(text)
