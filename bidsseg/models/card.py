"""The card of a model, the only place that defines what a model needs at inference. It is read without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Len

from bidsseg.arguments import absolute
from bidsseg.bids.names import modality as modality_named
from bidsseg.errors import DataError, InputMissing
from bidsseg.models.lesion_rule import LesionRule
from bidsseg.models.participants import with_others
from bidsseg.reading import read_object
from bidsseg.schema import NonNegativeFloat, PositiveFloat, Rule, Share, converted, nearest

if TYPE_CHECKING:
    from bidsseg.labels.protocol import Protocol

FOLDER = Path(__file__).parent / "shipped"
INPUTS = (("T1w",), ("T1w", "FLAIR"))
"""Images that a model may read; the first one defines the grid and is used to locate the brain."""
ANY = "any"
"""Modality of a model that reads images of any contrast."""
BRAIN, LESION = "brain", "lesion"
"""Heads, and protocols, whose results are masks with their own files."""
CARD, WEIGHTS = "card.json", "weights.safetensors"

ModelName = Annotated[
    str, Rule("letters and digits only, for desc- in file names", lambda name: name.isascii() and name.isalnum())
]
KNOWN_INPUTS = Rule('["T1w"] or ["T1w", "FLAIR"]', lambda given: tuple(given) in INPUTS)
Inputs = Annotated[Sequence[str], KNOWN_INPUTS]


def selected(modality: str) -> str:
    """Return the suffix of the images that a model with a modality reads unless the user selects others."""
    return "T1w" if modality == ANY else modality


def has_dice(metrics: Mapping[str, Any]) -> bool:
    """Return whether metrics contain the Dice of each head that they name."""
    tables = [metrics, metrics.get("cross_validation", {})]
    if not all(isinstance(table, dict) and isinstance(table.get("heads", {}), dict) for table in tables):
        return False
    figures = [figure for table in tables for figure in table.get("heads", {}).values()]
    dice = [figure.get("dice", "") if isinstance(figure, dict) else "" for figure in figures]
    known = [value for value in dice if value is not None]  # null where none is known; nan in older cards
    numbers = [value for value in known if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) == len(known) and not any(value < 0 or value > 1 for value in numbers)


def without_nan(value: Any) -> Any:
    """Return a value with None for every number that JSON lacks: nan and infinity."""
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_pose(values: Mapping[str, Any]) -> bool:
    """Return whether values have the form of ``image.pose.Reference.to_card``: positions (mm) and volumes (mm³)."""
    regions, half = values.get("regions"), values.get("half_mm")
    if values.keys() != {"head", "half_mm", "regions"} or not (isinstance(regions, dict) and regions):
        return False
    rows = [(half, 3), *((row, 4) for row in regions.values())]
    numbers = [row for row, length in rows if isinstance(row, list) and len(row) == length]
    finite = all(type(value) in (int, float) and math.isfinite(value) for row in numbers for value in row)
    indices = all(index.isascii() and index.isdigit() for index in regions)
    sizes = len(numbers) == len(rows) and finite and min([*numbers[0], *(row[-1] for row in numbers[1:])]) > 0
    return isinstance(values["head"], str) and indices and sizes


@dataclass(frozen=True)
class Card:
    """The description of a model and of what it needs at inference.

    Attributes:
        name: letters and digits; the ``desc-`` of its outputs.
        inputs: suffixes of the images it reads, in channel order.
        modality: suffix of the images that it read as T1w in training; ANY if these had random contrasts.
        network: name of the architecture and its options.
        spacing_mm: voxel size of the model grid.
        normalisation: normalisation of intensities on the model grid, a name in ``image.brightness.NORMALISATIONS``.
        locator: name of the model that first finds the brain; None if this model sees the whole field of view.
        margin_mm: margin around the located brain.
        shown_mm: distance beyond the located brain that the network sees; a brain head may widen the brain by as much.
        mirror: whether the predictions for the scan and its mirror image are averaged.
        pose: for a model that estimates the pose of a head: the network head used for this, and the positions of its
            regions in an average brain, see ``image.pose.Reference``. None for other models.
        heads: protocols that the network predicts.
        temperature: for each head with calibrated probabilities, the number that its logits are divided by
            (Guo et al. 2017, arXiv 1706.04599).
        expected_dice: for each calibrated head, the offset and slope that map the estimate of the Dice of a region to
            its Dice on held-out scans, see ``segmentation.expected_dice``.
        expected_dice_by_region: for each such head, how far the log odds of the Dice of single regions lie above this
            map, by the name of the region.
        least_quality: quality (see ``Segmentation.quality``) that typical scans reach; None if it was not measured.
        bits: bits of each stored weight, 16 or 8.
        mask_reaches_skull: whether the brain mask contains all fluid around the brain, so that its volume in a scan of
            a whole head is the intracranial volume.
        lesion: the head with lesions, None if there is none.
        lesion_threshold: least probability of a lesion voxel, unless the user gives another; None where a lesion is the
            most probable region.
        least_lesion_mm3: smallest volume of a lesion (mm³), unless the user gives another.
        least_lesion_peak: probability that a voxel of each lesion reaches, unless the user gives another.
        trained_on: labels of the training participants of each dataset, also of the initial model, see
            ``models.participants.shortened``; empty for older models.
        metrics: results with their split, as the validation printed them.
    """

    name: ModelName
    title: str
    inputs: Annotated[tuple[str, ...], KNOWN_INPUTS]
    network: Mapping[str, Any]
    spacing_mm: PositiveFloat
    heads: Annotated[tuple[str, ...], Len(1)]
    sha256: str
    modality: str = "T1w"
    normalisation: str = "percentile"
    locator: str | None = None
    margin_mm: NonNegativeFloat = 6.0
    shown_mm: NonNegativeFloat = 2.0
    mirror: bool = False
    bits: Literal[8, 16] = 16
    mask_reaches_skull: bool = False
    lesion: str | None = None
    lesion_threshold: Share | None = None
    least_lesion_mm3: NonNegativeFloat = 0.0
    least_lesion_peak: Share = 0.0
    pose: Annotated[Mapping[str, Any], Rule("head, half_mm and regions as train writes them", is_pose)] | None = None
    temperature: Mapping[str, PositiveFloat] = field(default_factory=dict)
    expected_dice: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    expected_dice_by_region: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    least_quality: Share | None = None
    description: str = ""
    licence: str = "unknown"
    citation: Sequence[str] = ()
    data: Sequence[str] = ()
    trained_on: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Annotated[Mapping[str, Any], Rule("figures with the dice of each head", has_dice)] = field(
        default_factory=dict
    )
    code_version: str = ""
    folder: Path = field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        for key, head in (("lesion", self.lesion), ("pose.head", self.pose["head"] if self.pose else None)):
            if head is not None and head not in self.heads:
                raise ValueError(f"{key} = {head!r}, which is not one of the heads")

    @property
    def protocols(self) -> tuple[str, ...]:
        """Protocols written as label maps, without the brain mask and lesions, which have their own files."""
        return tuple(head for head in self.heads if head not in (BRAIN, LESION))

    @property
    def needs(self) -> str:
        """The images that it reads, in words, such as "T1w + FLAIR"."""
        return " + ".join(["image of any contrast" if self.modality == ANY else self.modality, *self.inputs[1:]])

    @property
    def suffix(self) -> str:
        """Suffix of the images that take the place of the T1w unless the user selects others."""
        return selected(self.modality)

    def reads(self, suffix: str) -> bool:
        """Return whether the model was trained for images with a suffix in the place of the T1w."""
        return self.modality == ANY or modality_named(suffix) == modality_named(self.modality)

    @property
    def weights(self) -> Path:
        """The file with the weights."""
        return self.folder / WEIGHTS

    @property
    def size_mb(self) -> float:
        """Size of the weights (MB)."""
        return self.weights.stat().st_size / 1e6

    @property
    def dice(self) -> dict[str, float]:
        """Mean Dice of each measured head on held-out participants, from cross-validation if there was one.

        It is the Dice against annotations in the head's own protocol, or the lowest Dice against other annotations.
        """
        figures = self.metrics.get("cross_validation", self.metrics).get("heads", {})
        measured = {key: float(value["dice"]) for key, value in figures.items() if value["dice"] is not None}
        others = {head: [v for key, v in measured.items() if key.startswith(f"{head} (")] for head in self.heads}
        return {
            head: measured[head] if head in measured else min(others[head])
            for head in self.heads
            if head in measured or others[head]
        }

    @property
    def unlisted(self) -> set[str]:
        """Datasets of which participants that the model was trained on are not listed: all of an older model."""
        return with_others(self.trained_on) if self.trained_on else {entry.partition(":")[0] for entry in self.data}

    def lesion_rule(
        self, threshold: float | None = None, least_mm3: float | None = None, least_peak: float | None = None
    ) -> LesionRule:
        """Return which voxels are lesions: the values of the user where given, otherwise those of the card."""
        return LesionRule(
            self.lesion_threshold if threshold is None else float(threshold),
            self.least_lesion_mm3 if least_mm3 is None else float(least_mm3),
            self.least_lesion_peak if least_peak is None else float(least_peak),
        )

    def lacks(self, suffixes: Container[str]) -> str | None:
        """Return the first input that is not among the suffixes of images; None if all are."""
        return next((suffix for suffix in self.inputs if suffix not in suffixes), None)

    def to_json(self) -> str:
        """Return the content of the card file."""
        values = {key: without_nan(value) for key, value in vars(self).items() if key != "folder"}
        return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def shipped() -> list[Card]:
    """Return the cards of the models in the package, sorted by name."""
    return [read_card(path.parent) for path in sorted(FOLDER.glob(f"*/{CARD}"))]


def find_card(name_or_folder: str) -> Card:
    """Return the card of the shipped model of that name, or of the model in that folder.

    Raises:
        InputMissing: there is no such model.
        DataError: with file and key, if the file is not a card, or if a head has no protocol.
    """
    for folder in (FOLDER / name_or_folder, Path(name_or_folder)):
        if (folder / CARD).is_file():
            return _with_protocols(read_card(folder))
    if inside := [str(path.parent) for path in sorted(Path(name_or_folder).glob(f"models/*/{CARD}"))]:
        raise InputMissing(f"'{name_or_folder}' is no model, but contains models: give {' or '.join(inside)}")
    names = [card.name for card in shipped()]
    hints = (nearest(Path(name_or_folder).name, names), f"give a folder with a {CARD}, or one of: {', '.join(names)}")
    raise InputMissing(f"no model '{name_or_folder}': {' Or '.join(filter(None, hints))}")


def name_of(name_or_folder: str) -> str:
    """Return the name of a model, also of one that no longer exists."""
    try:
        return find_card(name_or_folder).name
    except InputMissing:
        return Path(name_or_folder).name


def located(name_or_folder: str) -> str:
    """Return the name of a shipped model, or the absolute path of another model."""
    return name_or_folder if (FOLDER / name_or_folder / CARD).is_file() else str(absolute(name_or_folder))


def read_card(folder: Path) -> Card:
    """Return the card in a model folder.

    Raises:
        DataError: with file and key, if the file is not a card.
    """
    path = folder / CARD
    try:
        values = read_object(path)
    except DataError as error:
        raise DataError(f"{path}: not a model card ({str(error).removeprefix(f'{path} ')})") from error
    return replace(converted(Card, values, path), folder=folder)


def _with_protocols(card: Card) -> Card:
    """Return a card; DataError if a head has no protocol."""
    for head in card.heads:
        try:
            head_protocol(card, head)
        except DataError as error:
            raise DataError(f"{card.folder / CARD}: heads: {error}") from error
    return card


def head_protocol(card: Card, name: str) -> Protocol:
    """Return the scored regions of a head, from the table in the model's folder or from the shipped protocol."""
    return _complete_protocol(card, name).scored()


