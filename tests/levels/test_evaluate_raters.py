"""The level evaluate with label maps of two other tools or raters, and the choice among several of one scan."""

from pathlib import Path

import numpy as np
import pytest
from compared import KEYS, found_map, manual_path, run, tables
from label_maps import add_map, blobs, save
from recording_console import RecordingConsole

from bidsseg.errors import NothingSelected
from bidsseg.evaluation.agreement import dice
from bidsseg.levels.evaluate import evaluate_level
from bidsseg.settings import Evaluation, Settings


def test_two_raters_are_compared_in_an_empty_output_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, manual = folders
    other, tables_only = tmp_path / "rater 2", tmp_path / "tables"
    for seed, key in enumerate(KEYS):
        save(manual_path(other, key), found_map(seed))
    console = run(tables_only, {"FAST": [manual]}, against=other)
    stem = "group_seg-FAST_desc-rater2_ref-manual"
    table, _ = tables(tables_only, stem)
    expected = np.concatenate([dice(found_map(seed), blobs(seed, regions=3), [1, 2, 3]) for seed in range(2)])
    np.testing.assert_allclose(table.dice, expected, rtol=1e-4)
    own = {f"{stem}_{name}" for name in ("agreement.tsv", "agreement.json", "summary.tsv", "summary.json")}
    of_dataset = {"dataset_description.json", "README.md", ".bidsignore", "descriptions.tsv"}
    assert {path.name for path in tables_only.iterdir()} == own | of_dataset | {f"{stem}_agreement.html"}
    assert not console.warnings
    page = (tables_only / f"{stem}_agreement.html").read_text()
    assert "Neither side is treated as the truth" in page and "Reference" not in page
    run(tables_only, {"FAST": [other]}, against=manual)
    back, _ = tables(tables_only, "group_seg-FAST_desc-manual_ref-rater2")
    np.testing.assert_allclose(back.dice, table.dice)
    np.testing.assert_allclose(back["volume-difference-mm3"], -table["volume-difference-mm3"])


def test_entities_unknown_to_bids_have_a_column(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    add_map(out, {"subject": "03", "foo": "bar"}, found_map(3))
    save(manual_path(manual, "sub-03_foo-bar"), blobs(3, regions=3))
    run(out, {"FAST": [manual]})
    assert list(tables(out)[0].foo_id.dropna().unique()) == ["foo-bar"]


def test_zeros_before_the_number_of_a_run_do_not_matter(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    reference = manual_path(manual, KEYS[1])
    reference.rename(reference.with_name("sub-02_ses-1_run-01_seg-FAST_dseg.nii.gz"))
    assert not run(out, {"FAST": [manual]}).warnings
    assert set(tables(out)[0].participant_id) == {"sub-01", "sub-02"}


def test_the_model_selects_one_of_several_maps_of_a_scan(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out, manual = folders
    run(tmp_path / "tables", {"FAST": [manual]}, against=out, model="poor")
    poor, _ = tables(tmp_path / "tables", "group_seg-FAST_desc-out_ref-manual")
    expected = dice(np.roll(blobs(0, regions=3), 5, 0), blobs(0, regions=3), [1, 2, 3])
    np.testing.assert_allclose(poor.dice[:3], expected, rtol=1e-4)
    console = RecordingConsole()
    with pytest.raises(NothingSelected):
        sides = Evaluation(against=out)
        evaluate_level(
            Settings(manual, tmp_path / "tables", report=console, labels={"FAST": [manual]}, evaluation=sides)
        )
    assert len(console.warnings) == 2 and "choose with --model" in console.warnings[0]


def test_a_label_map_is_not_compared_with_itself(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, manual = folders
    save(manual_path(manual, KEYS[0], "seg-FAST_desc-changed_dseg"), found_map(0))
    link = tmp_path / "link"
    link.symlink_to(manual)
    console = run(tmp_path / "tables", {"FAST": [manual]}, against=link, model="changed")
    (warning,) = console.warnings
    assert f"FAST: {KEYS[1]} not compared: " in warning and "on both sides" in warning
    table, _ = tables(tmp_path / "tables", "group_seg-FAST_desc-manual_ref-manual")
    assert set(table.participant_id) == {"sub-01"} and (table.dice < 1).all()
    linked = manual_path(tmp_path / "linked", KEYS[0])
    linked.parent.mkdir(parents=True)
    linked.symlink_to(manual_path(link, KEYS[0], "seg-FAST_desc-changed_dseg"))
    with pytest.raises(NothingSelected):
        run(tmp_path / "tables", {"FAST": [tmp_path / "linked"]}, against=link, model="changed")


def test_equal_maps_that_datalad_stores_once_are_compared(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, manual = folders
    for key in KEYS:
        objects = tmp_path / "annex" / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        stored = manual_path(manual, key).rename(objects / f"{key}.nii.gz")
        for folder in (manual, tmp_path / "rater2"):
            manual_path(folder, key).parent.mkdir(parents=True, exist_ok=True)
            manual_path(folder, key).symlink_to(stored)
    assert not run(tmp_path / "tables", {"FAST": [manual]}, against=tmp_path / "rater2").warnings
    assert (tables(tmp_path / "tables", "group_seg-FAST_desc-rater2_ref-manual")[0].dice == 1).all()
