"""The command line: arguments become Settings, errors become exit codes. Only this package parses, prints and exits."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Timer, main_thread
from typing import TYPE_CHECKING, Any

from bidsseg import arguments
from bidsseg.app.convert import convert
from bidsseg.app.parser import dataset_parser, file_parser, given_values, is_command
from bidsseg.app.recipes import recipe_command
from bidsseg.app.terminal import Terminal, prepare_streams, write_line
from bidsseg.errors import (
    BidssegError,
    InputMissing,
    NothingSelected,
    NothingToCompare,
    UnknownLevel,
    UsageError,
    explained,
)
from bidsseg.execution.machine import prepare_environment
from bidsseg.models.card import located
from bidsseg.settings import LEVELS, Evaluation, Settings, Training

if TYPE_CHECKING:
    from bidsseg.bids.query import Filters

COMMANDS = {"recipe": recipe_command, "convert": convert}
"""Commands without settings, and the functions that answer the words after their names."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    prepare_streams()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # sent by a container or a scheduler
    with repeated_interrupts():
        return _answer(words)


def _answer(words: Sequence[str]) -> int:
    """Do what the words ask for, and turn errors into exit codes."""
    settings = None
    try:
        if is_command("file", words):
            settings = _file_settings(file_parser().parse_intermixed_args(words[1:]), words)
            prepare_environment(settings)
            return _run(["participant"], settings)
        if command := next((answer for name, answer in COMMANDS.items() if is_command(name, words)), None):
            return command(words[1:])
        given = dataset_parser().parse_intermixed_args(words)
        if given.list_models:
            return _list_models(as_json=given.json)
        if given.json:
            raise UsageError("--json requires --list-models")
        if given.bids_exec_spec:
            return _print_descriptor(given.bids_exec_spec)
        levels = _levels(given.level)
        settings = _settings(given, words)
        prepare_environment(settings)
        return _run(levels, settings)
    except BidssegError as error:
        return _fail(str(error), error.code)
    except KeyboardInterrupt:
        return _fail("interrupted; repeat the command to resume", 130)
    except Exception as error:  # the traceback goes to a file, not to the terminal
        if known := explained(error):
            return _fail(f"{known} (traceback in {_keep_trace(settings)})", known.code)
        return _fail(f"internal error ({error!r}): please report it together with {_keep_trace(settings)}", 1)


@contextmanager
def repeated_interrupts() -> Iterator[None]:
    """Repeat an interrupt that was raised where Python ignores exceptions.

    Such places are callbacks of the garbage collector, as Dask has one, and destructors. Without this, the run would
    continue after Ctrl-C or SIGTERM.
    """
    before = sys.unraisablehook

    def repeat(ignored: sys.UnraisableHookArgs) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            # Not at once: the signal would be handled within this function, and be ignored again.
            Timer(0.05, signal.pthread_kill, (main_thread().ident, signal.SIGTERM)).start()
        else:
            before(ignored)

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = before


def _run(levels: Sequence[str], settings: Settings) -> int:
    """Run the levels in order. Failed scans of one level, or none to compare, do not stop the next level."""
    code = 0
    _check_later(levels[1:], settings)
    for level in levels:
        try:
            getattr(import_module(f"bidsseg.levels.{level}"), f"{level}_level")(settings)
        except NothingToCompare as error:
            if len(levels) == 1:
                raise
            settings.report.warn(f"{level} is skipped: {error}")
        except BidssegError as error:
            follows = level in ("group", "evaluate") and "participant" in levels
            if settings.dry_run and follows and isinstance(error, InputMissing | NothingSelected):
                settings.report.say(f"{level}: of the results of participant, which a dry run does not write")
                continue
            if error.code != BidssegError.code or settings.stop_on_first_crash:
                raise
            code = _fail(str(error), error.code)
        finally:
            settings.report.stop()
    return code


def _check_later(levels: Sequence[str], settings: Settings) -> None:
    """Raise the errors of later levels that are known before the first works for hours."""
    if "longitudinal" in levels:
        from bidsseg.levels.longitudinal import check_executor

        check_executor(settings)
    if "evaluate" in levels:
        from bidsseg.levels.evaluate import check_labels

        check_labels(settings)


def _fail(message: str, code: int) -> int:
    write_line(f"bidsseg: {' '.join(message.split())}", sys.stderr)
    return code


