"""Images of a dataset, listed by pybids once: a new database takes longer than everything else in a short run."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bidsseg.bids import index, query
from bidsseg.bids.scan import Image

LISTED: dict[tuple[object, ...], tuple[list[Image], list[str]]] = {}
"""What was found in each state of a dataset in this process, with paths below the dataset."""


def listed_once(
    bids_dir: Path, participants: Sequence[str] | None, database_dir: Path | None = None, **more: Any
) -> tuple[list[Image], list[str]]:
    """Return the images and notes of ``anatomical_images``, which depend on names and permissions alone."""
    if database_dir is not None or "closed" in more:
        return index.anatomical_images(bids_dir, participants, database_dir, **more)
    names = sorted(
        (os.path.relpath(path, bids_dir), os.access(path, os.R_OK | os.X_OK, effective_ids=True), *below, "", *files)
        for path, below, files in os.walk(bids_dir, followlinks=True)
    )
    place = None if str(bids_dir).isascii() and "/sub-" not in str(bids_dir) else bids_dir
    key = (place, None if participants is None else tuple(participants), *names)
    if key not in LISTED:
        images, notes = index.anatomical_images(bids_dir, participants)
        LISTED[key] = [replace(image, path=image.path.relative_to(bids_dir)) for image in images], notes
    images, notes = LISTED[key]
    return [replace(image, path=bids_dir / image.path) for image in images], list(notes)


def list_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of the program list each state of a dataset once, until the end of the test."""
    monkeypatch.setattr(query, "anatomical_images", listed_once)
