"""Names and links of datasets in BIDS URIs (``bids:NAME:path``), as ``DatasetLinks`` of the output defines them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bidsseg.bids.outputs import root_path
from bidsseg.reading import object_or_empty

SOURCE = "raw"
"""Name of the input dataset in BIDS URIs."""


def bids_uri(path: Path, bids_dir: Path, dataset: str = SOURCE) -> str:
    """Return the URI of a file in the input, or in another dataset: ``bids:raw:sub-01/anat/sub-01_T1w.nii.gz``.

    For a file outside of the folder, it is ``file:///…``.
    """
    if not path.is_relative_to(bids_dir):
        return path.absolute().as_uri()
    return f"bids:{dataset}:{quote(path.relative_to(bids_dir).as_posix(), safe='/+')}"


def dataset_name(output_dir: Path, name: str, folder: Path, *, bids_dir: Path) -> str:
    """Return the name of a dataset in BIDS URIs: that of its link in the output, otherwise a free one (name, name2)."""
    links = links_in(description_of(output_dir))
    ours = {link_to(output_dir, bids_dir, folder), folder.resolve().as_uri()}
    names = itertools.chain([name], (f"{name}{number}" for number in itertools.count(2)))
    return next(each for each in names if each not in links or links[each] in ours)


def given_uri(path: Path, name: str, folder: Path, *, output_dir: Path, bids_dir: Path) -> str:
    """Return the URI of a file in a dataset that the user gave, such as ``CORRECTIONS``; see `dataset_name`."""
    return bids_uri(path, folder, dataset_name(output_dir, name, folder, bids_dir=bids_dir))


def links_in(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the links of a dataset to others, by their names in BIDS URIs."""
    links = description.get("DatasetLinks")
    return links if isinstance(links, dict) else {}


def link_to(output_dir: Path, bids_dir: Path, folder: Path) -> str:
    """Return the link to a dataset: relative if it and the output are inside the input and can move together."""
    source, output, target = bids_dir.resolve(), output_dir.resolve(), folder.resolve()
    if output.is_relative_to(source) and target.is_relative_to(source):
        return quote(Path(os.path.relpath(target, output)).as_posix(), safe="/+")
    return target.as_uri()


def description_of(dataset: Path) -> dict[str, Any]:
    """Return the description of a dataset; empty if it cannot be read, since no entry is required."""
    return object_or_empty(dataset / root_path("description"))
