"""The level evaluate: the results in the tables, the choice of pairs, and messages about missing pairs."""

import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from browser import CONTRAST, needs_chromium, photographed, seen
from compared import KEYS, STEM, TWO, found_map, manual_path, run, tables
from fake_model import App, save_card
from label_maps import AFFINE, add_map, blobs, save
from links import Links
from nifti import load_nifti
from PIL import Image
from recording_console import RecordingConsole

from bidsseg.errors import BidssegError, InputMissing, NothingSelected, OutputNotWritable, UsageError
from bidsseg.evaluation.agreement import dice, surface_distances
from bidsseg.image.volume import Volume
from bidsseg.levels.evaluate import evaluate_level
from bidsseg.report.difference import BOTH, FOUND, REFERENCE, difference_picture
from bidsseg.settings import Mask, Settings

MOVED = np.array([[1, 0, 0, 30], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]], float)


# -- tables and page ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["own", "reference"])
def test_results_equal_plain_formulas(folders: tuple[Path, Path], mask: Mask) -> None:
    out, manual = folders
    console = run(out, {"FAST": [manual]}, mask=mask)
    table, summary = tables(out)
    assert list(table.columns[:4]) == ["participant_id", "session_id", "run_id", "index"]
    means = []
    for seed, label in enumerate(["sub-01", "sub-02"]):
        reference, found = blobs(seed, regions=3), found_map(seed)
        if mask == "reference":
            found[reference == 0] = 0
        part = table[table.participant_id == label]
        expected = dice(found, reference, [1, 2, 3])
        np.testing.assert_allclose(part.dice, expected, rtol=1e-4)
        distances = surface_distances(found, reference, [1, 2, 3], affine=np.diag([1, 1, 2, 1]))
        np.testing.assert_allclose(part["hausdorff95-mm"], distances[0], rtol=1e-4)
        np.testing.assert_allclose(part["surface-distance-mm"], distances[1], rtol=1e-4)
        volumes = [2 * np.bincount(labels.ravel())[1:4] for labels in (found, reference)]
        np.testing.assert_allclose(part["found-mm3"], volumes[0])
        np.testing.assert_allclose(part["reference-mm3"], volumes[1])
        np.testing.assert_allclose(part["volume-difference-mm3"], volumes[0] - volumes[1])
        wrong = (found != reference)[reference > 0].mean()
        np.testing.assert_allclose(part["voxel-error"], wrong, rtol=1e-4)
        means.append(expected.mean())
    overall = summary.loc["all regions"]
    assert overall.dice == pytest.approx(np.mean(means), rel=1e-4)
    assert (overall["dice-low"], overall["dice-high"]) == (
        pytest.approx(min(means), rel=1e-4),
        pytest.approx(max(means), rel=1e-4),
    )
    assert (overall.scans, overall.participants) == (2, 2)
    white = summary.loc["White Matter"]
    assert white.dice == pytest.approx(table[table.name == "White Matter"].dice.mean(), rel=1e-4)
    assert f"mean Dice {np.mean(means):.3f}" in console.messages[0] and not console.warnings


def test_large_volumes_agree_with_their_difference(tmp_path: Path) -> None:
    out, manual = tmp_path / "out", tmp_path / "manual"
    affine = np.diag([11.11, 11.11, 11.11, 1])
    found = found_map(0)
    add_map(out, TWO[0], found)
    save(next(out.rglob("*_dseg.nii.gz")), found, affine)
    save(manual_path(manual, KEYS[0]), blobs(0, regions=3), affine)
    run(out, {"FAST": [manual]})
    table, _ = tables(out)
    assert table["found-mm3"].max() > 1e6
    volumes = np.bincount(found.ravel())[1:4] * 11.11**3
    np.testing.assert_allclose(table["found-mm3"], volumes, atol=0.5)
    np.testing.assert_allclose(table["found-mm3"] - table["reference-mm3"], table["volume-difference-mm3"], atol=1.5)


