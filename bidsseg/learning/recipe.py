"""Recipes: small TOML files that define how a model is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Len

from bidsseg.errors import DataError
from bidsseg.image.brightness import NORMALISATIONS
from bidsseg.labels import load_protocol
from bidsseg.learning.augment import Intensity, Spatial
from bidsseg.learning.cases import Sampling, View
from bidsseg.learning.losses import Loss
from bidsseg.learning.optimiser import Optimiser, Readout
from bidsseg.learning.registration import Registration
from bidsseg.learning.synthesis import contrasts_of
from bidsseg.models.card import Card, Inputs, ModelName
from bidsseg.models.library import check_network
from bidsseg.reading import read_toml
from bidsseg.schema import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    ShareBelowOne,
    converted,
    one_of,
)

FOLDER = Path(__file__).parent / "recipes"
DESCRIBING = ("title", "description", "licence", "citation")
"""Keys that describe the model of a recipe, which a user's recipe does not inherit from its base."""


@dataclass(frozen=True)
class Voxels:
    """The training of SegNet, voxel by voxel (arXiv 1502.02445, section 4).

    Attributes:
        per_scan: number of training voxels of each scan.
        validation: number of validation voxels of each scan, on which the error is measured after each epoch; they are
            excluded from training, except in augmented scans.
        fresh: whether each epoch draws new voxels instead of using the same ones again.
        augmented: whether each epoch draws voxels from brains that are changed again as ``spatial`` and ``intensity``
            define; the paper uses the unchanged brains.
        batch: number of voxels in a step.
        rate, momentum: learning rate and momentum of the gradient descent.
        halve_at: epochs at which the rate is halved.
        adam: whether Adam replaces gradient descent; its rate falls to 0 along half a cosine.
        warm: whether the second network starts from the weights of the first, so that only the weights of the distances
            are initialised randomly.
        epochs: maximum number of epochs.
        patience: epochs to wait for an error that is at least 1 % lower.
    """

    per_scan: PositiveInt = 20_000
    validation: PositiveInt = 2667
    fresh: bool = False
    augmented: bool = False
    batch: PositiveInt = 200
    rate: PositiveFloat = 0.05
    momentum: ShareBelowOne = 0.5
    halve_at: tuple[NonNegativeInt, ...] = (40, 60, 80)
    adam: bool = False
    warm: bool = False
    epochs: PositiveInt = 300
    patience: PositiveInt = 10


@dataclass(frozen=True)
class Coarse:
    """The first steps of a run, on a coarser grid, where a step is quicker.

    Attributes:
        steps: number of these steps; a run that its time budget ends spends the same share of its time on them.
        spacing_mm: voxel size of the coarser grid.
        shape, points: shape of a sample and number of its points, as in Sampling.
    """

    steps: NonNegativeInt
    spacing_mm: PositiveFloat
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    points: NonNegativeInt


