"""The group level on small output folders with known volumes."""

import json
import shutil
from pathlib import Path

import numpy as np
import phantoms
import pytest
from browser import CONTRAST, needs_chromium, photographed, seen
from trees import MODEL, add_result, add_run, rows_of, run_group

from bidsseg.bids.scan import Scan
from bidsseg.derivative.cohort import STATUSES
from bidsseg.errors import InputMissing, NothingSelected
from bidsseg.report import participant_page
from bidsseg.report.distributions import FAR, FEWEST, distributions, lines


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """A dataset with the names of four participants; the group level never opens an image."""
    root = tmp_path / "bids"
    for label in ("01", "02", "03", "10"):
        path = root / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        path.touch()
    (root / "dataset_description.json").write_text('{"Name": "names", "BIDSVersion": "1.10.0"}')
    return root


def test_a_row_for_each_scan_and_a_column_for_each_region(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01"}, 30, quality=0.91, intracranial_mm3=200.5)
    add_result(output, {"subject": "02"}, 45)
    run_group(bids, output)
    rows = rows_of(output / f"group_seg-FAST_desc-{MODEL}_morph.tsv")
    first = ["participant_id", "status", "quality", "findings", "BrainMask", "eTIV", "CSF", "GM", "WM"]
    assert list(rows[0]) == [*first, "outliers", "check"]
    cells = ["sub-01", "done", "0.91", "n/a", "120", "200.5", "20", "60", "40", "n/a", "n/a"]
    assert rows[0] == dict(zip(rows[0], cells, strict=True))
    assert rows[1]["GM"] == "90" and rows[1]["BrainMask"] == "150" and rows[1]["eTIV"] == "n/a"


def test_tables_of_earlier_versions_are_read(bids: Path, output: Path) -> None:
    """Before 0.17, the row of the brain mask was called intracranial volume, and there was no estimate of it."""
    for label in ("01", "02"):
        add_result(output, {"subject": label}, intracranial_mm3=200.5, protocols=("FAST", "FreeSurfer"))
    for path in output.glob(f"sub-01/anat/sub-01_seg-*_desc-{MODEL}_morph.tsv"):
        lines = path.read_text().splitlines()[:-1]
        path.write_text("\n".join(lines).replace("brain mask\tBrainMask", "intracranial volume\tICV") + "\n")
    console = run_group(bids, output)
    rows = rows_of(output / f"group_seg-FAST_desc-{MODEL}_morph.tsv")
    assert [(row["BrainMask"], row["eTIV"]) for row in rows[:2]] == [("120", "n/a"), ("120", "200.5")]
    assert ["wholebrain: no eTIV of sub-01, from a version" in warning for warning in console.warnings] == [True]
    assert "ICV" not in rows[0] and not any("not in other scans" in warning for warning in console.warnings)


def test_scans_without_a_result_have_a_row_with_the_reason_in_its_status(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "02"})
    add_run(output, "1", {"sub-01": ("failed", "damaged"), "sub-03": ("failed", "full disk")})
    add_run(output, "2", {"sub-01": ("done", ""), "sub-03": ("failed", "still full")})
    console = run_group(bids, output)
    rows = rows_of(output / f"group_seg-FAST_desc-{MODEL}_morph.tsv")
    assert [(row["participant_id"], row["status"]) for row in rows] == [
        ("sub-01", "missing"),
        ("sub-02", "done"),
        ("sub-03", "failed"),
        ("sub-10", "missing"),
    ]
    assert rows[0]["GM"] == "n/a" and rows[0]["quality"] == "n/a"
    assert "1 scans, 1 failed, 2 missing" in console.messages[0]
    page = (output / "group.html").read_text()
    assert "still full" in page and "sub-10" in page