def _keep_trace(settings: Settings | None) -> Path:
    """Write the current traceback where the user can find it and return that file."""
    logs = settings.output_dir / "logs" if settings else Path()
    folder = logs if settings and os.access(logs, os.W_OK) else Path(tempfile.gettempdir())
    path = folder / f"crash-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.txt"
    with suppress(OSError):
        path.write_text(traceback.format_exc(), encoding="utf-8")
    return path


def _list_models(*, as_json: bool) -> int:
    from bidsseg.models.card import shipped

    if as_json:
        cards = [json.loads(card.to_json()) for card in shipped()]
        write_line(json.dumps(cards, indent=2, ensure_ascii=False), sys.stdout)
        return 0
    for card in shipped():
        dice = ", ".join(f"{head} {value:.2f}" for head, value in card.dice.items())
        measured = f"; Dice on held-out participants: {dice}" if dice else ""
        size = f"; {card.size_mb:.0f} MB" if card.weights.is_file() else ""
        spoken = f"needs {card.needs}, predicts {', '.join(card.heads)}"
        write_line(f"{card.name}: {card.title}; {spoken}{measured}{size}; {card.licence}", sys.stdout)
    return 0


def _print_descriptor(level: str) -> int:
    from bidsseg.app.descriptor import descriptor

    write_line(json.dumps(descriptor(level), indent=2), sys.stdout)
    return 0


def _file_settings(given: argparse.Namespace, words: Sequence[str]) -> Settings:
    """Return the settings of the command ``file``."""
    images = {"T1w": given.t1w, **({"FLAIR": given.flair} if given.flair else {})}
    images = {suffix: arguments.image(path) for suffix, path in images.items()}
    values = _values(given, words)
    if "measures" in values:
        values["measures"] = arguments.measured_images(values["measures"])
    return Settings(
        **values,
        bids_dir=images["T1w"].parent,
        images=images,
        stop_on_first_crash=True,  # so that the run ends with the error of the image
    )


def _settings(given: argparse.Namespace, words: Sequence[str]) -> Settings:
    """Return the settings of levels on a dataset.

    Flags that depend on others, on the dataset or on a package are handled here; the others declare how they are read.
    """
    bids_dir = arguments.dataset(given.bids_dir)
    evaluation, training = given_values(given, Evaluation), given_values(given, Training)
    if where := evaluation.get("against"):
        evaluation["against"] = arguments.derivative(where, given.derivatives, bids_dir, flag="--against")
    arguments.check_split(training)
    values = _values(given, words)
    if "filters" in values:
        values["filters"] = _filters(values["filters"])
    if "dask_scheduler" in values and values.setdefault("executor", "dask") != "dask":
        raise UsageError("--dask-scheduler is the address of a Dask cluster: leave --executor out, or give dask")
    for name in ("corrections", "lesions"):
        if where := values.get(name):
            values[name] = arguments.derivative(where, given.derivatives, bids_dir, flag=f"--{name}")
    if "labels" in values:
        values["labels"] = arguments.annotation_folders(values["labels"], given.derivatives, bids_dir)
    if "measures" in values:
        values["measures"] = arguments.measures(values["measures"], given.derivatives, bids_dir)
    return Settings(**values, bids_dir=bids_dir, training=Training(**training), evaluation=Evaluation(**evaluation))


def _values(given: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Return the settings that datasets and single files have in common."""
    return {
        **given_values(given, Settings),
        "output_dir": arguments.absolute(given.output_dir),
        "model": located(getattr(given, "model", Settings.model)),
        "command": ("bidsseg", *words),
        "report": Terminal(verbose=given.verbose),
    }


def _levels(names: Sequence[str]) -> list[str]:
    """Return the levels in the order in which they run."""
    for name in names:
        if name not in LEVELS:
            raise UnknownLevel(f"unknown analysis level '{name}': choose from {', '.join(LEVELS)}")
    if not names:
        raise UsageError(f"give BIDS_DIR, OUTPUT_DIR and a level: {', '.join(LEVELS)} (--help shows the usage)")
    if "train" in names and len(set(names)) > 1:
        raise UsageError("the level train runs alone: it trains a model and writes no segmentations")
    return [level for level in LEVELS if level in names]


def _filters(path: Path) -> Filters:
    from bidsseg.bids.query import read_filters

    return read_filters(path)
