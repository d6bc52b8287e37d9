"""The tables of a cohort: what the dataset says about people, fractions, asymmetry, outliers and runs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from trees import MODEL, add_result, rows_of, run_group

from bidsseg.derivative.cohort_numbers import chosen_runs
from bidsseg.derivative.outliers import FEWEST, robust_z
from bidsseg.errors import NothingSelected, UsageError

MASK_MM3 = 120.0
"""Volume of the brain mask of a result with 30 voxels of grey matter, of 60 voxels of 2 mm³."""


def table(output: Path, kind: str = "morph", protocol: str = "FAST") -> list[dict[str, str]]:
    path = output / f"group_seg-{protocol}_desc-{MODEL}_{kind}.tsv"
    return rows_of(path)


def dictionary(output: Path, kind: str = "morph") -> dict[str, dict[str, object]]:
    return dict(json.loads((output / f"group_seg-FAST_desc-{MODEL}_{kind}.json").read_text()))


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    folder = tmp_path / "bids"
    folder.mkdir()
    return folder


# -- participants and sessions -----------------------------------------------------------------------------------------


def test_every_column_of_the_participants_is_joined_and_described(bids: Path, output: Path) -> None:
    table_text = "participant_id\tage\tsex\tstatus\tGM\r\nsub-02\t41\tF\tpatient\tyes\r\n01\t\tM\tcontrol\tno\r\n"
    (bids / "participants.tsv").write_bytes(b"\xef\xbb\xbf" + table_text.encode())
    (bids / "participants.json").write_text('{"age": {"Description": "Age at the scan", "Units": "years"}}')
    for label in ("01", "02", "03"):
        add_result(output, {"subject": label})
    console = run_group(bids, output)
    rows, columns = table(output), dictionary(output)
    new = ["age", "sex", "participant_status", "participant_GM"]
    assert list(rows[0])[-4:] == new and set(rows[0]) <= set(columns)
    assert [[row[name] for name in new] for row in rows] == [
        ["n/a", "M", "control", "no"],
        ["41", "F", "patient", "yes"],
        ["n/a", "n/a", "n/a", "n/a"],
    ]
    assert rows[1]["status"] == "done" and rows[1]["GM"] == "60"
    assert columns["age"] == {"Description": "Age at the scan", "Units": "years"}
    assert any("no row for sub-03" in warning for warning in console.warnings)


def test_sessions_have_their_own_rows(bids: Path, output: Path) -> None:
    (bids / "participants.tsv").write_text("participant_id\tage\nsub-01\t40\n")
    (bids / "sub-01").mkdir()
    (bids / "sub-01" / "sub-01_sessions.tsv").write_text(
        "session_id\tacq_time\tage\nses-a\t2020-01-01\t40\nb\t2021-02-01\t41\n"
    )
    for session in ("a", "b", "c"):
        add_result(output, {"subject": "01", "session": session})
    run_group(bids, output)
    cells = [(row["age"], row["acq_time"], row["session_age"]) for row in table(output)]
    assert cells == [("40", "2020-01-01", "40"), ("40", "2021-02-01", "41"), ("40", "n/a", "n/a")]


@pytest.mark.parametrize("first", ["ses-1", "n/a"])
def test_participants_with_a_row_for_each_session(first: str, bids: Path, output: Path) -> None:
    """A row of no session is that of all sessions without a row."""
    rows = ["participant_id\tsession_id\tscore", f"sub-01\t{first}\t5", "sub-01\tses-2\t7\n"]
    (bids / "participants.tsv").write_text("\n".join(rows))
    for session in ("1", "2"):
        add_result(output, {"subject": "01", "session": session})
    run_group(bids, output)
    assert [row["score"] for row in table(output)] == ["5", "7"]


def test_columns_named_like_those_of_a_measure_are_kept(bids: Path, output: Path) -> None:
    (bids / "participants.tsv").write_text("participant_id\tFLAIR-mean\tT1-mean\nsub-01\thigh\tlow\n")
    add_result(output, {"subject": "01"})
    path = output / f"sub-01/anat/sub-01_meas-FLAIR_seg-FAST_desc-{MODEL}_stats.tsv"
    path.write_text("name\tmean\tmedian\tsd\tvoxels\nGray Matter\t7\t7\t1\t30\n")
    path.with_suffix(".json").write_text('{"InputFingerprints": ["0"]}')
    run_group(bids, output, long=True)
    (row,) = [row for row in table(output, "long") if row["region"] == "GM"]
    assert (row["FLAIR-mean"], row["participant_FLAIR-mean"], row["T1-mean"]) == ("7", "high", "low")
    assert table(output)[0]["participant_FLAIR-mean"] == "high", "one name in all tables"


def test_columns_that_are_not_joined_are_reported(bids: Path, output: Path) -> None:
    rows = ["participant_id\tage\tage \t\tsex\t", "sub-01\t40\t41\tx\tF\t", "sub-02\t\t\t\t\t\ty"]
    (bids / "participants.tsv").write_text("\n".join(rows) + "\n")
    add_result(output, {"subject": "01"})
    warnings = [warning for warning in run_group(bids, output).warnings if "participants.tsv" in warning]
    assert (table(output)[0]["age"], table(output)[0]["sex"]) == ("41", "F")
    assert len(warnings) == 2 and "2 columns are named age, only the last" in warnings[0]
    assert "2 columns without a name" in warnings[1], "the last of the first line is empty everywhere"


@pytest.mark.parametrize("content", ["name\tage\nsub-01\t3\n", "\0\0", ""])
def test_an_unusable_table_is_a_warning(bids: Path, output: Path, content: str) -> None:
    (bids / "participants.tsv").write_text(content)
    add_result(output, {"subject": "01"})
    console = run_group(bids, output)
    assert [row["status"] for row in table(output)] == ["done"]
    assert any("participants.tsv" in warning for warning in console.warnings) == bool(content)


# -- fractions, asymmetry, soft volumes --------------------------------------------------------------------------------


def test_fractions_are_of_the_brain_mask(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01"})
    run_group(bids, output)
    (row,) = table(output, "fraction")
    assert [float(row[name]) for name in ("CSF", "GM", "WM")] == pytest.approx(
        [20 / MASK_MM3, 60 / MASK_MM3, 40 / MASK_MM3], abs=1e-7
    )
    assert "brain mask" in str(dictionary(output, "fraction")["GM"]["Description"])
    (row,) = table(output, "softvolume")
    assert [row[name] for name in ("CSF", "GM", "WM")] == ["0", "0", "0"]


def test_asymmetry_is_of_paired_regions(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01"}, protocols=("FreeSurfer",))
    path = output / f"sub-01/anat/sub-01_seg-FreeSurfer_desc-{MODEL}_morph.tsv"
    lines = path.read_text().splitlines()
    volumes = {"Left Hippocampus": 330, "Right Hippocampus": 270}
    cells = [line.split("\t") for line in lines]
    path.write_text("\n".join("\t".join([*c[:4], str(volumes.get(c[1], c[4])), *c[5:]]) for c in cells) + "\n")
    run_group(bids, output, long=True)
    (row,) = table(output, "asymmetry", "FreeSurfer")
    assert float(row["HIP"]) == pytest.approx((330 - 270) / 300)
    assert "BS" not in row and row["AMY"] == "n/a", "no midline; no value where both sides are empty"
    assert float(row["CWM"]) == 2.0, "the left side alone"
    found = {row["region"]: row for row in table(output, "long", "FreeSurfer")}
    assert found["L-HIP"]["asymmetry"] == found["R-HIP"]["asymmetry"] == row["HIP"]
    assert [found[name]["hemisphere"] for name in ("L-HIP", "R-HIP", "BS")] == ["L", "R", "n/a"]
    assert found["BS"]["asymmetry"] == "n/a"


def test_the_long_table_has_a_row_for_each_scan_and_region(bids: Path, output: Path) -> None:
    (bids / "participants.tsv").write_text("participant_id\tage\nsub-01\t40\nsub-02\t50\n")
    for label in ("01", "02"):
        add_result(output, {"subject": label}, 30 * int(label), intracranial_mm3=240.0 if label == "02" else math.nan)
    run_group(bids, output, long=True)
    rows = table(output, "long")
    assert set(rows[0]) <= set(dictionary(output, "long"))
    assert [(row["participant_id"], row["region"]) for row in rows] == [
        (f"sub-{label}", region) for label in ("01", "02") for region in ("BrainMask", "eTIV", "CSF", "GM", "WM")
    ]
    assert [row["volume-mm3"] for row in rows if row["region"] == "GM"] == ["60", "120"]
    assert {row["age"] for row in rows if row["participant_id"] == "sub-02"} == {"50"}
    assert [row["intracranial-fraction"] for row in rows if row["region"] == "GM"] == ["n/a", "0.5"]
    assert rows[0]["brainmask-fraction"] == "1" and rows[0]["softvolume-mm3"] == "n/a"


def test_without_the_flag_there_is_no_long_table(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01"})
    run_group(bids, output)
    assert not list(output.glob("*_long.*"))
    run_group(bids, output, long=True)
    add_result(output, {"subject": "02"})
    run_group(bids, output)
    assert {row["participant_id"] for row in table(output, "long")} == {"sub-01", "sub-02"}, "it is kept up to date"


def test_a_corrected_scan_is_marked_in_every_table_of_scans(bids: Path, output: Path) -> None:
    for label in ("01", "02"):
        add_result(output, {"subject": label})
    sidecar = output / f"sub-02/anat/sub-02_seg-FAST_desc-{MODEL}_dseg.json"
    sidecar.write_text(json.dumps({"Manual": True}))
    run_group(bids, output)
    for kind in ("morph", "fraction", "softvolume"):
        assert [row["status"] for row in table(output, kind)] == ["done", "corrected"]
        assert str(dictionary(output, kind)["quality"]["Description"]).startswith("Expected mean Dice")


# -- what to look at ---------------------------------------------------------------------------------------------------


def test_the_outlier_is_flagged(bids: Path, output: Path) -> None:
    grey = {f"{number:02}": 100 + number for number in range(1, FEWEST + 3)}
    for label, voxels in {**grey, "77": 300}.items():
        add_result(output, {"subject": label}, voxels)
    run_group(bids, output, long=True)
    rows = {row["participant_id"]: row for row in table(output)}
    odd = rows.pop("sub-77")
    assert set(odd["outliers"].split()) == {"BrainMask", "CSF", "GM", "WM"} and odd["check"] == "outliers"
    assert {(row["outliers"], row["check"]) for row in rows.values()} == {("n/a", "n/a")}
    long = [row for row in table(output, "long") if row["outlier"] == "1"]
    assert {row["participant_id"] for row in long} == {"sub-77"} and len(long) == 4
    assert abs(float(long[0]["robust-z"])) > 3.5
    assert "3.5" in str(dictionary(output)["outliers"]["Description"])


def test_low_quality_and_findings_are_reasons_to_look(bids: Path, output: Path) -> None:
    for number in range(FEWEST + 2):
        add_result(output, {"subject": f"{number:02}"}, quality=0.9 + number / 1000)
    add_result(output, {"subject": "77"}, quality=0.5)
    sidecar = output / f"sub-03/anat/sub-03_seg-FAST_desc-{MODEL}_dseg.json"
    sidecar.write_text(json.dumps({"Quality": 0.9, "ResultFindings": ["SIDES_UNEQUAL: ..."]}))
    run_group(bids, output)
    check = {row["participant_id"]: row["check"] for row in table(output) if row["check"] != "n/a"}
    assert check == {"sub-03": "findings", "sub-77": "quality"}


def test_the_data_dictionary_says_what_separates_reasons(bids: Path, output: Path) -> None:
    for number in range(FEWEST + 2):
        add_result(output, {"subject": f"{number:02}"}, 100 + number)
    add_result(output, {"subject": "77"}, 300)
    sidecar = output / f"sub-77/anat/sub-77_seg-FAST_desc-{MODEL}_dseg.json"
    sidecar.write_text(json.dumps({"ResultFindings": ["SIDES_UNEQUAL: ..."]}))
    run_group(bids, output)
    delimiter = str(dictionary(output)["check"]["Delimiter"])
    assert table(output)[-1]["check"].split(delimiter) == ["findings", "outliers"]


def add_expected_dice(output: Path, label: str) -> None:
    """Add an expected Dice to the table of FreeSurfer's regions, as if only that head were calibrated."""
    path = output / f"sub-{label}/anat/sub-{label}_seg-FreeSurfer_desc-{MODEL}_morph.tsv"
    header, first, *others = path.read_text().splitlines()
    assert header.endswith("expected-dice") and first.endswith("n/a")
    path.write_text("\n".join([header, first.removesuffix("n/a") + "0.9", *others]) + "\n")


