"""Changes between sessions: single lesions, dates, and the smallest change."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bidsseg.bids.scan import Scan
from bidsseg.bids.series import find_series
from bidsseg.derivative.changes import LESION_CHANGES, Visits, change_table, lesion_status, lesion_table
from bidsseg.labels import load_protocol
from bidsseg.models.card import Card
from bidsseg.models.rescan import RESCAN, smallest_changes

SHAPE = (20, 20, 20)


def cubes(*corners: tuple[int, int, int, int]) -> np.ndarray:
    """Return a mask of cubes, each with its first corner and its edge."""
    mask = np.zeros(SHAPE, bool)
    for x, y, z, edge in corners:
        mask[x : x + edge, y : y + edge, z : z + edge] = True
    return mask


def test_each_lesion_has_a_status() -> None:
    first = cubes((1, 1, 1, 4), (10, 1, 1, 4), (1, 10, 1, 3), (10, 10, 1, 4))
    second = cubes((1, 1, 1, 5), (10, 1, 1, 3), (10, 10, 1, 4), (10, 10, 10, 2))
    visits = Visits(["ses-1", "ses-2"], [0.0, None], [], np.diag([2.0, 1, 1, 1]))
    table = lesion_table(visits, [first, second])
    assert list(table.columns) == list(LESION_CHANGES)
    found = {(row["x-mm"], row["y-mm"]): row for _, row in table[table.session_id == "ses-2"].iterrows()}
    statuses = {place: row["status"] for place, row in found.items()}
    assert sorted(statuses.values()) == ["enlarged", "new", "shrunken", "stable", "vanished"]
    assert found[6.0, 3.0]["status"] == "enlarged"
    assert (found[6.0, 3.0]["volume-mm3"], found[6.0, 3.0]["change-mm3"]) == (250, 122)
    assert found[21.0, 10.5]["status"] == "new"
    assert set(table[table.session_id == "ses-1"]["status"]) == {"first", "absent"}
    assert table["lesion"].max() == 5
    assert len(lesion_table(visits, [~(first | True), ~(first | True)])) == 0


def test_lesions_that_merge_or_split_keep_one_number() -> None:
    apart = cubes((1, 1, 1, 3), (6, 1, 1, 3), (1, 12, 1, 3))
    joined = apart | cubes((4, 2, 2, 1), (5, 2, 2, 1))
    masks = [apart, joined, joined, apart & ~cubes((6, 1, 1, 3)), apart]
    visits = Visits([f"ses-{n}" for n in range(1, 6)], [None] * 5, [], np.eye(4))
    table = lesion_table(visits, masks)
    large, other = (table[table.lesion == number] for number in (1, 2))
    assert large["merged"].tolist()[1:] == [1, 0, 0, 0] and large["split"].tolist()[1:] == [0, 0, 0, 0]
    assert large["merged"].isna().tolist() == [True, False, False, False, False]
    assert other["merged"].tolist()[1:] == other["split"].tolist()[1:] == [0] * 4
    [_, split] = lesion_table(Visits(visits.labels[:2], [None] * 2, [], np.eye(4)), [joined, apart])["split"][:2]
    assert split == 1


@pytest.mark.parametrize(
    ("before", "now", "status"),
    [(None, 5, "first"), (None, 0, "absent"), (0, 5, "new"), (5, 0, "vanished"), (0, 0, "absent"),
     (1000, 1100, "stable"), (1000, 1150, "enlarged"), (1000, 850, "shrunken"), (10, 14, "stable"), (8, 13, "stable"),
     (13, 8, "stable"), (8, 14, "enlarged"), (14, 8, "shrunken")],
)  # fmt: skip
def test_a_border_must_move_by_a_quarter_of_a_millimetre(before: float | None, now: float, status: str) -> None:
    assert lesion_status(before, now) == status


def test_changes_are_since_the_first_session() -> None:
    protocol = load_protocol("FAST").scored()
    labels = cubes((1, 1, 1, 10)).astype(np.uint8)
    soft = [np.array([0.0, 0, 50, 100]), np.array([0.0, 10, 45, 100]), np.array([0.0, 0, 60, 100])]
    of_all = {"labels": {"FAST": labels}, "brain": labels > 0, "manual": {}}
    results = [SimpleNamespace(soft_mm3={"FAST": each}, **of_all) for each in soft]
    visits = Visits(["ses-a", "ses-b", "ses-c"], [0.0, 0.5, None], results, np.eye(4))  # type: ignore[arg-type]
    table = change_table(visits, protocol, {2: 1.5})
    grey = table[table["index"] == 2]
    assert grey["change-mm3"].tolist()[1:] == [-5, 10] and np.isnan(grey["change-mm3"].iloc[0])
    assert grey["change-percent"].tolist()[1:] == [-10, 20]
    assert grey["change-percent-per-year"].iloc[1] == -20 and np.isnan(grey["change-percent-per-year"].iloc[2])
    assert grey["smallest-change-percent"].tolist() == [1.5] * 3
    fluid = table[table["index"] == 1]
    assert fluid["change-mm3"].tolist()[1:] == [10, 0] and fluid["change-percent"].isna().all()
    assert table[table["name"] == "brain mask"]["change-mm3"].tolist()[1:] == [0, 0]


def test_voxels_are_counted_at_both_sessions_if_a_region_was_corrected() -> None:
    labels = [cubes((1, 1, 1, edge)).astype(np.uint8) * 2 for edge in (10, 9, 10)]
    soft = [np.array([0.0, 5, mm3, 100]) for mm3 in (990.0, np.nan, 980.0)]
    results = [
        SimpleNamespace(labels={"FAST": each}, soft_mm3={"FAST": mm3}, brain=each > 0, manual={"brain": "brain"})
        for each, mm3 in zip(labels, soft, strict=True)
    ]
    results[0].manual = results[2].manual = {}
    visits = Visits(["ses-a", "ses-b", "ses-c"], [None] * 3, results, np.eye(4))  # type: ignore[arg-type]
    table = change_table(visits, load_protocol("FAST").scored(), {1: 1.5, 2: 1.5})
    grey = table[table["index"] == 2]
    assert grey["corrected"].tolist() == [0, 1, 0]
    assert grey["change-mm3"].tolist()[1:] == [9**3 - 10**3, -10]
    assert grey["smallest-change-percent"].fillna(0).tolist() == [1.5, 0, 1.5], "it is that of probabilities"
    assert table[table["name"] == "brain mask"]["corrected"].tolist() == [0, 1, 0]
    assert table["corrected"].sum() == 2


def scan(root: Path, session: str | None, run: str = "1", subject: str = "01") -> Scan:
    entities = {"subject": subject, **({"session": session} if session else {}), "run": run}
    folder = root / f"sub-{subject}" / (f"ses-{session}" if session else "") / "anat"
    return Scan(entities, folder / f"sub-{subject}_ses-{session}_run-{run}_T1w.nii.gz")


def test_one_scan_of_each_session_is_compared(tmp_path: Path) -> None:
    scans = [scan(tmp_path, "1"), scan(tmp_path, "1", "2"), scan(tmp_path, "2"), scan(tmp_path, None)]
    scans += [scan(tmp_path, None, subject="02"), scan(tmp_path, "1", subject="03")]
    series, notes = find_series(scans, tmp_path)
    assert [(each.key, each.sessions, each.years) for each in series] == [("sub-01", ["ses-1", "ses-2"], [None, None])]
    assert notes == [
        "not compared: sub-01_ses-1_run-2: another T1w of the session is used",
        "not compared: sub-01_run-1: in no session",
        "not compared: sub-02, sub-03: fewer than two sessions with a usable T1w",
    ]


def test_dates_define_the_order(tmp_path: Path) -> None:
    scans = [scan(tmp_path, "a"), scan(tmp_path, "b")]
    for each, date in zip(scans, ("2021-07-02T00:00:00", "2021-01-01"), strict=True):
        each.t1w.parent.mkdir(parents=True)
        table = each.t1w.parent.parent / f"sub-01_ses-{each.entities['session']}_scans.tsv"
        table.write_text(f"filename\tacq_time\nanat/{each.t1w.name}\t{date}\n")
    [series], _ = find_series(scans, tmp_path)
    assert series.sessions == ["ses-b", "ses-a"]
    assert series.years == pytest.approx([0, 182 / 365.25])
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_text("session_id\tacq_time\nses-a\t2020-01-01\n")
    (tmp_path / "sub-01/ses-a/sub-01_ses-a_scans.tsv").write_text("filename\tacq_time\nanat/other\tn/a\n")
    [series], _ = find_series(scans, tmp_path)
    assert series.sessions == ["ses-a", "ses-b"] and series.years[1] == pytest.approx(366 / 365.25)
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_text("session_id\tacq_time\nses-a\tlast year\n")
    [series], _ = find_series(scans, tmp_path)
    assert series.sessions == ["ses-a", "ses-b"] and series.years == [None, None]


def test_blanks_around_cells_hide_no_date(tmp_path: Path) -> None:
    (tmp_path / "sub-01").mkdir()
    table = "session_id\t acq_time\nses-1 \t2020-01-01 \n ses-2\t2021-01-01\n"
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_text(table)
    [series], _ = find_series([scan(tmp_path, "1"), scan(tmp_path, "2")], tmp_path)
    assert series.years == pytest.approx([0, 366 / 365.25])


def test_without_all_dates_no_time_is_known(tmp_path: Path) -> None:
    scans = [scan(tmp_path, label) for label in ("12m", "baseline", "late")]
    (tmp_path / "sub-01").mkdir()
    dates = "session_id\tacq_time\nses-12m\t2021-03-01\nses-baseline\t2020-02-29\nses-late\tn/a\n"
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_text(dates)
    [series], _ = find_series(scans, tmp_path)
    assert series.sessions == ["ses-12m", "ses-baseline", "ses-late"]
    assert series.years == [None, None, None], "the first session is not the first in time"
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_text(dates.replace("n/a", "2022-02-28"))
    [series], _ = find_series(scans, tmp_path)
    assert series.sessions == ["ses-baseline", "ses-12m", "ses-late"]
    assert series.years == pytest.approx([0, 366 / 365.25, 730 / 365.25])


@pytest.mark.parametrize(
    ("dates", "problem"),
    [
        (("1925-01-01T14:00:00", "1925-01-01T10:00:00"), "all sessions have the same date in acq_time"),
        (("2020-05", "2021-05"), "acq_time '2020-05' is not a date and time as BIDS has it"),
        (("2020-05-01", "next year"), "acq_time 'next year' is not a date and time as BIDS has it"),
    ],
)
def test_dates_that_say_no_time_between_sessions_are_named(
    dates: tuple[str, str], problem: str, tmp_path: Path
) -> None:
    """The first dates are those of a tool that makes data anonymous: their order is that of the time of day."""
    (tmp_path / "sub-01").mkdir()
    table = f"session_id\tacq_time\nses-1\t{dates[0]}\nses-2\t{dates[1]}\n"
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_text(table)
    [series], notes = find_series([scan(tmp_path, "1"), scan(tmp_path, "2")], tmp_path)
    assert series.sessions == ["ses-1", "ses-2"] and series.years == [None, None]
    [note] = notes
    assert note.startswith(f"sub-01: {problem}; ")


def test_a_change_within_a_day_has_no_rate_per_year() -> None:
    results = [
        SimpleNamespace(
            labels={"FAST": np.ones(SHAPE, np.uint8)},
            soft_mm3={"FAST": np.array([0.0, volume, 0, 0])},
            brain=np.ones(SHAPE, bool),
            manual=(),
        )
        for volume in (100.0, 101.0, 102.0)
    ]
    visits = Visits(["ses-1", "ses-2", "ses-3"], [0.0, 0.5 / 365.25, 1.0], results, np.eye(4))  # type: ignore[arg-type]
    table = change_table(visits, load_protocol("FAST").scored(), {})
    fluid = table[table["index"] == 1]
    assert fluid["change-percent"].tolist()[1:] == [1, 2]
    assert fluid["change-percent-per-year"].fillna(0).tolist() == [0, 0, 2]


def test_the_noise_belongs_to_the_weights(tmp_path: Path) -> None:
    card = Card("m", "", ("T1w",), {}, 1.0, ("FAST",), sha256="1", folder=tmp_path)
    assert smallest_changes(card, "FAST") == ({}, "")
    figures = {"FAST": {"1": 2.5, "2": None}}
    for sha256, expected in (("1", {1: 2.5}), ("2", {})):
        content = {"sha256": sha256, "scans": "8 people", "smallest_change_percent": figures}
        (tmp_path / RESCAN).write_text(json.dumps(content))
        assert smallest_changes(card, "FAST")[0] == expected
