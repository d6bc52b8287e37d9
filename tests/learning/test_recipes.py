"""Recipes: files, scales and bases."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelled import RECIPE

from bidsseg.errors import DataError
from bidsseg.labels import load_protocol
from bidsseg.learning.recipe import DESCRIBING, load_recipe, shipped_recipes
from bidsseg.learning.training_setup import check_whole
from bidsseg.models.card import ANY, Card
from bidsseg.models.library import build


def test_recipe_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.replace("steps", "stepz"))
    with pytest.raises(DataError) as caught:
        load_recipe(str(path))
    assert str(caught.value).startswith(f"{path}: unknown key 'stepz'")
    with pytest.raises(DataError, match=r"no recipe 'nosuch': .*wholebrain"):
        load_recipe("nosuch")


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_can_be_read_and_stored(name: str) -> None:
    recipe = load_recipe(name)
    assert name.replace("-", "").startswith(recipe.name)
    stored = json.loads(json.dumps(recipe.as_dict()))
    assert stored["sampling"]["shape"] == list(recipe.sampling.shape)
    assert all(load_protocol(head) for head in recipe.heads)


@pytest.mark.parametrize("name", shipped_recipes())
def test_models_of_real_images_read_their_contrast_alone(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.modality == ANY) == (recipe.synthetic_share == 1)


def test_no_two_recipes_make_models_of_one_name() -> None:
    names = [load_recipe(name).name for name in shipped_recipes()]
    assert len(set(names)) == len(names)


PUBLISHED = [name for name in shipped_recipes() if load_recipe(name).network["name"] != "subpixel-unet"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_small_scale_of_a_published_recipe_is_smaller(name: str) -> None:
    full, small = load_recipe(name), load_recipe(name, small=True)
    if full.voxels is not None and small.voxels is not None:
        assert small.voxels.per_scan * small.voxels.epochs < full.voxels.per_scan * full.voxels.epochs
        return
    assert small.steps < full.steps
    assert np.prod(small.sampling.shape) < np.prod(full.sampling.shape)
    for recipe in full, small:
        card = Card(recipe.name, recipe.title, ("T1w",), recipe.network, recipe.spacing_mm, tuple(recipe.heads), "")
        for shape in recipe.sampling.shape, recipe.view_at(0).sampling.shape:
            assert all(n % build(card).multiple == 0 for n in shape)
    assert replace(small.loss, entropy=full.loss.entropy, dice=full.loss.dice) == full.loss


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_can_be_trained(name: str) -> None:
    assert all(line.startswith("ok: ") for line in check_whole(name))


def test_a_small_scale_is_laid_over_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE + "[small]\nsteps = 2\n[small.sampling]\npoints = 9\n[small.loss]\ndice = 0.0\n")
    plain, small = load_recipe(str(path)), load_recipe(str(path), small=True)
    assert (plain.steps, plain.sampling.points, plain.loss.dice) == (3, 500, 0.5)
    assert (small.steps, small.sampling.points, small.loss.dice) == (2, 9, 0.0)
    assert small.sampling.shape == plain.sampling.shape
    path.write_text(RECIPE)
    with pytest.raises(DataError, match="has no table \\[small\\]"):
        load_recipe(str(path), small=True)


def test_a_recipe_may_have_another_network_than_its_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "wholebrain"\nname = "mine"\n[network]\nname = "unet"\n')
    assert load_recipe(str(path)).network == load_recipe(str(path), small=True).network == {"name": "unet"}
    path.write_text('base = "wholebrain"\nname = "mine"\n[network]\nname = "subpixel-unet"\nlast = 8\n')
    assert load_recipe(str(path)).network == {**load_recipe("wholebrain").network, "last": 8}


def test_samples_have_even_sizes(tmp_path: Path) -> None:
    """A U-Net of one level takes any grid, but parts of a sample are drawn at half its resolution."""
    path = tmp_path / "mine.toml"
    text = 'base = "ace"\nname = "mine"\n[network]\nname = "unet"\nwidths = [4]\n[sampling]\nshape = [{0}, 32, 32]\n'
    path.write_text(text.format(33))
    with pytest.raises(DataError, match="recipe mine: every size in shape must be a multiple of 2"):
        list(check_whole(str(path)))
    path.write_text(text.format(34))
    assert next(check_whole(str(path))).startswith("ok: mine")


def test_a_mistake_of_the_small_scale_alone_is_placed_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "wholebrain"\nname = "mine"\n[small.sampling]\nshape = [80, 96, 81]\n')
    lines = check_whole(str(path))
    assert next(lines).startswith("ok: mine:")
    with pytest.raises(DataError, match=r"^with \[small\], recipe mine: every size in shape"):
        next(lines)


def test_a_recipe_says_only_what_differs_from_its_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "neuronet"\nname = "mine"\nheads = { FAST = 1.0 }\n[sampling]\npoints = 7\n')
    mine, base = load_recipe(str(path)), load_recipe("neuronet")
    assert mine.heads == {"FAST": 1.0}
    assert mine.sampling == replace(base.sampling, points=7)
    described = {key: getattr(base, key) for key in DESCRIBING}
    assert replace(mine, name=base.name, heads=base.heads, sampling=base.sampling, **described) == base
    same = path.rename(tmp_path / "neuronet.toml")
    assert load_recipe(str(same)) == mine
    path.write_text('base = "nosuch"\nname = "mine"\n')
    with pytest.raises(DataError, match=r"base = 'nosuch' must be another recipe, one of .*neuronet"):
        load_recipe(str(path))
