"""Error of SegNet with different inputs: table 1 of de Brébisson and Montana 2015 (arXiv 1502.02445).

    python benchmarks/segnet_inputs.py OASIS TABLE.tsv [--seeds 3]

The script trains a network for each row of the table on voxels of ten brains of the BIDS dataset OASIS (annotations in
its derivative ``manual``), with the small scale of the recipe ``segnet`` but fewer epochs. It prints the share of wrong
voxels among other voxels of the same brains, as in the paper, and among voxels of five held-out brains. Distances are
to the centroids of the true regions. Rows that are already in TABLE.tsv are skipped.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from claims import HELD_OUT

from bidsseg.execution.machine import cpu_precision, keep_freed_memory
from bidsseg.labels import load_protocol
from bidsseg.learning.datasets import load_cases
from bidsseg.learning.folds import split
from bidsseg.learning.processes import Processes
from bidsseg.learning.recipe import load_recipe
from bidsseg.learning.voxel_trainer import Brain, Trainer, labelled_brain
from bidsseg.networks.segnet.network import SegNet
from bidsseg.settings import Report, Settings

INPUTS: dict[str, tuple[float, tuple[str, ...], tuple[int, ...]]] = {
    "one 2D patch": (0.607, ("fine",), (1,)),
    "coordinates": (0.410, ("coordinates",), ()),
    "distances": (0.305, ("distances",), ()),
    "3D patch": (0.303, ("cube",), ()),
    "three compressed patches": (0.207, ("compressed",), (0, 1, 2)),
    "three 2D patches": (0.175, ("fine",), (0, 1, 2)),
    "three and three compressed": (0.124, ("fine", "compressed"), (0, 1, 2)),
    "all (SegNet)": (0.105, ("fine", "compressed", "cube", "distances"), (0, 1, 2)),
}
"""Published error, groups of inputs, axes of the planes."""
EPOCHS, PER_SCAN = 3, 5000
PRECISION = torch.bfloat16 if cpu_precision() == "bf16" else torch.float32
COLUMNS = ["inputs", "seed", "published", "same_brains", "unseen_brains", "seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oasis", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()
    seen, unseen = brains(options.oasis)
    rows = pd.read_csv(options.table, sep="\t").to_dict("records") if options.table.is_file() else []
    for seed in range(options.seeds):
        for name, (published, groups, planes) in INPUTS.items():
            if any(row["inputs"] == name and row["seed"] == seed for row in rows):
                continue
            started = time.monotonic()
            same, other = errors(seen, unseen, groups, planes=planes, seed=seed)
            figures = (name, seed, published, same, other, time.monotonic() - started)
            rows.append(dict(zip(COLUMNS, figures, strict=True)))
            pd.DataFrame(rows).to_csv(options.table, sep="\t", index=False, float_format="%.4f")
            print(f"{name}, seed {seed}: {same:.3f} (published {published:.3f}), unseen brains {other:.3f}", flush=True)
    means = pd.DataFrame(rows).groupby("inputs")[COLUMNS[2:]].mean()
    print(means.sort_values("published", ascending=False).round(3).to_string())


def brains(oasis: Path) -> tuple[list[Brain], list[Brain]]:
    """Return the training brains and the held-out brains."""
    labels = {"BrainCOLOR": [oasis / "derivatives" / "manual"]}
    cases = load_cases(Settings(oasis, Path("never-written"), labels=labels), Report())
    head = load_protocol("BrainCOLOR").scored()
    seen, unseen = split(cases, 2, 0, hold_out=HELD_OUT)
    return [labelled_brain(case, head) for case in seen], [labelled_brain(case, head) for case in unseen]


def errors(
    seen: list[Brain], unseen: list[Brain], groups: tuple[str, ...], *, planes: tuple[int, ...], seed: int
) -> tuple[float, float]:
    """Train a network and return the share of wrong voxels in the training brains and in the held-out brains."""
    recipe = load_recipe("segnet", small=True)
    assert recipe.voxels is not None
    voxels = replace(recipe.voxels, per_scan=PER_SCAN, validation=2000, epochs=EPOCHS, augmented=False)
    options: dict[str, Any] = {"hidden": recipe.network["hidden"], "cube_neurons": recipe.network["cube_neurons"]}
    torch.manual_seed(seed)
    outputs = {"BrainCOLOR": len(load_protocol("BrainCOLOR").scored().regions)}
    network = SegNet(outputs, groups, planes or (0, 1, 2), **options)
    others = Trainer(network, unseen, voxels, seed=seed, precision=PRECISION, processes=Processes())
    trainer = Trainer(
        network, seen, voxels, seed=seed, precision=PRECISION, processes=Processes()
    )  # created last, because it scales the distances
    for number in range(EPOCHS):
        for _ in trainer.epoch(number):
            pass
    return trainer.error()[0], others.error()[0]


if __name__ == "__main__":
    main()