@dataclass(frozen=True)
class Recipe:
    """The definition of a model and its training.

    Attributes:
        name: name of the model, letters and digits; the ``desc-`` of its outputs.
        title: one line about the model, for its card.
        heads: protocol of each head and the weight of its loss.
        network: ``name`` of the architecture, and the options of its class.
        inputs: suffixes of the images that the network reads, in channel order, the T1w first.
        modality: suffix of the images that are read as T1w, unless the user gives another; ANY if they are synthesised
            in random contrasts.
        sampling: size and content of a sample.
        spacing_mm: voxel size of the model grid.
        normalisation: normalisation of the intensities on the model grid, a name in ``image.brightness``.
        mirror: whether the finished model averages the predictions for a scan and its mirror image.
        description: a sentence about the model, for its card and its outputs.
        licence: licence of the weights, for the card.
        citation: publications to cite, for the card.
        voxels: training of a network such as SegNet, voxel by voxel instead of by samples.
        locator: the model that finds the brain for the finished model; without one, or with "", it sees the whole scan.
        shown_mm: distance beyond the located brain that the finished model sees.
        pose_head: the protocol whose regions give the pose of the head, for a model that finds the brain for others.
        bits: bits of each stored weight of the finished model: 16, or 8 for a model that would be too large.
        fading: heads whose weight falls to 0 during the run.
        synthetic_share: share of the samples that are synthesised from a label map without image.
        steps: number of steps; a run ends earlier when its time budget is used up.
        coarse: first steps on a coarser grid than that of the finished model, if any; not with registration.
        batch: number of samples in each step, which several processes share.
        statistics: number of image samples from which batch normalisations recompute their means and variances for the
            final weights; with 0 they keep the running ones, which include synthesised samples.
        keep: weights of the finished model: the last, or the best on every fifth participant of each kind of annotation
            that is not held out, by the mean of the Dice of all kinds; these participants are then excluded from
            training.
        balanced: whether scans with different kinds of annotation alternate, sample by sample; otherwise every case is
            drawn equally often.
        spatial: spatial augmentation of samples.
        intensity: intensity augmentation of samples.
        loss: the loss and the weights of its terms.
        optimiser: learning rates and their schedule.
        readout: training of the last layers alone, for heads that the initial model lacks.
        registration: registration of samples to unlabelled scans, if any.
    """

    name: ModelName
    title: str
    heads: Annotated[Mapping[str, NonNegativeFloat], Len(1)]
    network: Mapping[str, Any]
    inputs: Inputs = ("T1w",)
    modality: str = "T1w"
    sampling: Sampling = field(default_factory=lambda: Sampling((128, 128, 128)))
    voxels: Voxels | None = None
    spacing_mm: PositiveFloat = 1.0
    normalisation: Annotated[str, one_of(NORMALISATIONS)] = "percentile"
    locator: str | None = None
    shown_mm: NonNegativeFloat = 2.0
    mirror: bool = False
    pose_head: str | None = None
    bits: Literal[8, 16] = 16
    description: str = ""
    licence: str = "unknown"
    citation: Sequence[str] = ()
    fading: Sequence[str] = ()
    synthetic_share: Share = 0.33
    steps: PositiveInt = 100_000
    coarse: Coarse | None = None
    batch: PositiveInt = 1
    statistics: NonNegativeInt = 0
    keep: Literal["last", "best"] = "last"
    balanced: bool = False
    spatial: Spatial = field(default_factory=Spatial)
    intensity: Intensity = field(default_factory=Intensity)
    loss: Loss = field(default_factory=Loss)
    optimiser: Optimiser = field(default_factory=Optimiser)
    readout: Readout = field(default_factory=Readout)
    registration: Registration | None = None

    def __post_init__(self) -> None:
        unknown = set(self.fading) - set(self.heads)
        if unknown:
            raise ValueError(f"fading names {sorted(unknown)[0]}, which is not one of the heads")
        if self.pose_head is not None and self.pose_head not in self.heads:
            raise ValueError(f"pose_head = {self.pose_head!r}, which is not one of the heads")

    @property
    def mirrors(self) -> bool:
        """Whether left and right are swapped in samples, or in scans that the finished model segments."""
        moved = self.voxels is None or self.voxels.augmented
        return self.mirror or (moved and self.spatial.flip > 0)

    @property
    def view(self) -> View:
        """The view of a case that the finished model gets."""
        contrasts = contrasts_of(self.inputs, self.modality)
        return View(self.sampling, self.spatial, self.intensity, self.spacing_mm, self.normalisation, contrasts)

    def view_at(self, progress: float) -> View:
        """Return the view of a case at a share (0..1) of the run."""
        if self.coarse is None or progress >= self.coarse.steps / self.steps:
            return self.view
        sampling = replace(self.sampling, shape=self.coarse.shape, points=self.coarse.points)
        return replace(self.view, sampling=sampling, spacing_mm=self.coarse.spacing_mm)

    def on_card(self) -> dict[str, Any]:
        """Return the values that the card of the finished model copies unchanged."""
        shared = {name: getattr(self, name) for name in ON_CARD}
        return {**shared, "inputs": tuple(self.inputs), "heads": tuple(self.heads)}

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe with its defaults, without the keys that the card has itself."""
        return {key: value for key, value in asdict(self).items() if key == "heads" or key not in ON_CARD}


ON_CARD = {entry.name for entry in fields(Recipe)} & {entry.name for entry in fields(Card)}
"""Keys that a recipe and a card have in common."""


def shipped_recipes() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def is_shipped(name_or_path: str) -> bool:
    """Return whether the recipe is one of the package."""
    return (FOLDER / f"{name_or_path}.toml").is_file()


def load_recipe(name_or_path: str, *, small: bool = False) -> Recipe:
    """Return the shipped recipe of that name, or the recipe in that file.

    Args:
        small: whether the values in the recipe's table ``[small]``, which has the form of a recipe, replace its values.

    Raises:
        DataError: with file and key, if a key is unknown or missing, a value has another type or is out of range, or a
            name (of a network, a protocol, a normalisation) is unknown.
    """
    path = recipe_file(name_or_path)
    values = table(path)
    scale = values.pop("small", None)
    if small:
        if not isinstance(scale, dict):
            raise DataError(f"{path}: has no table [small]: omit --small, or add this table")
        values = merged(values, scale)
    where = f"{path} with [small]" if small else str(path)
    recipe = converted(Recipe, values, where)
    check_network(recipe.network, recipe.inputs, where)
    for head in recipe.heads:
        try:
            load_protocol(head)
        except DataError as error:
            raise DataError(f"{where}: heads: {error}") from error
    return recipe


def has_small(name_or_path: str) -> bool:
    """Return whether a recipe has a small scale; DataError if there is no such recipe."""
    return "small" in table(recipe_file(name_or_path))


def recipe_file(name_or_path: str) -> Path:
    """Return the file of a shipped recipe, or of another one; DataError if there is none."""
    path = FOLDER / f"{name_or_path}.toml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        raise DataError(f"no recipe '{name_or_path}': give a TOML file or one of {', '.join(shipped_recipes())}")
    return path


def table(path: Path) -> dict[str, Any]:
    """Return the content of a recipe's file; its values replace those of the shipped recipe named as its ``base``.

    A user's recipe does not inherit what describes the model of its base: title, description, licence and citation.
    """
    values = read_toml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if base not in shipped_recipes() or path == FOLDER / f"{base}.toml":
        raise DataError(f"{path}: base = {base!r} must be another recipe, one of {', '.join(shipped_recipes())}")
    inherited = fitting(table(FOLDER / f"{base}.toml"), values)
    if path.parent.resolve() != FOLDER.resolve():
        inherited = undescribed(inherited)
        values.setdefault("title", f"{values.get('name', inherited['name'])}, with the settings of the recipe {base}")
    return merged(inherited, values)


def fitting(inherited: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a base, whose small scale lacks options of its network if a recipe names another one."""
    network, scale = values.get("network"), inherited.get("small")
    if not (isinstance(network, dict) and isinstance(scale, dict)):
        return inherited
    if network.get("name") in (None, inherited["network"]["name"]):
        return inherited
    return {**inherited, "small": {key: value for key, value in scale.items() if key != "network"}}


def undescribed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe, also of its small scale, without those that describe its model."""
    kept = {key: value for key, value in values.items() if key not in DESCRIBING}
    return {**kept, **({"small": undescribed(kept["small"])} if isinstance(kept.get("small"), dict) else {})}


def merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table whose values another table replaces, also in inner tables.

    ``heads`` is replaced as a whole, and so is ``network`` if another one is named: its options are others.
    """
    tables = [key for key in over if isinstance(over[key], dict) and isinstance(values.get(key), dict)]
    parts = [key for key in tables if key != "heads" and over[key].get("name") in (None, values[key].get("name"))]
    inner = {key: merged(values[key], over[key]) for key in parts}
    return {**values, **over, **inner}
