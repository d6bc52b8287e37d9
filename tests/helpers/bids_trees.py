"""BIDS datasets of empty files, for tests that only read file names."""

import json
from pathlib import Path


def make_tree(root: Path, *names: str) -> Path:
    """Write a dataset of empty files, each in the ``anat`` folder of its name unless a path is given."""
    root.mkdir(parents=True, exist_ok=True)
    description = {"Name": "A test", "BIDSVersion": "1.10.1"}
    (root / "dataset_description.json").write_text(json.dumps(description), encoding="utf-8")
    for name in names:
        path = root / (name if "/" in name else home(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def home(name: str) -> Path:
    """Return the path of an anatomical file below the dataset."""
    folders = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
    return Path(*folders, "anat", name)
