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

from bidsseg.errors import InputMissing, IOFailure, OutputNotWritable
from bidsseg.image.guard import refusal

NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
"""What the system says when a path leads nowhere."""

NOT_ALLOWED = {errno.EACCES, errno.EPERM}

NOT_WRITABLE = NOT_ALLOWED | {errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
"""What the system says when no file can be made at a place; other errors come from the disk."""


def content(path: Path) -> bytes:
    """Bytes of a file, uncompressed when its name ends in ``.gz``.

    Raises:
        InputMissing: There is no such file, or it may not be read.
        IOFailure: The disk or the network failed.
        DataError: It is no file, empty or damaged.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise refusal("NOT_A_FILE", "is not a file")
        stored = path.read_bytes()
    except OSError as error:
        if error.errno in NOT_THERE:
            link = path.is_symlink()
            hint = "a link to nothing; fetch its content, e.g. with `datalad get`" if link else "no such file"
            raise InputMissing(f"{path}: {hint}") from None
        if error.errno in NOT_ALLOWED:
            raise InputMissing(f"{path}: may not be read by this user; change its permissions") from None
        raise IOFailure(f"{path}: reading failed: {error.strerror}") from error
    if not stored:
        raise refusal("EMPTY_FILE", "is empty; copy or convert it again")
    compressed, named = stored[:2] == b"\x1f\x8b", path.name.lower().endswith(".gz")
    if compressed and not named:
        raise refusal("NAME_MISLEADS", "is compressed, but its name does not end in .gz; rename it")
    if named and not compressed:
        raise refusal("NAME_MISLEADS", "is not compressed, but its name ends in .gz; rename or convert it")
    if not compressed:
        return stored
    try:
        return gzip.decompress(stored)
    except (EOFError, OSError, zlib.error) as error:
        raise refusal("DAMAGED_GZIP", f"is damaged ({error}); copy or convert it again") from error


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
