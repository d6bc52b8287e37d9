"""Recipes, cards and cluster files with mistakes: one error that names the file, the key and what is allowed."""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import dask_jobqueue
import pytest
from dask_jobqueue.core import Job, JobQueueCluster
from labelled import RECIPE

from bidsseg.errors import DataError, UsageError
from bidsseg.execution.cluster import ENGINES
from bidsseg.execution.cluster_config import CONFIGS, read_config
from bidsseg.learning.recipe import Recipe, load_recipe, shipped_recipes
from bidsseg.models.card import CARD, FOLDER, find_card, read_card
from bidsseg.models.library import NETWORKS, load_model
from bidsseg.schema import converted

COARSE = {"steps": 1, "spacing_mm": 2.0, "shape": [8, 8, 8], "points": 1}
"""Content of a table ``[coarse]``, whose keys have no defaults."""


def told(path: Path, small: bool = False) -> str:
    """Return the error message for a recipe; the message begins with the file."""
    with pytest.raises(DataError) as caught:
        load_recipe(str(path), small=small)
    message = str(caught.value)
    assert message.startswith(f"{path}{' with [small]' if small else ''}: ") and "\n" not in message
    return message.partition(": ")[2]


def toml(table: str, values: dict[str, Any]) -> str:
    """Return a table in TOML; values look as in JSON."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join([*([f"[{table}]"] if table else []), *lines]) + "\n"


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "line", "message"),
    [
        ("", "steps = true", "steps = true: must be an integer"),
        ("", "steps = -5", "steps = -5: must be at least 1"),
        ("", "steps = 3.0", "steps = 3.0: must be an integer"),
        ("", 'steps = "3"', 'steps = "3": must be an integer'),
        ("", "batch = -3", "batch = -3: must be at least 1"),
        ("", "spacing_mm = -1.0", "spacing_mm = -1.0: must be greater than 0"),
        ("", "spacing_mm = true", "spacing_mm = true: must be a number"),
        ("", "spacing_mm = inf", "spacing_mm = Infinity: must be a finite number"),
        ("", "spacing_mm = nan", "spacing_mm = NaN: must be a finite number"),
        ("", "synthetic_share = 1.2", "synthetic_share = 1.2: must be at most 1"),
        ("", "statistics = -1", "statistics = -1: must be at least 0"),
        ("", "heads = { FAST = -1.0 }", "heads.FAST = -1.0: must be at least 0"),
        ("", 'heads = { FAST = "much" }', 'heads.FAST = "much": must be a number'),
        ("", "heads = {}", "heads = {}: must have at least 1"),
        ("", "heads = { Brodmann = 1.0 }", "heads: no protocol 'Brodmann': choose one of Atropos"),
        ("", 'fading = ["lesion"]', "fading names lesion, which is not one of the heads"),
        ("", 'pose_head = "lesion"', "pose_head = 'lesion', which is not one of the heads"),
        ("", "bits = 4", "bits = 4: must be 8 or 16"),
        ("", 'keep = "first"', "keep = \"first\": must be 'last' or 'best'"),
        ("", 'normalisation = "histogram"', 'normalisation = "histogram": must be percentile, zscore, byte or none'),
        ("", 'inputs = ["FLAIR"]', 'inputs = ["FLAIR"]: must be ["T1w"] or ["T1w", "FLAIR"]'),
        ("", 'name = "two-words"', 'name = "two-words": must be letters and digits only'),
        ("", "title = 2020-01-01", 'title = {"date": "2020-01-01"}: must be text in quotes'),
        ("", "citation = [1]", "citation[0] = 1: must be text in quotes"),
        ("", "stepz = 3", "unknown key 'stepz': did you mean steps?"),
        ("", "colour = 3", "unknown key 'colour': known are balanced, batch"),
        ("", "optimiser = 3", "optimiser = 3: must be a table"),
        ("sampling", "shape = [1.5, 2, 3]", "sampling.shape[0] = 1.5: must be an integer"),
        ("sampling", "shape = [8, 8, 0]", "sampling.shape[2] = 0: must be at least 1"),
        ("sampling", "shape = [8, 8]", "sampling.shape = [8, 8]: must have 3 values"),
        ("sampling", "shape = [8, 8, 8, 8]", "sampling.shape = [8, 8, 8, 8]: must have 3 values"),
        ("sampling", "shape = 8", "sampling.shape = 8: must be a list"),
        ("sampling", "pointz = 8", "unknown key 'sampling.pointz': did you mean points?"),
        ("sampling", "missing = -0.1", "sampling.missing = -0.1: must be at least 0"),
        ("spatial", "flip = 2", "spatial.flip = 2: must be at most 1"),
        ("spatial", "elastic_order = 9", "spatial.elastic_order = 9: must be at most 5"),
        ("intensity", "noise = -1.0", "intensity.noise = -1.0: must be at least 0"),
        ("loss", "dice = -0.5", "loss.dice = -0.5: must be at least 0"),
        ("loss", "dice = 0\nentropy = 0", "loss: entropy and dice are both 0"),
        ("optimiser", "betas = [0.9]", "optimiser.betas = [0.9]: must have 2 values"),
        ("optimiser", "betas = [0.9, 1.0]", "optimiser.betas[1] = 1.0: must be less than 1"),
        ("optimiser", 'schedule = "stepwise"', "optimiser.schedule = \"stepwise\": must be 'cosine' or 'constant'"),
        ("optimiser", "rate = -1e-3", "optimiser.rate = -0.001: must be greater than 0"),
        ("registration", 'norm = "none"', 'registration.norm = "none": must be batch or pair'),
        ("coarse", "steps = 3", "coarse.spacing_mm is missing"),
        ("voxels", "halve_at = [-1]", "voxels.halve_at[0] = -1: must be at least 0"),
        (
            "network",
            'name = "transformer"',
            "network.name: no network 'transformer', known are subpixel-unet, neuronet",
        ),
        ("network", "depth = 7", "unknown key 'network.depth': known are coordinates, features"),
        ("network", "feature = 7", "unknown key 'network.feature': did you mean features?"),
        ("network", 'features = "many"', 'network.features = "many": must be an integer'),
        ("network", "features = -4", "network.features = -4: must be at least 1"),
        ("network", "widths = []", "network.widths = []: must have at least 1"),
        ("network", "widths = [4, true]", "network.widths[1] = true: must be an integer"),
        ("network", "images = 2", "network.images = 2 does not fit its inputs"),
    ],
)
@pytest.mark.parametrize("small", [False, True])
def test_a_mistake_in_a_recipe_is_named(tmp_path: Path, table: str, line: str, message: str, small: bool) -> None:
    path = tmp_path / "mine.toml"
    inside = ".".join((["small"] if small else []) + ([table] if table else []))
    content = f'base = "{"locator" if table == "coarse" else "wholebrain"}"\n{"" if inside else line}\n'
    path.write_text(f"{content}\n[{inside}]\n{line}\n" if inside else content)
    assert told(path, small).startswith(message)


def tables(kind: type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every key of a dataclass and its tables, with its type."""
    hints = get_type_hints(kind)
    for entry in fields(kind):
        yield (*path, entry.name), hints[entry.name]
        for part in (hints[entry.name], *get_args(hints[entry.name])):
            if is_dataclass(part):
                assert isinstance(part, type)
                yield from tables(part, (*path, entry.name))


