"""The claims of the papers, tested on the data at hand: trains what is compared and prints how it compares.

    python benchmarks/claims.py CLAIM OASIS OUT [--seeds 3] [--report]

CLAIM is one of those below, OASIS the BIDS dataset with the derivatives ``manual`` and ``fast`` (for neuronet also
``atropos``, made by ``tool_labels.py``). Every run is a ``bidsseg ... train`` with a recipe that is written to OUT; it
learns from the same people for the same number of steps as those that it is compared with, and is measured on five
people whom none of them learns from. A run that is finished is not done again, and one that was stopped goes on: the
same command continues. ``--report`` prints what is there and trains nothing.

Prints for each run the Dice (mean over regions, then over seeds and people) with a bootstrap 95 % interval over people,
and the difference to the run it is measured against, paired by person and seed. Writes OUT/CLAIM.tsv with a row for
each run, seed, head and person.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bidsseg.learning.validation import ERROR
from bidsseg.segmentation.agreement import estimate

HELD_OUT = ("1000", "1006", "1009", "1012", "1015")
"""Every third of the fifteen people."""
ORDER = ("1001", "1014", "1008", "1036", "1002", "1011", "1007", "1017", "1010", "1013")
"""In which the others get full annotations, where only some of them have such."""
GRID: Mapping[str, Any] = {"spacing_mm": 3.0}
"""Of every run: a coarse grid, on which a run takes minutes on two cores."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        recipe: the shipped recipe of which the small scale is taken.
        labels: protocols of the annotations.
        changes: laid over the small scale of the recipe.
        against: the run that it is measured against.
        init: the run whose model it starts from.
        full: how many people have full (BrainCOLOR) annotations; None for all.
    """

    name: str
    recipe: str
    labels: Sequence[str]
    changes: Mapping[str, Any] = field(default_factory=dict)
    against: str | None = None
    init: str | None = None
    full: int | None = None


def neuronet() -> list[Run]:
    """One network with all heads is as good as a network for each (Rajchl et al. 2018)."""
    small = {**GRID, "steps": 900, "sampling": {"shape": [48, 48, 48], "points": 30_000}}
    heads = {"BrainCOLOR": "BrainCOLOR", "FAST": "FAST", "Atropos": "Atropos", "FreeSurfer": "BrainCOLOR"}
    together = {**small, "heads": dict.fromkeys(heads, 1 / len(heads))}
    runs = [
        Run(f"only {head}", "neuronet", [labels], {**small, "heads": {head: 1.0}}, "all heads")
        for head, labels in heads.items()
    ]
    return [Run("all heads", "neuronet", sorted(set(heads.values())), together), *runs]


def partial() -> list[Run]:
    """Automatic partial annotations help where full ones are few (Dai et al. 2019)."""
    small = {**GRID, "steps": 4, "sampling": {"shape": [48, 64, 56], "points": 16_000}}
    runs = [Run("pretrain", "partial-pretrain", ["FAST"], small)]
    for full in (1, 2, 5, 10):
        both, alone = ["BrainCOLOR", "FAST"], ["BrainCOLOR"]
        first = f"full only, {full}"
        runs += [
            Run(first, "partial-full", alone, small, None, None, full),
            Run(f"pretrain, then full, {full}", "partial-full", alone, small, first, "pretrain", full),
            Run(f"joint, {full}", "partial-joint", both, small, first, None, full),
            Run(f"joint, then full, {full}", "partial-joint-finetune", alone, small, first, f"joint, {full}", full),
        ]
    return runs


def eneuronet() -> list[Run]:
    """E-NeuroNet is better than a U-Net in the same time, and registration augments better than elastic changes."""
    sampling = {"shape": [48, 64, 48], "points": 16_000}
    small = {**GRID, "steps": 500, "sampling": sampling, "heads": {"FreeSurfer": 1.0}}
    first = "E-NeuroNet, elastic"
    return [
        Run(first, "eneuronet", ["BrainCOLOR"], small),
        Run("U-Net, elastic", "eneuronet", ["BrainCOLOR"], {**small, "network": {"name": "unet"}}, first),
        Run("E-NeuroNet, registration", "eneuronet-registration", ["BrainCOLOR"], small, first),
    ]


CLAIMS = {claim.__name__: claim for claim in (neuronet, partial, eneuronet)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=CLAIMS)
    parser.add_argument("oasis", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="print what is there and train nothing")
    options = parser.parse_args()
    runs, out = CLAIMS[options.claim](), options.out / options.claim
    for seed in range(0 if options.report else options.seeds):
        for run in runs:
            train(run, seed, options.oasis, out)
    table = collected(runs, out, options.seeds)
    table.to_csv(options.out / f"{options.claim}.tsv", sep="\t", index=False, float_format="%.4f")
    for line in report(runs, table):
        print(line)


def train(run: Run, seed: int, oasis: Path, out: Path) -> None:
    """Trains unless it is done."""
    folder = place(run, seed, out)
    if (model(folder) / "validation.tsv").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.toml"
    recipe.write_text(f'base = "{run.recipe}"\nname = "run"\n\n{toml("small", run.changes)}')
    labels = [f"{protocol}={label_folder(protocol, run.full, oasis, out)}" for protocol in run.labels]
    words = [
        sys.executable,
        Path(__file__).parents[1] / "run.py",
        oasis,
        folder,
        "train",
        "--recipe",
        recipe,
        "--small",
        "--labels",
        *labels,
    ]
    words += ["--hold-out", *HELD_OUT, "--seed", seed, "--resume", "--verbose"]
    if run.init:
        words += ["--init", model(out / run.init / f"seed{seed}")]
    print(f"{run.name}, seed {seed} ...", flush=True)
    with (folder / "log.txt").open("a") as log:
        subprocess.run([str(word) for word in words], check=True, stdout=log, stderr=log)


def place(run: Run, seed: int, out: Path) -> Path:
    """The output folder of a run."""
    return out / run.name / f"seed{seed}"


def model(folder: Path) -> Path:
    """The model in the output folder of a run."""
    return folder / "models" / "run"


def toml(table: str, values: Mapping[str, Any]) -> str:
    """A table of TOML, with the tables in it."""
    inner = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in inner]
    parts = [toml(f"{table}.{key}", value) for key, value in inner.items()]
    return "\n".join([f"[{table}]", *lines, "", *parts])


def label_folder(protocol: str, full: int | None, oasis: Path, out: Path) -> Path:
    """The derivatives of a protocol; of full annotations only those of some people and of those held out, as links."""
    folder = oasis / "derivatives" / {"BrainCOLOR": "manual"}.get(protocol, protocol.lower())
    if full is None or protocol != "BrainCOLOR":
        return folder.resolve()
    some = out / f"full{full}"
    shutil.rmtree(some, ignore_errors=True)
    some.mkdir(parents=True)
    shutil.copy(folder / "dataset_description.json", some)
    for person in (*ORDER[:full], *HELD_OUT):
        (some / f"sub-{person}").symlink_to((folder / f"sub-{person}").resolve())
    return some.resolve()


def collected(runs: Sequence[Run], out: Path, seeds: int) -> pd.DataFrame:
    """Of every finished run the Dice and the voxel error of each head and person."""
    rows = []
    for run in runs:
        for seed in range(seeds):
            path = model(place(run, seed, out)) / "validation.tsv"
            if not path.is_file():
                continue
            for (head, person), part in pd.read_csv(path, sep="\t").groupby(["head", "case"]):
                error = part.region == ERROR
                figures = {"dice": part[~error].dice.mean(), "voxel_error": part[error].dice.mean()}
                rows.append({"run": run.name, "seed": seed, "head": head, "person": person, **figures})
    return pd.DataFrame(rows, columns=["run", "seed", "head", "person", "dice", "voxel_error"])


def report(runs: Sequence[Run], table: pd.DataFrame) -> list[str]:
    """A line for each run and head."""
    lines = []
    for run in runs:
        for head, own in table[table.run == run.name].groupby("head"):
            mean = estimate(own.groupby("person").dice.mean().to_numpy())
            line = f"{run.name}: {head} Dice {mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}], "
            line += f"voxel error {own.voxel_error.mean():.3f}, {own.seed.nunique()} seeds"
            other = table[(table.run == run.against) & (table["head"] == head)]
            pairs = own.merge(other, on=["seed", "person"], suffixes=("", "_other"))
            if len(pairs):
                gain = estimate((pairs.dice - pairs.dice_other).groupby(pairs.person).mean().to_numpy())
                line += f"; {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] against {run.against}"
            lines.append(line)
    return lines


if __name__ == "__main__":
    main()
