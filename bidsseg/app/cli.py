"""The command line: arguments become Settings, errors become exit codes. Only this file parses, prints and exits."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bidsseg import __version__
from bidsseg.app import arguments
from bidsseg.app.terminal import Terminal, prepare_streams, write_line
from bidsseg.errors import EXIT_CODES, BidssegError, UnknownLevel, UsageError, explained
from bidsseg.execution.machine import prepare_surroundings
from bidsseg.models.card import located
from bidsseg.settings import EXECUTORS, LEVELS, PRECISIONS, Settings, Training, device_name

if TYPE_CHECKING:
    from bidsseg.bids.query import Filters

CODES = "\n".join(f" {code:2}  {meaning}" for code, meaning in EXIT_CODES.items())
EPILOG = f"""\
exit codes:
{CODES}

A scan that is done is skipped until its image or the model changes, or --overwrite is given. A run that was
stopped goes on where it was when the same command is given again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    settings = None
    prepare_streams()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a container or a scheduler asks us to stop
    try:
        if _is_file_command(words):
            settings = _file_settings(file_parser().parse_intermixed_args(words[1:]), words)
            prepare_surroundings(settings)
            return _run(["participant"], settings)
        given = dataset_parser().parse_intermixed_args(words)
        if given.list_models:
            return _list_models(as_json=given.json)
        if given.json:
            raise UsageError("--json goes with --list-models")
        if given.bids_exec_spec:
            return _print_descriptor(given.bids_exec_spec)
        levels = _levels(given.level)
        settings = _settings(given, words)
        prepare_surroundings(settings)
        return _run(levels, settings)
    except BidssegError as error:
        return _fail(str(error), error.code)
    except KeyboardInterrupt:
        return _fail("stopped; the same command goes on from here", 130)
    except Exception as error:  # the trace goes to a file, not to the terminal
        if known := explained(error):
            return _fail(f"{known} (trace in {_keep_trace(settings)})", known.code)
        return _fail(f"internal error ({error!r}): please report it together with {_keep_trace(settings)}", 1)


def _run(levels: Sequence[str], settings: Settings) -> int:
    """Run the levels in order; scans that failed at one level do not keep the next one from running."""
    code = 0
    for level in levels:
        try:
            if level == "participant":
                from bidsseg.levels.participant import participant_level

                participant_level(settings)
            elif level == "group":
                from bidsseg.levels.group import group_level

                group_level(settings)
            else:
                from bidsseg.levels.train import train_level

                train_level(settings)
        except BidssegError as error:
            if error.code != BidssegError.code or settings.stop_on_first_crash:
                raise
            code = _fail(str(error), error.code)
        finally:
            settings.report.stop()
    return code


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
        measured = f"; Dice on people held out: {dice}" if dice else ""
        size = f"; {card.size_mb:.0f} MB" if card.weights.is_file() else ""
        spoken = f"needs {' + '.join(card.inputs)}, gives {', '.join(card.heads)}"
        write_line(f"{card.name}: {card.title}; {spoken}{measured}{size}; {card.licence}", sys.stdout)
    return 0


def _print_descriptor(level: str) -> int:
    from bidsseg.app.descriptor import descriptor

    write_line(json.dumps(descriptor(dataset_parser(), level == "train"), indent=2), sys.stdout)
    return 0


class _Parser(argparse.ArgumentParser):
    """Takes every long flag with hyphens or underscores and raises instead of exiting with 2."""

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


