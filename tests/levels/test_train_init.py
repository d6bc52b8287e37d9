"""The level train from the weights of another model: what is copied, and what the initial model teaches."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import phantoms
import pytest
import torch
from labelled import RECIPE, Ask, console, interrupt_after, weights
from nifti import load_nifti

from bidsseg.errors import DataError, TemporaryFailure, UsageError
from bidsseg.labels import load_protocol
from bidsseg.learning import loop, objective
from bidsseg.learning.training import data_of, discard, lacking, start_from
from bidsseg.levels.train import train_level
from bidsseg.models.card import Card, read_card
from bidsseg.models.library import Model, build
from bidsseg.networks.network import Network
from bidsseg.settings import Settings


def test_weights_of_another_model_are_a_start(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are bit-identical before the first step, for fine-tuning on full annotations after partial ones."""
    started: list[dict[str, torch.Tensor]] = []
    plain = objective.losses

    def losses(network: Network, *given: Any, **named: Any) -> Any:
        started.append({name: value.clone() for name, value in network.state_dict().items()})
        return plain(network, *given, **named)

    first = train_level(ask(RECIPE.replace("{ brain = 0.5, FAST = 1.0 }", "{ brain = 1.0 }")))
    again = ask(RECIPE.replace("tiny", "second") + "[readout]\nsteps = 0\n", init=str(first))
    monkeypatch.setattr(loop, "losses", losses)
    card = read_card(train_level(again))
    shared = weights(first)
    assert all(torch.equal(started[0][name], value) for name, value in shared.items())
    assert any(f"{len(shared)} of {len(shared) + 2} tensors copied from" in line for line in console(again).messages)
    assert card.recipe["init"] == {"name": "tiny", "sha256": read_card(first).sha256}
    assert card.data == ["bids: 4 scans", "bids: 4 scans (from tiny, the initial model)"]


def test_a_finished_model_of_another_start_is_not_kept(ask: Ask) -> None:
    """Otherwise the folds of a cross-validation could start from different models."""
    first = str(train_level(ask(RECIPE.replace("tiny", "first"))))
    train_level(ask(init=first))
    train_level(ask(init=first, resume=True))
    for other in (None, "neuronet"):
        with pytest.raises(DataError, match=r"models/tiny: of another run \(init differ\)"):
            train_level(ask(init=other, resume=True))
    with pytest.raises(DataError, match=r"models/first: of another run \(init differ\)"):
        train_level(ask(RECIPE.replace("tiny", "first"), init=first, resume=True))


def test_training_data_of_earlier_models_is_listed_once(tmp_path: Path) -> None:
    texts = ["a: 3 scans", "a: 2 scans (from tiny, the initial model)"]
    given = Card("tiny", "", ("T1w",), {}, 1.0, ("FAST",), "", data=["a: 2 scans", *texts])
    start = Model(given, torch.nn.Module())  # type: ignore[arg-type]
    assert data_of(start) == ["a: 2 scans (from tiny, the initial model)", "a: 3 scans (from tiny, the initial model)"]


def test_a_start_of_which_nothing_fits_is_refused(ask: Ask) -> None:
    with pytest.raises(UsageError, match="--init neuronet: none of its weights fit the network of the recipe tiny"):
        train_level(ask(init="neuronet"))


def test_weights_of_regions_are_not_copied_to_other_regions() -> None:
    options = {"name": "segnet", "hidden": [8], "cube_neurons": 4}
    given = Card("one", "", ("T1w",), options, 1.0, ("FAST",), "", normalisation="zscore")
    other = replace(given, heads=("Atropos",))
    for card in (given, other):
        torch.manual_seed(1)
        first = Model(given, build(given))
        torch.manual_seed(2)
        network = build(card)
        fresh = copy.deepcopy(network.state_dict())
        start_from(network, first, ("T1w",), heads=[load_protocol(name) for name in card.heads])
        same = {name for name, value in network.state_dict().items() if torch.equal(value, fresh[name])}
        weights = {name for name in same if "weight" in name}
        assert weights == (
            set() if card is given else {"first.joint.2.weight", "second.joint.2.weight", "second.joint.0.weight"}
        )
        assert torch.equal(
            network.state_dict()["first.first.fine.weight"], first.network.state_dict()["first.first.fine.weight"]
        )


def test_the_last_layer_of_a_head_is_not_copied_to_regions_in_another_order() -> None:
    card = Card(
        "one", "", ("T1w",), {"name": "subpixel-unet", "widths": [4, 4], "features": 4, "last": 4}, 1.0, ("FAST",), ""
    )
    network, start = build(card), Model(card, build(card))
    (head,) = start.heads.values()
    turned = replace(head, regions=(head.regions[0], *reversed(head.regions[1:])))
    fresh = copy.deepcopy(network.state_dict())
    start_from(network, start, ("T1w",), heads=[turned])
    now, given = network.state_dict(), start.network.state_dict()
    assert torch.equal(now["heads.FAST.weight"], fresh["heads.FAST.weight"])
    assert torch.equal(now["last.0.weight"], given["last.0.weight"])
    assert lacking(start, [turned]) == ["FAST"] and lacking(start, [head]) == []


