"""The images and label maps of a training, which must not change before it is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open

from bidsseg.errors import DataError, listed
from bidsseg.learning.case_reading import Source
from bidsseg.learning.prepared import identity
from bidsseg.learning.state import glimpsed
from bidsseg.models.card import read_card


def files_of(sources: Iterable[Source], inputs: Sequence[str]) -> dict[str, list[Path]]:
    """Return the files of a training under names that do not depend on the place of the datasets.

    A name has the case, and the protocol of a label map or the suffix of an image: ``dataset/sub-01 BrainCOLOR``. Cases
    of datasets in folders of one name may have the same name.
    """
    found: dict[str, list[Path]] = {}
    for source in sources:
        images = {} if source.scan is None else source.scan.images(inputs)
        for name, path in (*images.items(), *source.maps.items()):
            found.setdefault(f"{source.name} {name}", []).append(path)
    return found


def fingerprints(files: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Return the checksums of the content of the files of each name, with blanks between them."""
    return {name: " ".join(identity(path)[1] for path in paths) for name, paths in files.items()}


def digest(now: Mapping[str, str]) -> str:
    """Return one checksum of the checksums of all files, for a card; the order of the datasets does not count."""
    lines = (f"{name}\t{' '.join(sorted(now[name].split()))}" for name in sorted(now))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def formerly(checksums: str) -> str:
    """Return what versions before 0.22 stored of several files of one name: the checksum of the last."""
    return checksums.rpartition(" ")[2]


def check_finished(folder: Path, now: Mapping[str, str]) -> None:
    """Raise DataError if a finished model was trained on other files.

    Args:
        now: the checksums of the files.
    """
    before = read_card(folder).recipe.get("files", "")  # older cards lack it
    known = digest(now), digest({name: formerly(checksums) for name, checksums in now.items()})
    if before and before not in known:
        raise DataError(
            f"{folder}: participants, images or label maps changed since this model was trained: restore them, or "
            "give --overwrite instead of --resume to train on the present ones"
        )


def check_unchanged(checkpoint: Path, files: Mapping[str, Sequence[Path]], now: Mapping[str, str]) -> None:
    """Raise DataError if files have another content than when a checkpoint, or a finished DFNet, was written.

    Copies of the files count as unchanged. Other participants are found when the checkpoint is read.

    Args:
        files, now: the files by name, and their checksums.
    """
    before = stored(checkpoint)
    shared = {case_of(name) for name in before} & {case_of(name) for name in now}
    changed = [
        " or ".join(map(str, files[name]))
        for name in now
        if case_of(name) in shared and not _equal(before.get(name, ""), now[name])
    ]
    changed += [f"{name}, which is missing" for name in before if case_of(name) in shared and name not in now]
    if changed:
        raise DataError(
            f"{checkpoint}: the data changed since: {listed(changed)}: restore the files, or give "
            "--overwrite instead of --resume to train on the present ones from the beginning"
        )


def _equal(before: str, now: str) -> bool:
    """Return whether checksums of a name are those of the same files, in any order."""
    return sorted(before.split()) == sorted(now.split()) or before == formerly(now)


def case_of(name: str) -> str:
    """Return the case that a name of `files_of` has."""
    return name.rpartition(" ")[0]


def stored(checkpoint: Path) -> dict[str, str]:
    """Return the checksums in a checkpoint or DFNet, by name; empty if it is damaged or from an older version."""
    if checkpoint.suffix != ".safetensors":
        return dict(glimpsed(checkpoint).get("files", {}))
    try:
        with safe_open(checkpoint, "pt") as saved:
            return dict(json.loads(saved.metadata()["files"]))
    except Exception:  # reading the weights reports the reason
        return {}
