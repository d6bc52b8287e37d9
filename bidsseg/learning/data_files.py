"""The images and label maps of a training, which must not change before it is resumed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open

from bidsseg.errors import DataError, listed
from bidsseg.learning.case_reading import Source
from bidsseg.learning.prepared import identity
from bidsseg.learning.state import glimpsed
from bidsseg.models.card import read_card


def files_of(sources: Iterable[Source], inputs: Sequence[str]) -> dict[str, Path]:
    """Return the files of a training under names that do not depend on the place of the datasets.

    A name has the case, and the protocol of a label map or the suffix of an image: ``dataset/sub-01 BrainCOLOR``. Cases
    of one name, from datasets in folders of one name, are numbered.
    """
    found: dict[str, Path] = {}
    names = Counter[str]()
    for source in sources:
        names[source.name] += 1
        case = source.name if names[source.name] == 1 else f"{source.name} ({names[source.name]})"
        images = {} if source.scan is None else source.scan.images(inputs)
        found |= {f"{case} {name}": path for name, path in (*images.items(), *source.maps.items())}
    return found


def fingerprints(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the checksum of the content of each file."""
    return {name: identity(path)[1] for name, path in files.items()}


def digest(now: Mapping[str, str]) -> str:
    """Return one checksum of the checksums of all files, for a card."""
    return hashlib.sha256("\n".join(f"{name}\t{now[name]}" for name in sorted(now)).encode()).hexdigest()


def check_finished(folder: Path, now: Mapping[str, str]) -> None:
    """Raise DataError if a finished model was trained on other files.

    Args:
        now: the checksums of the files.
    """
    before = read_card(folder).recipe.get("files", "")  # older cards lack it
    if before and before != digest(now):
        raise DataError(
            f"{folder}: participants, images or label maps changed since this model was trained: restore them, or "
            "give --overwrite instead of --resume to train on the present ones"
        )


def check_unchanged(checkpoint: Path, files: Mapping[str, Path], now: Mapping[str, str]) -> None:
    """Raise DataError if files have another content than when a checkpoint, or a finished DFNet, was written.

    Copies of the files count as unchanged. Other participants are found when the checkpoint is read.

    Args:
        files, now: the files by name, and their checksums.
    """
    before = stored(checkpoint)
    shared = {case_of(name) for name in before} & {case_of(name) for name in now}
    changed = [str(files[name]) for name in now if case_of(name) in shared and before.get(name) != now[name]]
    changed += [f"{name}, which is missing" for name in before if case_of(name) in shared and name not in now]
    if changed:
        raise DataError(
            f"{checkpoint}: the data changed since: {listed(changed)}: restore the files, or give "
            "--overwrite instead of --resume to train on the present ones from the beginning"
        )


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
