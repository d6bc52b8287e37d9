"""A trained model put into the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bidsseg.models.card import CARD, FOLDER, read_card
from bidsseg.models.library import load_model

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "ship.py"


def test_a_model_is_shipped_under_another_name(tmp_path: Path) -> None:
    target = tmp_path / "shipped"
    (target / "wholebrain").mkdir(parents=True)
    (target / "wholebrain" / CARD).write_text((FOLDER / "wholebrain" / CARD).read_text())
    code = (
        f"import sys, runpy; import bidsseg.models.card as c; c.FOLDER = __import__('pathlib').Path({str(target)!r}); "
    )
    code += f"sys.argv = ['ship', {str(FOLDER / 'locator')!r}, 'wholebrain']; "
    code += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    subprocess.run([sys.executable, "-c", code], check=True)
    card, before = read_card(target / "wholebrain"), read_card(FOLDER / "wholebrain")
    assert card.name == "wholebrain" and card.heads == read_card(FOLDER / "locator").heads
    assert card.least_quality == before.least_quality is not None
    assert load_model(str(target / "wholebrain")).sha256 == load_model("locator").sha256


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([sys.executable, SCRIPT, tmp_path], check=True, capture_output=True)
