"""Atomic writing of files, locks, and checksums."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bidsseg.errors import DataError, IOFailure, OutputNotWritable
from bidsseg.reading import NOT_ALLOWED

if TYPE_CHECKING:
    import pandas as pd

NOT_WRITABLE = NOT_ALLOWED | {errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
"""Error codes if a file cannot be created at a path; other errors come from the disk."""

UNLOCKED_S = 3600.0
"""Age from which a temporary file counts as abandoned if the file system cannot report whether it is in use."""

PART = re.compile(r"\..+\.([0-9a-f]{4})?[0-9a-f]{8}\.part")
"""Name of a temporary file of :func:`replacing`, with the mark of its machine, which older versions lack."""

BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Name of the running system, also in a container."""

ENDS = 1 << 16
"""Bytes read at both ends of a compressed file in place of the whole: the last eight contain a checksum."""

LOCK_WAIT_S = 30.0
"""Longest wait for another process, which may be suspended."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file that replaces the path once it is complete, and is removed otherwise.

    Raises:
        OutputNotWritable: the file cannot be created.
        IOFailure: writing was interrupted, e.g. the disk is full.
        DataError: the name is too long for the file system.
    """
    part = path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part, stream = _new_part(path)
        lock = os.dup(stream.fileno())  # held until the file is renamed; closing can still report a full disk
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
    """Write a UTF-8 text file whole or not at all; its folder is created if needed.

    Raises:
        OutputNotWritable: the file cannot be created.
        IOFailure: writing was interrupted, e.g. the disk is full.
    """
    with replacing(path) as stream:
        # Bytes of a name that are not UTF-8 are escaped as in JSON.
        stream.write(text.encode(errors="backslashreplace"))


def write_table(
    path: Path, table: pd.DataFrame, *, float_format: str | Callable[[Any], str] | None = None, missing: str = "n/a"
) -> None:
    """Write a table with columns separated by tabs, whole or not at all; its folder is created if needed.

    Args:
        float_format, missing: as for `table_text`.

    Raises:
        OutputNotWritable, IOFailure: as for write_text_atomic.
    """
    write_text_atomic(path, table_text(table, float_format=float_format, missing=missing))


def table_text(
    table: pd.DataFrame, *, float_format: str | Callable[[Any], str] | None = None, missing: str = "n/a"
) -> str:
    """Return the text of a table with columns separated by tabs.

    Args:
        float_format: format of numbers, as for ``%`` or as a function; by default, all digits.
        missing: text of a missing value; the default is that of BIDS.
    """
    text: str = table.to_csv(sep="\t", index=False, na_rep=missing, float_format=float_format, lineterminator="\n")
    return text


@contextmanager
def table_writer(path: Path, columns: Sequence[str], missing: str = "n/a") -> Iterator[csv.DictWriter[str]]:
    """Yield a writer of the rows of a table, which is written whole or not at all; missing cells are filled."""
    with replacing(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        writer = csv.DictWriter(text, columns, restval=missing, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        yield writer
        text.flush()
        text.detach()


def write_json_atomic(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as :func:`write_text_atomic` does."""
    write_text_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def remove(files: Iterable[Path]) -> None:
    """Remove files that exist; OutputNotWritable without permission."""
    try:
        for file in files:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise OutputNotWritable(f"{error.filename}: cannot be replaced: {error.strerror}; check its owner") from error


def remove_halves(parts: Iterable[Path]) -> None:
    """Remove temporary files of killed runs, except those that a process is writing, or may be."""
    remove(part for part in parts if PART.fullmatch(part.name) and not is_being_written(part))


def is_being_written(part: Path) -> bool:
    """Return whether a temporary file of :func:`replacing` is in use by a process, or may be."""
    try:
        with part.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        name = PART.fullmatch(part.name)
        # On BeeGFS, and Lustre with localflock, a machine does not see the locks of others.
        return name is not None and name[1] not in (None, machine_mark()) and _is_young(part)
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return True
    except OSError:  # a file system without locks
        return _is_young(part)


def _is_young(part: Path) -> bool:
    with suppress(FileNotFoundError):
        return time.time() - part.stat().st_mtime < UNLOCKED_S
    return True


@cache
def machine_mark() -> str:
    """Return four digits that tell this machine from others."""
    try:
        name = BOOT.read_text()
    except OSError:
        name = os.uname().nodename
    return hashlib.sha256(name.encode()).hexdigest()[:4]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder, if its file system has locks; the wait is limited."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # the caller reports the error when it writes there
        yield
        return
    try:
        _wait_for_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Yield whether this process holds a lock file, which is removed afterwards; a killed process loses its lock.

    On a file system without locks, every process holds it.

    Raises:
        OutputNotWritable: the file cannot be created.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    stream = _lock_file(path)
    if stream is None:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            path.unlink()
        stream.close()
        with suppress(OSError):  # until a folder has other files
            for folder in made:
                folder.rmdir()


def _lock_file(path: Path) -> BinaryIO | None:
    """Return the lock file, opened and locked; None if another process holds it."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("ab")
        except OSError as error:
            raise OutputNotWritable(
                f"cannot create {path}: {error.strerror}; choose another folder or change its permissions"
            ) from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return None
        except OSError:  # no locks here
            return stream
        with suppress(OSError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        stream.close()  # removed before it was locked


def _wait_for_lock(descriptor: int) -> None:
    until = time.monotonic() + LOCK_WAIT_S
    while time.monotonic() < until:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:  # no locks here; files are still written whole
            return
        else:
            return


def _new_part(path: Path) -> tuple[Path, BinaryIO]:
    """Create a temporary file beside a path, locked while it is written, so that no other run removes it."""
    while True:
        part = path.with_name(f".{path.name}.{machine_mark()}{secrets.token_hex(4)}.part")
        stream = part.open("xb")
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if part.exists():
            return part, stream
        stream.close()  # removed before it was locked


def _discard(part: Path, path: Path) -> None:
    if part == path:
        return
    # The original error is more informative than an error during cleanup.
    with suppress(OSError):
        part.unlink(missing_ok=True)


def fingerprint(path: Path) -> str:
    """Return a checksum (SHA-256) that changes with the content of an image; empty if it cannot be read.

    For a compressed file, only the length and both ends are read, because its last bytes contain a checksum of the
    rest.
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
