"""Write the requirements of an image, pinned and with checksums for x86-64 and aarch64, into docker/requirements-*.txt.

    python docker/lock.py cpu
    python docker/lock.py cuda

The versions are those of requirements.lock. Run this with the image's Python (3.11) on x86-64, where pip resolves the
required packages; the checksums of their files for aarch64 are then looked up. If a file cannot be found, earlier
checksums of the same version are kept.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
AARCH64 = [
    f"--platform={tag}_aarch64" for tag in ("manylinux2014", *(f"manylinux_2_{glibc}" for glibc in range(17, 37)))
]
"""Platforms that Debian bookworm (glibc 2.36) supports."""


def main(variant: str) -> None:
    file = ROOT / "docker" / f"requirements-{variant}.txt"
    known = dict(line.partition(" ")[::2] for line in file.read_text().splitlines())
    index = ["--extra-index-url", CPU_BUILDS] if variant == "cpu" else []
    pins = needed(variant, index)
    lines = [f"# Packages of the image ({variant}, Python 3.11), pinned with checksums. Made by docker/lock.py."]
    for pin in sorted(pins, key=str.lower):
        other = on_aarch64(pin, index if pin.startswith("torch==") else [])
        checksums = {pins[pin]} | ({other} if other else set())
        if pins[pin] in known.get(pin, ""):
            checksums |= set(re.findall(r"sha256:\w+", known[pin]))
        lines.append(" ".join([pin, *(f"--hash={checksum}" for checksum in sorted(checksums))]))
    file.write_text("\n".join(lines) + "\n")


def needed(variant: str, index: Sequence[str]) -> dict[str, str]:
    """Return the checksum of the file for this machine of every package that the image needs, by ``name==version``."""
    pins = (ROOT / "requirements.lock").read_text()
    torch = re.search(r"^torch==([\d.]+)", pins, re.M)
    assert torch is not None
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        suffix = "+cpu" if variant == "cpu" else ""
        constraints.write_text(pins.replace(torch[0], f"torch=={torch[1]}{suffix}"))
        found = looked_up(["-c", str(constraints), *index, f"{ROOT}[cluster,flair]"])
    return {pin: checksum for pin, checksum in found.items() if not pin.startswith("bidsseg==")}


def on_aarch64(pin: str, index: Sequence[str]) -> str | None:
    """Return the checksum of the file of a package for aarch64, or None with a message if there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return looked_up([*AARCH64, "--target", folder, "--no-deps", *index, pin])[pin]
        except subprocess.CalledProcessError:
            print(f"{pin}: no file for aarch64 was found", file=sys.stderr)
            return None


def looked_up(words: Sequence[str]) -> dict[str, str]:
    """Return the checksums of the files that pip would install, by ``name==version``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*pip, "--report", str(report), *words], check=True)
        installed = json.loads(report.read_text())["install"]
    return {
        f"{package['metadata']['name']}=={package['metadata']['version']}": "sha256:"
        + package["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256", "")
        for package in installed
    }


if __name__ == "__main__":
    main(sys.argv[1])
