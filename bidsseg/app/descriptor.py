"""The command line as a Boutiques descriptor (schema 0.5), which launchers and the BIDS Apps specification require."""

from __future__ import annotations

from typing import Any

from bidsseg import __version__
from bidsseg.app.parser import dataset_parser, declared
from bidsseg.errors import EXIT_CODES
from bidsseg.flags import Flag
from bidsseg.settings import LEVELS

IDS = {"participants": "SubjectLabel", "sessions": "SessionLabel"}
"""Names that the BIDS Apps execution specification reserves."""
REQUIRED = {"labels"}
"""Flags that the levels with a meaning for them cannot do without."""


def descriptor(level: str = "participant") -> dict[str, Any]:
    """Return the descriptor of the levels participant and group, or that of longitudinal, evaluate or train.

    The last three have their own, because launchers know no other levels of a BIDS App than participant and group.
    """
    options = [_input(name, flag) for name, flag in declared() if flag.has_meaning(level)]
    alone = level != "participant"
    place = level if alone else "[ANALYSIS_LEVEL]"
    keys = " ".join(option["value-key"] for option in options)
    levels = [] if alone else [_LEVEL]
    return {
        "name": f"bidsseg {level}" if alone else "bidsseg",
        "tool-version": __version__,
        "author": "The bidsseg developers",
        "description": f"{dataset_parser().description} Level{f' {level}' if alone else 's participant and group'}.",
        "schema-version": "0.5",
        "command-line": f"mkdir -p [OUTPUT_DIR]; bidsseg [BIDS_DIR] [OUTPUT_DIR] {place} {keys}",
        "container-image": {"type": "docker", "image": f"bidsseg:{__version__}", "entrypoint": True},
        "inputs": [_INPUT, *_OUTPUTS, *levels, *options],
        "groups": [_ONE_OUTPUT],
        "output-files": [
            {
                "id": "output_dir",
                "name": "Output folder",
                "description": "A BIDS derivative dataset; for train: models/NAME.",
                "path-template": "[OUTPUT_DIR]",
                "optional": False,
            }
        ],
        "error-codes": [{"code": code, "description": text} for code, text in EXIT_CODES.items() if code],
        "suggested-resources": {"cpu-cores": 4, "ram": 8, "walltime-estimate": 86400 if level == "train" else 60},
        "tags": {"domain": ["neuroinformatics", "mri", "bids-app"]},
        "custom": {"BIDSAppSpecVersion": "0.1.0.dev"},
    }


_INPUT = {
    "id": "InputDataset",
    "name": "BIDS dataset",
    "description": "The BIDS dataset; never modified.",
    "type": "File",
    "value-key": "[BIDS_DIR]",
    "optional": False,
}
_OUTPUTS = [
    {
        "id": "OutputLocation",
        "name": "Output folder",
        "description": "Created if missing; earlier results are kept.",
        "type": "String",
        "value-key": "[OUTPUT_DIR]",
        "optional": True,
    },
    {
        "id": "EarlierOutput",
        "name": "Earlier output folder",
        "description": "The output of an earlier run, to resume it or to run the level group or evaluate.",
        "type": "File",
        "value-key": "[OUTPUT_DIR]",
        "optional": True,
    },
]
_ONE_OUTPUT = {
    "id": "Output",
    "name": "Output",
    "description": "The name of a new folder, or the folder of an earlier run.",
    "members": ["OutputLocation", "EarlierOutput"],
    "mutually-exclusive": True,
    "one-is-required": True,
}
_LEVEL = {
    "id": "AnalysisLevel",
    "name": "Analysis level",
    "description": "participant: segment scans; group: tables of all.",
    "type": "String",
    "value-key": "[ANALYSIS_LEVEL]",
    "value-choices": [level for level in LEVELS if level in ("participant", "group")],
    "list": True,
    "optional": False,
}


def _input(name: str, flag: Flag) -> dict[str, Any]:
    """Return the entry of a flag in the descriptor."""
    spelling = next(word for word in flag.names if word.startswith("--"))
    words = spelling.removeprefix("--").replace("-", " ")
    found: dict[str, Any] = {
        "id": IDS.get(name, words.replace(" ", "_")),
        "name": words.capitalize(),
        "description": flag.description,
        "type": _kind(flag),
        "value-key": f"[{words.upper().replace(' ', '_')}]",
        "command-line-flag": spelling,
        "optional": name not in REQUIRED,
    }
    if flag.several:
        found["list"] = True
    if flag.choices:
        found["value-choices"] = list(flag.choices)
    if flag.read is int:
        found["integer"] = True
    return found


def _kind(flag: Flag) -> str:
    """Return the Boutiques type of a flag. Folders that may not exist yet are strings."""
    if flag.is_switch:
        return "Flag"
    if flag.read in (int, float):
        return "Number"
    return "File" if flag.metavar in ("FILE", "BIDS_DIR") else "String"
