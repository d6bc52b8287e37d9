"""Declarations of flags on the fields of the settings."""

import argparse
import json
from dataclasses import dataclass, make_dataclass

import pytest

from bidsseg.app import parser
from bidsseg.app.descriptor import descriptor
from bidsseg.app.parser import declared, given_values
from bidsseg.flags import OUTPUTS, Flag, flag, flags_of
from bidsseg.settings import Settings


@dataclass(frozen=True)
class More(Settings):
    """Settings with two flags that no other file knows."""

    thickness: bool = flag("--thickness", OUTPUTS, "also write the thickness of the cortex", default=False)
    smoothing_mm: float = flag(
        "-s --smoothing MM", OUTPUTS, "smooth it [%(default)s]", default=2.5, read=float, levels="participant file"
    )


def test_a_flag_is_declared_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "Settings", More)
    words = ["bids", "out", "participant", "--thickness", "-s", "4"]
    given = parser.dataset_parser().parse_intermixed_args(words)
    assert given_values(given, More) == {"thickness": True, "smoothing_mm": 4.0}
    text = parser.dataset_parser().format_help()
    assert "also write the thickness of the cortex" in text
    assert "-s MM, --smoothing MM" in text
    assert "smooth it [2.5]" in text
    assert "--smoothing" in parser.file_parser().format_help()
    assert "--thickness" not in parser.file_parser().format_help()
    described = json.dumps(descriptor("participant"))
    assert "--thickness" in described
    assert "--thickness" not in json.dumps(descriptor("train"))


@pytest.mark.parametrize(("name", "given"), list(declared()), ids=lambda value: value if isinstance(value, str) else "")
def test_flags_name_levels_that_exist(name: str, given: Flag) -> None:
    levels = {"participant", "longitudinal", "evaluate", "train", "file"}
    assert {*given.group.levels.split(), *(given.levels or "").split()} <= levels


@pytest.mark.parametrize(
    ("usage", "names", "metavar"),
    [
        ("--dry-run", ["--dry-run"], None),
        ("-w --work-dir DIR", ["-w", "--work-dir"], "DIR"),
        ("--labels PROTOCOL=DIR", ["--labels"], "PROTOCOL=DIR"),
    ],
)
def test_the_usage_of_a_flag(usage: str, names: list[str], metavar: str | None) -> None:
    found = Flag(usage, OUTPUTS, "help")
    assert (found.names, found.metavar, found.is_switch) == (names, metavar, metavar is None)


def test_settings_that_were_not_given_keep_their_defaults() -> None:
    kind = make_dataclass("kind", [("table", dict, flag("--table FILE", OUTPUTS, "a table", default={}))])
    assert kind().table == {}
    assert kind().table is not kind().table
    assert given_values(argparse.Namespace(), kind) == {}
    assert list(flags_of(kind)) == ["table"]
