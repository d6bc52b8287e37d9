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
from bidsseg.execution.machine import prepare_environment
from bidsseg.models.card import located
from bidsseg.settings import EXECUTORS, LEVELS, PRECISIONS, Evaluation, Settings, Training, device_name

if TYPE_CHECKING:
    from bidsseg.bids.query import Filters

CODES = "\n".join(f" {code:2}  {meaning}" for code, meaning in EXIT_CODES.items())
EPILOG = f"""\
exit codes:
{CODES}

Finished scans are skipped unless their image or the model changed, or --overwrite is given. Repeat the command to
resume an interrupted run.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    settings = None
    prepare_streams()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # sent by a container or a scheduler
    try:
        if _is_file_command(words):
            settings = _file_settings(file_parser().parse_intermixed_args(words[1:]), words)
            prepare_environment(settings)
            return _run(["participant"], settings)
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


def _run(levels: Sequence[str], settings: Settings) -> int:
    """Run the levels in order. Failed scans of one level do not stop the next level."""
    code = 0
    if "evaluate" in levels:  # a wrong --labels is known before other levels work for hours
        from bidsseg.levels.evaluate import check_labels

        check_labels(settings)
    for level in levels:
        try:
            if level == "participant":
                from bidsseg.levels.participant import participant_level

                participant_level(settings)
            elif level == "group":
                from bidsseg.levels.group import group_level

                group_level(settings)
            elif level == "evaluate":
                from bidsseg.levels.evaluate import evaluate_level

                evaluate_level(settings)
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
        measured = f"; Dice on held-out participants: {dice}" if dice else ""
        size = f"; {card.size_mb:.0f} MB" if card.weights.is_file() else ""
        spoken = f"needs {' + '.join(card.inputs)}, predicts {', '.join(card.heads)}"
        write_line(f"{card.name}: {card.title}; {spoken}{measured}{size}; {card.licence}", sys.stdout)
    return 0


def _print_descriptor(level: str) -> int:
    from bidsseg.app.descriptor import descriptor

    write_line(json.dumps(descriptor(dataset_parser(), level), indent=2), sys.stdout)
    return 0


class _Parser(argparse.ArgumentParser):
    """Parser that accepts hyphens or underscores in long flags and raises UsageError instead of exiting with 2."""

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
        usage="bidsseg BIDS_DIR OUTPUT_DIR {participant,group,evaluate,train} [options]\n"
        "       bidsseg file T1W OUTPUT_DIR [options]",
        description="Segment the brain MRI of a BIDS dataset, or train a model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}

    add = parser.add_argument
    add("bids_dir", metavar="BIDS_DIR", type=Path, nargs="?", help="the BIDS dataset; never modified")
    add("output_dir", metavar="OUTPUT_DIR", type=Path, nargs="?", help="created if missing; earlier results are kept")
    add("level", metavar="LEVEL", nargs="*",
        help="participant: segment scans; group: tables of all; evaluate: agreement; train: a model")  # fmt: skip

    add = parser.add_argument_group("selection of scans").add_argument
    add("--participant-label", "--subject-label", metavar="LABEL", **several,
        help="only these ('sub-' is optional; also 01,02), or a file of labels, e.g. participants.tsv")  # fmt: skip
    add("--session-label", metavar="LABEL", **several, help="only these ('ses-' is optional), or a file of labels")
    add("--shard", metavar="I/N", type=arguments.shard, default=Settings.shard,
        help="every N-th participant from the I-th, counted from 1: the part of one job")  # fmt: skip
    add("--bids-filter-file", metavar="FILE", type=Path,
        help="JSON with the entities that t1w and flair must have; null = absent, '*' = any value")  # fmt: skip
    add("--bids-database-dir", metavar="DIR", type=Path, help="store the pybids index here for later runs")
    add("--skip-bids-validation", "--skip-bids-validator", action="store_true", help="do not run the BIDS validator")

    add = parser.add_argument_group("model and outputs").add_argument
    add("--model", metavar="NAME|DIR", default=Settings.model, help="a shipped model or a model folder [%(default)s]")
    add("--list-models", action="store_true", help="list the shipped models and exit")
    add("--json", action="store_true", help="with --list-models: print the complete model cards as JSON")
    add("--probseg", action="store_true", help="also write the probability of every region (large files)")
    add("--entropy", action="store_true", help="also write a map of the uncertainty, from 0 to 1")
    add("--output-spaces", metavar="SPACE", **several,
        help="also write label maps in these TemplateFlow spaces, e.g. MNI152NLin2009cAsym:res-1")  # fmt: skip
    add("--viewer", action="store_true", help="also write a page for each scan that shows slices and a 3-D view (6 MB)")
    add("--overwrite", action="store_true", help="recompute finished scans")
    add("--dry-run", action="store_true", help="list scans, model and outputs; write nothing")
    add("--stop-on-first-crash", action="store_true", help="stop at the first scan that fails")
    add("-w", "--work-dir", metavar="DIR", type=Path, help="folder for temporary files [the system's folder]")

    add = parser.add_argument_group("speed and resources").add_argument
    add("--fast", action="store_true", help="skip the second pass, over the mirror image; a little less accurate")
    _add_limits(add)

    add = parser.add_argument_group("cluster").add_argument
    add("--executor", choices=EXECUTORS, default=Settings.executor,
        help="run on this machine, on a Dask cluster, or in jobs of a batch system [%(default)s]")  # fmt: skip
    add("--dask-scheduler", metavar="ADDRESS", help="address of a Dask cluster, e.g. tcp://node1:8786")
    add("--cluster-config", metavar="FILE", type=Path, help="TOML: settings of the jobs (see docs/cluster.md)")

    _add_labels(parser)
    _add_training(parser)
    add = parser.add_argument_group("other").add_argument
    add("--bids-exec-spec", nargs="?", const="participant", choices=("participant", "evaluate", "train"),
        help="print the Boutiques descriptor of participant and group, of evaluate or of train, and exit")  # fmt: skip
    add("--version", action="version", version=f"bidsseg {__version__}")
    add("-v", "--verbose", action="store_true", help="report every stage")
    return parser


def _add_labels(parser: argparse.ArgumentParser) -> None:
    """Add the flags of existing labels."""
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    add = parser.add_argument_group("labels (levels evaluate and train)").add_argument
    add("--labels", metavar="PROTOCOL=DIR", **several,
        help="derivative dataset with the labels of a protocol, to train on or to compare with")  # fmt: skip
    add("-d", "--derivatives", metavar="[NAME=]DIR", **several,
        help="derivative datasets that --labels and --against may name")  # fmt: skip

    add = parser.add_argument_group("comparison (level evaluate)").add_argument
    add("--against", metavar="DIR",
        help="compare the label maps of this derivative dataset (of any tool or rater) with those of --labels, instead "
        "of those in OUTPUT_DIR, which then receives only the tables and the page")  # fmt: skip
    add("--mask", choices=("own", "reference"), default=Evaluation.mask,
        help="voxels that count: all (own), or those that the reference labels [%(default)s]")  # fmt: skip


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the level train alone."""
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    add = parser.add_argument_group("training (level train)").add_argument
    add("--recipe", metavar="NAME|FILE", default=Training.recipe, help="what to train and how [%(default)s]")
    add("--also", metavar="BIDS_DIR", **several, help="further datasets to train on")
    add("--small", action="store_true", help="use the small scale of the recipe, to try it on a laptop")
    add(
        "--init",
        metavar="NAME|DIR",
        help="start from the weights of this model; with --cross-validate also the output of another "
        "cross-validation: each fold starts from the same fold",
    )
    add("--resume", action="store_true", help="resume from the last checkpoint in OUTPUT_DIR; keep finished folds")
    add(
        "--time-budget",
        metavar="MINUTES",
        type=float,
        help="stop after this time and save the state; with --cross-validate, the time of the whole run, "
        "divided evenly among the unfinished models",
    )
    add(
        "--cross-validate",
        metavar="K",
        type=int,
        nargs="?",
        const=Training.folds,
        help="train each of K folds, then a final model on all participants; its card has the results of the folds "
        f"[K: {Training.folds}]",
    )
    add(
        "--folds",
        metavar="K",
        type=int,
        help=f"number of parts of the participants; 1: hold out no participant [{Training.folds}]",
    )
    add("--fold", metavar="I", type=int, help=f"hold out this part, counted from 0 [{Training.fold}]")
    add(
        "--hold-out",
        metavar="LABEL",
        **several,
        help="hold out these participants, or patterns of labels, instead of a fold",
    )
    add("--seed", metavar="N", type=int, default=Training.seed, help="random seed [%(default)s]")