def protocol_with_lesions(card: Card, name: str) -> Protocol:
    """Return the regions of a head and, if lesions are not among them, the lesion region of its complete protocol.

    Of several such regions, it is the first that is on no side, such as the white matter hypointensities of
    FreeSurfer. A protocol without lesions is returned as it is.
    """
    whole, head = _complete_protocol(card, name), head_protocol(card, name)
    sides = dict(zip(whole.indices, whole.hemispheres, strict=True))
    lesions = sorted(whole.lesions, key=lambda index: sides[index] != "")
    if head.lesions or not lesions:
        return head
    regions = sorted([*head.regions, whole.region(lesions[0])], key=lambda region: region.index)
    return replace(head, regions=tuple(regions))


def written_protocols(card: Card, *, given_lesions: bool) -> dict[str, Protocol]:
    """Return the protocol of each label map: the regions of the head and, with given lesions, the lesion region."""
    of = protocol_with_lesions if given_lesions else head_protocol
    return {name: of(card, name) for name in card.protocols}


def _complete_protocol(card: Card, name: str) -> Protocol:
    """Return the protocol of a head, also with regions that it does not predict."""
    from bidsseg.labels.protocol import load_protocol

    own = card.folder / table_name(name)
    return load_protocol(str(own) if own.is_file() else name)


def table_name(head: str) -> str:
    """Return the name of the table of a head's regions in a model's folder, for protocols that are not shipped."""
    return f"seg-{head}_dseg.tsv"