@pytest.fixture
def ask_mine(ask: Ask, dataset: tuple[Path, Path], tmp_path: Path) -> Callable[..., Settings]:
    """Return a function for settings with labels of one's own: ``ask_mine(name, regions, last_layers, init=...)``."""
    for number in range(1, 4):
        name = f"sub-{number:02}"
        tissue = load_nifti(dataset[1] / name / "anat" / f"{name}_seg-FAST_dseg.nii.gz")
        values = np.asarray(tissue.dataobj).astype(np.uint8)
        phantoms.save(tmp_path / "mine" / name / "anat" / f"{name}_seg-Mine_dseg.nii.gz", values, tissue.affine)

    def asked(name: str, regions: str, last_layers: str = "", **more: Any) -> Settings:
        table = tmp_path / regions / "seg-Mine_dseg.tsv"
        table.parent.mkdir(exist_ok=True)
        rows = [f"{index}\t{region}\n" for index, region in enumerate(regions.split())]
        table.write_text("index\tname\n" + "".join(rows))
        recipe = RECIPE.replace("{ brain = 0.5, FAST = 1.0 }", f'{{ "{table}" = 1.0 }}').replace("tiny", name)
        return ask(recipe + last_layers, labels={str(table): [tmp_path / "mine"]}, **more)

    return asked


def test_regions_in_another_order_are_learned_again(ask_mine: Callable[..., Settings]) -> None:
    first = str(train_level(ask_mine("first", "Background Fluid Grey White")))
    same = ask_mine("same", "Background Fluid Grey White", init=first)
    train_level(same)
    assert not console(same).warnings
    other = ask_mine("other", "Background White Grey Fluid", "[readout]\nsteps = 20\n", init=first)
    train_level(other)
    assert any(f"--init {first}: it has other regions of Mine" in line for line in console(other).warnings)


def test_a_training_is_resumed_with_the_same_regions(
    ask_mine: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = "Background Fluid Grey White"
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        with pytest.raises(TemporaryFailure):
            train_level(ask_mine("tiny", known))
    for _ in ("interrupted", "finished"):
        for regions in ("Background White Grey Fluid", f"{known} Other"):
            with pytest.raises(DataError, match=r"models/tiny: of another run \(regions of Mine differ\)"):
                train_level(ask_mine("tiny", regions, resume=True))
        folder = train_level(ask_mine("tiny", known, resume=True))
        assert "\tWhite\t" in (folder / "seg-Mine_dseg.tsv").read_text().splitlines()[4]
    discard(folder)
    assert not list(folder.glob("*dseg.tsv"))


def test_heads_that_labels_do_not_determine_follow_the_initial_model(ask: Ask) -> None:
    """Labels of FAST say nothing about Atropos; the head of the brain is new, so that last layers are trained first."""
    first = train_level(ask(RECIPE.replace("{ brain = 0.5, FAST = 1.0 }", "{ Atropos = 0.5, FAST = 1.0 }")))
    heads = RECIPE.replace("{ brain = 0.5,", "{ brain = 0.5, Atropos = 0.5,").replace("tiny", "second")
    again = ask(heads + "[readout]\nsteps = 100\nsamples = 2\npoints = 50\n", init=str(first))
    folder = train_level(again)
    messages = console(again).messages
    assert "where labels do not determine Atropos, the initial model is followed" in messages
    assert any(line.startswith("last layers: step 100") and "initial>Atropos" in line for line in messages)
    assert pd.read_csv(folder / "curve.tsv", sep="\t")["initial>Atropos"].notna().all()
    determined = ask(RECIPE.replace("tiny", "third"), init=str(train_level(ask(RECIPE.replace("tiny", "fourth")))))
    train_level(determined)
    assert not any("initial model is followed" in line for line in console(determined).messages)


def test_a_network_of_another_size_does_not_follow_the_initial_model(ask: Ask) -> None:
    """With layers that begin with random numbers, it would follow random answers and not those of the initial model."""
    heads = RECIPE.replace("{ brain = 0.5, FAST = 1.0 }", "{ Atropos = 0.5, FAST = 1.0 }")
    first = train_level(ask(heads))
    other = heads.replace("tiny", "second").replace("widths = [4, 8]", "widths = [4, 12]")
    again = ask(other.replace("Atropos = 0.5", "Atropos = 0.5, brain = 0.5"), init=str(first))
    train_level(again)
    assert not any("is followed" in line or "last layers" in line for line in console(again).messages)
    expected = rf"--init {first}: its network has other layers than that of the recipe second, so that \d+ of \d+ "
    assert any(re.match(expected, line) for line in console(again).warnings)
