"""Output folders with all that tables and pages read of the results of the participant level."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from recording_console import RecordingConsole

from bidsseg.bids.names import build_name, with_extension
from bidsseg.bids.outputs import output_paths
from bidsseg.bids.scan import Scan
from bidsseg.derivative.volumes import volume_table
from bidsseg.files import write_json_atomic
from bidsseg.labels.protocol import load_protocol
from bidsseg.levels.group import group_level
from bidsseg.settings import Settings

MODEL = "wholebrain"


def add_result(
    output: Path,
    entities: dict[str, str],
    grey_voxels: int = 30,
    *,
    protocols: Sequence[str] = ("FAST",),
    quality: float = 0.9,
    model: str = MODEL,
    intracranial_mm3: float = math.nan,
) -> None:
    """Write what the group level reads of a scan: 10 voxels of CSF, some of grey matter and 20 of white matter."""
    paths = output_paths(Scan(entities, Path()), model, protocols)
    source = {"Sources": [f"bids:raw:{build_name(entities, 'T1w', '.nii.gz')}"]}
    for name in protocols:
        protocol = load_protocol(name).scored()
        labels = np.repeat(protocol.indices[1:4], [10, grey_voxels, 20]).reshape(-1, 1, 1)
        soft = np.zeros(len(protocol.regions))
        table = volume_table(
            protocol, labels, soft, voxel_volume_mm3=2.0, brain=labels > 0, intracranial_mm3=intracranial_mm3
        )
        path = output / paths.morph[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, sep="\t", index=False, na_rep="n/a")
        write_json_atomic(with_extension(output / paths.dseg[name], ".json"), {"Quality": quality, **source})


def add_run(output: Path, stamp: str, fates: Mapping[str, tuple[str, str]]) -> None:
    """Write the manifest of a run, with outcome and reason for the key of each scan."""
    scans = [{"scan": key, "outcome": outcome, "reason": reason} for key, (outcome, reason) in fates.items()]
    write_json_atomic(output / "logs" / f"run-{stamp}.json", {"model": {"name": MODEL}, "scans": scans})


def run_group(bids: Path, output: Path, **settings: object) -> RecordingConsole:
    """Run the level group and return what it reported."""
    console = RecordingConsole()
    group_level(Settings(bids, output, report=console, **settings))  # type: ignore[arg-type]
    return console


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, by column."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))
