"""A model's card: the only place that says what a model needs at inference. Read without torch."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidsseg.errors import DataError, InputMissing
from bidsseg.reading import read_object

FOLDER = Path(__file__).parent / "shipped"
INPUTS = (("T1w",), ("T1w", "FLAIR"))
"""Images that a model may read; the first places the grid, and the brain is found in it."""
BRAIN, LESION = "brain", "lesion"
"""Heads, and protocols, whose answers are masks and have files of their own."""
CARD, WEIGHTS = "card.json", "weights.safetensors"


@dataclass(frozen=True)
class Card:
    """What a model is, knows and needs.

    Attributes:
        name: letters and digits; the ``desc-`` of its outputs.
        inputs: suffixes of the images it reads, in channel order.
        network: name of the architecture and its options.
        spacing_mm: voxel size of the model grid.
        normalisation: of the brightness on the model grid, a name in ``image.brightness.NORMALISATIONS``.
        locator: name of the model that finds the brain first, None if this one sees the whole field of view.
        margin_mm: around the found brain.
        shown_mm: how far beyond the found brain the network sees; a brain head may widen the brain by so much.
        mirror: whether the mean of the scan and its mirror image is taken.
        pose: of a model that others ask for it: the head that tells how a head lies, and where its regions lie in an
            average brain, see ``image.pose.Reference``. None if it does not tell.
        heads: protocols that the network answers in.
        least_quality: mean confidence (see ``Segmentation.quality``) that scans as those it was trained for reach; None
            if it was not measured.
        bits: of each stored number, 16 or 8.
        lesion: the head that holds lesions, None without.
        metrics: figures with their split, as the validation printed them.
    """

    name: str
    title: str
    inputs: tuple[str, ...]
    network: Mapping[str, Any]
    spacing_mm: float
    heads: tuple[str, ...]
    sha256: str
    normalisation: str = "percentile"
    locator: str | None = None
    margin_mm: float = 6.0
    shown_mm: float = 2.0
    mirror: bool = False
    bits: int = 16
    lesion: str | None = None
    pose: Mapping[str, Any] | None = None
    least_quality: float | None = None
    description: str = ""
    licence: str = "unknown"
    citation: Sequence[str] = ()
    data: Sequence[str] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    code_version: str = ""
    folder: Path = field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        if not (self.name.isascii() and self.name.isalnum()):
            raise DataError(f"model name '{self.name}': letters and digits only, since it becomes desc-{self.name}")
        if self.spacing_mm <= 0 or not self.heads or not self.inputs:
            raise DataError(f"model {self.name}: the card needs a positive spacing_mm, heads and inputs")
        check_inputs(self.inputs, f"model {self.name}")

    @property
    def protocols(self) -> tuple[str, ...]:
        """Protocols written as label maps: the brain mask and lesions have files of their own."""
        return tuple(head for head in self.heads if head not in (BRAIN, LESION))

    @property
    def weights(self) -> Path:
        """The file with the weights."""
        return self.folder / WEIGHTS

    @property
    def size_mb(self) -> float:
        """Size of the weights, millions of bytes."""
        return self.weights.stat().st_size / 1e6

    @property
    def dice(self) -> dict[str, float]:
        """Mean Dice of each head on people held out, in a cross-validation if there was one, as far as it was measured.

        That against annotations in the head's own protocol; without such, the lowest against any other.
        """
        figures = self.metrics.get("cross_validation", self.metrics).get("heads", {})
        measured = {key: float(value["dice"]) for key, value in figures.items()}
        others = {head: [v for key, v in measured.items() if key.startswith(f"{head} (")] for head in self.heads}
        return {
            head: measured[head] if head in measured else min(others[head])
            for head in self.heads
            if head in measured or others[head]
        }

    def lacks(self, suffixes: Container[str]) -> str | None:
        """Return the first input that is not among the suffixes of images; None if all are."""
        return next((suffix for suffix in self.inputs if suffix not in suffixes), None)

    def to_json(self) -> str:
        """The card as it is stored."""
        values = {key: value for key, value in vars(self).items() if key != "folder"}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def check_inputs(inputs: Sequence[str], where: str) -> None:
    """DataError for inputs that no model may read."""
    if tuple(inputs) not in INPUTS:
        raise DataError(f"{where}: inputs must be {' or '.join(json.dumps(known) for known in INPUTS)}")


def shipped() -> list[Card]:
    """Cards of the models in the package, by name."""
    return [read_card(path.parent) for path in sorted(FOLDER.glob(f"*/{CARD}"))]


def find_card(name_or_folder: str) -> Card:
    """The shipped model of that name, or the model in that folder. InputMissing if there is neither."""
    if (FOLDER / name_or_folder / CARD).is_file():
        return read_card(FOLDER / name_or_folder)
    folder = Path(name_or_folder)
    if (folder / CARD).is_file():
        return read_card(folder)
    names = ", ".join(card.name for card in shipped()) or "none"
    raise InputMissing(f"no model '{name_or_folder}': give a folder with a {CARD}, or one of: {names}")


def name_of(name_or_folder: str) -> str:
    """Return the name of a model, also of one that is not there any more."""
    try:
        return find_card(name_or_folder).name
    except InputMissing:
        return Path(name_or_folder).name


def located(name_or_folder: str) -> str:
    """The name of a shipped model, or the folder of another as it is called from everywhere."""
    return name_or_folder if (FOLDER / name_or_folder / CARD).is_file() else str(Path(name_or_folder).absolute())


def read_card(folder: Path) -> Card:
    """The card in a model folder; DataError if it is not one."""
    path = folder / CARD
    try:
        values = read_object(path)
        for key, kind in (("inputs", list), ("heads", list), ("network", dict)):
            if not isinstance(values[key], kind):
                raise TypeError(f"{key} must be a {kind.__name__}")
        values |= {"inputs": tuple(values["inputs"]), "heads": tuple(values["heads"])}
        return Card(**values, folder=folder)
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).removeprefix(f"{path} ")
        raise DataError(f"{path}: not a model card ({reason})") from error
