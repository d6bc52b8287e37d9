"""Files as bytes: reading with clear errors, and writing so that a file is whole or not there."""

import errno
import gzip
import secrets
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bidsseg.errors import IOFailure, OutputNotWritable
from bidsseg.image.guard import refusal
from bidsseg.reading import NOT_ALLOWED, check_fetched, is_web_page, unreadable

NOT_WRITABLE = NOT_ALLOWED | {errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
"""What the system says when no file can be made at a place; other errors come from the disk."""


def content(path: Path) -> bytes:
    """Bytes of a file, uncompressed when its name ends in ``.gz``.

    Raises:
        InputMissing: There is no such file, it may not be read, or its content was not fetched.
        IOFailure: The disk or the network failed.
        DataError: It is no file, empty, damaged, or a web page.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise refusal("NOT_A_FILE", "is not a file")
        stored = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if not stored:
        raise refusal("EMPTY_FILE", "is empty; copy or convert it again")
    check_fetched(path, stored)
    if is_web_page(stored):
        raise refusal("WEB_PAGE", "is a web page, not an image; download the image itself")
    compressed, named = stored[:2] == b"\x1f\x8b", path.name.lower().endswith(".gz")
    if compressed and not named:
        raise refusal("NAME_MISLEADS", "is compressed, but its name does not end in .gz; rename it")
    if named and not compressed:
        if is_text(stored):
            raise refusal("NOT_NIFTI", "is text, not a NIfTI image")
        raise refusal("NAME_MISLEADS", "is not compressed, but its name ends in .gz; rename or convert it")
    if not compressed:
        return stored
    try:
        return gzip.decompress(stored)
    except (EOFError, OSError, zlib.error) as error:
        raise refusal("DAMAGED_GZIP", f"is damaged ({error}); copy or convert it again") from error


def is_text(stored: bytes) -> bool:
    """Whether a file begins with printable characters, as no image does."""
    start = stored[:64].split()
    return bool(start) and all(word.isascii() and word.decode().isprintable() for word in start)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when all is written, and leaves nothing behind otherwise.

    Raises:
        OutputNotWritable: The file cannot be created there.
        IOFailure: Writing failed on the way, e.g. the disk is full.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as stream:
            yield stream
        part.replace(path)
    except OSError as error:
        _discard(part)
        if error.errno in NOT_WRITABLE:
            message = f"{path}: cannot be written: {error.strerror}; choose another folder or change its permissions"
            raise OutputNotWritable(message) from error
        raise IOFailure(f"{path}: writing failed: {error.strerror}") from error
    except BaseException:
        _discard(part)
        raise


def _discard(part: Path) -> None:
    # The error that led here tells more than one from cleaning up.
    with suppress(OSError):
        part.unlink(missing_ok=True)
