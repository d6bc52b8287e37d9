"""Time and memory of a participant run, and of its parts.

    python benchmarks/speed.py [--scans N] [--model NAME]

Makes a dataset of the T1w template that nilearn carries on a 256³ grid of 1 mm, runs ``participant`` on it as a user
would, and prints: wall time and peak memory of the run with one scan; the time of each further scan; the stages of one
scan; the rate the network reaches against the fastest convolution of the machine; float32 against bfloat16, where the
processor has it; the whole volume against windows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import nn

RUN = Path(__file__).parent.parent / "run.py"
ONE_PROCESS = "--omp-nthreads", str(len(os.sched_getaffinity(0)))
"""All threads to one scan."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=3, help="scans of the longer run")
    parser.add_argument("--model", default="wholebrain")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset(folder / "bids", options.scans)
        one = run(folder, options.model, ["01"])
        print(f"one scan, whole run:    {one:6.1f} s")
        more = run(folder, options.model, [f"{i:02d}" for i in range(2, options.scans + 1)])
        if options.scans > 2:
            print(f"each further scan:      {(more - one) / (options.scans - 2):6.1f} s")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(f"peak memory:            {peak:6.2f} GB")
        scan = folder / "bids" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
        parts(scan, options.model)


def dataset(folder: Path, scans: int) -> None:
    """The template in the middle of a 256³ grid, once for each participant."""
    from nilearn.datasets import load_mni152_template

    template = load_mni152_template(resolution=1)
    data = np.asarray(template.dataobj, np.float32)
    before = [(256 - n) // 2 for n in data.shape]
    wide = np.pad(data, [(b, 256 - n - b) for b, n in zip(before, data.shape, strict=True)])
    affine = template.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ before
    image = nib.Nifti1Image((wide * 1000).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    for number in range(1, scans + 1):
        path = folder / f"sub-{number:02d}" / "anat" / f"sub-{number:02d}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(image, path)
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "speed", "BIDSVersion": "1.10.1"}))


def run(folder: Path, model: str, participants: list[str]) -> float:
    """Seconds of a participant run."""
    command = [sys.executable, str(RUN), str(folder / "bids"), str(folder / "out"), "participant", "--model", model]
    started = time.monotonic()
    subprocess.run([*command, *ONE_PROCESS, "--participant-label", *participants], check=True, capture_output=True)
    return time.monotonic() - started


def parts(scan: Path, model_name: str) -> None:
    """Stages, precision and windows, for the scan."""
    from bidsseg.compute import cpu_precision
    from bidsseg.image.nifti import read_image
    from bidsseg.models.library import load_model
    from bidsseg.segmentation.agreement import dice
    from bidsseg.segmentation.predict import Engine, model_input, segment
    from bidsseg.segmentation.windows import features_of

    volume, _ = read_image(scan)
    model = load_model(model_name)
    own = cpu_precision()  # others are emulated, and would take hours
    stages: list[tuple[str, float]] = []
    segment({"T1w": volume}, model, precision=own, progress=lambda stage: stages.append((stage, time.monotonic())))
    ends = [t for _, t in stages[1:]] + [time.monotonic()]
    for (stage, start), end in zip(stages, ends, strict=True):
        print(f"  {stage + ':':22}{end - start:6.2f} s")
    grid, image, position = model_input({"T1w": volume}, model, Engine("cpu", own), [], lambda stage: None)
    found, seconds = {}, {}
    for name, engine in {
        f"{own}, whole": Engine("cpu", own),
        "fp32, whole": Engine("cpu", "fp32"),
        f"{own}, windows": Engine("cpu", own, memory_mb=700),
    }.items():
        notes: list[str] = []
        seconds[name] = timed(partial(features_of, model.network, image, position, engine, notes))
        result = segment({"T1w": volume}, model, precision=engine.precision, memory_mb=engine.memory_mb)
        found[name] = next(iter(result.labels.values()))
    print(f"network on {'x'.join(map(str, grid.shape))} voxels, one pass:")
    for name, value in seconds.items():
        agreement = np.nanmean(dice(found[name], found[f"{own}, whole"], range(1, found[name].max() + 1)))
        print(f"  {name + ':':22}{value:6.2f} s, labels agree with {own}, whole: Dice {agreement:.4f}")
    flops = operations(model.network, image, position)
    rate, best = flops / seconds[f"{own}, whole"], peak_rate(own)
    print(f"  {flops / 1e12:.2f} TFLOP at {rate / 1e12:.2f} TFLOP/s, {rate / best:.0%} of the fastest convolution's")


def timed(work: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest of some repeats."""
    times = []
    for _ in range(repeats):
        started = time.monotonic()
        work()
        times.append(time.monotonic() - started)
    return min(times)


def operations(network: nn.Module, image: torch.Tensor, position: torch.Tensor | None) -> float:
    """Multiplications and additions of the convolutions in one pass."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(image, position)
    return float(counter.get_total_flops())


def peak_rate(precision: str) -> float:
    """Operations a second of a 3³ convolution of 128 channels at 24³ in that precision, channels last."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    layer = nn.Conv3d(128, 128, 3, padding=1, bias=False, dtype=kind)
    x = torch.randn(1, 128, 24, 24, 24, dtype=kind).to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        return 2 * 128 * 128 * 27 * 24**3 / timed(lambda: layer(x), 10)


if __name__ == "__main__":
    main()