def wrong(kind: Any) -> list[Any]:
    """Return values of other types."""
    if kind in (str, str | None):
        return [3, True, ["x"]]
    return ["x", [[]], *([] if kind is bool else [True])]


@pytest.mark.parametrize(("place", "kind"), [pytest.param(*key, id=".".join(key[0])) for key in tables(Recipe)])
def test_a_shipped_recipe_with_a_key_of_another_type_is_refused(
    tmp_path: Path, place: tuple[str, ...], kind: Any
) -> None:
    for number, value in enumerate(wrong(kind)):
        path = tmp_path / f"{number}.toml"
        given = {**(COARSE if place[0] == "coarse" and len(place) > 1 else {}), place[-1]: value}
        path.write_text(toml("", {"base": "wholebrain", "name": "mine"} | (given if len(place) == 1 else {})))
        if len(place) == 2:
            path.write_text(path.read_text() + toml(place[0], given))
        assert ".".join(place) in told(path)


OPTIONS = [(name, option) for name, kind in NETWORKS.items() for option in signature(kind).parameters]


@pytest.mark.parametrize(("name", "option"), [pair for pair in OPTIONS if pair[1] != "outputs"])
def test_a_network_refuses_options_of_another_type(tmp_path: Path, name: str, option: str) -> None:
    path = tmp_path / "mine.toml"
    own = RECIPE.partition("[network]")[0]
    for value in ("x", {"x": 1}):
        path.write_text(own + f'[network]\nname = "{name}"\n[network.{option}]\nx = 1\n')
        if value == "x":
            path.write_text(own + toml("network", {"name": name, option: value}))
        assert told(path).startswith(f"network.{option} = ")