def test_both_kinds_of_quality_are_named_apart(bids: Path, output: Path) -> None:
    for label in ("01", "02"):
        add_result(output, {"subject": label}, protocols=("FAST", "FreeSurfer"))
    console = run_group(bids, output)
    names = ("Quality: expected mean Dice", "Quality: mean confidence in the brain")
    page = (output / "group.html").read_text()
    assert names[1] in page and names[0] not in page
    add_expected_dice(output, "01")
    console = run_group(bids, output)
    assert any(f"{MODEL}, FAST: the quality of some scans is the expected" in text for text in console.warnings)
    add_expected_dice(output, "02")
    console = run_group(bids, output)
    page = (output / "group.html").read_text()
    assert names[0] in page and names[1] not in page and not any("quality of" in text for text in console.warnings)


def test_scans_of_another_model_of_the_same_name_are_named(bids: Path, output: Path) -> None:
    for number, weights in enumerate(("a", "a", "b", None), 1):
        add_result(output, {"subject": f"0{number}"})
        sidecar = output / f"sub-0{number}/anat/sub-0{number}_seg-FAST_desc-{MODEL}_dseg.json"
        own = {"Name": MODEL, "SHA256": weights} if weights else {"Name": MODEL}
        models = [own, {"Name": "locator", "SHA256": str(number)}]
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"Models": models}))
    warnings = run_group(bids, output).warnings
    assert any(f"{MODEL}, FAST: another model of the same name segmented sub-03: " in text for text in warnings)


