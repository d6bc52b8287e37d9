"""Label maps of two models and references of two scans, which the level evaluate compares."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from label_maps import add_map, blobs, save
from recording_console import RecordingConsole

from bidsseg.levels.evaluate import evaluate_level
from bidsseg.settings import Evaluation, Settings

STEM = "group_seg-FAST_desc-good_ref-manual"
TWO = [{"subject": "01"}, {"subject": "02", "session": "1", "run": "1"}]
KEYS = ["sub-01", "sub-02_ses-1_run-1"]


def found_map(seed: int) -> np.ndarray:
    return np.where(blobs(9, regions=3) == 1, 2, blobs(seed, regions=3))


def manual_path(folder: Path, key: str, name: str = "seg-FAST_dseg") -> Path:
    place = "/".join(word for word in key.split("_") if word.startswith(("sub", "ses")))
    return folder / place / "anat" / f"{key}_{name}.nii.gz"


def make_folders(tmp_path: Path) -> tuple[Path, Path]:
    """FAST label maps of two models and references of two scans, in an output folder and a derivative dataset."""
    out, manual = tmp_path / "out", tmp_path / "manual"
    for seed, (entities, key) in enumerate(zip(TWO, KEYS, strict=True)):
        add_map(out, entities, found_map(seed))
        add_map(out, entities, np.roll(blobs(seed, regions=3), 5, 0), model="poor")
        save(manual_path(manual, key), blobs(seed, regions=3))
    return out, manual


def run(out: Path, labels: dict[str, list[Path]], *, model: str = "good", **more: Any) -> RecordingConsole:
    """Run the level on a dataset without images and return the recorded messages."""
    bids, console = out.parent / "bids", RecordingConsole()
    bids.mkdir(exist_ok=True)
    options = {name: more.pop(name) for name in ("against", "mask") if name in more}
    more = {"n_cpus": 1, "labels": labels, "evaluation": Evaluation(**options), **more}
    evaluate_level(Settings(bids, out, model=model, report=console, **more))
    return console


def tables(out: Path, stem: str = STEM) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of the scans and the summary, indexed by the names of regions."""
    summary = pd.read_csv(out / f"{stem}_summary.tsv", sep="\t").set_index("name")
    return pd.read_csv(out / f"{stem}_agreement.tsv", sep="\t"), summary
