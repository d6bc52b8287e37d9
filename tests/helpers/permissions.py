"""Runs without the permissions of root."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

NOBODY = 65534
"""User without permissions."""


@contextmanager
def not_root() -> Iterator[None]:
    """Run as a user who is subject to permissions."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
