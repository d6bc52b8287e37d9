"""Overlap of label maps of different participants in the space of a template, with deformable and affine registration.

    python benchmarks/spaces.py BIDS_DIR LABEL... [--space MNI152NLin2009cAsym]

The script segments the template and the named participants, with results in the space of the template. It prints for
each protocol the Dice between the label maps of the participants and the label map of the template (mean over the
regions of the template, then over participants), and the seconds for writing, including registration. The template must
be in TemplateFlow's cache, or the script needs network access.
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
    """Segment in one process, so that the times are not affected by other processes."""
    command = [sys.executable, HERE / "run.py", bids, out, "participant", "--skip-bids-validation"]
    command += [*ONE_PROCESS, *words]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def agreement(one: Path, other: Path) -> float:
    """Return the mean Dice over the regions of the other label map."""
    labels, truth = read_labels(one).data, read_labels(other).data
    return float(np.mean(dice(labels, truth, np.unique(truth)[1:].tolist())))


def seconds(out: Path) -> float:
    """Return the mean time (s) for writing a scan in the last run."""
    manifest = json.loads(sorted((out / "logs").glob("run-*.json"))[-1].read_text())
    return float(np.mean([scan["seconds"]["write"] for scan in manifest["scans"]]))


if __name__ == "__main__":
    main()
