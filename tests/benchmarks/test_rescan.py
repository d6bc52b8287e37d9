"""The noise of a model from people who were scanned twice, and the copies of scans with a known change."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import phantoms
import pytest
from fake_model import save_card
from scripts import script

from bidsseg.image.volume import Volume
from bidsseg.models.card import find_card
from bidsseg.models.rescan import smallest_changes

CHANGES = (1.0, -2.0, 3.0, 0.5, -1.5)
"""Change (%) of the grey matter of each person."""


def write_tables(out: Path, people: int) -> None:
    """Write the tables of both levels for people whose grey matter differs, more without the comparison."""
    for number, percent in enumerate(CHANGES[:people], 1):
        label = f"sub-{number:02d}"
        both = []
        for session, factor in (("a", 1.0), ("b", 1 + percent / 100)):
            table = pd.DataFrame({"index": [1, 2], "name": ["CSF", "GM"], "softvolume-mm3": [200, 1000 * factor]})
            whole = pd.DataFrame({"index": [np.nan], "name": ["intracranial volume"], "softvolume-mm3": [np.nan]})
            table = pd.concat([table, whole], ignore_index=True)
            both.append(table.assign(session_id=f"ses-{session}"))
            place = out / label / f"ses-{session}" / "anat"
            place.mkdir(parents=True)
            separate = table.assign(**{"softvolume-mm3": [200, 1000 * (1 + 2 * (factor - 1)), np.nan]})
            separate.to_csv(place / f"{label}_ses-{session}_seg-FAST_desc-m_morph.tsv", sep="\t", na_rep="n/a")
        (out / label / "anat").mkdir()
        file = out / label / "anat" / f"{label}_seg-FAST_desc-m_longitudinal.tsv"
        pd.concat(both).to_csv(file, sep="\t", na_rep="n/a", index=False)


def test_the_smallest_change_is_stored_with_the_model(tmp_path: Path) -> None:
    script("longitudinal")
    rescan = script("rescan")
    write_tables(tmp_path / "out", 5)
    together, separately = rescan.differences(tmp_path / "out", "m")
    grey = together[together["name"] == "GM"]["percent"].to_numpy()
    assert np.allclose(grey, CHANGES)
    assert np.allclose(separately[separately["name"] == "GM"]["percent"], 2 * grey)
    folder = save_card(tmp_path / "model", name="m", heads=("FAST",))
    rescan.store(str(folder), together, "people")
    found, scans = smallest_changes(find_card(str(folder)), "FAST")
    assert found == {1: 0.0, 2: pytest.approx(1.96 * np.sqrt(np.mean(np.square(CHANGES))), abs=0.01)}
    assert scans == "5 people of people, scanned twice"


def test_few_people_are_not_enough(tmp_path: Path) -> None:
    script("longitudinal")
    rescan = script("rescan")
    write_tables(tmp_path / "out", 3)
    together, _ = rescan.differences(tmp_path / "out", "m")
    with pytest.raises(SystemExit, match="too few"):
        rescan.store(str(save_card(tmp_path / "model")), together, "people")


def test_a_structure_shrinks_by_the_asked_share() -> None:
    copies = script("longitudinal")
    affine = phantoms.grid(2.0, "LAS", (60, 60, 60))
    x, y, z = np.indices((60, 60, 60)) - 29.5
    away = np.sqrt(x**2 + (y / 1.5) ** 2 + z**2)
    soft = Volume(1 / (1 + np.exp(2 * (away - 8))), affine)
    pair = [copies.moved(soft, [copies.shrinkage(away < 8, soft, percent)]) for percent in (0.0, 5.0)]
    assert pair[1].sum() / pair[0].sum() == pytest.approx(0.95, abs=0.003)
    assert sys.modules["longitudinal"] is copies
