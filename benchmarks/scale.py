"""Time, memory and files of all steps except segmentation, for a simulated cohort of the size of a biobank.

    python benchmarks/scale.py BIDS_DIR [--participants N] [--shards N] [--model NAME]

The script segments the first participant of BIDS_DIR and copies image and results for N participants (40,000), with
random changes of the volumes; images are hard links to one file. It then runs the commands of a user with such a
cohort: the search for unfinished scans in an empty output folder, for all participants and for one shard; the same with
all scans finished (a restart); and the level ``group``. It prints wall time and peak memory of each command, the number
of files, and the sizes of the tables and the page.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bidsseg.bids.index import participant_labels

RUN = Path(__file__).parent.parent / "run.py"  # not from speed.py, whose torch would count as memory of the commands
FIRST = "00001"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--participants", type=int, default=40_000)
    parser.add_argument("--shards", type=int, default=400)
    parser.add_argument("--model", default="wholebrain")
    parser.add_argument("--folder", type=Path, help="folder for the cohort [the system's temporary folder]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        bids, out, empty = (Path(name) / folder for folder in ("bids", "out", "empty"))
        one_participant(options.bids_dir, bids)
        measure("one scan", bids, out, "participant", "--model", options.model)
        print(f"files of a scan: {sum(1 for _ in files(out))}")
        multiply(bids, options.participants)
        multiply(out, options.participants)
        print(f"{options.participants} participants: {sum(1 for _ in files(out))} files in the output")
        words = "participant", "--model", options.model
        measure("search for unfinished scans", bids, empty, *words, "--dry-run")
        shard = "--shard", f"{options.shards // 2}/{options.shards}"
        measure(f"search in one of {options.shards} shards", bids, empty, *words, *shard, "--dry-run")
        measure("restart with all scans finished", bids, out, *words)
        measure("restart of a finished shard", bids, out, *words, *shard)
        measure("group", bids, out, "group", "--model", options.model)
        for path in sorted(out.glob("group*")):
            print(f"  {path.name}: {path.stat().st_size / 1e6:.1f} MB")


def one_participant(source: Path, bids: Path) -> None:
    """Write a dataset with one T1w of the first participant, without session and run."""
    label = participant_labels(source)[0]
    image = next((source / f"sub-{label}").rglob("*_T1w.nii.gz"))
    copy = bids / f"sub-{FIRST}" / "anat" / f"sub-{FIRST}_T1w.nii.gz"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(image.read_bytes())
    (bids / "dataset_description.json").write_bytes((source / "dataset_description.json").read_bytes())


def multiply(folder: Path, participants: int) -> None:
    """Copy the files of the first participant for all; texts have the new labels, and volumes vary by a tenth."""
    rng = np.random.default_rng(0)
    first = [path.relative_to(folder) for path in files(folder) if FIRST in path.name]
    texts = {path: (folder / path).read_text() for path in first if path.suffix in (".json", ".tsv")}
    for number in range(2, participants + 1):
        label = f"{number:05d}"
        for path in first:
            copy = folder / str(path).replace(FIRST, label)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path not in texts:
                os.link(folder / path, copy)
            elif path.name.endswith("_morph.tsv"):
                copy.write_text("".join(varied(texts[path], rng)))
            else:
                copy.write_text(texts[path].replace(FIRST, label))
    for page in folder.glob(f"sub-{FIRST}*.html"):
        page.touch()


def varied(table: str, rng: np.random.Generator) -> Iterator[str]:
    """Yield the lines of a table of volumes with randomly changed volumes."""
    head, *lines = table.splitlines(keepends=True)
    column = head.split("\t").index("volume-mm3")
    yield head
    for line in lines:
        cells = line.split("\t")
        if cells[column] != "n/a":
            cells[column] = f"{float(cells[column]) * rng.normal(1, 0.1):.1f}"
        yield "\t".join(cells)


def files(folder: Path) -> Iterator[Path]:
    """Return all files below a folder."""
    return (Path(place) / name for place, _, names in os.walk(folder) for name in names)


def measure(title: str, bids: Path, out: Path, *words: str) -> None:
    """Run a command and print its time and peak memory."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([sys.executable, RUN, bids, out, *words], stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            output.seek(0)
            raise SystemExit(output.read().decode())
    print(f"{title}: {time.monotonic() - started:.1f} s, {usage.ru_maxrss / 1000:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
