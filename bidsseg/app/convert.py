"""The command ``convert``: datasets of nnU-Net to BIDS, and back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bidsseg import arguments
from bidsseg.app.terminal import Terminal
from bidsseg.errors import UsageError
from bidsseg.settings import LEVELS, Settings

FORMATS = ("nnunet", "bids")
USAGE = "bidsseg convert nnunet NNUNET_DIR BIDS_DIR | bidsseg convert bids BIDS_DIR NNUNET_DIR --labels [NAME=]DIR"


def is_convert_command(words: Sequence[str]) -> bool:
    """Return whether the words are ``convert FORMAT …``, and not a level on a dataset in a folder of that name."""
    return words[:1] == ["convert"] and not (Path("convert").is_dir() and not set(LEVELS).isdisjoint(words[1:]))


def convert(words: Sequence[str]) -> int:
    """Convert a dataset and return the exit code. UsageError for words that are not understood."""
    given = _parser().parse_args(words)
    source = arguments.dataset(given.source).absolute()
    report = Terminal()
    from bidsseg.learning.nnunet import bids_to_nnunet, nnunet_to_bids

    if given.format == "nnunet":
        nnunet_to_bids(source, given.target.absolute(), report)
        return 0
    if not given.labels:
        raise UsageError("convert bids needs --labels [NAME=]DIR, the label maps to convert")
    labels = arguments.annotation_folders(given.labels, [], source)
    bids_to_nnunet(Settings(source, given.target.absolute(), labels=labels), given.target.absolute(), report)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{message} (usage: {USAGE})")


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = _Parser(prog="bidsseg convert", usage=USAGE, description="Convert a dataset of nnU-Net to BIDS, or back.")
    add = parser.add_argument
    add("format", choices=FORMATS, help="format of the dataset that is read")
    add("source", metavar="SOURCE", type=Path, help="the dataset; never modified")
    add("target", metavar="TARGET", type=Path, help="a new folder")
    add("--labels", metavar="[NAME=]DIR", nargs="+", default=[], help="label maps to convert (see the level train)")
    return parser
