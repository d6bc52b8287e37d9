"""Time and memory of a participant run and its stages, compared with another checkout.

    python benchmarks/speed.py [--old CHECKOUT] [--scan T1W] [--precision fp32 bf16] [--repeats N] [--model NAME]

The script runs ``participant`` on a 256³ scan of 1 mm, alternating between both checkouts, and prints for each
precision: time of each stage, CPU time and peak memory of a whole run; the ratio of the segment stages; the agreement
of the label maps; the rate of the network compared with the fastest convolution of the machine. Times are the shortest
of all repeats. Without --scan, the scan is nilearn's T1w template. ``--precision fp32`` with the environment
``ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2`` simulates an older processor.

    python benchmarks/speed.py --series 20

segments a scan that many times in one process and prints the memory after each.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parents[1]
ONE_PROCESS = "--omp-nthreads", str(len(os.sched_getaffinity(0)))
"""Options for one process with all threads."""
STAGES = ("read", "segment", "write")


def main() -> None:
    from bidsseg.execution.machine import cpu_precision

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, help="another checkout for comparison")
    parser.add_argument("--scan", type=Path, help="a T1w [the template of nilearn, on a grid of 256³]")
    parser.add_argument("--precision", nargs="+", default=[cpu_precision()], help="[as this machine supports]")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scans", type=int, default=2, help="number of scans of each run")
    parser.add_argument("--model", default="wholebrain")
    parser.add_argument("--series", type=int, help="only segment the scan this many times, and print the memory")
    options = parser.parse_args()
    checkouts = {"new": HERE, **({"old": options.old.resolve()} if options.old else {})}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = dataset(folder / "bids", options.scan, options.scans)
        if options.series:
            series(scan, options.model, options.precision[0], count=options.series)
            return
        for precision in options.precision:
            compare(folder, checkouts, options.model, precision=precision, repeats=options.repeats)
            network(scan, options.model, precision)


def dataset(folder: Path, scan: Path | None, scans: int) -> Path:
    """Write a dataset with the scan once for each participant, and return the path of the first scan."""
    paths = [folder / f"sub-{n:02d}" / "anat" / f"sub-{n:02d}_T1w.nii.gz" for n in range(1, scans + 1)]
    for path in paths:
        path.parent.mkdir(parents=True)
    if scan is None:
        save_template(paths[0])
    else:
        nib.save(nib.load(scan), paths[0])
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "speed", "BIDSVersion": "1.10.1"}))
    return paths[0]


def save_template(path: Path) -> None:
    """Write the template at the centre of a 256³ grid."""
    from nilearn.datasets import load_mni152_template

    template = load_mni152_template(resolution=1)
    data = np.asarray(template.dataobj, np.float32)
    before = [(256 - n) // 2 for n in data.shape]
    wide = np.pad(data, [(b, 256 - n - b) for b, n in zip(before, data.shape, strict=True)])
    affine = template.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ before
    image = nib.Nifti1Image((wide * 1000).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


# -- whole runs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Measurements of a run: wall and CPU time (s), peak memory (GB), stages of the first and last scan (s)."""

    wall: float
    cpu: float
    peak: float
    first: dict[str, float]
    last: dict[str, float]


def compare(folder: Path, checkouts: dict[str, Path], model: str, *, precision: str, repeats: int) -> None:
    """Run all checkouts in turn, and print time and memory of each."""
    runs: dict[str, list[Measured]] = {name: [] for name in checkouts}
    for _ in range(repeats):
        for name, checkout in checkouts.items():
            runs[name].append(run(checkout, folder / "bids", folder / name, model=model, precision=precision))
    print(f"{precision}, {len(os.sched_getaffinity(0))} CPUs, one process, shortest of {repeats} runs:")
    for name, done in runs.items():
        wall, cpu = (min(getattr(one, key) for one in done) for key in ("wall", "cpu"))
        peak = max(one.peak for one in done)
        print(f"  {name}: whole run {wall:.1f} s ({cpu:.1f} s CPU time), peak memory {peak:.2f} GB")
        for which in ("first", "last"):
            stages = {stage: least(done, which, stage) for stage in STAGES}
            print(f"    {which} scan: " + ", ".join(f"{stage} {value:.1f} s" for stage, value in stages.items()))
        outside = min(one.wall - one.first["segment"] - one.last["segment"] for one in done)
        print(f"    all except segmentation: {outside:.1f} s")
    if "old" in runs:
        for which in ("first", "last"):
            old, new = (least(runs[name], which, "segment") for name in ("old", "new"))
            print(f"  segment stage of the {which} scan, old / new: {old / new:.2f}")
        print_agreement(folder / "old", folder / "new")


