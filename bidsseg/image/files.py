"""Files as bytes: reading with clear errors, and writing so that a file is whole or not there."""

import errno
import fcntl
import gzip
import os
import secrets
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bidsseg.errors import DataError, IOFailure, OutputNotWritable
from bidsseg.image.guard import refusal
from bidsseg.reading import NOT_ALLOWED, check_fetched, is_web_page, unreadable

NOT_WRITABLE = NOT_ALLOWED | {errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
"""What the system says when no file can be made at a place; other errors come from the disk."""

UNLOCKED_S = 3600.0
"""Age from which a temporary file is a leftover where the file system cannot tell whether it is in use."""

LOCK_WAIT_S = 30.0
"""How long to wait for another process, which may have been halted."""


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
        DataError: The file system takes no name that long.
    """
    part = path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part, stream = _new_part(path)
        lock = os.dup(stream.fileno())  # held until the file has its name, while closing still tells of a full disk
        try:
            with stream:
                yield stream
            part.replace(path)
        finally:
            os.close(lock)
    except OSError as error:
        _discard(part, path)
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(f"{path.name}: the name is too long here; shorten the labels of the image") from error
        if error.errno in NOT_WRITABLE:
            message = f"{path}: cannot be written: {error.strerror}; choose another folder or change its permissions"
            raise OutputNotWritable(message) from error
        raise IOFailure(f"{path}: writing failed: {error.strerror}") from error
    except BaseException:
        _discard(part, path)
        raise


def is_being_written(part: Path) -> bool:
    """Whether a temporary file of :func:`replacing` is in use by some process, or cannot be told not to be."""
    try:
        with part.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return True
    except OSError:  # a file system without locks
        return time.time() - part.stat().st_mtime < UNLOCKED_S
    return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder, as far as its file system has locks; nobody waits for ever."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # which who writes there will report
        yield
        return
    try:
        _wait_for_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int) -> None:
    until = time.monotonic() + LOCK_WAIT_S
    while time.monotonic() < until:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:  # no locks here; what is written is whole even so
            return
        else:
            return


def _new_part(path: Path) -> tuple[Path, BinaryIO]:
    """A temporary file beside a path, locked as long as it is written, so that no other run takes it for a leftover."""
    while True:
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        stream = part.open("xb")
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if part.exists():
            return part, stream
        stream.close()  # taken away before it was locked


def _discard(part: Path, path: Path) -> None:
    if part == path:
        return
    # The error that led here tells more than one from cleaning up.
    with suppress(OSError):
        part.unlink(missing_ok=True)
