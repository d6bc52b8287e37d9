"""Tables of regions for ITK-SNAP and 3D Slicer, read by the rules of both programs."""

import re

import pytest

from bidsseg.labels.protocol import BACKGROUND, Protocol, Region, load_protocol, shipped_protocols
from bidsseg.labels.viewer_tables import itksnap_labels, slicer_colors

ITKSNAP = re.compile(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+([01])\s+([01])\s+"(.*)"\s*')
"""A line of ITK-SNAP's ColorLabelTable::LoadFromFile."""


@pytest.mark.parametrize("name", shipped_protocols())
def test_both_programs_read_every_region(name: str) -> None:
    protocol = load_protocol(name)
    lines = [line for line in itksnap_labels(protocol).splitlines() if not line.startswith("#")]
    found = [match.groups() for line in lines if (match := ITKSNAP.fullmatch(line))]
    assert len(found) == len(lines) == len(protocol.regions)
    colors = [line.split() for line in slicer_colors(protocol).splitlines() if not line.startswith("#")]
    for region, label, color in zip(protocol.regions, found, colors, strict=True):
        rgb = [str(value) for value in bytes.fromhex(region.color[1:])]
        assert [int(label[0]), *label[1:4]] == [region.index, *rgb]
        assert label[7] == (region.name if region.index else "Clear Label")
        assert len(color) == 6 and [int(color[0]), *color[2:5]] == [region.index, *rgb]
        assert color[1].replace("_", " ") == region.name.replace("_", " ")


def test_names_of_users_do_not_break_the_files() -> None:
    protocol = Protocol("Own", (BACKGROUND, Region(2, 'the "hook"', "h", "#808080", None)))
    assert itksnap_labels(protocol).splitlines()[-1].split('"')[1] == "the 'hook'"
    assert slicer_colors(protocol).splitlines()[-1] == '2 the_"hook" 128 128 128 255'
