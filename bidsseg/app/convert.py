"""The command ``convert``: datasets of nnU-Net to BIDS, and back."""

from __future__ import annotations

from collections.abc import Sequence

from bidsseg import arguments
from bidsseg.app.parser import convert_parser
from bidsseg.app.terminal import Terminal
from bidsseg.errors import UsageError
from bidsseg.settings import Settings


def convert(words: Sequence[str]) -> int:
    """Convert a dataset and return the exit code. UsageError for words that are not understood."""
    given = convert_parser().parse_args(words)
    source, target = arguments.dataset(given.source), arguments.absolute(given.target)
    report = Terminal()
    from bidsseg.learning.nnunet import bids_to_nnunet, nnunet_to_bids

    if given.format == "nnunet":
        nnunet_to_bids(source, target, report)
        return 0
    if not given.labels:
        raise UsageError("convert bids needs --labels [NAME=]DIR, the label maps to convert")
    labels = arguments.annotation_folders(given.labels, [], source)
    bids_to_nnunet(Settings(source, target, labels=labels), target, report)
    return 0
