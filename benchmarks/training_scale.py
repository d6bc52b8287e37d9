"""Time, memory and disk of a training on many scans.

    python benchmarks/training_scale.py OUT [--scans 1000] [--size 80 96 80] [--minutes 0.75] [--old CHECKOUT]

The script writes N small synthetic heads with tissue labels to OUT/bids; the files of further participants are hard
links to those of the first 25. It then runs ``train``: with prepared scans that are missing, again with those that are
there, and with one CPU. Then samples are drawn without a network, one and two at once. With ``--old``, the program of
another checkout trains once, too. For each run, the script prints the seconds until the training began (start of the
program, search, reading), the size of the prepared scans, the peak memory, the samples per second, and the share of the
time in which the network waited for samples. Memory is that of the process: anonymous memory, which the system cannot
drop, and PSS, which includes the present pages of mapped files.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import torch

from bidsseg.labels import load_protocol
from bidsseg.learning.datasets import find_sources
from bidsseg.learning.prepared import prepared_cases
from bidsseg.learning.processes import Processes
from bidsseg.learning.recipe import load_recipe
from bidsseg.learning.samples import Plan, drawn
from bidsseg.learning.store import Store
from bidsseg.settings import Report, Settings

RUN = Path(__file__).parent.parent / "run.py"
DIFFERENT = 25
DRAWING_S = 10
RADII = (1.0, 0.85, 0.75, 0.6, 0.25)
"""Outer radii of head, brain, grey matter, white matter and ventricle, as shares of half the image."""
BRIGHTNESS = (0, 500, 150, 400, 600, 150)
TISSUES = (0, 0, 1, 2, 3, 1)
RECIPE = """
base = "wholebrain"
name = "scale"
title = "Tissue of small synthetic heads"
spacing_mm = 2.0
synthetic_share = 0.0
steps = 100_000
heads = { FAST = 1.0 }

[network]
widths = [16, 32, 64, 128]

