"""Write the requirements of the image, pinned and with checksums, to standard output.

    python docker/lock.py cpu > docker/requirements-cpu.txt
    python docker/lock.py cuda > docker/requirements-cuda.txt

The versions are those of requirements.lock. To be run by the image's Python (3.11) on the image's platform, since a
package's file may be another elsewhere.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"


def main(variant: str) -> None:
    pins = (ROOT / "requirements.lock").read_text()
    torch = re.search(r"^torch==([\d.]+)", pins, re.M)
    assert torch is not None
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder) / "constraints.txt", Path(folder) / "report.json"
        suffix = "+cpu" if variant == "cpu" else ""
        constraints.write_text(pins.replace(torch[0], f"torch=={torch[1]}{suffix}"))
        words = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", report, "-c", constraints]
        words += ["--extra-index-url", CPU_BUILDS] if variant == "cpu" else []
        subprocess.run([sys.executable, "-m", "pip", *words, f"{ROOT}[cluster,flair]"], check=True)
        installed = json.loads(report.read_text())["install"]
    print(f"# Packages of the image ({variant}, Python 3.11, x86-64), pinned with checksums. Made by docker/lock.py.")
    for package in sorted(installed, key=lambda package: str(package["metadata"]["name"]).lower()):
        name, version = package["metadata"]["name"], package["metadata"]["version"]
        hashes = package["download_info"].get("archive_info", {}).get("hashes", {})
        if name != "bidsseg":
            print(f"{name}=={version} --hash=sha256:{hashes['sha256']}")


if __name__ == "__main__":
    main(sys.argv[1])