def test_scans_segmented_with_and_without_fast_are_named(bids: Path, output: Path) -> None:
    for label in ("01", "02", "03"):
        add_result(output, {"subject": label})
    assert "--fast" not in str(run_group(bids, output).warnings)
    sidecar = output / f"sub-02/anat/sub-02_seg-FAST_desc-{MODEL}_dseg.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"Fast": True}))
    warnings = run_group(bids, output).warnings
    assert any(f"{MODEL}, FAST: sub-02 made with --fast, unlike most" in text for text in warnings)


def test_few_scans_have_no_outliers(bids: Path, output: Path) -> None:
    for label, voxels in (("01", 30), ("02", 31), ("03", 300)):
        add_result(output, {"subject": label}, voxels)
    run_group(bids, output)
    assert {row["outliers"] for row in table(output)} == {"n/a"}


def test_scores_agree_with_their_definition() -> None:
    values = np.random.default_rng(0).normal(5, 2, (400, 2))
    values[:, 1] = 1.0
    values[0] = 25.0, 9.0
    found = robust_z(values, np.full(400, True))
    away = np.abs(values[:, 0] - np.median(values[:, 0]))
    np.testing.assert_allclose(found[0, 0], away[0] / (1.4826 * np.median(away)), rtol=1e-4)
    assert np.std(found[1:, 0]) == pytest.approx(1, abs=0.1)
    assert found[0, 1] > 100 and (found[1:, 1] <= 0).all(), "more than half are equal"
    few = np.arange(400) < FEWEST - 1
    assert np.isnan(robust_z(values, few)).all()


