"""Parsing and building of file names. Entities and their order are data, in ``names.toml``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from bidsseg.errors import UsageError

LABEL = re.compile(r"[0-9a-zA-Z+]+")
IMAGE_EXTENSIONS = (".nii", ".nii.gz")
ANATOMICAL = ("T1w", "UNIT1", "T2w", "PDw", "FLAIR", "T2starw")
"""Suffixes of images that show the anatomy of the whole head."""
OTHER_SUFFIXES = (
    "inplaneT1", "inplaneT2", "PDT2", "angio", "PD", "T2star", "FLASH", "MP2RAGE", "MEGRE", "MESE", "VFA", "IRT1",
    "MPM", "MTS", "MTR", "T1map", "T2map", "T2starmap", "R1map", "R2map", "R2starmap", "PDmap", "PDT2map", "MTRmap",
    "MTsat", "MTVmap", "MWFmap", "T1rho", "Chimap", "M0map", "S0map",
)  # fmt: skip
"""Other suffixes of BIDS in the folder anat."""
T1W_LIKE = ("T1w", "UNIT1")
"""Those of the contrast of a T1w."""


def modality(suffix: str) -> str:
    """Return the suffix that stands for a contrast: T1w for a UNIT1.

    >>> modality("UNIT1"), modality("T2w")
    ('T1w', 'T2w')
    """
    return "T1w" if suffix in T1W_LIKE else suffix


@cache
def _long_names() -> dict[str, str]:
    """Return the pybids names of entities by their short form, in BIDS order."""
    return dict(tomllib.loads(Path(__file__).with_name("names.toml").read_text(encoding="utf-8"))["entities"])


@cache
def _order() -> dict[str, tuple[str, float]]:
    """Return short name and rank of every entity by its pybids name."""
    return {long: (short, rank) for rank, (short, long) in enumerate(_long_names().items())}


def entity_names() -> list[str]:
    """Return the pybids names of the entities of file names, in BIDS order."""
    return list(_order())


def parse_name(name: str) -> tuple[dict[str, str], str, str] | None:
    """Return entities (pybids names), suffix and extension of a file name; None if it is not a BIDS name.

    Labels are kept unchanged: ``run-01`` stays ``01``. Entities unknown to BIDS keep their short name.

    >>> parse_name("sub-01_acq-mprage_run-02_T1w.nii.gz")
    ({'subject': '01', 'acquisition': 'mprage', 'run': '02'}, 'T1w', '.nii.gz')
    """
    stem, dot, extension = name.partition(".")
    *pairs, suffix = stem.split("_")
    entities: dict[str, str] = {}
    for pair in pairs:
        short, hyphen, label = pair.partition("-")
        long = _long_names().get(short, short)
        if not (short.isalnum() and hyphen and LABEL.fullmatch(label)) or long in entities:
            return None
        entities[long] = label
    if not suffix.isalnum():
        return None
    return entities, suffix, dot + extension


def sort_entities(entities: Mapping[str, str]) -> dict[str, str]:
    """Return the entities in the order of the BIDS schema; unknown ones come before ``space``, sorted by name."""
    unknown = _order()["space"][1] - 0.5
    return dict(sorted(entities.items(), key=lambda item: (_order().get(item[0], ("", unknown))[1], item[0])))


def in_order(names: Iterable[str]) -> list[str]:
    """Return each of these entities once, in the order of `sort_entities`."""
    return list(sort_entities(dict.fromkeys(names, "")))


def build_name(entities: Mapping[str, str], suffix: str = "", extension: str = "") -> str:
    """Return the file name with the entities in the order of the BIDS schema.

    >>> build_name({"desc": "wholebrain", "subject": "01", "segmentation": "FAST"}, "dseg", ".nii.gz")
    'sub-01_seg-FAST_desc-wholebrain_dseg.nii.gz'
    """
    pairs = []
    for long, label in sort_entities(entities).items():
        short, _ = _order().get(long, (long, 0))
        if not LABEL.fullmatch(label):
            raise UsageError(f"'{label}' cannot be a BIDS label: only letters, digits and + are allowed in '{short}-'")
        pairs.append(f"{short}-{label}")
    return "_".join([*pairs, suffix] if suffix else pairs) + extension


def natural(name: str) -> list[list[tuple[int, str]]]:
    """Return a sorting key of names: entity by entity, run-2 before run-10, and run-01 apart from run-1.

    >>> sorted(["sub-10", "sub-1_run-2", "sub-01_run-1", "sub-1_run-1", "sub-2"], key=natural)
    ['sub-01_run-1', 'sub-1_run-1', 'sub-1_run-2', 'sub-2', 'sub-10']
    """
    parts = (re.split(r"(\d+)", entity) for entity in name.split("_"))
    return [[(int(part) if part.isdigit() else -1, part) for part in entity] for entity in parts]


def number(label: str | None) -> int | str | None:
    """Return the number that a label is, or the label.

    >>> number("01"), number("a1"), number(None)
    (1, 'a1', None)
    """
    return int(label) if label and label.isdigit() else label


def unpadded(key: str) -> str:
    """Return a key or name without zeros before the number of the run, as programs such as fMRIPrep write it.

    >>> unpadded("sub-01_run-01_desc-x"), unpadded("sub-01_run-10")
    ('sub-01_run-1_desc-x', 'sub-01_run-10')
    """
    return re.sub(r"(?<=_run-)0+(?=[0-9])", "", key)


def entity_column(entity: str) -> str:
    """Return the name of an entity's column in a table: as BIDS has it for participants and sessions; others follow.

    >>> entity_column("subject"), entity_column("session"), entity_column("run")
    ('participant_id', 'session_id', 'run_id')
    """
    return "participant_id" if entity == "subject" else f"{entity}_id"


def entity_cells(source: Mapping[str, str]) -> dict[str, str]:
    """Return the cells that identify a scan in a table, by column: ``{"participant_id": "sub-01"}``."""
    return {entity_column(name): build_name({name: label}) for name, label in source.items()}


def with_extension(path: Path, extension: str) -> Path:
    """Return the path with another extension: ``with_extension(dseg, '.json')`` is its sidecar."""
    return path.with_name(path.name.partition(".")[0] + extension)


def as_label(text: str) -> str:
    """Return the letters and digits of a text, for use as a label in a file name."""
    return re.sub("[^0-9a-zA-Z]", "", text)


def suffix_of(image: Path) -> str:
    """Return the suffix of an image of a participant; empty for a name that is no BIDS name.

    >>> suffix_of(Path("sub-01_T1w.nii.gz")), suffix_of(Path("scan.nii.gz"))
    ('T1w', '')
    """
    parsed = parse_name(image.name)
    return parsed[1] if parsed is not None and "subject" in parsed[0] else ""


def modality_of(image: Path) -> str:
    """Return the modality of an image; T1w for a name that is no BIDS name.

    >>> [modality_of(Path(f"{name}.nii")) for name in ("sub-1_T2w", "sub-1_UNIT1", "my_T2w_scan", "sub-1_MPRAGE")]
    ['T2w', 'T1w', 'T1w', 'T1w']
    """
    suffix = suffix_of(image)
    return modality(suffix) if suffix in ANATOMICAL + OTHER_SUFFIXES else "T1w"
