"""Metadata beside images and tables: JSON sidecars and data dictionaries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from bidsseg import __version__
from bidsseg.bids.names import parse_name
from bidsseg.derivative.links import bids_uri
from bidsseg.derivative.sidecar_keys import ModelUsed, Sidecar
from bidsseg.models.card import find_card
from bidsseg.reading import NOT_AVAILABLE, object_or_empty

if TYPE_CHECKING:
    from bidsseg.models.card import Card
    from bidsseg.models.lesion_rule import LesionRule
    from bidsseg.registration.align import Images
    from bidsseg.segmentation.result import Segmentation

QUALITY = (
    "Expected mean Dice over the regions of the first protocol of the model, from 0 to 1; if the model is not "
    "calibrated, mean probability of the chosen region in the brain; n/a if the label map was corrected"
)
"""Meaning of the quality of a scan, see ``Segmentation.quality``."""


# -- of images ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """Provenance of an output, identical in all sidecars of a scan.

    Attributes:
        sources: the input images; the grid is that of the first, the T1w. Empty for an image outside of a dataset.
        bids_dir: the dataset that they are in.
        details: further keys, e.g. ``Models`` and ``InputFindings``.
        correction: URI of the label map by which a person has corrected this output; empty for an output of the model.
        lesions: URI of the given mask of the lesions of the scan; empty if the model finds them.
        has_given_lesions: whether this output shows lesions, and they are given.
        is_drawn: whether a person drew this output; None if it is not known.
    """

    sources: Sequence[Path] = ()
    bids_dir: Path = Path()
    details: Sidecar = field(default_factory=Sidecar)
    correction: str = ""
    lesions: str = ""
    has_given_lesions: bool = False
    is_drawn: bool | None = False

    @property
    def uris(self) -> list[str]:
        """The BIDS URIs of the sources, of the given lesions and of the correction."""
        more = [uri for uri in (self.lesions, self.correction) if uri]
        return [*(bids_uri(path, self.bids_dir) for path in self.sources), *more]

    @property
    def manual(self) -> bool:
        """Whether a person has corrected this output."""
        return bool(self.correction)

    @property
    def made(self) -> Sidecar:
        """The entries of a sidecar about who made the labels."""
        drawn = True if self.manual else self.is_drawn
        manual: Sidecar = {} if drawn is None else {"Manual": drawn}
        given: Sidecar = {"LesionsGiven": True} if self.has_given_lesions else {}
        return {**manual, **given}

    def corrected(self, uri: str) -> Origin:
        """Return the origin of an output that is corrected by a file in a derivative dataset, without a confidence."""
        return replace(self.without_quality(), correction=uri, has_given_lesions=False)

    def given(self, *, is_drawn: bool | None) -> Origin:
        """Return the origin of an output that shows lesions that are given."""
        return replace(self, has_given_lesions=True, is_drawn=is_drawn)

    def without_quality(self) -> Origin:
        """Return the origin of an output without a confidence of the model."""
        details = cast(Sidecar, {key: value for key, value in self.details.items() if key != "Quality"})
        return replace(self, details=details)


def image_sidecar(description: str, origin: Origin, own: Sidecar | None = None) -> Sidecar:
    """Return the sidecar of an image, with the keys of its own between those of its origin."""
    uris = origin.uris
    made_from: Sidecar = {"Sources": uris, "SpatialReference": uris[0]} if uris else {}
    return {"Description": description, **made_from, **(own or {}), **origin.details}


def carried_over(image: Path, bids_dir: Path) -> Sidecar:
    """Return what BIDS requires of every image with the entities of the input image: ``Resolution`` for ``res-``.

    The value is that of the nearest JSON file that applies to the image.
    """
    parsed = parse_name(image.name)
    if parsed is None or "res" not in parsed[0]:
        return {}
    for folder in image.parents:
        for file in sorted(folder.glob(f"*{parsed[1]}.json"), key=lambda file: -len(file.name)):
            applies = parse_name(file.name)
            if applies and applies[1] == parsed[1] and applies[0].items() <= parsed[0].items():
                resolution = object_or_empty(file).get("Resolution")
                if resolution and isinstance(resolution, str | dict):
                    return {"Resolution": resolution}
        if folder == bids_dir:
            break
    return {"Resolution": f"same as {image.name}"}


def dseg_sidecar(protocol: str, origin: Origin) -> Sidecar:
    """Return the sidecar of a label map and of its look-up table."""
    text = f"Label map of the {protocol} protocol; the table of the same name lists the regions"
    return image_sidecar(text, origin, origin.made)


def native_sidecar(protocol: str, origin: Origin, *, table: str) -> Sidecar:
    """Return the sidecar of a label map of a comparison of sessions on the grid of a T1w, and of its look-up table.

    Args:
        table: name of the table of the comparison.
    """
    text = (
        f"Label map of the {protocol} protocol on the grid of the T1w, from the comparison of all sessions of the "
        f"participant; the volumes in {table} are counted in the halfway space, not in this label map"
    )
    return image_sidecar(text, origin, origin.made)


def mask_sidecar(kind: Literal["Brain", "Lesion"], origin: Origin) -> Sidecar:
    """Return the sidecar of a brain or lesion mask."""
    text = f"{kind} mask: 1 inside, 0 outside"
    return image_sidecar(text, origin, {"Type": kind, **origin.made})


def lesions_sidecar(origin: Origin) -> Sidecar:
    """Return the sidecar of a map of lesions and of its look-up table."""
    text = "Map of lesions: 1 in the largest, 2 in the second and so on, as in the table with label-lesion"
    return image_sidecar(text, origin, origin.made)


def filled_sidecar(origin: Origin, *, voxels: int, skull_stripped: bool) -> Sidecar:
    """Return the sidecar of a T1w with filled lesions; ``voxels`` is the number of voxels of the lesions."""
    text = "T1w in which lesions have the brightness and noise of the white matter around them"
    return image_sidecar(text, origin, {"SkullStripped": skull_stripped, "FilledVoxels": voxels})


def probseg_sidecar(protocol: str, labels: Sequence[str], origin: Origin) -> Sidecar:
    """Return the sidecar of a 4-D image of probabilities; ``labels`` are the abbreviations of its regions, in order."""
    text = f"Probability (0 to 1) of each region of the {protocol} protocol; fourth axis in the order of LabelMap"
    return image_sidecar(text, origin, {"Manual": False, "LabelMap": list(labels)})


def entropy_sidecar(protocol: str, origin: Origin) -> Sidecar:
    """Return the sidecar of a map of uncertainty."""
    text = (
        f"Uncertainty in the {protocol} protocol: entropy of the probabilities of a voxel, from 0 (certain) to 1 "
        "(all regions equally probable)"
    )
    return image_sidecar(text, origin, {"Manual": False})


def result_details(images: Images, result: Segmentation) -> Sidecar:
    """Return the entries of every sidecar of a scan about its result: quality, machine, notes and findings."""
    quality: Sidecar = {} if math.isnan(result.quality) else {"Quality": round(float(result.quality), 4)}
    return {
        **quality,
        "SoftwareVersion": __version__,
        "Device": result.device,
        "Precision": result.precision,
        "Notes": [*images.notes, *result.notes],
        "InputFindings": [str(finding) for finding in images.findings],
        "ResultFindings": [str(finding) for finding in result.findings],
    }


def provenance(card: Card, checksums: Iterable[str], *, fast: bool, lesions: LesionRule | None) -> Sidecar:
    """Return the entries of a sidecar about what determines a result: model, images, and `choices`.

    Args:
        checksums: of the images that the model reads.
        lesions: which voxels are lesions; None if they are given.
    """
    cards = [card, *([find_card(card.locator)] if card.locator else [])]
    found: Sidecar = {"Models": models_used(cards), "InputFingerprints": list(checksums)}
    return {**found, **choices(card, fast=fast, lesions=lesions)}


def choices(card: Card, *, fast: bool, lesions: LesionRule | None) -> Sidecar:
    """Return the entries of a sidecar about passes, temperatures and rule of lesions, see `provenance`."""
    found: Sidecar = {"Fast": True} if fast else {}
    if card.temperature:
        found["Temperature"] = dict(card.temperature)
    if card.lesion is not None and lesions is not None:
        found["LesionThreshold"] = lesions.recorded_threshold
        found["LeastLesionVolume"], found["LeastLesionPeak"] = lesions.least_mm3, lesions.least_peak
    return found


def models_used(cards: Iterable[Card]) -> list[ModelUsed]:
    """Return the entry ``Models`` of a sidecar, from the cards of a model and of its locator."""
    return [{"Name": card.name, "SHA256": card.sha256} for card in cards]


# -- of tables ---------------------------------------------------------------------------------------------------------

VOLUMES = {
    "index": {"Description": "Value of the region in the label map; n/a for what is no region"},
    "name": {
        "Description": "Name of the region; 'brain mask': brain, ventricles and as much of the fluid around the brain "
        "as the mask contains; 'estimated total intracranial volume': everything inside of the skull"
    },
    "abbreviation": {"Description": "Short name of the region"},
    "voxels": {"Description": "Number of voxels with this value"},
    "volume-mm3": {"Description": "Number of voxels times the volume of a voxel", "Units": "mm^3"},
    "softvolume-mm3": {
        "Description": "Sum of the probabilities of the region over all voxels times the volume of a voxel",
        "Units": "mm^3",
    },
    "expected-dice": {
        "Description": "Dice that the region is expected to have with a manual label map, from the probabilities of "
        "the network; calibrated on scans that it was not trained on"
    },
}
NO_SOFT_VOLUME = {
    "Description": "n/a: the label map was corrected by hand, and a corrected label map has no probabilities",
    "Units": "mm^3",
}


def morph_sidecar(
    protocol: str, origin: Origin, brain: Origin | None = None, *, intracranial: str = NOT_AVAILABLE
) -> dict[str, Any]:
    """Return the data dictionary of the table of volumes of a scan, with its provenance.

    Args:
        origin: origin of the label map.
        brain: origin of the brain mask, if it is another.
        intracranial: how the intracranial volume was estimated, or why it was not.
    """
    text = f"Volumes of the regions of the {protocol} protocol, of the head inside of the skull, and of the brain mask"
    uris = origin.uris
    if brain is not None and brain.manual:
        text += ", which was corrected by hand"
        uris = list(dict.fromkeys([*uris, *brain.uris]))
    corrected = {"Manual": True, **VOLUMES, "softvolume-mm3": NO_SOFT_VOLUME}
    estimate = {"EstimatedTotalIntracranialVolume": intracranial}
    columns = corrected if origin.manual else VOLUMES
    return {"Description": text, "Sources": uris, **estimate, **columns, **origin.details}


def group_sidecar(protocol: str, entities: Iterable[str], regions: Mapping[str, str]) -> dict[str, Any]:
    """Return the data dictionary of the table of a cohort.

    Args:
        entities: columns that identify the scans, e.g. ``participant_id``, ``session_id``, ``run_id``.
        regions: columns of volumes, each with the full name of its region.
    """
    return {
        "Description": f"Volumes in the {protocol} protocol, one row for each scan",
        **{name: {"Description": f"{name.removesuffix('_id')} of the scan"} for name in entities},
        "quality": {"Description": QUALITY},
        "findings": {"Description": "Codes of the findings in the scan and its result; the sidecars explain them"},
        **{
            column: {"LongName": name, "Description": f"Volume of: {name}", "Units": "mm^3"}
            for column, name in regions.items()
        },
    }
