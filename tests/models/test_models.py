"""Model folders: saving, loading and checking of card and weights."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bidsseg.errors import DataError, InputMissing
from bidsseg.labels import load_protocol
from bidsseg.models.card import CARD, FOLDER, WEIGHTS, Card, find_card, head_protocol, located, read_card, shipped
from bidsseg.models.library import Model, build, checksum, load_model, save_model

NETWORK = {"name": "subpixel-unet", "coordinates": 0, "widths": [4, 8], "features": 4, "last": 4}


def card(**values: Any) -> Card:
    given = {
        "name": "small",
        "title": "A small model",
        "inputs": ("T1w",),
        "network": NETWORK,
        "spacing_mm": 2.0,
        "heads": ("brain", "FAST"),
        "sha256": "",
    }
    return Card(**{**given, **values})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a saved model."""
    torch.manual_seed(0)
    save_model(card(), build(card()).state_dict(), tmp_path / "small")
    return tmp_path / "small"


def edit(folder: Path, **values: Any) -> None:
    """Change the card of a model; None removes a key."""
    stored = json.loads((folder / CARD).read_text())
    stored = {key: value for key, value in {**stored, **values}.items() if value is not None}
    (folder / CARD).write_text(json.dumps(stored))


# -- there and back ----------------------------------------------------------------------------------------------------


def test_a_model_survives_its_folder(tmp_path: Path) -> None:
    given = card(
        licence="CC0-1.0",
        citation=["Somebody 2020"],
        data=["here: 3 scans"],
        metrics={"heads": {"FAST": {"dice": 0.5}}},
        recipe={"steps": 3},
        mirror=True,
        description="Grün",
    )
    network = build(given)
    saved = save_model(given, network.state_dict(), tmp_path / "model")
    model = load_model(str(tmp_path / "model"))
    assert model.card == saved == read_card(tmp_path / "model")
    assert replace(model.card, sha256="") == given
    assert model.sha256 == checksum(tmp_path / "model" / WEIGHTS)
    assert set(model.network.state_dict()) == set(network.state_dict())
    for name, value in model.network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, network.state_dict()[name].half().float())
    assert not model.network.training
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert {path.name for path in (tmp_path / "model").iterdir()} == {CARD, WEIGHTS}


def test_a_model_can_be_read_by_those_who_may(folder: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}


def test_saving_again_replaces(folder: Path) -> None:
    before = load_model(str(folder))
    weights = {name: value + 1 for name, value in before.network.state_dict().items()}
    save_model(card(title="Better"), weights, folder)
    after = load_model(str(folder))
    assert after.card.title == "Better"
    assert after.sha256 != before.sha256


def test_weights_are_stored_in_half_precision(folder: Path) -> None:
    count = sum(value.numel() for value in build(card()).state_dict().values())
    assert 2 * count < (folder / WEIGHTS).stat().st_size < 2 * count + 10_000
    assert find_card(str(folder)).size_mb == pytest.approx((folder / WEIGHTS).stat().st_size / 1e6)


def test_what_a_card_says_of_itself() -> None:
    known = card(heads=("brain", "FAST", "lesion", "BrainCOLOR"), metrics={"heads": {"FAST": {"dice": 0.91}}})
    assert known.protocols == ("FAST", "BrainCOLOR")
    assert known.dice == {"FAST": 0.91}
    assert card().dice == {}


def test_heads_speak_the_scored_regions(folder: Path) -> None:
    model = load_model(str(folder))
    assert model.heads == {"brain": load_protocol("brain"), "FAST": load_protocol("FAST")}
    assert len(head_protocol(card(), "BrainCOLOR").regions) == 135


