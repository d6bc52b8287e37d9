"""Images of a dataset, listed by pybids once: a new database takes longer than everything else in a short run."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bidsseg.bids import index, query
from bidsseg.bids.scan import Image

LISTED: dict[tuple[object, ...], tuple[list[Image], list[str]]] = {}
"""What was found in each state of a dataset in this process."""


def listed_once(
    bids_dir: Path, participants: Sequence[str] | None, database_dir: Path | None = None, **more: Any
) -> tuple[list[Image], list[str]]:
    """Return the images and notes of ``anatomical_images``, which depend on names and permissions alone."""
    if database_dir is not None or "closed" in more:
        return index.anatomical_images(bids_dir, participants, database_dir, **more)
    names = sorted(
        (path, os.access(path, os.R_OK | os.X_OK, effective_ids=True), *below, "", *files)
        for path, below, files in os.walk(bids_dir, followlinks=True)
    )
    key = (bids_dir, None if participants is None else tuple(participants), *names)
    if key not in LISTED:
        LISTED[key] = index.anatomical_images(bids_dir, participants)
    images, notes = LISTED[key]
    return list(images), list(notes)


def list_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of the program list each state of a dataset once, until the end of the test."""
    monkeypatch.setattr(query, "anatomical_images", listed_once)