[sampling]
shape = [48, 48, 48]
points = 16_000
"""


@dataclass
class Peaks:
    """Largest memory (MB) of a process."""

    anonymous: float = 0.0
    pss: float = 0.0


@dataclass
class Run:
    """A training that has ended.

    Attributes:
        began_s, began_cpu_s: seconds from the start of the program until the training began, and those of its threads
            on a processor, which depend less on other programs.
        lines: lines that it printed.
    """

    began_s: float = 0.0
    began_cpu_s: float = 0.0
    peaks: Peaks = field(default_factory=Peaks)
    lines: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scans", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=3, default=(80, 96, 80), help="voxels of 1 mm")
    parser.add_argument("--minutes", type=float, default=0.75, help="time of each training")
    parser.add_argument("--old", type=Path, help="another checkout to compare with")
    options = parser.parse_args()
    write_dataset(options.out, options.scans, options.size)
    print(f"{options.scans} scans of {'×'.join(map(str, options.size))} voxels", flush=True)
    for title, cpus in (("scans not prepared", 2), ("scans prepared", 2), ("scans prepared, one CPU", 1)):
        describe(title, train(RUN, options.out, "new", cpus=cpus, minutes=options.minutes))
    prepared = list((options.out / "new" / "prepared").iterdir())
    print(f"prepared scans: {len(prepared)} files, {sum(path.stat().st_size for path in prepared) / 1e9:.2f} GB")
    for drawers in (1, 2, 1, 2):
        print(f"drawing alone, {drawers} at once: {drawn_per_second(options.out, drawers):.2f} samples/s", flush=True)
    if options.old:
        describe("other checkout", train(options.old / "run.py", options.out, "old", cpus=2, minutes=options.minutes))


def write_dataset(out: Path, scans: int, size: Sequence[int]) -> None:
    """Write the dataset and the recipe, unless they are there."""
    bids, labels = out / "bids", out / "labels"
    if bids.is_dir():
        return
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij"))
    distance = np.sqrt((grid**2).sum(0))
    tissue = sum((distance < radius).astype(int) for radius in RADII)
    rng = np.random.default_rng(0)
    for number in range(scans):
        name = f"sub-{number + 1:05}"
        image = bids / name / "anat" / f"{name}_T1w.nii.gz"
        dseg = labels / name / "anat" / f"{name}_seg-FAST_dseg.nii.gz"
        for path in (image, dseg):
            path.parent.mkdir(parents=True)
        if number < DIFFERENT:
            bright = np.array(BRIGHTNESS)[tissue] * rng.normal(1, 0.05, tissue.shape)
            nib.save(nib.Nifti1Image(bright.astype(np.int16), np.eye(4)), image)
            nib.save(nib.Nifti1Image(np.array(TISSUES, np.uint8)[tissue], np.eye(4)), dseg)
        else:
            for path in (image, dseg):
                os.link(str(path).replace(name, f"sub-{number % DIFFERENT + 1:05}"), path)
    (bids / "dataset_description.json").write_text('{"Name": "small heads", "BIDSVersion": "1.10.0"}\n')
    (out / "recipe.toml").write_text(RECIPE)


def train(program: Path, out: Path, name: str, *, cpus: int, minutes: float) -> Run:
    """Run a training with the program of a checkout, and watch it."""
    folder = out / name
    shutil.rmtree(folder / "models", ignore_errors=True)
    words = [out / "bids", folder, "train", "--recipe", out / "recipe.toml", "--labels", f"FAST={out / 'labels'}"]
    words += ["--folds", 1, "--n-cpus", cpus, "--time-budget", minutes, "--skip-bids-validation"]
    run, started = Run(), time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(program.parent)}
    command = [sys.executable, str(program), *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    watcher = threading.Thread(target=watch, args=(process, run.peaks))
    watcher.start()
    watched = psutil.Process(process.pid)
    assert process.stdout is not None
    for line in process.stdout:
        run.lines.append(line.strip())
        if "training scans" in line:
            run.began_s, times = time.monotonic() - started, watched.cpu_times()
            run.began_cpu_s = times.user + times.system
    watcher.join()
    if process.wait():
        raise SystemExit(f"{name}: exit code {process.returncode}: {run.lines[-1:]}")
    return run


def drawn_per_second(out: Path, drawers: int) -> float:
    """Return how many samples per second are drawn without a network, some at once, from the prepared scans."""
    torch.set_num_threads(drawers)
    settings = Settings(out / "bids", out / "new", labels={"FAST": [out / "labels"]})
    sources = find_sources(settings, Report(), unlabelled=False, synthetic=False)[:DIFFERENT]
    cases = prepared_cases(sources, ("T1w",), Store(out / "new" / "prepared"), report=Report())
    recipe = load_recipe(str(out / "recipe.toml"))
    samples = drawn(cases, Plan(recipe, (load_protocol("FAST"),)), 0, processes=Processes())
    next(samples)
    started, count = time.monotonic(), 0
    while time.monotonic() - started < DRAWING_S:
        next(samples)
        count += 1
    return count / (time.monotonic() - started)


def watch(process: subprocess.Popen[str], peaks: Peaks) -> None:
    """Record the peak memory of a process until it ends."""
    while process.poll() is None:
        with suppress(OSError, ValueError):
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            peaks.pss = max(peaks.pss, kilobytes(text, "Pss") / 1000)
            peaks.anonymous = max(peaks.anonymous, kilobytes(text, "Anonymous") / 1000)
        time.sleep(0.5)


def kilobytes(text: str, name: str) -> int:
    """Return an entry of smaps_rollup."""
    found = re.search(rf"^{name}: +(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0


def describe(title: str, run: Run) -> None:
    """Print the figures of a training."""
    paces = [found[1] for line in run.lines if (found := re.search(r"([\d.]+) s/step", line))]
    summary = [line for line in run.lines if "samples/s" in line]
    speed = summary[-1] if summary else f"{1 / float(paces[-1]):.2f} samples/s" if paces else "no step"
    memory = f"anonymous memory {run.peaks.anonymous:.0f} MB, PSS {run.peaks.pss:.0f} MB"
    began = f"training begins after {run.began_s:.0f} s ({run.began_cpu_s:.0f} s on a processor)"
    print(f"{title}: {began}; {memory}; {speed}", flush=True)


if __name__ == "__main__":
    main()
