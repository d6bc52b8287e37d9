"""Errors with a meaning for the caller: each carries the exit code of the command line.

Messages are one line and say what to do about it. Codes from 64 up follow ``sysexits.h``; 16 to 18 are
common to BIDS Apps.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

EXIT_CODES = {
    0: "all requested outputs are present",
    1: "some scans failed (see logs/)",
    16: "the input is not valid BIDS",
    17: "unknown analysis level",
    18: "no scan selected",
    64: "wrong usage",
    65: "the data cannot be used: every scan failed",
    66: "input missing or unreadable",
    73: "output cannot be created, or its folder belongs to another tool or dataset",
    74: "I/O error (e.g. disk full)",
    75: "interrupted, or a resource is unavailable: run again (train: with --resume)",
    130: "interrupted by a key or a signal: run again",
}
"""Exit codes of the command line and their meanings."""


LACKING = ("memory", "bad_alloc", "bad alloc", "alloc_failed", "start new thread", "failed to map segment")
"""Words in the messages of libraries that run out of memory."""
OTHER_MEMORY = ("illegal memory", "memory format", "memory location")
"""Words in messages about memory that is not lacking."""


MORE_MEMORY = "free memory, raise the limit (ulimit -v, the job's memory), or run fewer processes (--n-cpus)"
"""What a user can do when memory runs out."""


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error of any library means that memory ran out."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError):
        return True
    message = str(error).lower()
    of_library = isinstance(error, RuntimeError | ImportError | OSError)
    return of_library and any(word in message for word in LACKING) and not any(word in message for word in OTHER_MEMORY)


class BidssegError(Exception):
    """Any failure that is reported without a traceback."""

    code: int = 1


class InvalidInputDataset(BidssegError):
    """The input files violate the BIDS standard."""

    code = 16


class UnknownLevel(BidssegError):
    """The analysis level is not one of participant, longitudinal, group, evaluate and train."""

    code = 17


class NothingSelected(BidssegError):
    """No scan is left after selection by participant, session and filter, or none can be compared."""

    code = 18


class NothingToCompare(NothingSelected):
    """No participant has two sessions; further levels of the command still run."""


class UsageError(BidssegError):
    """The command line contradicts itself or names something that does not exist."""

    code = 64


class DataError(BidssegError):
    """An input file exists but its content cannot be used."""

    code = 65


class OtherGrid(DataError):
    """A label map is not on the grid of its image."""


class InputMissing(BidssegError):
    """An input file or folder does not exist or cannot be opened."""

    code = 66


class OutputNotWritable(BidssegError):
    """The output cannot be created: permissions or a read-only file system."""

    code = 73


class IOFailure(BidssegError):
    """Reading or writing was interrupted: disk full, broken mount."""

    code = 74


class TemporaryFailure(BidssegError):
    """A resource is unavailable now; the same command may work later."""

    code = 75


class MemoryTooSmall(TemporaryFailure):
    """A scan needs more memory than its process may use."""


ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
"""Error codes for a file that does not exist or is not accessible to this user."""
FULL = {errno.ENOSPC, errno.EDQUOT}


def explained(error: Exception) -> BidssegError | None:
    """Translate an error of the system, a decoder or an allocator into a BidssegError; None if it may be a bug.

    Code that reads or writes a file gives better explanations; this function handles unforeseen errors.
    """
    if isinstance(error, BidssegError):
        return error
    if lacks_memory(error):
        message = " ".join(str(error).split())[:120]
        known: BidssegError = TemporaryFailure(f"out of memory{f' ({message})' if message else ''}: {MORE_MEMORY}")
    elif isinstance(error, UnicodeError):
        known = DataError(f"a name or a text is not UTF-8 ({error}): rename the file or convert the text")
    elif isinstance(error, OSError):
        known = _of_the_system(error)
    else:
        return None
    known.__cause__ = error
    return known


@contextmanager
def explaining() -> Iterator[None]:
    """Raise errors of the system, of decoders and of allocators as BidssegError."""
    try:
        yield
    except BidssegError:
        raise
    except Exception as error:
        if known := explained(error):
            raise known from error
        raise


def _of_the_system(error: OSError) -> BidssegError:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    text = ": ".join([*[" and ".join(names)][: len(names)], error.strerror or str(error)])
    if error.errno == errno.EROFS:
        return OutputNotWritable(f"{text}; choose another folder")
    if error.errno in ABSENT:
        return InputMissing(f"{text}; check that it exists, and its permissions")
    if error.errno in FULL:
        return IOFailure(f"{text}; free some space there or choose another folder, and run again")
    return IOFailure(f"{text}; check the disk or the network, and run again")


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first names for a message, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
