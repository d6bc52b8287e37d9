"""Throughput of one process with many threads and of several processes with few threads.

    python benchmarks/workers.py [--scans N] [--model NAME]

The script creates a dataset as ``speed.py`` does and runs ``participant`` on it, with half of the CPUs and with all, in
one process and in two. It prints for each run the time for a scan, without the start of the run, and the memory of all
processes together. It also prints the efficiency of two processes: their throughput divided by twice the throughput of
one process on half of the CPUs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from speed import HERE, dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scans", type=int, default=12, help="scans of a run in addition to the first scan of each process"
    )
    parser.add_argument("--model", default="wholebrain")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    half, rate = cpus[: len(cpus) // 2], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset(folder / "bids", None, options.scans + 2)
        for title, used, processes in [
            ("half of the CPUs, 1 process", half, 1),
            ("all CPUs, 1 process", cpus, 1),
            ("all CPUs, 2 processes", cpus, 2),
        ]:
            words = ["--omp-nthreads", len(used) // processes, "--model", options.model]
            os.sched_setaffinity(0, used)
            first, _ = run(folder, 2, words)
            whole, memory_gb = run(folder, options.scans + 2, words)
            rate[title] = options.scans / (whole - first)
            print(f"{title + ':':30}{1 / rate[title]:6.2f} s a scan, {memory_gb:5.2f} GB", flush=True)
    one, _, two = rate.values()
    print(f"efficiency of 2 processes: {two / (2 * one):.0%}")


def run(folder: Path, scans: int, words: list[object]) -> tuple[float, float]:
    """Return seconds and peak memory (GB) of all processes of a participant run on the first scans."""
    labels = [f"{number:02d}" for number in range(1, scans + 1)]
    command = [sys.executable, HERE / "run.py", folder / "bids", folder / "out", "participant", "--overwrite", *words]
    command += ["--skip-bids-validation", "--participant-label", *labels]
    started, most = time.monotonic(), 0
    with subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            most = max(most, memory_of(process.pid))
            time.sleep(0.2)
        assert process.stderr is not None
        if process.returncode:
            raise SystemExit(process.stderr.read())
    return time.monotonic() - started, most / 1e9


def memory_of(pid: int) -> int:
    """Return the memory (bytes) of a process and its child processes."""
    try:
        first = psutil.Process(pid)
        return sum(process.memory_info().rss for process in (first, *first.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


if __name__ == "__main__":
    main()
