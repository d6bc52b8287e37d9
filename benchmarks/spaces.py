"""How well label maps of people meet in the space of a template, deformed to it and by an affine motion alone.

    python benchmarks/spaces.py BIDS_DIR LABEL... [--space MNI152NLin2009cAsym]

Segments the template itself and the people named, with results in its space, and prints for each protocol the Dice
(mean over the regions of the template, then over people) of their label maps there with that of the template, and the
seconds that writing took, fit included. The template must be in TemplateFlow's cache, or there must be a network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from speed import HERE, ONE_PROCESS

from bidsseg.evaluation.agreement import dice
from bidsseg.image.nifti import read_labels
from bidsseg.registration.spaces import find_space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("people", nargs="+")
    parser.add_argument("--space", default="MNI152NLin2009cAsym")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        template, people = Path(name) / "template", Path(name) / "people"
        image = template / "bids" / "sub-template" / "anat" / "sub-template_T1w.nii.gz"
        image.parent.mkdir(parents=True)
        image.write_bytes(find_space(options.space).image.read_bytes())
        (template / "bids" / "dataset_description.json").write_text('{"Name": "template", "BIDSVersion": "1.10.1"}')
        run(template / "bids", template / "out")
        for way in ("", ":affine"):
            run(
                options.bids_dir, people, "--output-spaces", options.space + way, "--participant-label", *options.people
            )
            for path in sorted(template.glob("out/sub-*/anat/*_dseg.nii.gz")):
                protocol = path.name.split("_")[1]
                found = sorted(people.glob(f"sub-*/anat/*_space-*_{protocol}_*_dseg.nii.gz"))
                print(f"{options.space}{way}, {protocol}: Dice {np.mean([agreement(one, path) for one in found]):.3f}")
            print(f"{options.space}{way}: {seconds(people):.1f} s a scan")


def run(bids: Path, out: Path, *words: str) -> None:
    """Segment, with one process, so that times are those of a processor that does little else."""
    command = [sys.executable, HERE / "run.py", bids, out, "participant", "--skip-bids-validation"]
    command += [*ONE_PROCESS, *words]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def agreement(one: Path, other: Path) -> float:
    """Mean Dice over the regions of the other."""
    labels, truth = read_labels(one).data, read_labels(other).data
    return float(np.mean(dice(labels, truth, np.unique(truth)[1:].tolist())))


def seconds(out: Path) -> float:
    """Of writing a scan, in the last run."""
    manifest = json.loads(sorted((out / "logs").glob("run-*.json"))[-1].read_text())
    return float(np.mean([scan["seconds"]["write"] for scan in manifest["scans"]]))


if __name__ == "__main__":
    main()
