"""The keys of the JSON sidecars that this program writes beside images, and the functions that read them.

Every key is a field of ``Sidecar``, so that mypy rejects a different spelling where the key is written. Only the
functions of this file read the keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, cast
from urllib.parse import unquote

from bidsseg.bids.names import modality_of
from bidsseg.reading import object_or_empty

TOOL = "bidsseg"
"""Name of this program in ``GeneratedBy``."""


class ModelUsed(TypedDict, total=False):
    """A model that was used, with the name and checksum on its card."""

    Name: str
    SHA256: str


class Sidecar(TypedDict, total=False):
    """The sidecar of an image of a scan.

    In a file that was read, any key may be absent, or have another type if a user has edited the file.

    Attributes:
        Sources: BIDS URIs of the images that the model read, the T1w first; then those of the FLAIR (see
            FlairFingerprint), of the given mask and of the corrected label map.
        SpatialReference: image or template with the grid of this image.
        Type: type of a mask.
        LabelMap: abbreviations of the regions along the fourth axis of probabilities.
        Models: the model, and the model that located the brain for it.
        InputFingerprints: checksums of the sources. A sidecar with this key is a record of this program.
        Manual: whether a person drew or corrected the labels.
        LesionMaskFingerprint: checksum of the given mask of lesions, which were filled before the scan was segmented.
        FlairFingerprint: checksum of the FLAIR that a given mask or correction was drawn on, unless the model reads it.
        LesionsGiven: whether the lesions of this image are those of the given mask.
        FilledVoxels: number of voxels whose brightness was replaced.
        CorrectionFingerprints: checksums of the corrected label maps of the scan, by protocol, ``brain`` or ``lesion``;
            of the table of a comparison, by session and protocol.
        CorrectedSessions: sessions of which a table has corrected label maps or masks of lesions, in a comparison.
        Fast: whether the pass over the mirror image was omitted.
        Temperature: for each head with calibrated probabilities, the number that its logits were divided by.
        LesionThreshold: least probability of a lesion voxel, or ``most probable region``.
        LeastLesionVolume: smallest volume of a lesion (mm³).
        LeastLesionPeak: probability that a voxel of each lesion reaches.
        Anatomy: label map that the places of lesions refer to.
        SkullStripped: whether an image shows the brain alone.
        Years: time of each session since the first, in a comparison of sessions; None where unknown.
        Resolution: resolution of an image whose name has ``res-``.
        OutputSpaces: kind of registration to each template, affine or deformable.
        Quality: see ``Segmentation.quality``, 0 to 1; absent for corrected label maps.
        Notes, InputFindings, ResultFindings: messages for the user; findings begin with their code.
    """

    Description: str
    Sources: list[str]
    SpatialReference: str
    Type: Literal["Brain", "Lesion"]
    Manual: bool
    LabelMap: list[str]
    Models: list[ModelUsed]
    InputFingerprints: list[str]
    CorrectionFingerprints: dict[str, str]
    CorrectedSessions: list[str]
    LesionMaskFingerprint: str
    FlairFingerprint: str
    LesionsGiven: bool
    FilledVoxels: int
    Fast: bool
    Temperature: dict[str, float]
    LesionThreshold: float | str
    LeastLesionVolume: float
    LeastLesionPeak: float
    Anatomy: str
    SkullStripped: bool
    Years: list[float | None]
    Resolution: str | dict[str, Any]
    OutputSpaces: dict[str, str]
    Quality: float
    SoftwareVersion: str
    Device: str
    Precision: str
    Notes: list[str]
    InputFindings: list[str]
    ResultFindings: list[str]


LESION_RULE = ("LesionThreshold", "LeastLesionVolume", "LeastLesionPeak")
"""Keys of the rule that lesions were found by."""
FINDINGS = ("ResultFindings", "InputFindings")
"""Keys whose texts begin with the code of a finding."""
CORRECTIONS = "corrections"
"""Name of the dataset of corrected label maps in BIDS URIs."""
LESIONS = "lesions"
"""Name of the dataset of given masks of lesions in BIDS URIs."""
GIVEN = re.compile(f"bids:({CORRECTIONS}|{LESIONS})[0-9]*:")
"""Beginning of the URIs in these datasets; further folders have a number (``corrections2``)."""
MESSAGES = (*FINDINGS, "Notes")
"""Keys with messages for the user, the most important first."""


def read_sidecar(path: Path) -> Sidecar:
    """Return the content of a sidecar; empty if the file is missing or cannot be read."""
    return cast(Sidecar, object_or_empty(path))


def is_record(sidecar: Sidecar) -> bool:
    """Return whether a sidecar is a record of this program."""
    return "InputFingerprints" in sidecar


def is_fast(sidecar: Sidecar) -> bool:
    """Return whether the pass over the mirror image was omitted."""
    return bool(sidecar.get("Fast"))


def is_manual(sidecar: Sidecar) -> bool:
    """Return whether a person drew or corrected the labels."""
    return bool(sidecar.get("Manual"))


def corrections(sidecar: Sidecar) -> dict[str, str]:
    """Return the checksum of each corrected label map of the scan."""
    found: Any = sidecar.get("CorrectionFingerprints")
    return found if isinstance(found, dict) else {}


def has_correction(sidecar: Sidecar) -> bool:
    """Return whether a label map or mask that was corrected by hand is one of the sources."""
    given = (GIVEN.match(str(uri)) for uri in _list(sidecar.get("Sources")))
    return any(found is not None and found[1] == CORRECTIONS for found in given)


def corrected_sessions(sidecar: Sidecar) -> list[str]:
    """Return the sessions of which a table of a comparison has corrected label maps or masks of lesions."""
    return [str(session) for session in _list(sidecar.get("CorrectedSessions"))]


def lesion_mask(sidecar: Sidecar) -> str:
    """Return the checksum of the given mask of lesions of the scan; empty if none was given."""
    return str(sidecar.get("LesionMaskFingerprint", ""))


def drawn_on(sidecar: Sidecar) -> str:
    """Return the checksum of the FLAIR that what was given of the scan was drawn on; empty if no FLAIR was needed."""
    return str(sidecar.get("FlairFingerprint", ""))


def has_given_lesions(sidecar: Sidecar) -> bool:
    """Return whether the lesions of an image or table are given, and not found by the model."""
    return bool(sidecar.get("LesionsGiven"))


def sources(sidecar: Sidecar) -> list[str]:
    """Return the BIDS URIs of the images that the model read, the T1w first."""
    uris = [str(uri) for uri in _list(sidecar.get("Sources"))]
    images = [uri for uri in uris if not GIVEN.match(uri)]
    return images[:-1] if drawn_on(sidecar) else images


def source_paths(sidecar: Sidecar) -> list[Path]:
    """Return the paths of these images below their dataset."""
    return [Path(unquote(uri.split(":", 2)[-1])) for uri in sources(sidecar)]


def modality(sidecar: Sidecar) -> str:
    """Return the modality of the image that was segmented; empty if it is not recorded."""
    return next((modality_of(path) for path in source_paths(sidecar)), "")


def fingerprints(sidecar: Sidecar) -> list[str]:
    """Return the checksums of the images that the model read, in the order of the sources."""
    return [str(checksum) for checksum in _list(sidecar.get("InputFingerprints"))]


def models(sidecar: Sidecar) -> list[ModelUsed]:
    """Return the model and the model that located the brain for it, without entries that have no name."""
    found: list[Any] = _list(sidecar.get("Models"))
    return [cast(ModelUsed, model) for model in found if isinstance(model, dict) and "Name" in model]


def is_of_model(sidecar: Sidecar, name: str) -> bool:
    """Return whether the first model of an output is that of a name."""
    return [model["Name"] for model in models(sidecar)[:1]] == [name]


def weights(sidecar: Sidecar) -> str:
    """Return the checksum of the weights of the model, the first of an output; empty if it is not recorded."""
    return next((str(model.get("SHA256", "")) for model in models(sidecar)), "")


def output_spaces(sidecar: Sidecar) -> dict[str, str]:
    """Return the kind of registration to each template."""
    spaces: Any = sidecar.get("OutputSpaces")
    return spaces if isinstance(spaces, dict) else {}


def software_version(sidecar: Sidecar, unknown: str) -> str:
    """Return the version of the program that wrote a sidecar, or ``unknown`` if it is not recorded."""
    return sidecar.get("SoftwareVersion", unknown)


def quality(sidecar: Sidecar) -> float | None:
    """Return the quality, 0 to 1, see ``Segmentation.quality``; None if it is not recorded."""
    value: Any = sidecar.get("Quality")
    return float(value) if isinstance(value, int | float) else None


def finding_codes(sidecar: Sidecar) -> list[str]:
    """Return the codes of the findings in a scan and its result, those of the result first."""
    return list(dict.fromkeys(text.partition(":")[0] for text in messages(sidecar, FINDINGS)))


def messages(sidecar: Sidecar, keys: Sequence[str] = MESSAGES) -> list[str]:
    """Return the messages for the user under these keys."""
    return [str(text) for key in keys for text in _list(sidecar.get(key))]


def _list(value: object) -> list[Any]:
    """Return a value of a file if it is a list, otherwise an empty list."""
    return value if isinstance(value, list) else []