def test_all_mistakes_of_a_recipe_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "wholebrain"\nname = "mine"\nsteps = 0\nbatch = 0\nbits = 1\nkeep = 1\nmirror = 1\n')
    assert told(path).endswith("steps = 0: must be at least 1; and 2 more")
    path.write_text("steps = 3\n")
    assert told(path) == "name is missing; title is missing; heads is missing; and 1 more"


def test_integers_are_numbers_and_lists_become_tuples(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.replace("spacing_mm = 3.0", "spacing_mm = 3"))
    recipe = load_recipe(str(path))
    assert type(recipe.spacing_mm) is float and recipe.sampling.shape == (32, 32, 32)


def test_a_table_over_a_value_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "wholebrain"\nname = "mine"\nsampling = 3\n[small.sampling]\npoints = 3\n')
    assert told(path) == "sampling = 3: must be a table"


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_card_of_a_shipped_recipe_is_one(name: str, tmp_path: Path) -> None:
    """Values that are allowed in a recipe are allowed on the card that copies them."""
    card = {**load_recipe(name).on_card(), "sha256": ""}
    (tmp_path / CARD).write_text(json.dumps(card))
    assert {key: getattr(read_card(tmp_path), key) for key in ("name", "heads", "bits")} == {
        key: card[key] for key in ("name", "heads", "bits")
    }


# -- cards -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": ...}, "title is missing"),
        ({"sha256": ..., "inputs": ...}, "inputs is missing; sha256 is missing"),
        ({"spacing_mm": -1.0}, "spacing_mm = -1.0: must be greater than 0"),
        ({"spacing_mm": "1"}, 'spacing_mm = "1": must be a number'),
        ({"spacing_mm": True}, "spacing_mm = true: must be a number"),
        ({"margin_mm": -6}, "margin_mm = -6: must be at least 0"),
        ({"bits": 4}, "bits = 4: must be 8 or 16"),
        ({"mirror": 1}, "mirror = 1: must be true or false"),
        ({"least_quality": 80}, "least_quality = 80: must be at most 1"),
        ({"heads": ["FAST", 3]}, "heads[1] = 3: must be text in quotes"),
        ({"heads": ["FAST", "Brodmann"]}, "heads: no protocol 'Brodmann': choose one of"),
        ({"lesion": "lesion"}, "lesion = 'lesion', which is not one of the heads"),
        ({"network": None}, "network = null: must be a table"),
        ({"citation": "Somebody 2020"}, 'citation = "Somebody 2020": must be a list'),
        ({"metrics": {"heads": {"FAST": {}}}}, 'metrics = {"heads": {"FAST": {}}}: must be figures with the dice'),
        ({"metrics": {"cross_validation": 3}}, 'metrics = {"cross_validation": 3}: must be figures'),
        ({"title": "\ud800"}, "a text is not valid Unicode"),
        ({"metrics": {"heads": {"FAST": {"dice": 1.2}}}}, 'metrics = {"heads": {"FAST": {"dice": 1.2}}}: must be'),
        ({"normalization": "zscore"}, "unknown key 'normalization': did you mean normalisation?"),
        ({"folder": "/elsewhere"}, "unknown key 'folder': known are bits,"),
        ({"pose": {"head": "FreeSurfer"}}, 'pose = {"head": "FreeSurfer"}: must be head, half_mm and regions'),
    ],
)
def test_a_mistake_in_a_card_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = json.loads((FOLDER / "wholebrain" / CARD).read_text()) | change
    (tmp_path / CARD).write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    with pytest.raises(DataError, match="^" + re.escape(f"{tmp_path / CARD}: {message}")):
        find_card(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [{"head": 3}, {"head": "lesion"}, {"half_mm": [1, 2]}, {"half_mm": [1, 2, 0]}, {"regions": {}}, {"more": 1},
     {"regions": {"x": [0, 0, 0, 1]}}, {"regions": {"3": [0, 0, 0, -1]}}, {"regions": {"3": [0, None, 0, 1]}}],
)  # fmt: skip
def test_a_pose_that_cannot_be_used_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    values = json.loads((FOLDER / "locator" / CARD).read_text())
    assert find_card("locator").pose == values["pose"]
    values["pose"] |= change
    (tmp_path / CARD).write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"{CARD}: pose"):
        find_card(str(tmp_path))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"features": 0}, "network.features = 0: must be at least 1"),
        ({"depth": 7}, "unknown key 'network.depth': known are"),
        ({"name": 3}, "network.name: no network 3, known are subpixel-unet"),
    ],
)
def test_a_network_on_a_card_that_cannot_be_built_is_named(
    tmp_path: Path, network: dict[str, Any], message: str
) -> None:
    values = json.loads((FOLDER / "locator" / CARD).read_text())
    values["network"] |= network
    (tmp_path / CARD).write_text(json.dumps(values))
    (tmp_path / "weights.safetensors").symlink_to(FOLDER / "locator" / "weights.safetensors")
    with pytest.raises(DataError, match="^" + re.escape(f"{tmp_path / CARD}: {message}")):
        load_model(str(tmp_path))


