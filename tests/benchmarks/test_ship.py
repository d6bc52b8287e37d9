"""Copying a trained model into the package."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from scripts import script

from bidsseg.errors import InputMissing
from bidsseg.models.card import CARD, FOLDER, read_card, shipped
from bidsseg.models.library import load_model


@pytest.mark.parametrize("name", ["locator", "segnet"])
def test_a_model_is_shipped_under_another_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights stay the same, with 16 and with 8 bits."""
    target = tmp_path / "wholebrain"
    target.mkdir()
    (target / CARD).write_text((FOLDER / "wholebrain" / CARD).read_text())
    ship = script("ship")
    monkeypatch.setattr(ship, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["ship", str(FOLDER / name), "wholebrain"])
    ship.main()
    card, before = read_card(target), read_card(FOLDER / "wholebrain")
    assert card.name == "wholebrain" and card.heads == read_card(FOLDER / name).heads
    assert card.least_quality == before.least_quality is not None
    described = ("title", "description", "licence", "citation")
    assert all(getattr(card, text) == getattr(before, text) for text in described)
    assert load_model(str(target)).sha256 == load_model(name).sha256


@pytest.mark.parametrize("name", [card.name for card in shipped()])
def test_the_texts_of_shipped_models_are_in_the_table(name: str) -> None:
    """Recipes lack them, since a user's model with the same recipe has other data."""
    texts = tomllib.loads(script("ship").TEXTS.read_text())[name]
    card = read_card(FOLDER / name)
    reaches_skull = texts.pop("mask_reaches_skull", False)
    assert texts == {key: getattr(card, key) for key in ("title", "description", "licence")} | {
        "citation": list(card.citation)
    }
    assert card.mask_reaches_skull is reaches_skull


def test_what_is_no_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ship", str(tmp_path)])
    with pytest.raises(InputMissing):
        script("ship").main()