# -- runs --------------------------------------------------------------------------------------------------------------


def test_the_best_run_counts_and_all_are_listed(bids: Path, output: Path) -> None:
    for run_label, quality in (("1", 0.8), ("2", 0.9), ("10", 0.85)):
        add_result(output, {"subject": "01", "run": run_label}, quality=quality)
    add_result(output, {"subject": "02"}, quality=0.7)
    run_group(bids, output, runs="best", long=True)
    rows = table(output)
    assert [(row["participant_id"], row["run_id"], row["selected"]) for row in rows] == [
        ("sub-01", "run-1", "0"), ("sub-01", "run-2", "1"), ("sub-01", "run-10", "0"), ("sub-02", "n/a", "1"),
    ]  # fmt: skip
    for kind in ("fraction", "softvolume", "long"):
        assert {row["run_id"] for row in table(output, kind)} == {"run-2", "n/a"}, kind
    assert "highest quality" in str(dictionary(output)["selected"]["Description"])
    run_group(bids, output, runs="first")
    assert [row["selected"] for row in table(output)] == ["1", "0", "0", "1"]
    run_group(bids, output)
    assert "selected" not in table(output)[0] and len(table(output, "fraction")) == 4


def test_runs_are_chosen_for_a_model_without_label_maps(bids: Path, output: Path) -> None:
    for number, (quality, manual) in enumerate([(0.5, False), (0.9, False), (0.7, True)], 1):
        stem = output / f"sub-01/anat/sub-01_run-{number}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{stem}_label-lesion_desc-own_morph.tsv").write_text("index\tvolume-mm3\tplace\n1\t10\tn/a\n")
        about = {"Quality": quality, "Manual": manual, "Sources": [f"bids:raw:sub-01/anat/{stem.name}_T1w.nii.gz"]}
        Path(f"{stem}_label-lesion_desc-own_morph.json").write_text(json.dumps(about))
        Path(f"{stem}_desc-ownlesions_dseg.nii.gz").touch()
    (bids / "sub-01").mkdir()
    marked = [f"anat/sub-01_run-{number}_T1w.nii.gz\t{int(number < 3)}" for number in (1, 2, 3)]
    (bids / "sub-01/sub-01_scans.tsv").write_text("\n".join(["filename\tuse", *marked]))
    for settings, chosen in (
        ({}, ["run-1", "run-2", "run-3"]),
        ({"runs": "first"}, ["run-1"]),
        ({"runs": "best"}, ["run-3"]),
        ({"runs": "best", "where": ["use=1"]}, ["run-2"]),
    ):
        run_group(bids, output, **settings)
        assert [row["run_id"] for row in rows_of(output / "group_label-lesion_desc-own_morph.tsv")] == chosen


