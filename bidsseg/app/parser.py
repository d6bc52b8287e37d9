"""The flags of the command line, from which help, settings and descriptors are made."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from bidsseg import __version__
from bidsseg.app import arguments
from bidsseg.app.terminal import write_line
from bidsseg.errors import EXIT_CODES, UsageError
from bidsseg.settings import EXECUTORS, PRECISIONS, Evaluation, Mask, Settings, Training, device_name

if TYPE_CHECKING:
    pass


CODES = "\n".join(f" {code:2}  {meaning}" for code, meaning in EXIT_CODES.items())


EPILOG = f"""\
exit codes:
{CODES}

Finished scans are skipped unless their image or the model changed, or --overwrite is given. Repeat the command to
resume an interrupted run.
"""


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

    _add_cluster(parser)
    _add_labels(parser)
    _add_training(parser)
    add = parser.add_argument_group("other").add_argument
    add("--bids-exec-spec", nargs="?", const="participant", choices=("participant", "evaluate", "train"),
        help="print the Boutiques descriptor of participant and group, of evaluate or of train, and exit")  # fmt: skip
    add("--version", action="version", version=f"bidsseg {__version__}")
    add("-v", "--verbose", action="store_true", help="report every stage")
    return parser


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the flags of cluster jobs."""
    add = parser.add_argument_group("cluster").add_argument
    add("--executor", choices=EXECUTORS, default=Settings.executor,
        help="run on this machine, on a Dask cluster, or in jobs of a batch system [%(default)s]")  # fmt: skip
    add("--dask-scheduler", metavar="ADDRESS", help="address of a Dask cluster, e.g. tcp://node1:8786")
    add("--cluster-config", metavar="FILE", type=Path, help="TOML: settings of the jobs (see docs/cluster.md)")


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
    add("--mask", choices=get_args(Mask), default=Evaluation.mask,
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
