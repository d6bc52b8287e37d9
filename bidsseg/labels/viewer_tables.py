"""Look-up tables of a protocol for viewers: ITK-SNAP and 3D Slicer."""

from __future__ import annotations

from bidsseg.labels.protocol import Protocol

MARK = "bidsseg"
"""Word in the first lines of both files, by which this program recognises its own."""


def itksnap_labels(protocol: Protocol) -> str:
    """Return the label descriptions of ITK-SNAP (*Segmentation*, *Import Label Descriptions*).

    The columns are index, red, green, blue, opacity (0 to 1), visible, visible in 3-D, and the name in quotes.
    """
    lines = [
        "################################################",
        f"# ITK-SnAP Label Description File, by {MARK}: protocol {protocol.name}",
        "# File format:",
        "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL",
        "################################################",
    ]
    for region in protocol.regions:
        red, green, blue = region.rgb
        shown = int(region.index != 0)
        name = "Clear Label" if region.index == 0 else region.name.replace('"', "'")
        lines.append(f'{region.index:>5} {red:>5}{green:>5}{blue:>5} {shown:>8}{shown:>4}{shown:>4}    "{name}"')
    return "".join(f"{line}\n" for line in lines)


def slicer_colors(protocol: Protocol) -> str:
    """Return the colour table of 3D Slicer: index, name without blanks, red, green, blue, opacity (0 to 255)."""
    lines = [
        f"# Color table file for 3D Slicer, by {MARK}: protocol {protocol.name}",
        f"# {len(protocol.regions)} values",
    ]
    for region in protocol.regions:
        red, green, blue = region.rgb
        name = "_".join(region.name.split())
        lines.append(f"{region.index} {name} {red} {green} {blue} {255 if region.index else 0}")
    return "".join(f"{line}\n" for line in lines)
