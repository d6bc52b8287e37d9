"""A model whose network tells tissues by brightness, so that the whole way of a scan runs in a second."""

from pathlib import Path
from typing import Any

import pytest
from test_predict import FAST_HEADS, Brightness

from bidsseg.models import library
from bidsseg.models.card import Card


def save_tiny(folder: Path, monkeypatch: pytest.MonkeyPatch, **values: Any) -> Path:
    """Write the model, whose network is known until the end of the test, and return its folder."""
    monkeypatch.setitem(library.NETWORKS, "brightness", Brightness)
    given = {"spacing_mm": 6.0, "heads": tuple(FAST_HEADS), "inputs": ("T1w",), **values}
    network = {"name": "brightness", "meaning": FAST_HEADS}
    card = Card(name="tiny", title="By brightness", sha256="", network=network, **given)
    library.save_model(card, library.build(card).state_dict(), folder)
    return folder
