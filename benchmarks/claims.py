"""Test of the claims of the papers on the available data: train the compared models and print their differences.

    python benchmarks/claims.py CLAIM DATA OUT [--seeds 3] [--report]

CLAIM is one of the claims below; DATA is a folder with the BIDS datasets ``oasis``, ``ds002748``, ``heads`` and ``ms``.
If a claim needs labels of another tool or images with lesions, the script first creates them in OUT. Every run is a
``bidsseg ... train`` with a recipe that is written to OUT. Compared runs are trained on the same participants for the
same number of steps, and evaluated on participants that are held out of all of them. Repeat the command to resume:
finished runs are skipped, an interrupted run is resumed. Runs in OUT/CLAIM.tsv count as finished: copy a table of
docs/claims there to extend it. ``--report`` prints that table without training.

The script prints for each run the Dice (mean over regions, then over seeds and participants) with a bootstrap 95 %
interval over participants, and the difference to other runs, paired by participant and seed. It writes OUT/CLAIM.tsv
with one row for each run, seed, head and participant.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bidsseg.evaluation.bootstrap import estimate
from bidsseg.files import write_text_atomic
from bidsseg.learning.recipe import load_recipe
from bidsseg.learning.validation import ERROR

HELD_OUT = ("1000", "1006", "1009", "1012", "1015")
"""Every third of the fifteen participants."""
ORDER = ("1001", "1014", "1008", "1036", "1002", "1011", "1007", "1017", "1010", "1013")
"""The other participants, in the order in which they receive full annotations."""
GRID: Mapping[str, Any] = {"spacing_mm": 3.0, "coarse": {"steps": 0}}
"""Coarse grid of every run, on which a run takes minutes on two cores."""


MANUAL, FAST = {"BrainCOLOR": "oasis/derivatives/manual"}, {"FAST": "oasis/derivatives/fast"}
ATROPOS, LESION_SETS = "atropos", "lesion_sets"
"""Folders in OUT that ``tool_labels.py`` and ``lesion_datasets.py`` write, the latter for each seed as its fold."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        recipe: the shipped recipe whose small scale is used.
        labels: protocols and folders of the annotations, in DATA or OUT.
        changes: values that replace those of the small scale of the recipe.
        against: names of the runs for comparison.
        init: name of the run whose model provides the initial weights.
        full: number of participants with full (BrainCOLOR) annotations; None for all.
        datasets: datasets whose images are used for training.
        test: dataset for evaluation; None for the held-out participants.
        lesions_of: name of the run whose lesions replace the tissues of this run before evaluation.
    """

    name: str
    recipe: str
    labels: Mapping[str, str]
    changes: Mapping[str, Any] = field(default_factory=dict)
    against: Sequence[str] = ()
    init: str | None = None
    full: int | None = None
    datasets: Sequence[str] = ("oasis",)
    test: str | None = None
    lesions_of: str | None = None


def neuronet() -> list[Run]:
    """One network with all heads is as good as one network for each head (Rajchl et al. 2018).

    Crops, brightness and optimiser are as published, except for the size.
    """
    published = asdict(load_recipe("neuronet"))
    small = {name: published[name] for name in ("normalisation", "spatial", "intensity", "optimiser")}
    sampling = {**published["sampling"], "shape": [48, 48, 48], "points": 30_000}
    small |= {**GRID, "steps": 900, "sampling": sampling, "locator": "", "synthetic_share": 0.0, "statistics": 0}
    small["spatial"] = {**small["spatial"], "shift_mm": 4.0}  # as for the first seeds
    heads = {"BrainCOLOR": MANUAL, "FAST": FAST, "Atropos": {"Atropos": ATROPOS}, "FreeSurfer": MANUAL}
    together = {**small, "heads": dict.fromkeys(heads, 1 / len(heads))}
    every = {protocol: folder for labels in heads.values() for protocol, folder in labels.items()}
    first = "all heads"
    return [
        Run(first, "neuronet", every, together),
        *(
            Run(f"only {head}", "neuronet", own, {**small, "heads": {head: 1.0}}, [first])
            for head, own in heads.items()
        ),
    ]


def ace() -> list[Run]:
    """ACE is as good as one network for tissue and one for lesions; naive losses are worse (Roulet et al. 2019).

    All runs except the last are trained with cross-entropy and Dice together.
    """
    small = {**GRID, "steps": 400, "sampling": {"shape": [48, 64, 56], "points": 16_000}}
    lesions = {"lesion": f"{LESION_SETS}/lesions/derivatives/manual"}
    tissue = {"FAST": f"{LESION_SETS}/anatomy/derivatives/fast"}
    places = f"{LESION_SETS}/anatomy", f"{LESION_SETS}/lesions"
    both = f"{LESION_SETS}/both"
    first = Run("ACE", "ace", tissue | lesions, small, datasets=places, test=both)
    return [
        first,
        Run("lesions alone", "multi-unet-lesion", lesions, small, datasets=places[1:]),
        Run("Multi-UNet", "multi-unet", tissue, small, [first.name], None, None, places[:1], both, "lesions alone"),
        replace(first, name="naive cross-entropy and Dice", recipe="ace-naive-ce", against=[first.name]),
        replace(first, name="naive Dice", recipe="ace-naive-dice", against=[first.name]),
    ]


def partial() -> list[Run]:
    """Automatic partial annotations help if there are few full annotations (Dai et al. 2019).

    All runs have 400 steps with full annotations; steps with partial annotations and steps after joint training are
    additional. If all scans have both annotations, each of the 800 steps of joint training uses both. The runs with 800
    steps of full annotations show the effect of more steps alone.
    """
    small = {**GRID, "sampling": {"shape": [48, 64, 56], "points": 16_000}}
    plain, twice, end = ({**small, "steps": steps} for steps in (400, 800, 200))
    runs = [Run("pretrain", "partial-pretrain", FAST, plain)]
    for full in (1, 5, 10, 2):
        first, longer, joint = f"full only, {full}", f"full only, 800 steps, {full}", f"joint, {full}"
        runs += [
            Run(first, "partial-full", MANUAL, plain, (), None, full),
            Run(longer, "partial-full", MANUAL, twice, [first], None, full),
            Run(f"pretrain, then full, {full}", "partial-full", MANUAL, plain, [first, longer], "pretrain", full),
            Run(joint, "partial-joint", MANUAL | FAST, twice, [first, longer], None, full),
            Run(f"joint, then full, {full}", "partial-joint-finetune", MANUAL, end, [first, longer], joint, full),
        ]
    return runs


def eneuronet() -> list[Run]:
    """E-NeuroNet is better than a U-Net, and registration augments better than elastic changes (Oberoi et al. 2021).

    The U-Net has normalisation, so its kernels have the learning rate of the other U-Nets.
    """
    sampling = {"shape": [48, 64, 48], "points": 16_000}
    elastic = {"elastic_varies": True, "elastic_order": 1}  # as for the first seeds
    small = {**GRID, "steps": 500, "sampling": sampling, "spatial": elastic, "keep": "best"}
    unet = {**small, "network": {"name": "unet"}, "optimiser": {"kernel_rate": 0.02}}
    moved = {**small, "registration": {"steps": 500}}
    first = "E-NeuroNet, elastic"
    both = ("oasis", "ds002748")
    return [
        Run(first, "eneuronet", MANUAL, small),
        Run("U-Net, elastic", "eneuronet", MANUAL, unet, [first]),
        Run("E-NeuroNet, registration", "eneuronet-registration", MANUAL, moved, [first], datasets=both),
    ]


COLUMNS = ["run", "seed", "head", "person", "dice", "voxel_error"]
CLAIMS = {claim.__name__: claim for claim in (neuronet, ace, partial, eneuronet)}
RUN = Path(__file__).parents[1] / "run.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=CLAIMS)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="print the existing results without training")
    options = parser.parse_args()
    runs, data, out = CLAIMS[options.claim](), options.data, options.out
    path = out / f"{options.claim}.tsv"
    table = pd.read_csv(path, sep="\t") if path.is_file() else pd.DataFrame(columns=COLUMNS)
    if not options.report:
        for seed in range(options.seeds):
            missing = [run for run in runs if wanted(run, seed, runs, table=table)]
            prepare(missing, seed, data, out=out)
            for run in missing:
                train(run, seed, data, out=out, runs=out / options.claim)
                measure(run, seed, data, out=out, runs=out / options.claim)
                own = (table.run == run.name) & (table.seed == seed)
                found = collected(run, seed, out / options.claim)
                table = pd.concat([table[~own], found]).infer_objects()
                write_text_atomic(path, table.to_csv(sep="\t", index=False, float_format="%.4f"))
    for line in report(runs, table):
        print(line)


def prepare(runs: Sequence[Run], seed: int, data: Path, *, out: Path) -> None:
    """Create the labels and datasets that the runs need but DATA does not have."""
    needed = {source_of(folder, seed, data, out=out) for run in runs for folder in run.labels.values()}
    made = [
        (out / ATROPOS, "tool_labels.py", data / "oasis", ()),
        (out / f"{LESION_SETS}{seed}", "lesion_datasets.py", data, (seed,)),
    ]
    for folder, script, source, more in made:
        if any(path.is_relative_to(folder) for path in needed) and not folder.is_dir():
            part = folder.with_name(f"{folder.name}.part")
            call([Path(__file__).parent / script, source, part, *more])
            part.rename(folder)


def source_of(name: str, seed: int, data: Path, *, out: Path) -> Path:
    """Return the folder of a dataset or of its labels."""
    first, *others = name.split("/")
    if first == LESION_SETS:
        return out.joinpath(f"{first}{seed}", *others)
    return (out if first == ATROPOS else data) / name


def call(words: Sequence[object], log: Path | None = None) -> None:
    """Run a Python script with its arguments; its output is appended to a log file, if one is given."""
    command = [sys.executable, *(str(word) for word in words)]
    if log is None:
        subprocess.run(command, check=True)
        return
    with log.open("a") as stream:
        subprocess.run(command, check=True, stdout=stream, stderr=stream)


def train(run: Run, seed: int, data: Path, *, out: Path, runs: Path) -> None:
    """Train a run unless it is finished."""
    folder = place(run.name, seed, runs)
    if (model(folder) / "card.json").is_file() and not (model(folder) / "checkpoint.pt").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.toml"
    recipe.write_text(f'base = "{run.recipe}"\nname = "run"\n\n{toml("small", run.changes)}')

    where = functools.partial(source_of, seed=seed, data=data, out=out)
    labels = [f"{protocol}={some(where(name), protocol, run.full, runs=runs)}" for protocol, name in run.labels.items()]
    first, *also = (where(name) for name in run.datasets)
    held_out = ["--folds", 1] if run.datasets[0] != "oasis" else ["--hold-out", *HELD_OUT]
    words = [RUN, first, folder, "train", "--recipe", recipe, "--small", "--labels", *labels, *held_out]
    words += ["--also", *also] if also else []
    words += ["--init", model(place(run.init, seed, runs))] if run.init else []
    print(f"{run.name}, seed {seed} ...", flush=True)
    call([*words, "--seed", seed, "--resume", "--verbose"], folder / "log.txt")


def measure(run: Run, seed: int, data: Path, *, out: Path, runs: Path) -> None:
    """Evaluate a run on its test dataset, unless it has been evaluated."""
    folder = place(run.name, seed, runs)
    if run.test is None or table_of(folder).is_file():
        return
    test = source_of(run.test, seed, data, out=out)
    words = [Path(__file__).parent / "accuracy.py", test, "--model", model(folder), "--table", folder / "part"]
    words += ["--labels", f"FASTlesion={test / 'derivatives' / 'truth'}"]
    words += ["--lesion-model", model(place(run.lesions_of, seed, runs))] if run.lesions_of else []
    call(words, folder / "log.txt")
    (folder / "part").rename(table_of(folder))


def place(name: str, seed: int, runs: Path) -> Path:
    """Return the output folder of a run."""
    return runs / name / f"seed{seed}"


def model(folder: Path) -> Path:
    """Return the model in the output folder of a run."""
    return folder / "models" / "run"


def table_of(folder: Path) -> Path:
    """Return the table with the Dice of a run."""
    return model(folder) / "validation.tsv"


def toml(table: str, values: Mapping[str, Any]) -> str:
    """Return a table in TOML, with its inner tables."""
    inner = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in inner]
    parts = [toml(f"{table}.{key}", value) for key, value in inner.items()]
    return "\n".join([f"[{table}]", *lines, "", *parts])


def some(folder: Path, protocol: str, full: int | None, *, runs: Path) -> Path:
    """Return a folder of annotations; for full annotations, with links for some and for the held-out participants."""
    if full is None or protocol != "BrainCOLOR":
        return folder.resolve()
    chosen = runs / f"full{full}"
    shutil.rmtree(chosen, ignore_errors=True)
    chosen.mkdir(parents=True)
    shutil.copy(folder / "dataset_description.json", chosen)
    for person in (*ORDER[:full], *HELD_OUT):
        (chosen / f"sub-{person}").symlink_to((folder / f"sub-{person}").resolve())
    return chosen.resolve()


def wanted(run: Run, seed: int, runs: Sequence[Run], *, table: pd.DataFrame) -> bool:
    """Return whether a run is needed, because the table lacks its rows or those of a run that needs its model.

    The run of lesions alone has no rows: it is evaluated with the tissues of the run that uses it.
    """
    missing = table[(table.run == run.name) & (table.seed == seed)].empty
    has_rows = run.test is not None or run.datasets[0] == "oasis"
    needing = [other for other in runs if run.name in (other.init, other.lesions_of)]
    return (missing and has_rows) or any(wanted(other, seed, runs, table=table) for other in needing)


def collected(run: Run, seed: int, folder: Path) -> pd.DataFrame:
    """Return Dice and voxel error of a finished run, for each participant and head or region of FASTlesion."""
    rows = []
    path = table_of(place(run.name, seed, folder))
    if path.is_file():
        found = pd.read_csv(path, sep="\t")
        joint = (found["head"] == "FASTlesion") & (found.region != ERROR)
        found.loc[joint, "head"] = found.region[joint].where(found.region[joint] == "Lesion", "Tissue")
        for (head, person), part in found[found["head"] != "FASTlesion"].groupby(["head", "case"]):
            error = part.region == ERROR
            figures = {"dice": part[~error].dice.mean(), "voxel_error": part[error].dice.mean()}
            rows.append({"run": run.name, "seed": seed, "head": head, "person": person, **figures})
    return pd.DataFrame(rows, columns=COLUMNS)


def report(runs: Sequence[Run], table: pd.DataFrame) -> list[str]:
    """Return one line for each run and head."""
    lines = []
    for run in runs:
        for head, own in table[table.run == run.name].groupby("head"):
            mean = estimate(own.groupby("person").dice.mean().to_numpy())
            line = f"{run.name}: {head} Dice {mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}], "
            line += "" if own.voxel_error.isna().all() else f"voxel error {own.voxel_error.mean():.3f}, "
            line += f"{own.seed.nunique()} seeds"
            for name in run.against:
                other = table[(table.run == name) & (table["head"] == head)]
                pairs = own.merge(other, on=["seed", "person"], suffixes=("", "_other"))
                if len(pairs):
                    gain = estimate((pairs.dice - pairs.dice_other).groupby(pairs.person).mean().to_numpy())
                    line += f"; {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] against {name}"
            lines.append(line)
    return lines


if __name__ == "__main__":
    main()
