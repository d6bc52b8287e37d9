"""Files that an earlier run has made of a scan on request: ``--measure``, ``--output-spaces``, ``--lesions`` …"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bidsseg.bids.names import build_name, parse_name, with_extension
from bidsseg.bids.outputs import aseg_path, output_paths
from bidsseg.bids.scan import Scan, without_added, without_desc
from bidsseg.bids.series import ORIGINAL, SPACE
from bidsseg.derivative.lesion_tables import own_region_tables
from bidsseg.derivative.sidecar_keys import Sidecar, is_of_model, is_record, read_sidecar, source_paths
from bidsseg.models.card import LESION


@dataclass(frozen=True)
class Earlier:
    """Files of an earlier run.

    Attributes:
        flag: the flag that makes them, with its value; empty for a transform, which label maps in its space go with.
        files: absolute paths, the sidecar last: without it, nobody could attribute the others to this program.
        record: the sidecar, or for the 3-D page the record of the scan.
        is_export: whether the files are made from those of a finished scan.
    """

    flag: str
    files: list[Path]
    record: Sidecar
    is_export: bool = False


def earlier_outputs(output_dir: Path, scan: Scan, model: str, *, record: Path) -> Iterator[Earlier]:
    """Yield the outputs on request of a scan and a model that are in the output folder.

    Args:
        record: sidecar of the label maps of the scan.
    """
    paths = output_paths(scan, model, (), lesion=True, filled=True, viewer=True)
    before = scan.entities.get("desc", "")
    for path in sorted((output_dir / paths.brain).parent.glob("sub-*.json")):
        found = read_sidecar(path)
        if is_record(found) and is_of_model(found, model):
            flag = _flag(path, scan, found, desc=f"{before}{model}")
            if flag is not None:
                yield Earlier(flag, _with_sidecar(path), found, is_export=flag.startswith("--measure"))
    aseg = output_dir / aseg_path(scan)
    found = read_sidecar(with_extension(aseg, ".json"))
    if is_of_model(found, model):
        yield Earlier("--freesurfer", _with_sidecar(aseg), found, is_export=True)
    own = output_dir / (paths.filled or "")
    for path in sorted(own.parent.glob(f"{own.name.rpartition('_')[0]}_*.json")):  # of any contrast
        found = read_sidecar(path)
        if is_record(found) and is_of_model(found, model):
            yield Earlier("--filled", _with_sidecar(path), found)
    source = build_name(without_desc(scan.entities))
    for path in sorted((output_dir / paths.brain).parent.glob(f"{source}_from-*_to-*_desc-{before}{model}_xfm.*")):
        space = path.name.partition("_to-")[2].partition("_")[0]
        if space != SPACE:
            yield Earlier("", [path], read_sidecar(record))
    viewer = output_dir / (paths.viewer or "")
    if viewer.is_file():
        yield Earlier("--viewer", [viewer], read_sidecar(record))


def _flag(path: Path, scan: Scan, found: Sidecar, *, desc: str) -> str | None:
    """Return the flag that makes the files of a sidecar; None if they are no output on request of the scan."""
    parsed = parse_name(path.name)
    if parsed is None:
        return None
    entities, suffix, _ = parsed
    if without_added(entities) != without_added(scan.entities):
        return None
    space, named = entities.get("space"), scan.entities.get("space")
    if suffix == "stats" and "meas" in entities:
        return f"--measure {entities['meas']}" if entities.get("desc") == desc and space == named else None
    images = source_paths(found)  # none for an image outside of a dataset
    if images and _entities(images[0].name) != _entities(scan.t1w.name):
        return None
    if suffix == "probseg" and space == named:
        return {desc: "--probseg", f"{desc}entropy": "--entropy"}.get(entities.get("desc", ""))
    if space not in (None, named, SPACE, ORIGINAL) and suffix in ("dseg", "mask"):
        return f"--output-spaces {space}:res-{entities.get('res', '')}"
    return None


def _entities(name: str) -> dict[str, str]:
    """Return the entities of a file name, whatever its suffix."""
    parsed = parse_name(name)
    return parsed[0] if parsed else {}


def earlier_lesions(
    output_dir: Path, scan: Scan, model: str, *, kept: Sequence[Path], keep_tables: bool
) -> Iterator[Path]:
    """Yield the files about the lesions of a scan from an earlier run with ``--lesions``.

    Args:
        kept: files that this run writes, relative to the output folder.
        keep_tables: whether this run has lesions, too.
    """
    every = output_paths(scan, model, [LESION], lesion=True)
    for path in (every.lesion, every.lesions, every.lesion_table):
        if path is None or path in kept:
            continue
        found = read_sidecar(output_dir / with_extension(path, ".json"))
        if is_record(found) and is_of_model(found, model):
            yield from _with_sidecar(output_dir / path)
    if not keep_tables:
        yield from (output_dir / path for path in (every.lesion_figure, every.figures[LESION]))
        folder, desc = (output_dir / every.brain).parent, f"{scan.entities.get('desc', '')}{model}"
        for table in own_region_tables(folder, without_desc(scan.entities), desc):
            yield from (table, with_extension(table, ".json"))


def _with_sidecar(path: Path) -> list[Path]:
    """Return image, table and sidecar of an output; some of them may not exist."""
    return [with_extension(path, extension) for extension in (".nii.gz", ".tsv", ".json")]