def test_no_warning_about_scans_that_do_not_count(bids: Path, output: Path) -> None:
    (bids / "participants.tsv").write_text("participant_id\tuse\nsub-01\t1\nsub-02\t1\nsub-03\t0\n")
    for label in ("01", "02", "03"):
        add_result(output, {"subject": label})
        stem, weights = output / f"sub-{label}/anat/sub-{label}", "b" if label == "03" else "a"
        about = {"Models": [{"Name": MODEL, "SHA256": weights}], "LeastLesionVolume": float(label == "03")}
        Path(f"{stem}_label-lesion_desc-{MODEL}_morph.tsv").write_text("index\tvolume-mm3\tplace\n1\t10\tn/a\n")
        Path(f"{stem}_desc-{MODEL}lesions_dseg.nii.gz").touch()
        sources = {"Sources": [f"bids:raw:sub-{label}/anat/sub-{label}_T1w.nii.gz"]}
        for name in (f"label-lesion_desc-{MODEL}_morph", f"seg-FAST_desc-{MODEL}_dseg"):
            Path(f"{stem}_{name}.json").write_text(json.dumps({**about, **sources}))
    for where, told in (([], True), (["use=1"], False)):
        warnings = str(run_group(bids, output, where=where).warnings)
        assert ("another model of the same name segmented sub-03" in warnings) == told
        assert ("lesions of the scans cannot be compared" in warnings) == told


def test_the_cohort_on_the_pages_has_only_the_runs_that_count(bids: Path, output: Path) -> None:
    for number in range(FEWEST):
        add_result(output, {"subject": f"{number:02}", "run": "1"}, 100 + number, quality=0.9)
        add_result(output, {"subject": f"{number:02}", "run": "2"}, 300, quality=0.5)
    run_group(bids, output, runs="best")
    cohort = dictionary(output)["GM"]["Cohort"]
    assert isinstance(cohort, dict) and (cohort["Count"], cohort["Mean"], cohort["Maximum"]) == (FEWEST, 209, 218)
    assert "0.21 ± 0.01 ml (0.20 to 0.22)" in (output / "group.html").read_text()


