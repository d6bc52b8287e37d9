"""Time and memory of the search for scans in a large dataset, for one participant and for all participants.

    python benchmarks/indexing.py [PARTICIPANTS]

The script creates a dataset of empty files with that many participants (2,000), each with a T1w, a FLAIR, a functional
run and their sidecars, in a temporary folder. Every row is measured in a separate process; the first row is the cost of
loading pybids, which the other rows include.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FILES = (
    "anat/{}_T1w.nii.gz", "anat/{}_T1w.json", "anat/{}_FLAIR.nii.gz", "anat/{}_FLAIR.json",
    "func/{}_task-rest_bold.nii.gz", "func/{}_task-rest_bold.json", "func/{}_task-rest_events.tsv",
)  # fmt: skip


def make_dataset(root: Path, participants: int) -> Path:
    """Write a dataset of empty files."""
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "Large", "BIDSVersion": "1.10.1"}', encoding="utf-8")
    for i in range(participants):
        subject = f"sub-{i:05}"
        for pattern in FILES:
            path = root / subject / pattern.format(subject)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def load() -> int:
    """Load pybids and nothing else."""
    import bids.layout  # noqa: F401

    return 0


def find(bids_dir: Path, participants: list[str] | None, database_dir: Path | None) -> int:
    """Return the number of scans found."""
    from bidsseg.bids.query import find_scans

    return len(find_scans(bids_dir, participants=participants, database_dir=database_dir))


def measure(title: str, function: Callable[..., int], *arguments: object) -> None:
    """Print one row: the number of scans found, seconds, and peak memory of the process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found, seconds, memory_mb = pool.apply(_measured, (function, arguments))
    print(f"{title:<44}{found:>7} scans {seconds:>7.2f} s {memory_mb:>7.0f} MB", flush=True)


def _measured(function: Callable[..., int], arguments: tuple[object, ...]) -> tuple[int, float, float]:
    start = time.perf_counter()
    found = function(*arguments)
    seconds = time.perf_counter() - start
    return found, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    participants = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as folder:
        large = make_dataset(Path(folder) / "large", participants)
        small = make_dataset(Path(folder) / "small", 1)
        kept = Path(folder) / "database"
        print(f"{participants} participants, {len(FILES)} files each")
        measure("loading pybids", load)
        measure("the only participant of a small dataset", find, small, None, None)
        measure("one selected participant of the large one", find, large, ["00007"], None)
        measure("all participants", find, large, None, None)
        measure("all participants, creating a database", find, large, None, kept)
        measure("all participants, from the database", find, large, None, kept)
        measure("one selected participant, from the database", find, large, ["00007"], kept)


if __name__ == "__main__":
    main()
