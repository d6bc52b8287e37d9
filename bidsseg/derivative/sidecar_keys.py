"""The keys of the JSON sidecars that this program writes beside images, and how they are read again.

A new key is a field of ``Sidecar``, so that mypy refuses another spelling where it is written. It is read by a function
of this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from bidsseg.reading import object_or_empty


class ModelUsed(TypedDict, total=False):
    Name: str
    SHA256: str


"""A model on record, by its card."""


class Sidecar(TypedDict, total=False):
    """The sidecar of an image of a scan.

    Read from a file, any key may be absent, or be of another type where a user has edited the file.

    Attributes:
        Sources: BIDS URIs of the images that the model read, the T1w first.
        SpatialReference: image or template whose grid it has.
        Type: of a mask.
        LabelMap: abbreviations of the regions along the fourth axis of probabilities.
        Models: the model, and the one that found the brain for it.
        InputFingerprints: of the sources. A sidecar with this key is a record of this program.
        Fast: whether the pass over the mirror image was left out.
        Resolution: of an image whose name has ``res-``.
        OutputSpaces: for each template how it was reached, affine or deformable.
        Quality: mean confidence of the network in the brain, 0 to 1.
        Notes, InputFindings, ResultFindings: what a user should know; findings begin with their code.
    """

    Description: str
    Sources: list[str]
    SpatialReference: str
    Type: Literal["Brain", "Lesion"]
    Manual: bool
    LabelMap: list[str]
    Models: list[ModelUsed]
    InputFingerprints: list[str]
    Fast: bool
    Resolution: str | dict[str, Any]
    OutputSpaces: dict[str, str]
    Quality: float
    SoftwareVersion: str
    Device: str
    Precision: str
    Notes: list[str]
    InputFindings: list[str]
    ResultFindings: list[str]


FINDINGS = ("ResultFindings", "InputFindings")
"""Keys whose texts begin with the code of a finding."""
MESSAGES = (*FINDINGS, "Notes")
"""Keys with what a user should know first."""


def read_sidecar(path: Path) -> Sidecar:
    """Return the content of a sidecar; empty if there is none that can be read."""
    return cast(Sidecar, object_or_empty(path))


def is_record(sidecar: Sidecar) -> bool:
    """Return whether a sidecar is a record of this program."""
    return "InputFingerprints" in sidecar


def is_fast(sidecar: Sidecar) -> bool:
    """Return whether the pass over the mirror image was left out."""
    return bool(sidecar.get("Fast"))


def sources(sidecar: Sidecar) -> list[str]:
    """Return the BIDS URIs of the images that the model read, the T1w first."""
    return [str(uri) for uri in _list(sidecar.get("Sources"))]


def fingerprints(sidecar: Sidecar) -> list[str]:
    """Return the checksums of the sources."""
    return [str(checksum) for checksum in _list(sidecar.get("InputFingerprints"))]


def models(sidecar: Sidecar) -> list[ModelUsed]:
    """Return the model, and the one that found the brain for it, as far as they have names."""
    found: list[Any] = _list(sidecar.get("Models"))
    return [cast(ModelUsed, model) for model in found if isinstance(model, dict) and "Name" in model]


def output_spaces(sidecar: Sidecar) -> dict[str, str]:
    """Return for each template how it was reached."""
    spaces: Any = sidecar.get("OutputSpaces")
    return spaces if isinstance(spaces, dict) else {}


def software_version(sidecar: Sidecar, unknown: str) -> str:
    """Return the version that wrote a sidecar, or another text if it does not tell."""
    return sidecar.get("SoftwareVersion", unknown)


def quality(sidecar: Sidecar) -> float | None:
    """Return the mean confidence of the network in the brain, 0 to 1, if it is told."""
    value: Any = sidecar.get("Quality")
    return float(value) if isinstance(value, int | float) else None


def messages(sidecar: Sidecar, keys: Sequence[str] = MESSAGES) -> list[str]:
    """Return what a user should know, or what some of these keys say."""
    return [str(text) for key in keys for text in _list(sidecar.get(key))]


def _list(value: object) -> list[Any]:
    """Return a list of a file, empty where it is something else."""
    return value if isinstance(value, list) else []