def test_only_marked_scans_count(bids: Path, output: Path) -> None:
    for number, quality in (("1", 0.9), ("2", 0.8), ("3", 0.7)):
        add_result(output, {"subject": "01", "run": number}, quality=quality)
    add_result(output, {"subject": "02"})
    marks = {1: "fail", 2: "pass", 3: "pass"}
    rows = [f"anat/sub-01_run-{number}_T1w.nii.gz\t{mark}\n" for number, mark in marks.items()]
    (bids / "sub-01").mkdir(exist_ok=True)
    (bids / "sub-01/sub-01_scans.tsv").write_text("".join(["filename\tqc\n", *rows]))
    console = run_group(bids, output, where=["qc=pass"])
    assert console.messages[0].endswith("4 scans, 2 of them not counted")
    page = (output / "group.html").read_text()
    assert "4 scans, 2 of them not counted, 0 without a result" in page and page.count("<td>not counted ") == 2
    assert [row["selected"] for row in table(output)] == ["0", "1", "1", "0"], "sub-02 has no mark"
    assert len(table(output, "fraction")) == 2
    assert "qc=pass in the tables of the dataset" in str(dictionary(output)["selected"]["Description"])
    run_group(bids, output, where=["qc!=fail"], runs="best")
    assert [row["selected"] for row in table(output)] == ["0", "1", "0", "1"], "the best of the marked runs"
    with pytest.raises(UsageError, match=r"has the column mark; there are .*filename"):
        run_group(bids, output, where=["mark=1"])
    with pytest.raises(NothingSelected, match="no scan with a result meets qc=maybe"):
        run_group(bids, output, where=["qc=maybe"])


def test_one_scan_has_no_standard_deviation(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01"})
    run_group(bids, output)
    cohort = {"Count": 1, "Mean": 60, "Minimum": 60, "Maximum": 60}
    assert dictionary(output)["GM"]["Cohort"] == cohort
    assert "0.06 ± n/a ml (0.06 to 0.06)" in (output / "group.html").read_text()


def test_a_corrected_run_is_the_best_and_a_scan_without_run_the_first(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01"}, quality=0.9)
    for number in ("2", "10"):
        add_result(output, {"subject": "01", "run": number}, quality=0.7)
    run_group(bids, output, runs="first")
    assert [row["run_id"] for row in table(output)] == ["n/a", "run-2", "run-10"]
    assert [row["selected"] for row in table(output)] == ["1", "0", "0"]
    (output / f"sub-01/anat/sub-01_run-2_seg-FAST_desc-{MODEL}_dseg.json").write_text('{"Manual": true}')
    run_group(bids, output, runs="best")
    assert [row["selected"] for row in table(output)] == ["0", "1", "0"]


def test_a_scan_without_run_is_the_first_in_a_space_too(bids: Path, output: Path) -> None:
    for run_of in ({"run": "1"}, {}):
        add_result(output, {"subject": "01", **run_of, "space": "ACPC"})
    run_group(bids, output, runs="first")
    assert [(row["run_id"], row["selected"]) for row in table(output)] == [("run-1", "0"), ("n/a", "1")]


def test_a_run_with_one_corrected_label_map_counts_in_every_protocol(bids: Path, output: Path) -> None:
    for number, quality in (("1", 0.9), ("2", 0.7)):
        add_result(output, {"subject": "01", "run": number}, quality=quality, protocols=("FAST", "FreeSurfer"))
    (output / f"sub-01/anat/sub-01_run-2_seg-FAST_desc-{MODEL}_dseg.json").write_text('{"Manual": true}')
    run_group(bids, output, runs="best")
    for protocol in ("FAST", "FreeSurfer"):
        assert [row["selected"] for row in table(output, protocol=protocol)] == ["0", "1"]
    assert [row["status"] for row in table(output, protocol="FreeSurfer")] == ["done", "done"]


def test_runs_of_other_acquisitions_are_chosen_apart() -> None:
    sources = [
        {"subject": "01", "acquisition": "a", "run": "1"},
        {"subject": "01", "acquisition": "a", "run": "2"},
        {"subject": "01", "acquisition": "b", "run": "1"},
        {"subject": "02", "run": "1"},
        {"subject": "02", "run": "2"},
    ]
    quality = np.array([0.5, 0.5, np.nan, np.nan, 0.1])
    assert chosen_runs(sources, quality, "best").tolist() == [True, False, True, False, True]
    assert chosen_runs(sources, quality, "first").tolist() == [True, False, True, True, False]
    assert chosen_runs(sources, quality, "all").all()