# -- clusters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('workers = "many"', 'workers = "many": must be an integer'),
        ("workers = 0", "workers = 0: must be at least 1"),
        ("workers = true", "workers = true: must be an integer"),
        ("cores = 1.5", "cores = 1.5: must be an integer"),
        ("processes = -1", "processes = -1: must be at least 1"),
        ("memory = 6", "memory = 6: must be text in quotes"),
        ('memory = "much"', 'memory = "much": must be a size with its unit, such as "6GB"'),
        ("walltime = 02:00:00", 'walltime = {"time": "02:00:00"}: must be text in quotes'),
        ("image = 3", "image = 3: must be text in quotes"),
        ('queue = ""', 'queue = "": must be text that is not empty'),
        ('job_extra_directives = "-A x"', 'job_extra_directives = "-A x": must be a list'),
        ("death_timeout = 0", "death_timeout = 0: must be greater than 0"),
        ("scheduler_options = 3", "scheduler_options = 3: must be a table"),
        ('worker = "x"', "unknown key 'worker': did you mean workers?"),
        ('resource_spec = "x"', "unknown key 'resource_spec': known are account"),  # of PBS and Grid Engine
    ],
)
def test_a_mistake_in_a_cluster_file_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(f"{line}\n")
    with pytest.raises(UsageError, match="^" + re.escape(f"{path}: {message}")):
        read_config(path, "slurm")


@pytest.mark.parametrize("executor", ENGINES)
def test_dask_jobqueue_takes_every_key(executor: str) -> None:
    kind = getattr(dask_jobqueue, ENGINES[executor])
    taken = {name for takes in (JobQueueCluster, Job, kind.job_cls) for name in signature(takes.__init__).parameters}
    assert {entry.name for entry in fields(CONFIGS[executor])} - {"workers", "image"} <= taken


# -- itself ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    sizes: Sequence[int] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner | None = None


def test_what_is_checked_is_a_dataclass_of_its_own() -> None:
    assert converted(Outer, {"inner": {"sizes": [1]}}, "here") == Outer(Inner([1]))
    with pytest.raises(UsageError, match=r"^here: unknown key 'top\.inner\.size': did you mean sizes\?$"):
        converted(Outer, {"inner": {"size": [1]}}, "here", inside="top", error=UsageError)


def test_pydantic_is_imported_only_where_a_table_is_converted() -> None:
    code = "import sys, bidsseg, bidsseg.app.cli; sys.exit('pydantic' in sys.modules or 'numpy' in sys.modules)"
    place = Path(inspect.getfile(Recipe)).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=place).returncode == 0
