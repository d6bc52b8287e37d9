"""Bytes of an image file, or one error with a remedy."""

import gzip
import stat
import zlib
from pathlib import Path

from bidsseg.image.guard import refusal
from bidsseg.reading import check_fetched, is_web_page, unreadable


def content(path: Path) -> bytes:
    """Return the bytes of a file, uncompressed when its name ends in ``.gz`` or ``.mgz``.

    Raises:
        InputMissing: the file does not exist, is not readable, or its content was not downloaded.
        IOFailure: the disk or the network failed.
        DataError: not a regular file, empty, damaged, or a web page.
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
    compressed, named = stored[:2] == b"\x1f\x8b", path.name.lower().endswith((".gz", ".mgz"))
    if compressed and not named:
        raise refusal("NAME_MISLEADS", "is compressed, but its name does not end in .gz; rename it")
    if named and not compressed:
        if is_text(stored):
            raise refusal("NOT_NIFTI", "is text, not an image")
        ending = path.name[path.name.rindex(".") :]
        raise refusal("NAME_MISLEADS", f"is not compressed, but its name ends in {ending}; rename or convert it")
    if not compressed:
        return stored
    try:
        return gzip.decompress(stored)
    except (EOFError, OSError, zlib.error) as error:
        raise refusal("DAMAGED_GZIP", f"is damaged ({error}); copy or convert it again") from error


def is_text(stored: bytes) -> bool:
    """Return whether a file begins with printable characters, as no image does."""
    start = stored[:64].split()
    return bool(start) and all(word.isascii() and word.decode().isprintable() for word in start)
