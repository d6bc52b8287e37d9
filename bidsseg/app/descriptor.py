"""The command line as a Boutiques descriptor (schema 0.5), which launchers and the BIDS Apps specification require."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from bidsseg import __version__
from bidsseg.errors import EXIT_CODES
from bidsseg.settings import LEVELS

IDS = {"participant_label": "SubjectLabel", "session_label": "SessionLabel"}
"""Names that the BIDS Apps execution specification reserves."""
NOT_OF_PARTICIPANT = {"labels (levels evaluate and train)", "comparison (level evaluate)", "training (level train)"}
"""Titles of groups of flags without a meaning for participant and group."""
OF_EVALUATE = {
    "participant_label", "session_label", "model", "overwrite", "dry_run", "work_dir", "n_cpus", "mem",
    "labels", "derivatives", "against", "mask", "verbose",
}  # fmt: skip
"""Flags with a meaning for evaluate."""
NOT_OF_TRAIN = {
    "against", "mask",
    "model", "probseg", "entropy", "fast", "output_spaces", "viewer", "stop_on_first_crash",
    "shard", "executor", "dask_scheduler", "cluster_config",
}  # fmt: skip
"""Flags without a meaning for the level train."""
NEVER = {"help", "version", "list_models", "json", "bids_exec_spec", "bids_dir", "output_dir", "level"}
"""Flags that need no dataset, and arguments that the descriptor lists as positional inputs."""


def descriptor(parser: argparse.ArgumentParser, level: str = "participant") -> dict[str, Any]:
    """Return the descriptor of the levels participant and group, or that of the level evaluate or train.

    The last two have their own, because launchers know no other levels of a BIDS App than participant and group.
    """
    options = list(_options(parser, level))
    alone = level != "participant"
    place = level if alone else "[ANALYSIS_LEVEL]"
    keys = " ".join(option["value-key"] for option in options)
    levels = [] if alone else [_LEVEL]
    return {
        "name": f"bidsseg {level}" if alone else "bidsseg",
        "tool-version": __version__,
        "author": "The bidsseg developers",
        "description": f"{parser.description} Level{f' {level}' if alone else 's participant and group'}.",
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


def _options(parser: argparse.ArgumentParser, level: str) -> Iterable[dict[str, Any]]:
    """Yield the flags that apply to the levels, in the order of the parser."""
    for group in parser._action_groups:
        for action in group._group_actions:
            meant = {
                "participant": group.title not in NOT_OF_PARTICIPANT,
                "evaluate": action.dest in OF_EVALUATE,
                "train": action.dest not in NOT_OF_TRAIN,
            }
            if action.dest not in NEVER and meant[level]:
                yield _input(action)


def _input(action: argparse.Action) -> dict[str, Any]:
    """Return the entry of a flag in the descriptor."""
    flag = next(word for word in action.option_strings if word.startswith("--"))
    words = flag.removeprefix("--").replace("-", " ")
    found: dict[str, Any] = {
        "id": IDS.get(action.dest, words.replace(" ", "_")),
        "name": words.capitalize(),
        "description": (action.help or "") % {"default": action.default},
        "type": _kind(action),
        "value-key": f"[{words.upper().replace(' ', '_')}]",
        "command-line-flag": flag,
        "optional": action.dest != "labels",
    }
    if action.nargs == "+":
        found["list"] = True
    if action.choices:
        found["value-choices"] = list(action.choices)
    if action.type is int:
        found["integer"] = True
    return found


def _kind(action: argparse.Action) -> str:
    """Return the Boutiques type of a flag. Folders that may not exist yet are strings."""
    if action.nargs == 0:
        return "Flag"
    if action.type in (int, float):
        return "Number"
    return "File" if action.metavar in ("FILE", "BIDS_DIR") else "String"