def _add_limits(add: Callable[..., Any]) -> None:
    """Add the flags of device, CPUs and memory."""
    add("--device", metavar="NAME", type=device_name, default="auto", help="auto, cpu, cuda, cuda:N or mps [auto]")
    add("--precision", choices=PRECISIONS, default="auto", help="precision of the network [auto]")
    add("--n-cpus", "--nprocs", "--nthreads", metavar="N", type=int, help="number of CPUs [all available]")
    add("--omp-nthreads", metavar="N", type=int,
        help="threads of each process; the number of processes follows from CPUs and memory [2 or more]")  # fmt: skip
    add("--mem", "--mem-mb", metavar="SIZE", dest="mem", type=arguments.megabytes,
        help="memory limit: MB, or a number with K, M, G or T [the free memory]")  # fmt: skip
    add("--mem-gb", metavar="SIZE", dest="mem", type=lambda gb: arguments.megabytes(f"{gb}G"), help="memory limit, GB")


def _is_file_command(words: Sequence[str]) -> bool:
    """Return whether the words are ``file T1W OUTPUT_DIR``, and not a level on a dataset in a folder of that name."""
    return words[:1] == ["file"] and not (Path("file").is_dir() and not set(LEVELS).isdisjoint(words[1:]))


def file_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bidsseg file",
        usage="bidsseg file T1W OUTPUT_DIR [options]",
        description="Segment one image outside of a dataset. The outputs are those of the level participant.",
        epilog=f"exit codes:\n{CODES}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("t1w", metavar="T1W", type=Path, help="the T1w image: .nii, .nii.gz, .mgh or .mgz")
    add("output_dir", metavar="OUTPUT_DIR", type=Path, help="created if missing; earlier results are kept")
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
        stop_on_first_crash=True,  # so that the run ends with the error of the image
        **_shared(given, words),
    )