def test_the_page_lists_scans_without_lesions_of_a_model_without_label_maps(bids: Path, output: Path) -> None:
    stem = output / "sub-01/anat/sub-01"
    stem.parent.mkdir(parents=True)
    Path(f"{stem}_label-lesion_desc-own_morph.tsv").write_text("index\tvolume-mm3\tplace\n1\t10\tn/a\n")
    Path(f"{stem}_label-lesion_desc-own_morph.json").write_text('{"Models": [{"Name": "own"}]}')
    Path(f"{stem}_desc-ownlesions_dseg.nii.gz").touch()
    entry = {"scan": "sub-02", "outcome": "passed over", "reason": "the model own needs a FLAIR"}
    (output / "logs").mkdir()
    (output / "logs/run-1.json").write_text(json.dumps({"model": {"name": "own"}, "scans": [entry]}))
    run_group(bids, output)
    page = (output / "group.html").read_text()
    assert "<td>sub-02</td><td>own</td><td>passed over</td><td>the model own needs a FLAIR</td>" in page


def test_a_failed_scan_that_is_left_out_is_not_listed(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "02"})
    add_run(output, "1", {"sub-01": ("failed", "damaged"), "sub-03": ("failed", "full disk")})
    (bids / "participants.tsv").write_text("participant_id\tuse\nsub-01\t0\nsub-02\t1\nsub-03\t1\nsub-10\t0\n")
    console = run_group(bids, output, where=["use=1"])
    rows = rows_of(output / f"group_seg-FAST_desc-{MODEL}_morph.tsv")
    found = [(row["participant_id"], row["status"], row["selected"]) for row in rows]
    assert found == [("sub-02", "done", "1"), ("sub-03", "failed", "0")]
    assert console.messages[0].endswith("1 scans, 1 failed") and "damaged" not in (output / "group.html").read_text()


def test_the_last_of_runs_in_two_time_zones(bids: Path, output: Path) -> None:
    """A container has another time zone than the machine, and names its manifests after its own time."""
    add_result(output, {"subject": "01"})
    for stamp, zone, fate in (("20260601T120000", "+0200", "failed"), ("20260601T103000", "+0000", "passed over")):
        add_run(output, stamp, {"sub-02": (fate, "")})
        path = output / f"logs/run-{stamp}.json"
        started = f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:11]}:{stamp[11:13]}:{stamp[13:]}{zone}"
        path.write_text(json.dumps({**json.loads(path.read_text()), "started": started}))
    run_group(bids, output)
    rows = rows_of(output / f"group_seg-FAST_desc-{MODEL}_morph.tsv")
    assert [row["status"] for row in rows if row["participant_id"] == "sub-02"] == ["passed over"]


def test_an_earlier_result_of_a_scan_that_failed_is_named(bids: Path, output: Path) -> None:
    """An image may have been replaced by one that cannot be read."""
    for entities in ({"subject": "01"}, {"subject": "02"}, {"subject": "03", "desc": "x"}):
        add_result(output, entities, protocols=("FAST", "FreeSurfer"))
    for sidecar in output.glob("sub-03/anat/*_dseg.json"):
        sidecar.write_text(json.dumps({"Models": [{"Name": MODEL}]}))
    fates = {"sub-01": ("failed", "damaged"), "sub-03_desc-x": ("failed", "no brain"), "sub-03": ("failed", "other")}
    add_run(output, "1", fates)
    told = [warning for warning in run_group(bids, output).warnings if "could not segment" in warning]
    assert told == [
        f"{MODEL}: the last run could not segment sub-01, whose earlier results count: damaged",
        f"x{MODEL}: the last run could not segment sub-03, whose earlier results count: no brain",
    ]
    add_run(output, "2", {"sub-01": ("skipped", ""), "sub-03_desc-x": ("done", "")})
    assert not [warning for warning in run_group(bids, output).warnings if "could not segment" in warning]


def test_a_failed_scan_that_was_removed_from_the_dataset_is_no_longer_listed(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "02"})
    failed = ("failed", "damaged")
    add_run(output, "1", {"sub-01": failed, "sub-03": failed, "sub-03_acq-a": failed, "sub-04_ses-1": failed})
    shutil.rmtree(bids / "sub-03")
    run_group(bids, output)
    table = output / f"group_seg-FAST_desc-{MODEL}_morph.tsv"
    statuses = [(row["participant_id"], row["status"]) for row in rows_of(table)]
    assert statuses == [("sub-01", "failed"), ("sub-02", "done"), ("sub-10", "missing")]
    (bids / "sub-03/anat").mkdir(parents=True)
    (bids / "sub-03/anat/sub-03_acq-a_UNIT1.nii.gz").touch()  # needs a filter that this run does not have
    run_group(bids, output)
    assert [row["status"] for row in rows_of(table) if row["participant_id"] == "sub-03"] == ["failed"]