def least(runs: Sequence[Measured], which: str, stage: str) -> float:
    """Return the shortest time (s) of a stage of the first or last scan."""
    seconds: float = min(getattr(one, which)[stage] for one in runs)
    return seconds


def run(checkout: Path, bids: Path, output: Path, *, model: str, precision: str) -> Measured:
    """Measure a participant run in one process with all threads."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "run.py", bids, output, "participant", "--model", model, "--precision", precision]
    before, started = cpu_seconds(), time.monotonic()
    process = subprocess.Popen(list(map(str, [*command, *ONE_PROCESS])), cwd=checkout, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    if status:
        raise SystemExit(f"{checkout}: the run failed; run it yourself: {' '.join(map(str, command))}")
    (log,) = (output / "logs").glob("run-*.json")
    scans = [entry["seconds"] for entry in json.loads(log.read_text())["scans"]]
    return Measured(wall, cpu_seconds() - before, usage.ru_maxrss / 1e6, scans[0], scans[-1])


def cpu_seconds() -> float:
    """Return the CPU time (s) of all child processes so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def print_agreement(old: Path, new: Path) -> None:
    """Print the agreement of the label maps of two runs."""
    from bidsseg.evaluation.agreement import dice
    from bidsseg.image.nifti import read_labels

    for path in sorted(old.glob("sub-01/anat/*_dseg.nii.gz")):
        first, second = (read_labels(root / path.relative_to(old)).data for root in (old, new))
        mean = np.nanmean(dice(first, second, range(1, int(first.max()) + 1)))
        print(f"  {path.name.split('_')[1]}: Dice {mean:.5f}, {(first != second).sum()} voxels differ")


# -- the network -------------------------------------------------------------------------------------------------------


def network(scan: Path, model_name: str, precision: str) -> None:
    """Print the rate of one forward pass of the network."""
    from bidsseg.image.brightness import rescaled_each
    from bidsseg.image.grid import within_content
    from bidsseg.image.nifti import read_image
    from bidsseg.models.library import load_model
    from bidsseg.segmentation.engine import Engine
    from bidsseg.segmentation.features import cells_of
    from bidsseg.segmentation.locate import model_input
    from bidsseg.segmentation.windows import features_of

    model, engine = load_model(model_name), Engine("cpu", precision)
    images, _ = within_content(rescaled_each({"T1w": read_image(scan)[0]}), "T1w")
    seen = model_input(images, model, engine, progress=lambda stage: None)
    grid, image, position, wanted = seen.grid, seen.image, seen.position, seen.wanted
    cells = cells_of(torch.ones(grid.shape, dtype=torch.bool) if wanted is None else wanted, model.network.cell)
    seconds = timed(lambda: features_of(model.network, image, position, wanted=wanted, engine=engine, notes=[]))
    work = operations(lambda: model.network.rows(image, position, cells))
    best = peak_rate(engine.dtype)
    rate = work / seconds
    print(f"  network on {'x'.join(map(str, grid.shape))} voxels, one pass: {seconds:.2f} s, {work / 1e12:.2f} TFLOP")
    print(f"  at {rate / 1e12:.2f} TFLOP/s, {rate / best:.0%} of the fastest convolution's {best / 1e12:.2f}")


def timed(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest time (s) of several repeats."""
    times = []
    for _ in range(repeats):
        started = time.monotonic()
        work()
        times.append(time.monotonic() - started)
    return min(times)


def operations(work: Callable[[], object]) -> float:
    """Return the number of multiplications and additions in convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        work()
    return float(counter.get_total_flops())


def peak_rate(dtype: torch.dtype) -> float:
    """Return the operations per second of a 3³ convolution of 128 channels at 24³, channels last."""
    layer = nn.Conv3d(128, 128, 3, padding=1, bias=False).to(dtype)
    x = torch.randn(1, 128, 24, 24, 24).to(dtype).to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        return 2 * 128 * 128 * 27 * 24**3 / timed(lambda: layer(x), 10)


# -- scans in a row ----------------------------------------------------------------------------------------------------


def series(scan: Path, model_name: str, precision: str, *, count: int) -> None:
    """Print the memory (MB) of the process after each of several scans in a row."""
    import psutil

    from bidsseg.execution.machine import keep_freed_memory, peak_memory_mb, release_freed_memory
    from bidsseg.image.nifti import read_image
    from bidsseg.models.library import load_model
    from bidsseg.segmentation.predict import segment

    keep_freed_memory()
    model = load_model(model_name)
    for number in range(1, count + 1):
        segment({"T1w": read_image(scan)[0]}, model, precision=precision)
        gc.collect()
        release_freed_memory()
        held = psutil.Process().memory_info().rss // 10**6
        print(f"scan {number}: {held} MB now, peak {peak_memory_mb()} MB", flush=True)


if __name__ == "__main__":
    main()