def test_volumes_and_distances_on_axes_that_are_not_perpendicular(tmp_path: Path) -> None:
    out, manual = tmp_path / "out", tmp_path / "manual"
    affine = np.array([[1, 0, 1, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])  # the third axis is tilted by 45°
    found, reference = np.zeros((2, 12, 12, 12), np.uint8)
    found[2, 3, 4:7] = reference[6, 3, 2] = 1
    add_map(out, TWO[0], found)
    save(next(out.rglob("*_dseg.nii.gz")), found, affine)
    save(manual_path(manual, KEYS[0]), reference, affine)
    run(out, {"FAST": [manual]})
    [row] = tables(out)[0].to_dict("records")
    assert (row["found-mm3"], row["reference-mm3"]) == (6, 2), "the volume of morph.tsv"
    distances = np.hypot([-2, -1, 0], [2, 3, 4])
    assert row["surface-distance-mm"] == pytest.approx((distances.sum() + distances.min()) / 4, rel=1e-6)


def test_mean_volumes_are_over_participants_like_their_difference(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    add_map(out, {"subject": "01", "session": "2"}, found_map(5))
    save(manual_path(manual, "sub-01_ses-2"), blobs(6, regions=3))
    run(out, {"FAST": [manual]})
    table, summary = tables(out)
    white = summary.loc["White Matter"]
    for side in ("found-mm3", "reference-mm3"):
        means = table[table.name == "White Matter"].groupby("participant_id")[side].mean()
        assert white[side] == pytest.approx(means.mean(), rel=1e-4)
    assert white["found-mm3"] - white["reference-mm3"] == pytest.approx(white["volume-difference-mm3"], rel=1e-3)


def test_every_column_is_in_the_data_dictionary(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    add_map(out, TWO[0], blobs(0, regions=1), kind="lesion")
    save(manual_path(manual, "sub-01", "label-lesion_mask"), blobs(3, regions=1))
    run(out, {"FAST": [manual], "lesion": [manual]}, mask="reference")
    for path in sorted(out.glob("group_*.tsv")):
        columns = json.loads(path.with_suffix(".json").read_text())
        assert set(pd.read_csv(path, sep="\t").columns) <= set(columns)
        assert columns["dice"]["Description"]
        assert {entry["Units"] for name, entry in columns.items() if name.startswith("hausdorff95-mm")} == {"mm"}
        assert (columns["Found"], columns["Reference"], columns["Mask"]) == ("good", [str(manual)], "reference")


def test_lesion_masks_are_counted_lesion_by_lesion(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    reference, found = np.zeros((9, 9, 9), np.uint8), np.zeros((9, 9, 9), np.uint8)
    reference[1, 1, 1] = reference[7, 7, 7] = found[1, 1, 1] = 1
    add_map(out, TWO[0], found, kind="lesion")
    save(manual_path(manual, "sub-01", "label-lesion_mask"), reference)
    run(out, {"lesion": [manual]})
    table, summary = tables(out, STEM.replace("FAST", "lesion"))
    row = table.iloc[0]
    assert (row["lesions-found"], row["lesions-reference"], row["lesion-precision"]) == (1, 2, 1)
    assert (row["lesion-recall"], row["lesion-f1"]) == (0.5, pytest.approx(2 / 3, rel=1e-4))
    assert summary.loc["Lesion", "lesion-f1"] == pytest.approx(2 / 3, rel=1e-4)
    assert "Lesion recall" in (out / f"{STEM.replace('FAST', 'lesion')}_agreement.html").read_text()


def test_brain_masks_with_different_names_are_compared(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    for name, entities, key in zip(("desc-brain_mask", "label-brain_mask"), TWO, KEYS, strict=True):
        add_map(out, entities, blobs(0, regions=1), kind="brain")
        save(manual_path(manual, key, name), blobs(0, regions=1))
    run(out, {"brain": [manual]})
    assert (tables(out, STEM.replace("FAST", "brain"))[0].dice == 1).all()


def test_processes_give_the_same_files(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    contents = []
    for cpus in (1, 2):
        run(out, {"FAST": [manual]}, n_cpus=cpus)
        contents.append({path.name: path.read_bytes() for path in out.glob("group_*")})
    assert contents[0] == contents[1] and len(contents[0]) == 5


def test_a_dry_run_writes_nothing(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    console = run(out, {"FAST": [manual]}, dry_run=True)
    assert not list(out.glob("group_*")) and console.messages == [f"{out / STEM}_agreement.tsv: 2 scans"]


def test_marks_do_not_select_scans(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    assert "evaluate: --where is not used" in run(out, {"FAST": [manual]}, dry_run=True, where=["use=1"]).warnings[0]


# -- what cannot be compared -------------------------------------------------------------------------------------------


def test_scans_of_one_side_are_named(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    add_map(out, {"subject": "03"}, blobs(1))
    save(manual_path(manual, "sub-04"), blobs(1, regions=3))
    console = run(out, {"FAST": [manual]})
    assert len(console.warnings) == 2
    assert "sub-03" in console.warnings[0] and f"no reference in {manual}" in console.warnings[0]
    assert "sub-04" in console.warnings[1] and "run the level participant first" in console.warnings[1]
    page = (out / f"{STEM}_agreement.html").read_text()
    assert "sub-03" in page and "sub-04" in page
    left = json.loads((out / f"{STEM}_summary.json").read_text())["NotCompared"]
    assert [entry["Scan"] for entry in left] == ["sub-03", "sub-04"]


def turned(image: nib.Nifti1Image) -> nib.Nifti1Image:
    found: nib.Nifti1Image = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    return found


def moved(image: nib.Nifti1Image) -> nib.Nifti1Image:
    affine = image.affine.copy()
    affine[0, 3] += 0.05
    return nib.Nifti1Image(np.asarray(image.dataobj), affine)


@pytest.mark.parametrize(
    "change, remark", [(turned, "stored as AIL and not as RAS"), (moved, "less than 0.1 voxels away")]
)
def test_other_forms_of_the_same_grid_are_accepted(
    folders: tuple[Path, Path], change: Callable[[nib.Nifti1Image], nib.Nifti1Image], remark: str
) -> None:
    out, manual = folders
    run(out, {"FAST": [manual]})
    before = tables(out)[0]
    for key in KEYS:
        path = manual_path(manual, key)
        image = change(load_nifti(path))
        path.unlink()
        nib.save(image, path)
    console = run(out, {"FAST": [manual]})
    assert not console.warnings and any(remark in line and "and 1 more" in line for line in console.messages)
    assert tables(out)[0].equals(before)


def test_another_grid_and_unknown_values_fail_and_other_scans_are_compared(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    for label, labels, affine in (
        ("05", blobs(1, regions=3), MOVED),
        ("06", blobs(1, regions=3) + np.uint8(7), AFFINE),
    ):
        add_map(out, {"subject": label}, blobs(1, regions=3))
        save(manual_path(manual, f"sub-{label}"), labels, affine)
    console = RecordingConsole()
    settings = Settings(manual, out, model="good", n_cpus=1, report=console, labels={"FAST": [manual]})
    with pytest.raises(BidssegError, match="only 2 of 4 pairs") as failed:
        evaluate_level(settings)
    assert failed.value.code == 1
    grid, values = console.warnings
    assert "sub-05" in grid and "different grids" in grid
    assert "sub-06_seg-FAST_dseg.nii.gz" in values and "not in the protocol FAST" in values
    assert len(tables(out)[0]) == 6
    page = (out / f"{STEM}_agreement.html").read_text()
    assert "different grids" in page and "not in the protocol FAST" in page


def test_a_protocol_of_which_nothing_could_be_compared_is_named(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    for entities in TWO:
        add_map(out, entities, blobs(1), kind="FreeSurfer")
    for key in KEYS:
        save(manual_path(manual, key, "seg-FreeSurfer_dseg"), blobs(1), MOVED)
    with pytest.raises(BidssegError, match="no label map of FreeSurfer could be compared"):
        run(out, {"FAST": [manual], "FreeSurfer": [manual]})
    assert len(tables(out)[0]) == 6


def test_a_reference_in_another_space_is_no_reference(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    manual_path(manual, "sub-01").unlink()
    save(manual_path(manual, "sub-01", "space-MNI152NLin6Asym_seg-FAST_dseg"), blobs(1, regions=3), MOVED)
    with pytest.raises(BidssegError, match="only 1 of 2"):
        run(out, {"FAST": [manual]})


def test_errors_are_raised_before_anything_is_read(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out, manual = folders
    with pytest.raises(UsageError, match="--labels PROTOCOL=DIR"):
        run(out, {})
    with pytest.raises(InputMissing, match=f"{manual} has no label map of BrainCOLOR.*seg-BrainCOLOR_dseg"):
        run(out, {"FAST": [manual], "BrainCOLOR": [manual]})
    with pytest.raises(InputMissing, match=f"--against: {manual} has no label map of lesion"):
        save(manual_path(tmp_path / "lesions", "sub-01", "label-lesion_mask"), blobs(1, regions=1))
        run(out, {"lesion": [tmp_path / "lesions"]}, against=manual)
    with pytest.raises(InputMissing, match="run the level participant first"):
        run(tmp_path / "nowhere", {"FAST": [manual]})


def test_scans_that_the_model_has_not_segmented(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    console = RecordingConsole()
    labels = {"FAST": [manual]}
    with pytest.raises(NothingSelected):
        evaluate_level(Settings(manual, out, model="wholebrain", report=console, labels=labels))
    (warning,) = console.warnings
    assert "not segmented by the model wholebrain: run the level participant first" in warning
    assert "good, poor" in warning and all(key in warning for key in KEYS)
    assert not list(out.glob("group_*"))


def test_results_of_label_maps_that_were_all_corrected_are_removed(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    labels = {"FAST": [manual]}
    run(out, labels)
    run(out, labels, model="poor")
    of_poor = {path.name for path in out.glob("group_*_desc-poor_*")}
    for path in out.glob("sub-*/**/anat/*_seg-FAST_desc-good_dseg.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "Manual": True}))
    with pytest.raises(NothingSelected):
        run(out, labels, participants=["01"])
    assert len(list(out.glob(f"{STEM}_*"))) == 5, "scans that are not selected may still be comparable"
    with pytest.raises(NothingSelected):
        run(out, labels)
    assert {path.name for path in out.glob("group_*")} == of_poor


def test_a_brain_mask_that_another_model_wrote_is_named(tmp_path: Path) -> None:
    out, manual = tmp_path / "out", tmp_path / "manual"
    for entities, key, model in zip(TWO, KEYS, ("good", "poor"), strict=True):
        add_map(out, entities, blobs(1, regions=1), model=model, kind="brain")
        save(manual_path(manual, key, "desc-brain_mask"), blobs(2, regions=1))
    add_map(out, {"subject": "03"}, blobs(1, regions=1), model="poor", kind="brain")
    console = RecordingConsole()
    with pytest.raises(NothingSelected):
        evaluate_level(Settings(manual, out, model="other", report=console, labels={"brain": [manual]}))
    assert [text.partition(": run the level participant with --overwrite")[0] for text in console.warnings] == [
        f"brain: {KEYS[0]} not compared: its brain mask is that of the model good",
        f"brain: {KEYS[1]} not compared: its brain mask is that of the model poor",
    ]


def test_scans_of_another_model_of_the_same_name_are_named(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    for path in out.glob("sub-*/**/anat/*_seg-FAST_desc-good_dseg.json"):
        about = json.loads(path.read_text())
        models = [{**about["Models"][0], "SHA256": "b" if path.name.startswith("sub-02") else "a"}]
        path.write_text(json.dumps({**about, "Models": models}))
    warnings = run(out, {"FAST": [manual]}).warnings
    assert any("good, FAST: another model of the same name segmented sub-02_ses-1_run-1: " in text for text in warnings)


def test_selected_participants_alone(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    console = run(out, {"FAST": [manual]}, participants=["02"], sessions=["1"])
    assert set(tables(out)[0].participant_id) == {"sub-02"} and not console.warnings


def test_maps_in_standard_spaces_are_left_out(folders: tuple[Path, Path]) -> None:
    out, manual = folders
    sidecar = json.loads((out / "sub-01/anat/sub-01_seg-FAST_desc-good_dseg.json").read_text())
    stem = out / "sub-01/anat/sub-01_space-MNI152NLin6Asym_seg-FAST_res-1_desc-good_dseg"
    save(stem.with_suffix(".nii.gz"), blobs(4, regions=3), MOVED)
    stem.with_suffix(".json").write_text(json.dumps({**sidecar, "SpatialReference": "https://template"}))
    assert not run(out, {"FAST": [manual]}).warnings


@pytest.mark.parametrize("name", ["_agreement.html", "_agreement.tsv", "_summary.tsv"])
def test_files_of_others_are_kept(folders: tuple[Path, Path], name: str) -> None:
    out, manual = folders
    (out / f"{STEM}{name}").write_text("theirs\n")
    with pytest.raises(OutputNotWritable, match="was not written by bidsseg"):
        run(out, {"FAST": [manual]})
    assert (out / f"{STEM}{name}").read_text() == "theirs\n"
    (out / f"{STEM}{name}").unlink()
    for _ in range(2):
        run(out, {"FAST": [manual]})


# -- the command line --------------------------------------------------------------------------------------------------


def test_participant_and_evaluate_in_one_call(app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("--skip-bids-validation", "--n-cpus", "1") == 0
    for path in app.output.glob("sub-*/anat/*_seg-FAST_*dseg.nii.gz"):
        target = tmp_path / "mine" / path.relative_to(app.output)
        target.parent.mkdir(parents=True)
        target.write_bytes(path.read_bytes())
    app.output = tmp_path / "second"
    words = ["evaluate", "--labels", f"FAST={tmp_path / 'mine'}", "--skip-bids-validation", "--n-cpus", "1"]
    assert app(*words) == 0
    assert app.fake.segmented == 4
    table, _ = tables(app.output, "group_seg-FAST_desc-wholebrain_ref-mine")
    assert len(table) == 6 and (table.dice == 1).all()
    assert "mean Dice 1.000" in capsys.readouterr().out
    page = app.output / "group_seg-FAST_desc-wholebrain_ref-mine_agreement.html"
    links = Links(page)
    assert all((app.output / address).is_file() for address in links.found) and "sub-01.html" in links.found
    assert "no image on this grid" not in page.read_text() and len(links.pictures) == 2


def test_participants_that_the_model_was_trained_on_are_named(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app("--skip-bids-validation", "--n-cpus", "1") == 0
    shutil.copytree(app.output, tmp_path / "mine")
    words = ["--labels", f"FAST={tmp_path / 'mine'}", "--n-cpus", "1", "--dry-run"]
    assert app(*words, level="evaluate") == 0
    assert "trained on" not in capsys.readouterr().err
    save_card(app.card, trained_on={"bids": "01 07", "other": "02"})
    assert app(*words, level="evaluate") == 0
    assert "the model wholebrain was trained on 1 of 2 compared participants (bids/sub-01)" in capsys.readouterr().err


def test_a_wrong_folder_is_known_before_scans_are_segmented(app: App, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert app("evaluate", "--labels", f"FAST={tmp_path / 'empty'}", "--skip-bids-validation") == 66
    assert app("evaluate", "--skip-bids-validation") == 64
    assert app.fake.segmented == 0


# -- pictures and the page ---------------------------------------------------------------------------------------------


def test_the_picture_shows_the_slice_that_differs_most(tmp_path: Path) -> None:
    reference = np.zeros((40, 40, 40), np.uint8)
    reference[5:35, 5:35, 5:35] = 1
    found = reference.copy()
    found[10:30, 10:30, 22] = 2  # all of it in one axial slice
    image = Volume(np.full(reference.shape, 50, np.float32), np.eye(4))
    png = difference_picture(Volume(found, np.eye(4)), Volume(reference, np.eye(4)), image)
    pixels = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
    axial = pixels[:, : pixels.shape[1] // 3]

    def count(color: tuple[int, int, int]) -> int:
        return int((np.abs(axial - color).max(2) < 12).sum())

    side = 20 * 2.5
    assert 3 * side < count(FOUND) < 5 * side, "the square that only one map has"
    assert count(BOTH) > 3 * 30 * 2.5, "the edge of the brain"
    assert count(REFERENCE) == 0


def test_the_picture_of_equal_maps_shows_them() -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[10:30, 10:30, 10:30] = 1
    png = difference_picture(Volume(labels, np.eye(4)), Volume(labels, np.eye(4)), None)
    pixels = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
    assert (np.abs(pixels - np.array(BOTH)).max(2) < 12).sum() > 3 * 3 * 20 * 2.5, "the edges in all planes"


STEPS = """
  const table = document.getElementById("regions"), field = document.querySelector("input[data-table=regions]");
  const names = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
  table.tHead.rows[0].cells[2].querySelector("button").click();
  say("lowest", names()[0]);
  field.value = "white";
  field.dispatchEvent(new Event("input"));
  say("found", names().join(","));
  say("boxes", document.querySelectorAll("svg.box").length);
  say("plots", document.querySelectorAll("svg.plot").length);
  say("named", [...document.querySelectorAll("svg, img")].every((d) => d.getAttribute("aria-label") || d.alt));
"""


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_works_in_a_browser(folders: tuple[Path, Path], tmp_path: Path, dark: bool) -> None:
    out, manual = folders
    add_map(out, {"subject": "03"}, blobs(1))
    run(out, {"FAST": [manual]})
    page = out / f"{STEM}_agreement.html"
    _, summary = tables(out)
    lowest = summary.iloc[1:].dice.idxmin()
    found = seen(page, STEPS + CONTRAST, tmp_path, dark)
    assert int(found.pop("texts")) > 40 and found.pop("dark") == str(dark).lower()
    assert found == {
        "lowest": lowest, "found": "White Matter", "boxes": "3", "plots": "6", "named": "true", "pale": "",
        "failures": "",
    }  # fmt: skip
    if not dark:
        assert 0.003 < (np.ptp(photographed(page), axis=2) > 60).mean() < 0.5


@pytest.mark.data
def test_real_labels_agree_with_themselves(testdata: Path, tmp_path: Path) -> None:
    manual, copy = testdata / "ms" / "derivatives" / "manual", tmp_path / "copy"
    shutil.copytree(manual, copy)
    run(tmp_path / "out", {"lesion": [manual]}, against=copy, participants=["19", "26"])
    table, _ = tables(tmp_path / "out", "group_seg-lesion_desc-copy_ref-manual")
    assert (table.dice == 1).all() and (table["lesion-f1"] == 1).all()