def test_the_fate_counts_for_its_own_model_only(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01"}, model="other")
    add_run(output, "1", {"sub-02": ("failed", "damaged")})
    run_group(bids, output)
    rows = rows_of(output / "group_seg-FAST_desc-other_morph.tsv")
    assert [row["status"] for row in rows] == ["done", "missing", "missing", "missing"]


def test_entities_have_a_column_where_they_are_used(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01", "session": "1", "run": "10"})
    add_result(output, {"subject": "01", "session": "1", "run": "2"})
    add_result(output, {"subject": "01", "session": "2", "acquisition": "mprage"})
    add_result(output, {"subject": "01", "session": "2", "foo": "unknown"})
    run_group(bids, output)
    rows = [row for row in rows_of(output / f"group_seg-FAST_desc-{MODEL}_morph.tsv") if row["status"] == "done"]
    ids = ["participant_id", "session_id", "acquisition_id", "run_id", "foo_id"]
    assert list(rows[0])[:5] == ids
    assert [[row[name] for name in ids] for row in rows] == [
        ["sub-01", "ses-1", "n/a", "run-2", "n/a"],
        ["sub-01", "ses-1", "n/a", "run-10", "n/a"],
        ["sub-01", "ses-2", "acq-mprage", "n/a", "n/a"],
        ["sub-01", "ses-2", "n/a", "n/a", "foo-unknown"],
    ]


def test_a_table_for_each_protocol_of_each_model(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01"}, protocols=("FAST", "FreeSurfer"))
    add_result(output, {"subject": "01"}, model="other")
    run_group(bids, output)
    assert sorted(path.name for path in output.glob("group_*_morph.tsv")) == [
        "group_seg-FAST_desc-other_morph.tsv",
        f"group_seg-FAST_desc-{MODEL}_morph.tsv",
        f"group_seg-FreeSurfer_desc-{MODEL}_morph.tsv",
    ]


def test_every_column_is_in_the_data_dictionary(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01", "session": "1"})
    run_group(bids, output)
    table = output / f"group_seg-FAST_desc-{MODEL}_morph.tsv"
    dictionary = json.loads(table.with_suffix(".json").read_text())
    rows = rows_of(table)
    assert set(rows[0]) <= set(dictionary)
    assert {row["status"] for row in rows} <= set(STATUSES) == set(dictionary["status"]["Levels"])
    assert "Gray Matter" in dictionary["GM"]["Description"] and dictionary["GM"]["Units"] == "mm^3"


def test_only_the_selected_participants_and_sessions(bids: Path, output: Path) -> None:
    for label in ("01", "02"):
        for session in ("1", "2"):
            add_result(output, {"subject": label, "session": session})
    run_group(bids, output, participants=["02"], sessions=["1"])
    rows = rows_of(output / f"group_seg-FAST_desc-{MODEL}_morph.tsv")
    assert [(row["participant_id"], row["session_id"]) for row in rows] == [("sub-02", "ses-1")]


def test_an_output_folder_is_enough(tmp_path: Path, output: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    add_result(output, {"subject": "01"})
    add_run(output, "1", {"sub-07_run-1": ("passed over", "no FLAIR")})
    console = run_group(empty, output)
    rows = rows_of(output / f"group_seg-FAST_desc-{MODEL}_morph.tsv")
    assert [(row["participant_id"], row["status"]) for row in rows] == [("sub-01", "done"), ("sub-07", "passed over")]
    assert len(console.warnings) == 1


def test_a_result_without_its_sidecar_is_half_written(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01"})
    add_result(output, {"subject": "02"})
    (output / f"sub-02/anat/sub-02_seg-FAST_desc-{MODEL}_dseg.json").unlink()
    run_group(bids, output)
    rows = rows_of(output / f"group_seg-FAST_desc-{MODEL}_morph.tsv")
    assert [row["status"] for row in rows] == ["done", "missing", "missing", "missing"]


@pytest.mark.parametrize("content", ["", "no table", "index\tname\n1\tGM\n", "\0\0\0"])
def test_an_unreadable_table_is_a_warning_and_the_others_are_read(bids: Path, output: Path, content: str) -> None:
    add_result(output, {"subject": "01"})
    add_result(output, {"subject": "02"})
    (output / f"sub-02/anat/sub-02_seg-FAST_desc-{MODEL}_morph.tsv").write_text(content)
    console = run_group(bids, output)
    rows = rows_of(output / f"group_seg-FAST_desc-{MODEL}_morph.tsv")
    assert [row["status"] for row in rows] == ["done", "unreadable", "missing", "missing"]
    assert len(console.warnings) == 1 and "sub-02" in console.warnings[0]


def test_nothing_to_gather(bids: Path, output: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingSelected):
        run_group(bids, output)
    with pytest.raises(InputMissing):
        run_group(bids, tmp_path / "nowhere")


def test_a_dry_run_writes_nothing(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01"})
    before = sorted(output.rglob("*"))
    console = run_group(bids, output, dry_run=True)
    assert sorted(output.rglob("*")) == before
    assert console.messages[-1].endswith("group.html")


def test_the_same_results_give_the_same_bytes(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01"})
    contents = []
    for _ in range(2):
        run_group(bids, output)
        contents.append({path.name: path.read_bytes() for path in output.glob("group*")})
    assert contents[0] == contents[1] and len(contents[0]) == 7


def test_distributions_agree_with_numpy(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(100, 15, (200, 3))
    values[5, 1] = np.nan
    table = tmp_path / "table.tsv"
    rows = ["\t".join("n/a" if np.isnan(v) else repr(float(v)) for v in row) for row in values]
    table.write_text("\n".join(["a\tb\tc", *rows]) + "\n")
    for column, found in zip(values.T, distributions(table, ["a", "b", "c"]), strict=True):
        known = column[~np.isnan(column)]
        assert found.n == known.size == found.counts.sum()
        np.testing.assert_allclose([found.mean, found.sd], [known.mean(), known.std(ddof=1)], rtol=1e-9)
        np.testing.assert_array_equal(found.counts, np.histogram(known, len(found.counts))[0])


def test_the_unusual_scan_comes_first_when_not_all_are_listed(tmp_path: Path) -> None:
    values = [*np.random.default_rng(0).normal(100, 1, 30), 120]
    table = tmp_path / "table.tsv"
    table.write_text("\n".join(["id\tGM", *(f"sub-{i}\t{v}" for i, v in enumerate(values))]) + "\n")
    columns = distributions(table, ["GM"])
    first, *_ = found = lines(table, columns, at_most=5)
    assert len(found) == 5 and first.cells["id"] == "sub-30" and first.unusual == 1 and first.distance > FAR
    assert [line.cells["id"] for line in lines(table, columns, at_most=50)] == [f"sub-{i}" for i in range(31)]


def test_phantom_datasets_are_understood(tmp_path: Path, output: Path) -> None:
    root = phantoms.make_bids(tmp_path / "phantoms", participants=1, sessions=2, runs=2)
    add_result(output, {"subject": "01", "session": "2", "run": "1"})
    run_group(root, output)
    rows = rows_of(output / f"group_seg-FAST_desc-{MODEL}_morph.tsv")
    assert [row["status"] for row in rows] == ["missing", "missing", "done", "missing"]


def test_pages_show_the_cohort_beside_their_volumes(tmp_path: Path, output: Path) -> None:
    labels = [f"{number:02}" for number in range(1, FEWEST + 5)]
    sources = [{"subject": label} for label in labels]
    sources += [{"subject": "01", "session": "2"}]
    for source in sources:
        add_result(output, source, grey_voxels=300 if source["subject"] == "04" else 30 + int(source["subject"]))
        page = participant_page(output, Scan(source, Path()))
        assert "<meter" not in page.read_text()
    (output / "sub-05.html").unlink()
    empty = tmp_path / "bids"
    empty.mkdir()
    run_group(empty, output)
    unusual, usual = ((output / f"sub-{label}.html").read_text() for label in ("04", "02"))
    volumes = [2 * (300 if label == "04" else 30 + int(label)) for label in [*labels, "01"]]
    distance = (600 - np.mean(volumes)) / np.std(volumes, ddof=1)
    assert f"Gray Matter ({distance:+.1f} SD)" in unusual
    assert "Beyond 3 SD" not in usual and f"Compared with {len(sources)} scans" in usual
    assert "<meter" in (output / "sub-01_ses-2.html").read_text()
    assert not (output / "sub-05.html").exists(), "a page that is not there is not made"
    participant_page(output, Scan({"subject": "04"}, Path()))
    assert (output / "sub-04.html").read_text() == unusual, "a page that is made anew is compared with the same cohort"
    columns = json.loads((output / f"group_seg-FAST_desc-{MODEL}_morph.json").read_text())
    assert columns["GM"]["Cohort"]["Count"] == len(sources)
    assert columns["GM"]["Cohort"]["Mean"] == pytest.approx(np.mean(volumes))
    assert columns["GM"]["Cohort"]["StandardDeviation"] == pytest.approx(np.std(volumes, ddof=1))
    run_group(empty, output, participants=["02", "03"])
    assert "Compared with" not in (output / "sub-02.html").read_text(), "the cohort has become too small"


def test_a_few_scans_are_no_cohort_to_compare_with(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "01"})
    page = participant_page(output, Scan({"subject": "01"}, Path()))
    before = page.stat()
    run_group(bids, output)
    assert page.stat().st_ino == before.st_ino


GROUP_STEPS = """
  const field = document.querySelector("input[type=search]"), table = document.getElementById(field.dataset.table);
  const shown = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
  const distance = [...table.tHead.rows[0].cells].at(-1);
  distance.querySelector("button").click();
  distance.querySelector("button").click();
  say("farthest", shown()[0]);
  say("page", table.tBodies[0].rows[0].querySelector("a").getAttribute("href"));
  field.value = "sub-03";
  field.dispatchEvent(new Event("input"));
  say("found", shown().join(","));
  field.value = "";
  field.dispatchEvent(new Event("input"));
  const head = table.tHead.rows[0].cells[0].querySelector("button");
  head.focus();
  head.click();
  say("up", shown().join(","));
  head.click();
  say("down", shown().join(","));
  say("named", [...document.querySelectorAll("svg")].every((drawing) => drawing.getAttribute("aria-label")));
"""


@needs_chromium
def test_the_page_of_the_cohort_works_in_a_browser(tmp_path: Path) -> None:
    output, everyone = tmp_path / "out", [f"sub-{number:02}" for number in range(1, FEWEST + 5)]
    for name in everyone:
        add_result(output, {"subject": name[4:]}, grey_voxels=300 if name == "sub-04" else 30)
        (output / f"{name}.html").write_text(f"<title>{name}</title>")
    empty = tmp_path / "bids"
    empty.mkdir()
    run_group(empty, output)
    assert seen(output / "group.html", GROUP_STEPS, tmp_path) == {
        "farthest": "sub-04", "page": "sub-04.html", "found": "sub-03", "up": ",".join(everyone),
        "down": ",".join(reversed(everyone)), "named": "true", "failures": "",
    }  # fmt: skip
    participant_page(output, Scan({"subject": "04"}, Path()))
    assert seen(output / "sub-04.html", "say('title', document.title);", tmp_path) == {
        "title": "sub-04 · bidsseg", "failures": "",
    }  # fmt: skip
    assert 0.003 < (np.ptp(photographed(output / "group.html"), axis=2) > 60).mean() < 0.5


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_text_has_enough_contrast_in_light_and_dark_mode(dark: bool, tmp_path: Path) -> None:
    """The contrast is at least 4.5, as WCAG 2.2 requires, in light and dark mode."""
    for number in range(1, FEWEST + 2):
        add_result(tmp_path, {"subject": f"{number:02}"}, grey_voxels=300 if number == 4 else 30 + number % 2)
        participant_page(tmp_path, Scan({"subject": f"{number:02}"}, Path()))
    (tmp_path / "bids").mkdir()
    run_group(tmp_path / "bids", tmp_path)
    for page in ("group.html", "sub-04.html"):
        found = seen(tmp_path / page, CONTRAST, tmp_path, dark)
        assert found.pop("dark") == str(dark).lower()
        assert int(found.pop("texts")) > 20
        assert found == {"pale": "", "failures": ""}
