"""Parameters, time and memory of each network on one volume, as reported for E-NeuroNet (Oberoi et al. 2021).

    python benchmarks/networks.py [--shape 160 192 224] [--outputs 31] [--threads 2] [--precision bf16 fp32]

The script runs forward passes of an image with one head, without training, on the GPU if there is one, otherwise on the
CPU. Each network has a separate process. bfloat16 is used by default only if the machine supports it. The script prints
the number of parameters, the median time of three passes, and their peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from bidsseg.execution.machine import cpu_precision

NETWORKS = ("eneuronet", "unet", "neuronet", "subpixel-unet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, type=int, default=[160, 192, 224])
    parser.add_argument("--outputs", type=int, default=31, help="regions of the head, background included")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", nargs="+", default=precisions(), choices=["bf16", "fp32"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    for name in NETWORKS:
        for precision in options.precision:
            words = [sys.executable, __file__, "--one", name, "--shape", *map(str, options.shape)]
            words += ["--outputs", str(options.outputs), "--threads", str(options.threads), "--precision", precision]
            done = subprocess.run(words, stdout=subprocess.PIPE, check=False)
            if done.returncode:
                print(f"{name} {precision}: failed with code {done.returncode}")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{name} {precision} on {found['device']}: {found['parameters']:,} parameters, "
                f"{found['seconds']:.2f} s, peak {found['peak_gb']:.1f} GB",
                flush=True,
            )


def precisions() -> list[str]:
    """Return the precisions that are not emulated here."""
    import torch

    return ["bf16", "fp32"] if torch.cuda.is_available() or cpu_precision() == "bf16" else ["fp32"]


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the measurements of one network."""
    import torch

    from bidsseg.execution.machine import keep_freed_memory, peak_memory_mb
    from bidsseg.models.library import NETWORKS as KINDS

    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = KINDS[name](outputs={"head": options.outputs}).eval()
    network.to(device, memory_format=network.memory_format)  # type: ignore[call-overload]
    image = torch.rand(1, 1, *options.shape, device=device)
    position = torch.rand(1, 3, *(n // 2 for n in options.shape), device=device) if name == "subpixel-unet" else None
    kind = torch.bfloat16 if options.precision[0] == "bf16" else torch.float32
    seconds = []
    with torch.inference_mode(), torch.autocast(device, kind, enabled=kind != torch.float32):
        for _ in range(3):
            started = time.perf_counter()
            features = network(image, position)
            weight, bias = network.head("head")
            rows = features[0].permute(1, 2, 3, 0).flatten(0, 2)
            weight, bias = weight.to(rows.dtype), bias.to(rows.dtype)
            for part in rows.split(1_000_000):  # all voxels at once would need too much memory
                (part @ weight.T + bias).argmax(1)
            del features, rows, part
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else peak_memory_mb() / 1e3
    parameters = sum(p.numel() for p in network.parameters())
    return {"device": device, "parameters": parameters, "seconds": sorted(seconds)[1], "peak_gb": peak}


if __name__ == "__main__":
    main()
