"""Differences between two scans of people who have not changed, from which the smallest visible change follows.

    python benchmarks/rescan.py BIDS_DIR OUTPUT_DIR [--model NAME] [--write] [run.py options]

BIDS_DIR has people who were scanned in two sessions within a short time. The script runs ``participant`` and
``longitudinal`` into OUTPUT_DIR and prints, for each protocol, the mean difference of the volumes (%, without sign,
over regions, then people) from both. ``--write`` stores 1.96 times the root mean square of the differences of each
region in ``rescan.json`` in the folder of the model, from which the level then reads the smallest change.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from longitudinal import LEAST_MM3, RUN, compared, protocol

from bidsseg.files import write_json_atomic
from bidsseg.models.card import find_card
from bidsseg.models.rescan import RESCAN

FEWEST = 5
"""Fewest people for a figure."""
QUANTILE = 1.96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--model", default="wholebrain")
    parser.add_argument("--write", action="store_true", help=f"store the figures in {RESCAN} of the model")
    options, more = parser.parse_known_args()
    command = [sys.executable, RUN, options.bids_dir, options.output_dir, "participant", "longitudinal"]
    subprocess.run([str(word) for word in (*command, "--model", options.model, *more)], check=True)
    together, separately = differences(options.output_dir, find_card(options.model).name)
    for name, table in (("separately", separately), ("together", together)):
        means = table[table["mm3"] > LEAST_MM3].assign(size=table["percent"].abs())
        print(means.groupby("protocol", sort=False)["size"].mean().round(2).rename(name).to_string())
    if options.write:
        store(options.model, together, options.bids_dir.resolve().name)


def differences(output_dir: Path, model: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the differences of all regions of all people between the first two sessions: compared, and separate."""
    together, separately = [], []
    for file in sorted(output_dir.glob(f"sub-*/anat/*_desc-{model}_longitudinal.tsv")):
        if "_seg-" not in file.name:
            continue
        table = pd.read_csv(file, sep="\t")
        table = table.dropna(subset="index")
        first, other = (label.removeprefix("ses-") for label in table["session_id"].unique()[:2])
        indices = table.drop_duplicates("name").set_index("name")["index"]
        words = {"protocol": protocol(file), "person": file.name.split("_")[0]}
        together.append(compared(table, first, other).assign(**words).join(indices, on="name"))
        tables = []
        for label in (first, other):
            scans = (file.parents[1] / f"ses-{label}/anat").glob(f"*_seg-{words['protocol']}_desc-{model}_morph.tsv")
            tables.append(pd.read_csv(min(scans), sep="\t").dropna(subset="index").assign(session_id=f"ses-{label}"))
        separately.append(compared(pd.concat(tables), first, other).assign(**words))
    return pd.concat(together), pd.concat(separately)


def store(model: str, table: pd.DataFrame, dataset: str) -> None:
    """Write the smallest change (%) of each region that noise does not explain."""
    people = table["person"].nunique()
    if people < FEWEST:
        raise SystemExit(f"{people} people are too few for {RESCAN}: scan at least {FEWEST} twice")
    card, figures = find_card(model), dict[str, dict[str, float]]()
    table = table.assign(index=table["index"].astype(int).astype(str))
    for (name, index), rows in table.groupby(["protocol", "index"], sort=False):
        if rows["percent"].notna().sum() >= FEWEST:
            smallest = QUANTILE * float(np.sqrt((rows["percent"] ** 2).mean()))
            figures.setdefault(str(name), {})[str(index)] = round(smallest, 2)
    scans = f"{people} people of {dataset}, scanned twice"
    content = {"sha256": card.sha256, "scans": scans, "smallest_change_percent": figures}
    write_json_atomic(card.folder / RESCAN, content)
    print(card.folder / RESCAN)


if __name__ == "__main__":
    main()
