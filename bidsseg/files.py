"""Files written so that each is whole or not there, locks, and checksums."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from bidsseg.errors import DataError, IOFailure, OutputNotWritable
from bidsseg.reading import NOT_ALLOWED

NOT_WRITABLE = NOT_ALLOWED | {errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
"""What the system says when no file can be made at a place; other errors come from the disk."""

UNLOCKED_S = 3600.0
"""Age from which a temporary file is a leftover where the file system cannot tell whether it is in use."""

ENDS = 1 << 16
"""Bytes at both ends of a compressed file that stand for the whole: the last eight are a checksum of its content."""

LOCK_WAIT_S = 30.0
"""How long to wait for another process, which may have been halted."""


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


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file that is whole or not there; makes its folder.

    Raises:
        OutputNotWritable: the file cannot be created there.
        IOFailure: writing failed on the way, e.g. the disk is full.
    """
    with replacing(path) as stream:
        # Of a name that is not UTF-8, the bytes that cannot be written are escaped, as JSON has it.
        stream.write(text.encode(errors="backslashreplace"))


def write_json_atomic(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as :func:`write_text_atomic` does."""
    write_text_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


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


def fingerprint(path: Path) -> str:
    """A checksum (SHA-256) that changes with the content of an image; empty if it cannot be read.

    Of a compressed file only the length and both ends are read, because its last bytes are a checksum of the rest.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            if path.suffix != ".gz":
                return hashlib.file_digest(stream, "sha256").hexdigest()
            size = stream.seek(0, os.SEEK_END)
            digest.update(size.to_bytes(8, "little"))
            for start in (0, max(0, size - ENDS)):
                stream.seek(start)
                digest.update(stream.read(ENDS))
    except OSError:
        return ""
    return digest.hexdigest()
