"""Errors with a meaning for the caller: each carries the exit code of the command line.

Messages are one line and say what to do about it. Codes from 64 up follow ``sysexits.h``; 16 to 18 are
those that BIDS Apps share.
"""

import errno

EXIT_CODES = {
    0: "everything asked for is there",
    1: "some scans failed (see logs/)",
    16: "the input is not valid BIDS",
    17: "unknown analysis level",
    18: "no scan selected",
    64: "wrong usage",
    65: "the data cannot be used: every scan failed",
    66: "input missing or unreadable",
    73: "output cannot be created",
    74: "reading or writing broke off (disk full)",
    75: "stopped before the end, or something is lacking for now: run again (train: with --resume)",
    130: "stopped by a key or a signal: run again",
}
"""Of the command line."""


LACKING = ("memory", "bad_alloc", "bad alloc", "start new thread", "failed to map segment")
"""What libraries say where there is no memory left, for arrays, for the stack of a thread or for themselves."""


MORE_MEMORY = "free some, raise the limit (ulimit -v, the job's memory), or give less work at once (--n-cpus)"
"""What a user can do then."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an error means that there is no memory left, whichever library raised it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    of_library = isinstance(error, RuntimeError | ImportError | OSError)
    return isinstance(error, MemoryError) or (of_library and any(word in str(error).lower() for word in LACKING))


class BidssegError(Exception):
    """Any failure that is reported without a traceback."""

    code: int = 1


class InvalidInputDataset(BidssegError):
    """The files to be read break the BIDS standard."""

    code = 16


class UnknownLevel(BidssegError):
    """The analysis level is not one of participant, group and train."""

    code = 17


class NothingSelected(BidssegError):
    """No scan is left after selection by participant, session and filter."""

    code = 18


class UsageError(BidssegError):
    """The command line contradicts itself or names something that does not exist."""

    code = 64


class DataError(BidssegError):
    """An input file exists but its content cannot be used."""

    code = 65


class InputMissing(BidssegError):
    """An input file or folder does not exist or cannot be opened."""

    code = 66


class OutputNotWritable(BidssegError):
    """The output cannot be created: permissions or a read-only file system."""

    code = 73


class IOFailure(BidssegError):
    """Reading or writing failed on the way: disk full, broken mount."""

    code = 74


class TemporaryFailure(BidssegError):
    """A resource is lacking now; the same command may work later."""

    code = 75
