"""A training run before any data is read: its recipe, its protocols and its processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from bidsseg.bids.names import modality
from bidsseg.bids.outputs import root_path
from bidsseg.errors import DataError, UsageError
from bidsseg.labels import Protocol, load_protocol
from bidsseg.labels.protocol import is_shipped
from bidsseg.learning.checks import check_names, check_recipe, check_sides
from bidsseg.learning.label_sources import LabelSource, label_sources
from bidsseg.learning.own_heads import with_own_heads
from bidsseg.learning.processes import Processes
from bidsseg.learning.recipe import Recipe, has_small, load_recipe
from bidsseg.learning.store import Store
from bidsseg.models.card import ANY, find_card, located, selected
from bidsseg.models.library import build_network
from bidsseg.networks.network import Network
from bidsseg.settings import Report, Settings, Training


@dataclass(frozen=True)
class Setup:
    """A training run before any data is read.

    Attributes:
        heads: scored protocols of the recipe's heads, in the order of the recipe.
        own_protocols: protocols of heads that are not shipped; they are stored with the model.
        precision: precision of the activations, ``fp32`` or ``bf16``.
        threads: threads of this process.
        report: silent in all processes except the first.
        labels: label maps of the entries of ``--labels``.
        started: when its time budget began, seconds of ``time.monotonic``.
        readers: number of scans that this process reads at once.
        check_memory: raises an error if this process holds more memory than ``--mem`` allows.
    """

    settings: Settings
    recipe: Recipe
    heads: tuple[Protocol, ...]
    own_protocols: Sequence[Protocol]
    precision: str
    threads: int
    processes: Processes
    report: Report
    labels: Sequence[LabelSource] = ()
    started: float = field(default_factory=time.monotonic)
    readers: int = 1
    check_memory: Callable[[], None] = lambda: None

    @property
    def options(self) -> Training:
        """The options of the level ``train``."""
        return self.settings.training

    @property
    def folder(self) -> Path:
        """The folder of the model."""
        return model_folder(self.settings.output_dir, self.recipe.name)

    @property
    def store(self) -> Store:
        """The prepared scans of this and other trainings."""
        folder = self.settings.work_dir or self.settings.output_dir
        return Store(folder / root_path("prepared"), self.report.say)


def set_up(
    settings: Settings,
    device: str,
    precision: str,
    *,
    threads: int,
    readers: int = 1,
    check_memory: Callable[[], None] = lambda: None,
) -> Setup:
    """Return the training run before any data is read. UsageError if these settings cannot be trained."""
    started, options = time.monotonic(), settings.training
    recipe = load_recipe(options.recipe, small=options.small)
    if not settings.labels:
        raise UsageError("train needs --labels DIR, the folder of a derivative dataset with label maps, at least once")
    if options.resume and settings.overwrite:
        raise UsageError("--overwrite trains from the beginning, --resume keeps what is finished: give one of the two")
    if options.cross_validate is not None and Processes.started() > 1:
        raise UsageError(
            "--cross-validate runs in one process: with torchrun, train each fold (--folds K --fold I) into "
            "OUTPUT_DIR/folds/fold-I and the final model (--folds 1) into OUTPUT_DIR, then give --cross-validate K "
            "--resume without torchrun"
        )
    settings, recipe = with_modality(settings, recipe)
    spoken = {name: load_protocol(name) for name in recipe.heads}
    recipe = with_names(recipe, {name: protocol.name for name, protocol in spoken.items()})
    labels = label_sources(settings.labels)
    protocols = [source.protocol for source in labels]
    is_file = Path(options.recipe).is_file()
    recipe, own = with_own_heads(recipe, list(spoken.values()), protocols, is_file=is_file)
    check_names([*own, *protocols])
    heads = tuple(protocol.scored() for protocol in own)
    checked(recipe, heads, small=options.small)
    if recipe.locator:  # the model may be used in another folder
        recipe = replace(recipe, locator=located(recipe.locator))
    processes = Processes.join(device)
    report = settings.report if processes.first else Report()
    if recipe.locator and not find_card(recipe.locator).reads(recipe.modality):
        report.warn(
            f"recipe {recipe.name}: its locator, {find_card(recipe.locator).name}, was trained for "
            f'{find_card(recipe.locator).needs}, not for {recipe.modality}: write locator = "openlocator"'
        )
    if recipe.voxels is None and processes.count > recipe.batch:
        report.say(f"each step has {processes.count} samples instead of {recipe.batch}: one per process")
        recipe = replace(recipe, batch=processes.count)
    return Setup(
        settings,
        recipe,
        heads=heads,
        own_protocols=[protocol for protocol in own if not is_shipped(protocol)],
        precision=precision,
        threads=threads,
        processes=processes,
        report=report,
        labels=labels,
        started=started,
        readers=readers,
        check_memory=check_memory,
    )


def with_modality(settings: Settings, recipe: Recipe) -> tuple[Settings, Recipe]:
    """Return settings and recipe with the suffix of the images in the place of the T1w: the user's, or the recipe's."""
    filters = settings.queries(selected(recipe.modality))
    settings, given = replace(settings, filters=filters, modality=None), filters["t1w"]["suffix"]
    if recipe.modality == ANY:
        return settings, recipe
    modalities = {modality(str(suffix)) for suffix in (given if isinstance(given, list) else [given])}
    if len(modalities) != 1 or "*" in modalities:
        raise UsageError(
            "a model is trained on images of one contrast: give --anat-modality instead of several suffixes"
        )
    return settings, replace(recipe, modality=modalities.pop())


def check_whole(name_or_path: str, *, small: bool = False) -> Iterator[str]:
    """Check a recipe without data, and its small scale if it has one; yield a line about each scale that is correct.

    Raises:
        DataError: with file and key, what is wrong.
        UsageError: samples are mirrored, but a region of one side has no partner.
    """
    for scale in (False, True) if small or has_small(name_or_path) else (False,):
        recipe = load_recipe(name_or_path, small=scale)
        protocols = [load_protocol(head) for head in recipe.heads]
        heads = [protocol.scored() for protocol in protocols]
        recipe = with_names(recipe, dict(zip(recipe.heads, (head.name for head in protocols), strict=True)))
        network = checked(recipe, heads, small=scale)
        check_sides(recipe, heads)
        weights = sum(value.numel() for value in network.state_dict().values())
        spoken = ", ".join(f"{head.name} ({len(head.regions) - 1} regions)" for head in heads)
        yield (
            f"ok: {recipe.name}{' with --small' if scale else ''}: {spoken} from {' + '.join(recipe.inputs)}; "
            f"{recipe.network['name']} with {weights:,} weights"
        )


def checked(recipe: Recipe, heads: Sequence[Protocol], *, small: bool) -> Network:
    """Return the network of a recipe without memory for its weights; DataError if the recipe does not fit it.

    Args:
        small: whether the recipe is of the small scale, which the error then names.
    """
    try:
        network = sketched(recipe, heads)
        check_recipe(recipe, network)
    except DataError as error:
        if not small:
            raise
        raise DataError(f"with [small], {error}") from error
    return network


def sketched(recipe: Recipe, heads: Sequence[Protocol]) -> Network:
    """Return the network of a recipe without memory for its weights; DataError if it cannot be built."""
    outputs = {head.name: len(head.regions) for head in heads}
    with torch.device("meta"):
        return build_network(recipe.network, recipe.inputs, outputs, where=f"recipe {recipe.name}")


def model_folder(output_dir: Path, name: str) -> Path:
    """Return the folder of a model in an output folder."""
    return output_dir / root_path("models") / name


def with_names(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    """Return the recipe with the names of its heads' protocols; a recipe may also give the files of protocols.

    DataError if two of these protocols have one name.
    """
    for name, protocol in names.items():
        if first := next((other for other in names if other != name and names[other] == protocol), None):
            raise DataError(f"recipe {recipe.name}: heads: {name} and {first} have the same name, {protocol}")
    heads = {names[name]: weight for name, weight in recipe.heads.items()}
    pose_head = None if recipe.pose_head is None else names[recipe.pose_head]
    return replace(recipe, heads=heads, fading=[names[name] for name in recipe.fading], pose_head=pose_head)