def dataset_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bidsseg",
        usage="bidsseg BIDS_DIR OUTPUT_DIR {participant,group,train} [options]\n"
        "       bidsseg file T1W OUTPUT_DIR [options]",
        description="Segment the brain MRI of a BIDS dataset, or learn to.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}

    add = parser.add_argument
    add("bids_dir", metavar="BIDS_DIR", type=Path, nargs="?", help="the dataset, in BIDS form; never written to")
    add("output_dir", metavar="OUTPUT_DIR", type=Path, nargs="?", help="made if missing; earlier results stay")
    add("level", metavar="LEVEL", nargs="*", help="participant: each scan; group: tables over all; train: a new model")

    add = parser.add_argument_group("which scans").add_argument
    add("--participant-label", "--subject-label", metavar="LABEL", **several,
        help="these only, 'sub-' optional, also 01,02; or a file of labels, e.g. participants.tsv")  # fmt: skip
    add("--session-label", metavar="LABEL", **several, help="these only, 'ses-' optional; or a file of labels")
    add("--shard", metavar="I/N", type=arguments.shard, default=Settings.shard,
        help="every N-th participant from the I-th, counted from 1: the part of one job of many")  # fmt: skip
    add("--bids-filter-file", metavar="FILE", type=Path,
        help="JSON with the entities that t1w and flair must have; null = absent, '*' = any value")  # fmt: skip
    add("--bids-database-dir", metavar="DIR", type=Path, help="keep the pybids index here for later runs")
    add("--skip-bids-validation", "--skip-bids-validator", action="store_true", help="do not run the BIDS validator")

    add = parser.add_argument_group("what to make").add_argument
    add("--model", metavar="NAME|DIR", default=Settings.model, help="a shipped model or a model folder [%(default)s]")
    add("--list-models", action="store_true", help="list the shipped models and stop")
    add("--json", action="store_true", help="list them as JSON, with all that their cards hold")
    add("--probseg", action="store_true", help="write also the probability of every region (large)")
    add("--entropy", action="store_true", help="write also a map of the uncertainty, from 0 to 1")
    add("--output-spaces", metavar="SPACE", **several,
        help="write label maps also in these, e.g. MNI152NLin2009cAsym:res-1 (of TemplateFlow)")  # fmt: skip
    add("--viewer", action="store_true", help="write also a page for each scan to slice and turn it in 3-D (6 MB)")
    add("--overwrite", action="store_true", help="do again what is done")
    add("--dry-run", action="store_true", help="list scans, model and outputs; write nothing")
    add("--stop-on-first-crash", action="store_true", help="stop at the first scan that fails")
    add("-w", "--work-dir", metavar="DIR", type=Path, help="for temporary files [the system's folder]")

    add = parser.add_argument_group("how fast").add_argument
    add("--fast", action="store_true", help="skip the second pass, over the mirror image; a little less accurate")
    _add_limits(add)

    add = parser.add_argument_group("on which machines").add_argument
    add("--executor", choices=EXECUTORS, default=Settings.executor,
        help="this machine, a Dask cluster, or a batch system, on which jobs are started [%(default)s]")  # fmt: skip
    add("--dask-scheduler", metavar="ADDRESS", help="of the Dask cluster, e.g. tcp://node1:8786")
    add("--cluster-config", metavar="FILE", type=Path, help="TOML: how the jobs are to be (see docs/cluster.md)")

    add = parser.add_argument_group("learning (level train)").add_argument
    add("--recipe", metavar="NAME|FILE", default=Training.recipe, help="what to learn and how [%(default)s]")
    add("--labels", metavar="PROTOCOL=DIR", **several, help="derivative dataset with the annotations of a protocol")
    add("-d", "--derivatives", metavar="[NAME=]DIR", **several, help="derivative datasets that --labels may name")
    add("--also", metavar="BIDS_DIR", **several, help="learn from these datasets too")
    add("--small", action="store_true", help="take the small scale of the recipe: a try on a laptop")
    add("--init", metavar="NAME|DIR", help="start from the weights of this model")
    add("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    add("--time-budget", metavar="MINUTES", type=float, help="stop after this time and keep what is learnt")
    add(
        "--folds",
        metavar="K",
        type=int,
        default=Training.folds,
        help="parts of the participants; 1: nobody is held out [%(default)s]",
    )
    add("--fold", metavar="I", type=int, default=Training.fold, help="hold out this part, from 0 [%(default)s]")
    add(
        "--hold-out",
        metavar="LABEL",
        **several,
        help="hold out these participants, or patterns of such, in place of a fold",
    )
    add("--seed", metavar="N", type=int, default=Training.seed, help="of all that is random [%(default)s]")

    add = parser.add_argument_group("other").add_argument
    add("--bids-exec-spec", nargs="?", const="participant", choices=("participant", "train"),
        help="print the Boutiques descriptor of participant and group, or of train, and stop")  # fmt: skip
    add("--version", action="version", version=f"bidsseg {__version__}")
    add("-v", "--verbose", action="store_true", help="tell more")
    return parser


def _add_limits(add: Callable[..., Any]) -> None:
    """Add the flags of device, CPUs and memory."""
    add("--device", metavar="NAME", type=device_name, default="auto", help="auto, cpu, cuda, cuda:N or mps [auto]")
    add("--precision", choices=PRECISIONS, default="auto", help="of the network [auto]")
    add("--n-cpus", "--nprocs", "--nthreads", metavar="N", type=int, help="CPUs [all that are free to use]")
    add("--omp-nthreads", metavar="N", type=int,
        help="threads of each process, of which there are as many as CPUs and memory allow [2 or more]")  # fmt: skip
    add("--mem", "--mem-mb", metavar="SIZE", dest="mem", type=arguments.megabytes,
        help="stay below: MB, or a number with K, M, G or T [what is free]")  # fmt: skip
    add("--mem-gb", metavar="SIZE", dest="mem", type=lambda gb: arguments.megabytes(f"{gb}G"), help="the same in GB")


def _is_file_command(words: Sequence[str]) -> bool:
    """Whether the words are ``file T1W OUTPUT_DIR``, and not a level on a dataset in a folder of that name."""
    return words[:1] == ["file"] and not (Path("file").is_dir() and not set(LEVELS).isdisjoint(words[1:]))


def file_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bidsseg file",
        usage="bidsseg file T1W OUTPUT_DIR [options]",
        description="Segment one image that is in no dataset. The outputs are those of the level participant.",
        epilog=f"exit codes:\n{CODES}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("t1w", metavar="T1W", type=Path, help="the T1w image: .nii, .nii.gz, .mgh or .mgz")
    add("output_dir", metavar="OUTPUT_DIR", type=Path, help="created if missing; earlier results stay")
    add("--flair", metavar="FLAIR", type=Path, help="the FLAIR of the same session, for models that read one")
    add("--model", metavar="NAME|DIR", default=Settings.model, help="a shipped model or a model folder [%(default)s]")
    add("--fast", action="store_true", help="skip the second pass, over the mirror image; a little less accurate")
    _add_limits(add)
    add("--overwrite", action="store_true", help="recompute a finished scan")
    add("-v", "--verbose", action="store_true", help="report every stage")
    return parser


def _file_settings(given: argparse.Namespace, words: Sequence[str]) -> Settings:
    images = {"T1w": given.t1w, **({"FLAIR": given.flair} if given.flair else {})}
    images = {suffix: arguments.image(path) for suffix, path in images.items()}
    return Settings(
        bids_dir=Path(os.path.commonpath([path.parent for path in images.values()])),
        images=images,
        stop_on_first_crash=True,  # so that the error of the image is that of the run
        **_shared(given, words),
    )


def _shared(given: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """What is asked in the same way of a dataset and of a file."""
    return {
        "output_dir": given.output_dir.absolute(),
        "model": located(given.model),
        "device": given.device,
        "precision": given.precision,
        "n_cpus": given.n_cpus,
        "threads": given.omp_nthreads,
        "memory_mb": given.mem,
        "fast": given.fast,
        "overwrite": given.overwrite,
        "command": ("bidsseg", *words),
        "report": Terminal(verbose=given.verbose),
    }


def _levels(names: Sequence[str]) -> list[str]:
    """The levels in the order in which they run."""
    for name in names:
        if name not in LEVELS:
            raise UnknownLevel(f"unknown analysis level '{name}': choose from {', '.join(LEVELS)}")
    if not names:
        raise UsageError("give BIDS_DIR, OUTPUT_DIR and a level: participant, group or train (--help shows the usage)")
    if "train" in names and len(set(names)) > 1:
        raise UsageError("the level train runs alone: it makes a model, not segmentations")
    return [level for level in LEVELS if level in names]


def _settings(given: argparse.Namespace, words: Sequence[str]) -> Settings:
    bids_dir = arguments.dataset(given.bids_dir).absolute()  # workers may be somewhere else
    return Settings(
        bids_dir=bids_dir,
        participants=arguments.labels("sub", given.participant_label),
        sessions=arguments.labels("ses", given.session_label),
        shard=given.shard,
        filters=_filters(given.bids_filter_file),
        database_dir=given.bids_database_dir,
        skip_validation=given.skip_bids_validation,
        work_dir=given.work_dir and given.work_dir.absolute(),
        executor="dask" if given.dask_scheduler and given.executor == "local" else given.executor,
        dask_scheduler=given.dask_scheduler,
        cluster_config=given.cluster_config,
        probseg=given.probseg,
        entropy=given.entropy,
        output_spaces=[space for space in given.output_spaces if space != "T1w"],
        viewer=given.viewer,
        stop_on_first_crash=given.stop_on_first_crash,
        dry_run=given.dry_run,
        training=Training(
            recipe=given.recipe,
            small=given.small,
            labels=arguments.annotation_folders(given.labels, given.derivatives, bids_dir),
            also=[arguments.dataset(Path(folder)) for folder in given.also],
            resume=given.resume,
            init=given.init,
            time_budget_min=given.time_budget,
            folds=given.folds,
            fold=given.fold,
            hold_out=arguments.labels("sub", given.hold_out, patterns=True),
            seed=given.seed,
        ),
        **_shared(given, words),
    )


def _filters(path: Path | None) -> Filters:
    if path is None:
        return {}
    from bidsseg.bids.query import read_filters

    return read_filters(path)
