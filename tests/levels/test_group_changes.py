"""The tables of the changes of a cohort, from comparisons of the sessions of participants."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from trees import add_result, rows_of, run_group

from bidsseg.bids.scan import Scan
from bidsseg.bids.series import Series
from bidsseg.derivative.change_cohort import find_comparisons
from bidsseg.derivative.changes import Visits, change_table, lesion_table
from bidsseg.derivative.series import SeriesJob
from bidsseg.errors import NothingSelected, OutputNotWritable, UsageError
from bidsseg.files import write_json_atomic, write_table
from bidsseg.labels.protocol import load_protocol
from bidsseg.models.card import Card

REGIONS = "group_seg-FAST_desc-m_longitudinal"
LESIONS = "group_label-lesion_desc-m_longitudinal"
SHAPE = (12, 12, 12)


def ball(*edges: int) -> np.ndarray:
    """Return a mask of cubes with these edges, far from each other; the place of a cube without an edge is empty."""
    mask = np.zeros(SHAPE, bool)
    for place, edge in enumerate(edges):
        mask[: edge or 0, 6 * (place // 2) : 6 * (place // 2) + edge, 6 * (place % 2) : 6 * (place % 2) + edge] = edge
    return mask


def add_comparison(
    output: Path, subject: str, grey: Sequence[float], lesions: Sequence[np.ndarray] = (), weights: str = "1"
) -> None:
    """Write what the level reads of a comparison: grey matter (mm³) and lesions at sessions half a year apart."""
    labels = np.ones(SHAPE, np.uint8)
    of_all = {"labels": {"FAST": labels}, "brain": labels > 0, "manual": {}}
    results = [SimpleNamespace(soft_mm3={"FAST": np.array([0, 10, mm3, 20.0])}, **of_all) for mm3 in grey]
    years = [place / 2 for place in range(len(grey))]
    visits = Visits([f"ses-{n}" for n, _ in enumerate(grey, 1)], years, results, np.eye(4))  # type: ignore[arg-type]
    tables = {"seg-FAST": change_table(visits, load_protocol("FAST").scored(), {})}
    if lesions:
        tables["label-lesion"] = lesion_table(visits, lesions)
    for name, table in tables.items():
        path = output / f"sub-{subject}/anat/sub-{subject}_{name}_desc-m_longitudinal.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, table)
        t1ws = [f"bids:raw:sub-{subject}_ses-{n}_{suffix}.nii" for n in (1, 2) for suffix in ("T1w", "FLAIR")]
        record = {"InputFingerprints": ["1"], "Models": [{"Name": "m", "SHA256": weights}], "Sources": t1ws}
        write_json_atomic(path.with_suffix(".json"), record)


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    folder = tmp_path / "bids"
    (folder / "sub-02").mkdir(parents=True)
    (folder / "participants.tsv").write_text("participant_id\tage\tyears\nsub-02\t40\t12\nsub-10\t50\t13\n")
    (folder / "sub-02/sub-02_sessions.tsv").write_text("session_id\tdose\nses-2\t5\n")
    return folder


def test_no_table_of_a_comparison_that_is_being_repeated_counts(tmp_path: Path, output: Path) -> None:
    """Tables of a run that is killed then would be from other images than those beside them."""
    scans = [Scan({"subject": "01", "session": n}, tmp_path / f"sub-01_ses-{n}_T1w.nii.gz") for n in ("1", "2")]
    card = Card("m", "", ("T1w",), {}, 1.0, ("brain", "BrainCOLOR", "FASTlesion"), "", lesion="FASTlesion")
    job = SeriesJob(Series(scans, [None, None]), card, tmp_path, output)
    for path in [*job.paths.tables.values(), job.paths.lesions]:
        assert path is not None
        write_json_atomic(output / path.with_suffix(".json"), {"InputFingerprints": ["1"]})
        (output / path).touch()
    assert len(find_comparisons(output)) == 3
    job.clear()
    assert find_comparisons(output) == {}


def test_a_row_for_each_participant_session_and_region(bids: Path, output: Path) -> None:
    add_comparison(output, "10", [100, 90])
    add_comparison(output, "02", [50, 51, 49])
    console = run_group(bids, output)
    rows = rows_of(output / f"{REGIONS}.tsv")
    assert len(rows) == 5 * 4
    grey = [row for row in rows if row["name"] == "Gray Matter"]
    assert [(row["participant_id"], row["session_id"], row["change-percent"]) for row in grey] == [
        ("sub-02", "ses-1", "n/a"), ("sub-02", "ses-2", "2.0"), ("sub-02", "ses-3", "-2.0"),
        ("sub-10", "ses-1", "n/a"), ("sub-10", "ses-2", "-10.0"),
    ]  # fmt: skip
    assert [row["years"] for row in grey[:3]] == ["0.0", "0.5", "1.0"]
    assert [row["age"] for row in grey] == ["40"] * 3 + ["50"] * 2
    assert [row["participant_years"] for row in grey] == ["12"] * 3 + ["13"] * 2
    assert [row["dose"] for row in grey] == ["n/a", "5", "n/a", "n/a", "n/a"]
    assert set(rows[0]) <= set(json.loads((output / f"{REGIONS}.json").read_text()))
    assert console.messages[0] == f"{output / REGIONS}.tsv: the changes of 2 participants"
    assert not [warning for warning in console.warnings if "no T1w image" not in warning]
    assert f'href="{REGIONS}.tsv"' in (output / "group.html").read_text()
    assert not (output / f"{LESIONS}.tsv").exists()
    run_group(bids, output)


def test_lesions_are_counted_by_status(bids: Path, output: Path) -> None:
    add_comparison(output, "02", [50, 50, 50], [ball(4, 3, 0), ball(5, 0, 2), ball(5, 0, 2)])
    add_comparison(output, "10", [50, 50], [ball(), ball()])
    run_group(bids, output)
    rows = rows_of(output / f"{LESIONS}.tsv")
    assert [row["lesions"] for row in rows] == ["2", "2", "2", "0", "0"]
    assert [row["volume-mm3"] for row in rows] == ["91.0", "133.0", "133.0", "0.0", "0.0"]
    second = {name: cell for name, cell in rows[1].items() if cell not in ("0", "0.0")}
    assert second == {
        "participant_id": "sub-02", "session_id": "ses-2", "years": "0.5", "lesions": "2", "volume-mm3": "133.0",
        "change-mm3": "42.0", "new": "1", "new-mm3": "8.0", "enlarged": "1", "enlarged-mm3": "61.0", "vanished": "1",
        "vanished-mm3": "-27.0", "age": "40", "participant_years": "12", "dose": "5",
    }  # fmt: skip
    assert rows[0]["new"] == rows[0]["change-mm3"] == "n/a"
    assert rows[2]["stable"] == "2" and rows[2]["change-mm3"] == "0.0"
    assert [row["new"] for row in rows[3:]] == ["n/a", "0"]
    assert set(rows[0]) <= set(json.loads((output / f"{LESIONS}.json").read_text()))


def test_lesions_by_different_rules_are_a_warning(bids: Path, output: Path) -> None:
    for subject in ("02", "10"):
        add_comparison(output, subject, [50, 50], [ball(4), ball(3)])
    assert not any("cannot be compared" in warning for warning in run_group(bids, output).warnings)
    for record in output.glob("sub-10/anat/*_longitudinal.json"):
        record.write_text(json.dumps({**json.loads(record.read_text()), "LeastLesionVolume": 10.0}))
    told = [warning for warning in run_group(bids, output).warnings if "cannot be compared" in warning]
    assert len(told) == 1 and "run the level longitudinal on all participants with the same values" in told[0]


def test_lesions_of_a_model_without_label_maps(bids: Path, output: Path) -> None:
    add_comparison(output, "02", [50, 50], [ball(4), ball(3)])
    for path in output.glob("sub-02/anat/sub-02_seg-*"):
        path.unlink()
    run_group(bids, output)
    rows = rows_of(output / f"{LESIONS}.tsv")
    assert [(row["session_id"], row["years"], row["volume-mm3"]) for row in rows] == [
        ("ses-1", "n/a", "64.0"), ("ses-2", "n/a", "27.0"),
    ]  # fmt: skip


def test_years_and_participants_without_lesions_of_a_model_without_label_maps(bids: Path, output: Path) -> None:
    add_comparison(output, "02", [50, 50], [ball(4), ball(3)])
    add_comparison(output, "10", [50, 50], [ball(), ball()])
    for path in output.glob("sub-*/anat/sub-*_seg-*"):
        path.unlink()
    for path in output.glob("sub-*/anat/sub-*_longitudinal.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "Years": [0.0, 0.5003]}))
    run_group(bids, output)
    rows = rows_of(output / f"{LESIONS}.tsv")
    assert [(row["participant_id"], row["years"], row["lesions"]) for row in rows] == [
        ("sub-02", "0.0", "1"), ("sub-02", "0.5", "1"), ("sub-10", "0.0", "0"), ("sub-10", "0.5", "0"),
    ]  # fmt: skip


def test_only_the_selected_participants_and_sessions_are_in_the_tables(bids: Path, output: Path) -> None:
    for subject in ("02", "10"):
        add_comparison(output, subject, [50, 50], [ball(4), ball(3)])
    run_group(bids, output, participants=["10"], sessions=["2"])
    assert {(row["participant_id"], row["session_id"]) for row in rows_of(output / f"{REGIONS}.tsv")} == {
        ("sub-10", "ses-2")
    }
    [row] = rows_of(output / f"{LESIONS}.tsv")
    assert row["shrunken"] == "1" and row["shrunken-mm3"] == "-37.0", "compared with a session that is not selected"


def test_only_comparisons_of_marked_scans_are_in_the_tables(bids: Path, output: Path) -> None:
    for subject in ("02", "10"):
        add_comparison(output, subject, [50, 50], [ball(4), ball(3)])
    assert "repeat longitudinal" not in str(run_group(bids, output, where=["age=40"]).warnings)
    assert {row["participant_id"] for row in rows_of(output / f"{REGIONS}.tsv")} == {"sub-02"}
    assert {row["participant_id"] for row in rows_of(output / f"{LESIONS}.tsv")} == {"sub-02"}
    console = run_group(bids, output, where=["dose=5"])
    assert "sub-02: not in the tables of changes: the comparison contains scans" in console.warnings[-1]
    assert not rows_of(output / f"{REGIONS}.tsv") and "0 participants" in console.messages[0]
    with pytest.raises(UsageError, match="has the column size; there are age, dose, participant_id"):
        run_group(bids, output, where=["size=40"])


def test_what_cannot_be_joined_is_a_warning(bids: Path, output: Path) -> None:
    for subject, weights in (("02", "1"), ("10", "1"), ("11", "2")):
        add_comparison(output, subject, [50, 50], weights=weights)
    broken = output / "sub-10/anat/sub-10_seg-FAST_desc-m_longitudinal.tsv"
    broken.write_text("theirs\n1\n")
    record = output / "sub-11/anat/sub-11_seg-FAST_desc-m_longitudinal.json"
    write_json_atomic(record, json.loads(record.read_text()) | {"Fast": True})
    console = run_group(bids, output)
    assert {row["participant_id"] for row in rows_of(output / f"{REGIONS}.tsv")} == {"sub-02", "sub-11"}
    assert any(f"{broken.name}: not a table of changes" in warning for warning in console.warnings)
    assert any("another model of the same name segmented sub-11" in warning for warning in console.warnings)
    assert any("sub-11 made with --fast, unlike most" in warning for warning in console.warnings)


def test_tables_of_others_are_kept(bids: Path, output: Path) -> None:
    add_comparison(output, "02", [50, 50])
    (output / f"{REGIONS}.tsv").write_text("theirs\n")
    with pytest.raises(OutputNotWritable, match=REGIONS):
        run_group(bids, output)
    (output / f"{REGIONS}.tsv").unlink()
    run_group(bids, output, dry_run=True)
    assert not (output / f"{REGIONS}.tsv").exists()
    add_result(output, {"subject": "02", "session": "1"})
    (output / "sub-02/anat/sub-02_seg-FAST_desc-m_longitudinal.json").write_text("{}")
    run_group(bids, output)
    assert not (output / f"{REGIONS}.tsv").exists(), (
        "a comparison without a record is unfinished or not of this program"
    )
    with pytest.raises(NothingSelected):
        run_group(bids, output, participants=["10"])


def test_tables_without_a_comparison_are_removed(bids: Path, output: Path) -> None:
    add_result(output, {"subject": "02", "session": "1"})
    for subject in ("02", "10"):
        add_comparison(output, subject, [50, 50], [ball(4), ball(3)])
    foreign = output / "group_seg-theirs_desc-m_longitudinal.tsv"
    foreign.write_text("participant_id\tchange\n")
    run_group(bids, output)
    for path in output.glob("sub-02/anat/*_longitudinal.*"):
        path.unlink()
    tables = [output / f"{name}.{ending}" for name in (REGIONS, LESIONS) for ending in ("tsv", "json")]
    run_group(bids, output, participants=["02"])
    assert all(path.is_file() for path in tables), "a participant that is not selected has a comparison"
    for path in output.glob("sub-10/anat/*_longitudinal.*"):
        path.unlink()
    run_group(bids, output)
    assert not [path.name for path in tables if path.exists()] and foreign.is_file()
    assert "longitudinal" not in (output / "group.html").read_text()
