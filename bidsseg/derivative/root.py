"""The files at the top of an output folder, and the tables for viewers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bidsseg.bids.outputs import root_path, viewer_table
from bidsseg.bids.scan import Scan
from bidsseg.derivative import sidecars
from bidsseg.derivative.sidecar_keys import CORRECTIONS, LESIONS
from bidsseg.files import remove_halves, write_text_atomic
from bidsseg.labels.viewer_tables import MARK, itksnap_labels, slicer_colors
from bidsseg.models.card import Card, protocol_with_lesions
from bidsseg.settings import Settings


def write_root(settings: Settings, card: Card, scans: Iterable[Scan], *, by_region: Iterable[str] = ()) -> None:
    """Write the files at the top of the output, keeping the entries of other models, and the tables for viewers.

    Args:
        by_region: the ``desc-`` labels of tables of lesions by region that are in the output.
    """
    remove_root_halves(settings.output_dir)
    has_lesions = card.lesion is not None or settings.lesions is not None
    descriptions, lesions = {card.name: card.description or card.title}, [card.name] if has_lesions else []
    others = {CORRECTIONS: settings.corrections, LESIONS: settings.lesions}
    links = {name: folder for name, folder in others.items() if folder is not None}
    sidecars.write_root_files(
        settings.output_dir,
        settings.bids_dir,
        descriptions,
        lesions=lesions,
        before={scan.entities["desc"] for scan in scans if "desc" in scan.entities},
        by_region=by_region,
        links=links,
    )
    for name in card.protocols:
        protocol = protocol_with_lesions(card, name)
        for kind, text in (("itksnap", itksnap_labels(protocol)), ("slicer", slicer_colors(protocol))):
            path = settings.output_dir / viewer_table(kind, card.name, name)
            if _is_due(path, text):
                write_text_atomic(path, text)


def remove_root_halves(output_dir: Path) -> None:
    """Remove temporary files that killed runs have left at the top of the output, among logs and tables for viewers."""
    folders = [output_dir, output_dir / root_path("logs"), (output_dir / viewer_table("itksnap", "M", "P")).parent]
    remove_halves(part for folder in folders for part in folder.glob(".*.part"))


def _is_due(path: Path, text: str) -> bool:
    """Return whether a table for a viewer is missing, or is an older one of this program that can be read."""
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return MARK.encode() in found[:1000] and found != text.encode()
