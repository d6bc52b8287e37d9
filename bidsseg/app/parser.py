"""The parsers of the command line, made from the flags that the settings declare (``bidsseg/flags.py``)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bidsseg import __version__, arguments
from bidsseg.app.terminal import write_line
from bidsseg.errors import EXIT_CODES, UsageError
from bidsseg.flags import LABELS, OTHER, OUTPUTS, RESOURCES, Flag, flags_of
from bidsseg.settings import LEVELS, Evaluation, Settings, Training

CODES = "\n".join(f" {code:2}  {meaning}" for code, meaning in EXIT_CODES.items())


EPILOG = f"""\
exit codes:
{CODES}

Finished scans are skipped unless their image or the model changed, or --overwrite is given. Repeat the command to
resume an interrupted run.
"""


NOT_IN_SETTINGS: dict[str, dict[str, Flag]] = {
    "model": {
        "list_models": Flag("--list-models", OUTPUTS, "list the shipped models and exit", levels=""),
        "json": Flag("--json", OUTPUTS, "with --list-models: print the complete model cards as JSON", levels=""),
    },
    "memory_mb": {
        "memory_mb": Flag("--mem-gb SIZE", RESOURCES, "memory limit, GB", read=arguments.gigabytes,
                          levels="participant longitudinal evaluate train file"),
    },
    "labels": {
        "derivatives": Flag("-d --derivatives [NAME=]DIR", LABELS,
                            "derivative datasets that --labels, --against, --corrections, --lesions and --measure may "
                            "name", several=True, levels="participant longitudinal evaluate train"),
    },
}  # fmt: skip
"""Flags that are no fields of the settings, below the field that they follow in the help text."""
FOR_FILE = {
    "filled": Flag("--filled", OUTPUTS, "also write the T1w with filled lesions, as the model found them"),
    "measures": Flag("--measure NAME=FILE", OUTPUTS,
                     "also write mean, median and standard deviation of another image of the session in every region; "
                     "it is aligned to the T1w where needed", several=True),
}  # fmt: skip
"""Flags of the command ``file`` that have another value or text than with a dataset, by field of the settings."""
VERBOSE = Flag("-v --verbose", OTHER, "report every stage", levels="participant longitudinal evaluate train file")


class _Parser(argparse.ArgumentParser):
    """Parser that accepts hyphens or underscores in long flags and raises UsageError instead of exiting with 2."""

    def __init__(self, prog: str, *, usage: str, description: str, epilog: str) -> None:
        super().__init__(
            prog,
            usage,
            description,
            epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = []
        for word in args or []:
            flag, equals, value = word.partition("=")
            words.append(flag.replace("_", "-") + equals + value if word.startswith("--") else word)
        return super().parse_known_args(words, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        write_line(message.removesuffix("\n"), file or sys.stdout)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help shows the usage)")


def declared() -> Iterator[tuple[str, Flag]]:
    """Yield the flags, each with the name of its value, in the order of the help text."""
    for settings in (Settings, Evaluation, Training):
        for name, flag in flags_of(settings).items():
            yield name, flag
            yield from NOT_IN_SETTINGS.get(name, {}).items()
    yield "verbose", VERBOSE


def given_values(given: argparse.Namespace, settings: type) -> dict[str, Any]:
    """Return the values of the flags that were given, by field of the settings."""
    values = {name: (flag, getattr(given, name)) for name, flag in flags_of(settings).items() if name in given}
    return {name: flag.read(value) if flag.several and flag.read else value for name, (flag, value) in values.items()}


def dataset_parser() -> argparse.ArgumentParser:
    """Return the parser of the command with levels. Its result lacks the settings that were not given."""
    parser = _Parser(
        "bidsseg",
        usage="bidsseg BIDS_DIR OUTPUT_DIR {participant,longitudinal,group,evaluate,train} [options]\n"
        "       bidsseg file T1W OUTPUT_DIR [options]\n"
        "       bidsseg recipe {show,check} NAME|FILE [--small]\n"
        "       bidsseg convert {nnunet,bids} SOURCE TARGET [--labels [NAME=]DIR]",
        description="Segment the brain MRI of a BIDS dataset, or train a model.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("bids_dir", metavar="BIDS_DIR", type=Path, nargs="?", help="the BIDS dataset; never modified")
    add("output_dir", metavar="OUTPUT_DIR", type=Path, nargs="?", help="created if missing; earlier results are kept")
    add("level", metavar="LEVEL", nargs="*",
        help="participant: segment scans; longitudinal: compare sessions; group: tables of all; evaluate: agreement; "
             "train: a model")  # fmt: skip

    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, flag in declared():
        title = flag.group.title
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
            if flag.group is OTHER:
                _add_questions(groups[title])
        _add(groups[title], name, flag)
    parser.set_defaults(list_models=False, json=False, derivatives=[], verbose=False)
    return parser


def file_parser() -> argparse.ArgumentParser:
    """Return the parser of the command ``file``. Its result lacks the settings that were not given."""
    parser = _Parser(
        "bidsseg file",
        usage="bidsseg file T1W OUTPUT_DIR [options]",
        description="Segment one image outside of a dataset. The outputs are those of the level participant.",
        epilog=f"exit codes:\n{CODES}\n",
    )
    add = parser.add_argument
    add("t1w", metavar="T1W", type=Path, help="the T1w image: .nii, .nii.gz, .mgh or .mgz")
    add("output_dir", metavar="OUTPUT_DIR", type=Path, help="created if missing; earlier results are kept")
    add("--flair", metavar="FLAIR", type=Path, help="the FLAIR of the same session, for models that read one")
    for name, flag in declared():
        if flag is VERBOSE:
            add("--overwrite", action="store_true", help="recompute a finished scan")
        if flag.has_meaning("file") or name in FOR_FILE:
            _add(parser, name, FOR_FILE.get(name, flag))
    parser.set_defaults(verbose=False)
    return parser


def recipe_parser() -> argparse.ArgumentParser:
    """Return the parser of the command ``recipe``."""
    parser = _Parser(
        "bidsseg recipe",
        usage="bidsseg recipe {show,check} NAME|FILE [--small]",
        description="Print a complete recipe, or check the file of one.",
        epilog=f"exit codes:\n{CODES}\n",
    )
    add = parser.add_argument
    add("action", choices=("show", "check"),
        help="show: print the recipe as TOML, with every key, its value and its meaning; "
             "check: say what is wrong with it, or ok")  # fmt: skip
    add("recipe", metavar="NAME|FILE", help="a shipped recipe, or the file of a recipe")
    add("--small", action="store_true", help="the small scale of the recipe; check tests it anyway")
    return parser


def convert_parser() -> argparse.ArgumentParser:
    """Return the parser of the command ``convert``."""
    parser = _Parser(
        "bidsseg convert",
        usage="bidsseg convert nnunet NNUNET_DIR BIDS_DIR\n"
        "       bidsseg convert bids BIDS_DIR NNUNET_DIR --labels [NAME=]DIR",
        description="Convert a dataset of nnU-Net to BIDS, or back.",
        epilog=f"exit codes:\n{CODES}\n",
    )
    add = parser.add_argument
    add("format", choices=("nnunet", "bids"), help="format of the dataset that is read")
    add("source", metavar="SOURCE", type=Path, help="the dataset; never modified")
    add("target", metavar="TARGET", type=Path, help="a new folder")
    add("--labels", metavar="[NAME=]DIR", nargs="+", default=[], help="label maps to convert (see the level train)")
    return parser


def is_command(name: str, words: Sequence[str]) -> bool:
    """Return whether the words are this command, and not a level on a dataset in a folder of its name."""
    return words[:1] == [name] and not (Path(name).is_dir() and not set(LEVELS).isdisjoint(words[1:]))


def _add_questions(group: argparse._ArgumentGroup) -> None:
    """Add the flags that are answered without a run."""
    group.add_argument(
        "--bids-exec-spec", nargs="?", const="participant",
        choices=("participant", "longitudinal", "evaluate", "train"),
        help="print the Boutiques descriptor of participant and group, or that of another level, and exit")  # fmt: skip
    group.add_argument("--version", action="version", version=f"bidsseg {__version__}")


def _add(group: argparse._ActionsContainer, name: str, flag: Flag) -> None:
    """Add a flag to a parser or to a group of it."""
    words: dict[str, Any] = {"dest": name, "help": flag.description, "default": argparse.SUPPRESS}
    if flag.is_switch:
        words["action"] = "store_true"
    elif flag.several:
        words |= {"nargs": "+", "action": "extend"}
    else:
        words |= {"type": flag.read, "choices": flag.choices}
    if flag.alone is not None:
        words |= {"nargs": "?", "const": flag.alone}
    if flag.metavar:
        words["metavar"] = flag.metavar
    group.add_argument(*flag.names, **words)