def _shared(given: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Return the settings that datasets and single files have in common."""
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
    """Return the levels in the order in which they run."""
    for name in names:
        if name not in LEVELS:
            raise UnknownLevel(f"unknown analysis level '{name}': choose from {', '.join(LEVELS)}")
    if not names:
        raise UsageError(f"give BIDS_DIR, OUTPUT_DIR and a level: {', '.join(LEVELS)} (--help shows the usage)")
    if "train" in names and len(set(names)) > 1:
        raise UsageError("the level train runs alone: it trains a model and writes no segmentations")
    return [level for level in LEVELS if level in names]


def _settings(given: argparse.Namespace, words: Sequence[str]) -> Settings:
    bids_dir = arguments.dataset(given.bids_dir).absolute()  # workers may have another working folder
    labels = arguments.annotation_folders(given.labels, given.derivatives, bids_dir)
    against = given.against and arguments.derivative(given.against, given.derivatives, bids_dir, flag="--against")
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
            labels=labels,
            also=[arguments.dataset(Path(folder)) for folder in given.also],
            resume=given.resume,
            init=given.init,
            time_budget_min=given.time_budget,
            seed=given.seed,
            **arguments.split(given.cross_validate, folds=given.folds, fold=given.fold, hold_out=given.hold_out),
        ),
        evaluation=Evaluation(
            reference=labels,
            against=against,
            mask=given.mask,
        ),
        **_shared(given, words),
    )


def _filters(path: Path | None) -> Filters:
    if path is None:
        return {}
    from bidsseg.bids.query import read_filters

    return read_filters(path)