def test_a_table_in_the_folder_is_what_a_head_speaks(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    table = "index\tname\n0\tBackground\n1\tOne\n2\tTwo\n"
    (own / "seg-Mine_dseg.tsv").write_text(table)
    given = card(heads=("Mine",), folder=own)
    save_model(given, build(given).state_dict(), own)
    assert [region.name for region in load_model(str(own)).heads["Mine"].regions] == ["Background", "One", "Two"]


# -- models that lie ---------------------------------------------------------------------------------------------------


def test_weights_with_another_checksum_are_refused(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(DataError, match=r"small: .*checksum") as caught:
        load_model(str(folder))
    assert str(folder / WEIGHTS) in str(caught.value)


@pytest.mark.parametrize(
    "network", [{**NETWORK, "widths": [4, 16]}, {**NETWORK, "widths": [4, 8, 8]}, {**NETWORK, "features": 8}]
)
def test_weights_of_another_shape_are_refused(folder: Path, network: dict[str, Any]) -> None:
    edit(folder, network=network)
    with pytest.raises(DataError, match="small: the weights do not fit the network on the card"):
        load_model(str(folder))


def test_weights_for_other_heads_are_refused(folder: Path) -> None:
    edit(folder, heads=["brain", "FreeSurfer"])
    with pytest.raises(DataError, match="do not fit"):
        load_model(str(folder))


def test_a_file_that_is_no_weights_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).write_text("<html>Not found</html>")
    edit(folder, sha256=checksum(folder / WEIGHTS))
    with pytest.raises(DataError, match="do not fit"):
        load_model(str(folder))


def test_weights_that_lack_a_tensor_are_refused(folder: Path) -> None:
    weights = build(card()).state_dict()
    del weights["unfold.bias"]
    save_file(weights, folder / WEIGHTS)
    edit(folder, sha256=checksum(folder / WEIGHTS))
    with pytest.raises(DataError, match=r"unfold\.bias"):
        load_model(str(folder))


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputMissing, match=re.escape(str(folder / WEIGHTS))):
        load_model(str(folder))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"network": {"name": "transformer"}}, "no network 'transformer', known are subpixel-unet"),
        ({"network": {"widths": [4, 8]}}, "no network None"),
        ({"normalisation": "histogram"}, "no normalisation 'histogram', known are percentile"),
        ({"network": {**NETWORK, "depth": 7}}, r"unknown key 'network\.depth'"),
        ({"network": {**NETWORK, "widths": []}}, r"network\.widths = \[\]: must have at least 1"),
        ({"network": {**NETWORK, "features": "many"}}, r'network\.features = "many": must be an integer'),
        ({"network": {**NETWORK, "features": -4}}, r"network\.features = -4: must be at least 1"),
        ({"network": "subpixel-unet"}, "network = .*: must be a table"),
        ({"heads": ["Brodmann"]}, "no protocol 'Brodmann'"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"title": None}, "title is missing"),
        ({"inputs": None}, "inputs is missing"),
        ({"inputs": "T1w"}, 'inputs = "T1w": must be a list'),
        ({"heads": 3}, "heads = 3: must be a list"),
        ({"name": "two-words"}, '"two-words": must be letters and digits only'),
        ({"name": "größer"}, "letters and digits only"),
        ({"name": ""}, "letters and digits only"),
        ({"name": 3}, "name = 3: must be text"),
        ({"spacing_mm": 0}, "spacing_mm = 0: must be greater than 0"),
        ({"spacing_mm": "1"}, "spacing_mm = .*: must be a number"),
        ({"heads": []}, "heads"),
    ],
)
def test_a_card_that_cannot_be_used_is_refused(folder: Path, change: dict[str, Any], reason: str) -> None:
    edit(folder, **change)
    with pytest.raises(DataError, match=reason):
        load_model(str(folder))


@pytest.mark.parametrize("content", ["", "not json", "[]", '"small"', "\xff\xfe"])
def test_a_file_that_is_no_card_is_named(folder: Path, content: str) -> None:
    (folder / CARD).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match="not a model card") as caught:
        find_card(str(folder))
    assert str(folder / CARD) in str(caught.value)


def test_an_unknown_model_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    for name in ("nosuchmodel", str(tmp_path), ""):
        with pytest.raises(InputMissing, match=r"no model .*one of: ") as caught:
            find_card(name)
        assert all(known.name in str(caught.value) for known in shipped())
        assert "did you mean" not in str(caught.value)
    for name in ("wholebrian", located("wholebrian")):
        with pytest.raises(InputMissing, match=r"no model '.*wholebrian': did you mean wholebrain\? .*one of: "):
            find_card(name)


def test_the_models_in_the_output_of_a_training_are_named(tmp_path: Path) -> None:
    for name in ("first", "second"):
        save_model(card(name=name), build(card()).state_dict(), tmp_path / "models" / name)
    with pytest.raises(InputMissing, match=r"contains models: give .*models/first or .*models/second$"):
        find_card(str(tmp_path))


# -- shipped models ----------------------------------------------------------------------------------------------------

SHIPPED = sorted(path.parent.name for path in FOLDER.glob(f"*/{CARD}"))
needs_models = pytest.mark.skipif(not SHIPPED, reason="no model is shipped")


@pytest.mark.parametrize("name", SHIPPED or [pytest.param("none", marks=needs_models)])
def test_shipped_models_load(name: str) -> None:
    model = load_model(name)
    assert isinstance(model, Model)
    assert model.card.name == name
    assert model.card.size_mb < 16
    assert all(torch.isfinite(value).all() for value in model.network.state_dict().values())
    assert model.card.locator is None or "brain" in load_model(model.card.locator).heads
    assert name in [known.name for known in shipped()]


@pytest.mark.parametrize("name", SHIPPED or [pytest.param("none", marks=needs_models)])
def test_cards_of_shipped_models_are_complete(name: str) -> None:
    known = find_card(name)
    assert all((known.title, known.description, known.citation, known.data, known.recipe, known.code_version))
    assert known.licence != "unknown"
    assert re.fullmatch("[0-9a-f]{64}", known.sha256)
    assert set(known.dice) == set(known.heads)
    assert all(0 < dice <= 1 for dice in known.dice.values())
    assert known.metrics.get("cross_validation", known.metrics)["split"]
    assert known.metrics.get("cross_validation", known.metrics)["heads"]
