"""Description and licence on the card of a new model: those of its own data, not those of a shipped model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bidsseg.bids.outputs import root_path
from bidsseg.learning.folds import dataset_of
from bidsseg.learning.recipe import is_shipped
from bidsseg.learning.training_setup import Setup
from bidsseg.models.card import Card
from bidsseg.reading import object_or_empty

UNKNOWN = "unknown"
"""The licence of a dataset without one."""


def texts_of(setup: Setup, names: Iterable[str], start: Card | None) -> dict[str, str]:
    """Return description and licence for a card; those that a user's recipe has are kept.

    The description of a shipped recipe, which describes the method, is continued by the names of the datasets. The
    licence is that in the ``dataset_description.json`` of the datasets and label derivatives.

    Args:
        names: all cases that the model is trained on.
        start: card of the initial model.
    """
    recipe, settings = setup.recipe, setup.settings
    labels, datasets = [source.folder for source in setup.labels], [settings.bids_dir, *settings.training.also]
    places = {path.name: path for path in (*labels, *datasets)}
    counts = Counter(map(dataset_of, names))
    texts: dict[str, str] = {}
    if not recipe.description or is_shipped(setup.options.recipe):
        numbers = {name: f"{count} scan{'s' * (count > 1)}" for name, count in counts.items()}
        scans = ", ".join(f"{name_of(places.get(name), name)} ({number})" for name, number in numbers.items())
        begun = "" if start is None else f", starting from the model {start.name}"
        texts["description"] = f"{recipe.description} Trained on {scans}{begun}.".strip()
    if recipe.licence == UNKNOWN:
        licensed = [path for path in labels if licence_of(path) != UNKNOWN]
        used = [path for path in datasets if path.name in counts]
        others = [name for name in counts if name not in {path.name for path in used}]
        named = [*((path, path.name) for path in (*licensed, *used)), *((places.get(name), name) for name in others)]
        initial = [] if start is None else [(f"the initial model {start.name}", start.licence)]
        texts["licence"] = joined([*((name_of(path, name), licence_of(path)) for path, name in named), *initial])
    return texts


def joined(licences: Iterable[tuple[str, str]]) -> str:
    """Return the licences of datasets as one text, with the names of the datasets of each if there are several.

    >>> joined([("a", "CC0"), ("b", "CC0")]), joined([("a", "CC0"), ("b", "PDDL"), ("c", "CC0"), ("a", "CC0")])
    ('CC0', 'CC0 (a, c); PDDL (b)')
    """
    names: dict[str, dict[str, None]] = {}
    for name, licence in licences:
        names.setdefault(licence, {})[name] = None
    if len(names) < 2:
        return next(iter(names), UNKNOWN)
    return "; ".join(f"{licence} ({', '.join(of)})" for licence, of in names.items())


def name_of(dataset: Path | None, otherwise: str) -> str:
    """Return the name in the description of a dataset, or another one if it has none."""
    return _entry(dataset, "Name") or otherwise


def licence_of(dataset: Path | None) -> str:
    """Return the licence in the description of a dataset; "unknown" if it has none."""
    return _entry(dataset, "License") or UNKNOWN


def _entry(dataset: Path | None, key: str) -> str:
    found = object_or_empty(dataset / root_path("description")).get(key) if dataset is not None else None
    return " ".join(found.split()) if isinstance(found, str) else ""
