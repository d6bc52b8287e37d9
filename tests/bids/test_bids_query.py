"""Search for scans, and for the FLAIR of each scan."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from bids_trees import home, make_tree

from bidsseg.bids.annotations import find_annotations, find_label_maps
from bidsseg.bids.query import find_scans, read_filters, select_scans
from bidsseg.errors import DataError, InputMissing, NothingSelected, OutputNotWritable, UsageError


def keys(bids_dir: Path, **choice: Any) -> list[str]:
    return [scan.key for scan in find_scans(bids_dir, **choice)]


# -- scans -------------------------------------------------------------------------------------------------------------


def test_every_t1w_is_a_scan(tmp_path: Path) -> None:
    stems = [
        "sub-01_acq-a_T1w.nii.gz", "sub-01_acq-a_rec-norm_T1w.nii.gz", "sub-01_ce-gd_T1w.nii.gz", "sub-01_T1w.nii",
        "sub-02_ses-1_run-1_T1w.nii.gz", "sub-02_ses-1_run-2_T1w.nii.gz", "sub-02_ses-1_run-10_T1w.nii.gz",
        "sub-02_ses-2_run-01_T1w.nii.gz",
    ]  # fmt: skip
    bids_dir = make_tree(tmp_path, *stems, "sub-01_T2w.nii.gz", "sub-01_T1w.json", "sub-01_T1w.mgz")
    assert sorted(keys(bids_dir)) == sorted(stem.partition("_T1w")[0] for stem in stems)
    assert keys(bids_dir, participants=["02"]) == [
        "sub-02_ses-1_run-1", "sub-02_ses-1_run-2", "sub-02_ses-1_run-10", "sub-02_ses-2_run-01",
    ]  # fmt: skip
    last = find_scans(bids_dir)[-1]
    assert list(last.entities.items()) == [("subject", "02"), ("session", "2"), ("run", "01")]
    assert last.t1w == bids_dir / home("sub-02_ses-2_run-01_T1w.nii.gz")


def test_selection_by_label_with_and_without_prefix(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, *(f"sub-{s}_ses-{v}_T1w.nii" for s in ("01", "1", "x") for v in ("a", "b")))
    assert keys(bids_dir, participants=["sub-01", "x"], sessions=["ses-b"]) == ["sub-01_ses-b", "sub-x_ses-b"]
    assert keys(bids_dir, participants=["1"], sessions=["a"]) == ["sub-1_ses-a"]


def test_participants_stay_together(tmp_path: Path) -> None:
    """Labels may differ only in leading zeros, or in letters that sort before the underscore."""
    stems = [f"sub-{label}_ses-{session}" for label in ("01", "1", "a", "aB") for session in ("1", "2")]
    bids_dir = make_tree(tmp_path, "sub-a_T1w.nii", *(f"{stem}_T1w.nii" for stem in stems))
    assert keys(bids_dir) == [*stems[:4], "sub-a", *stems[4:]]


def test_a_session_label_leaves_out_files_without_session(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii", "sub-02_ses-1_T1w.nii")
    assert keys(bids_dir, sessions=["1"]) == ["sub-02_ses-1"]


def test_scans_that_the_tables_mark(tmp_path: Path) -> None:
    runs = [f"sub-02_ses-{session}_run-{run}_T1w.nii.gz" for session in (1, 2) for run in (1, 2)]
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii", "sub-03_T1w.nii", *runs)
    scans = "filename\tuse\nanat/sub-02_ses-1_run-2_T1w.nii.gz\t1.0\nanat/sub-02_ses-1_run-1_T1w.nii.gz\t0.0\n"
    (bids_dir / "sub-02/ses-1/sub-02_ses-1_scans.tsv").write_text(scans)
    (bids_dir / "sub-01/sub-01_scans.tsv").write_text("filename\tuse\nsub-01_T1w.nii\t 1\n")
    (bids_dir / "sub-02/sub-02_sessions.tsv").write_text("session_id\tuse\tqc\nses-1\t1\tfair\n2\t1\tbad\n")
    (bids_dir / "participants.tsv").write_text("participant_id\tgroup\nsub-01\tpatient\n02\tcontrol\n")
    of_second = ["sub-02_ses-2_run-1", "sub-02_ses-2_run-2"]
    assert keys(bids_dir, where=["use=1"]) == ["sub-01", "sub-02_ses-1_run-2", *of_second]
    assert keys(bids_dir, where=["use=1", "qc!=bad"]) == ["sub-01", "sub-02_ses-1_run-2"]
    assert keys(bids_dir, where=["qc=bad,poor"]) == of_second
    assert keys(bids_dir, where=["group!=control"]) == ["sub-01", "sub-03"]
    assert keys(bids_dir, where=["group=n/a"]) == ["sub-03"]
    assert select_scans(bids_dir, where=["use!=0"]).notes == [
        "left out: sub-02_ses-1_run-1_T1w.nii.gz: not --where use!=0 (0.0)"
    ]
    with pytest.raises(NothingSelected, match=r"sub-03_T1w.nii: not --where use=2 \(n/a\)"):
        find_scans(bids_dir, where=["use=2"])
    with pytest.raises(UsageError, match="the column quality; there are filename, group, participant_id, qc"):
        find_scans(bids_dir, where=["quality=good"])


def test_tables_that_mark_scans_in_other_forms(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_ses-1_T1w.nii", "sub-01_ses-2_T1w.nii", "sub-02_T1w.nii")
    marks = "filename\tuse\nses-1/anat/sub-01_ses-1_T1w.nii\t1\nses-2/anat/sub-01_ses-2_T1w.nii\tNaN\n"
    (bids_dir / "sub-01/sub-01_scans.tsv").write_text(marks)
    people, rows = bids_dir / "participants.tsv", "sub-01\t1\tBonn, Jena\nsub-01\t\tBonn\nsub-02\tn/a\tJena\n"
    people.write_text(f"participant_id\tsession_id\tsite\n{rows}")
    assert keys(bids_dir, where=["use=1"]) == ["sub-01_ses-1"]
    assert keys(bids_dir, where=["use=NaN"]) == ["sub-01_ses-2"]
    assert keys(bids_dir, where=["site=Bonn, Jena"]) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02"]
    assert keys(bids_dir, where=["site!=Bonn"]) == ["sub-01_ses-1", "sub-02"]
    assert keys(bids_dir, where=["use!=1"], participants=["02"]) == ["sub-02"], "the table of sub-01 has the column"
    people.write_text(f"person\tsession_id\tsite\n{rows}")
    with pytest.raises(DataError, match=r"participants.tsv has no column participant_id, so that its column site"):
        find_scans(bids_dir, where=["site=Bonn"])
    assert keys(bids_dir, where=["use=1"]) == ["sub-01_ses-1"]
    people.unlink()
    people.symlink_to(".git/annex/objects/participants.tsv")
    with pytest.raises(InputMissing, match="was not downloaded"):
        find_scans(bids_dir, where=["site=Bonn"])


def test_a_row_of_all_sessions_marks_those_without_a_row(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii", "sub-01_ses-1_T1w.nii", "sub-01_ses-2_T1w.nii")
    rows = "participant_id\tsession_id\tage\nsub-01\tn/a\t40\nsub-01\tses-2\t42\n"
    (bids_dir / "participants.tsv").write_text(rows)
    assert keys(bids_dir, where=["age=40"]) == ["sub-01", "sub-01_ses-1"]
    assert keys(bids_dir, where=["age=42"]) == ["sub-01_ses-2"], "as group joins them"


def test_what_matches_nothing_is_named(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, *(f"sub-{i:02}_ses-1_T1w.nii" for i in range(20)))
    with pytest.raises(NothingSelected, match=r"no participant 7, 99 .* there are 20: 00, 01.*\.\.\."):
        find_scans(bids_dir, participants=["sub-99", "7"])
    with pytest.raises(NothingSelected, match=r"session 2.* 1: 1"):
        find_scans(bids_dir, sessions=["2"])
    with pytest.raises(NothingSelected, match="no T1w"):
        find_scans(bids_dir, filters={"t1w": {"run": 3}})
    selection = select_scans(bids_dir, participants=["03", "99"], sessions=["1", "2"])
    assert [scan.key for scan in selection.scans] == ["sub-03_ses-1"]
    assert any("99" in note for note in selection.notes)
    assert any("session 2" in note for note in selection.notes)


def test_participants_without_t1w_are_noted(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii", "sub-02_T2w.nii", "sub-03/func/sub-03_task-x_bold.nii")
    selection = select_scans(bids_dir)
    assert [scan.key for scan in selection.scans] == ["sub-01"]
    there = "found sub-02_T2w.nii (segment it with --model open --anat-modality T2w)"
    assert selection.notes == [f"sub-02: no T1w image matches; {there}", "sub-03: no T1w image matches"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["sub-01_UNIT1.nii.gz"], r"sub-01_UNIT1\.nii\.gz \(select it by --anat-modality UNIT1\)"),
        (["sub-01_FLAIR.nii", "sub-02_FLAIR.nii"], r"FLAIR\.nii and 1 more \(segment .* open --anat-modality FLAIR\)"),
        (["sub-01_angio.nii", "sub-01_T2w.nii"], r"T2w\.nii \(segment .*; sub-01_angio\.nii \(no model reads it\)"),
        (["sub-01_ses-1_T1w.mgz"], r"sub-01_ses-1_T1w\.mgz \(convert it"),
        (["sub-01_T1w.hdr", "sub-01_T1w.img"], r"sub-01_T1w\.hdr and 1 more \(convert it"),
        (["sub-01_T1w.NII.GZ"], r"sub-01_T1w\.NII\.GZ \(its name must end in _T1w\.nii\.gz: rename"),
        (["sub-01_t1w.nii"], r"sub-01_t1w\.nii \(its name must end in _T1w\.nii: rename"),
        (["sub-01_acq-x_T1w.nii"], r"sub-01_acq-x_T1w\.nii \(excluded by the selection or the filters"),
        (["sub-01_part-phase_T1w.nii"], r"sub-01_part-phase_T1w\.nii \(not a magnitude image"),
        (["sub-01_T1w.mgz", "sub-01_T2w.nii", "sub-02_UNIT1.nii"], r"mgz \(convert.*; sub-02_UNIT1.*; sub-01_T2w"),
        (["sub-01_T1w.json", "sub-01_scans.tsv", "readme"], "participants, sessions, filters"),
    ],
)
def test_files_found_instead_of_a_t1w_are_listed(tmp_path: Path, names: list[str], told: str) -> None:
    bids_dir = make_tree(tmp_path, "sub-01/sub-01_scans.tsv", *names)
    with pytest.raises(NothingSelected, match=rf"no T1w image \(\.nii or \.nii\.gz\) matches in .*{told}"):
        find_scans(bids_dir, filters={"t1w": {"acquisition": None}})


@pytest.mark.parametrize(
    ("suffix", "found", "told"),
    [
        ("T2w", "T2w", "(excluded by the selection or the filters: --session-label, --bids-filter-file)"),
        ("UNIT1", "UNIT1", "(excluded by"),
        (["PDw", "T2w"], "T2w", "(excluded by"),
        ("*", "FLAIR", "(excluded by"),
        ("T2w", "T1w", "(select it by --anat-modality T1w)"),
        ("UNIT1", "T2w", "(segment it with --model open --anat-modality T2w)"),
    ],
)
def test_a_given_suffix_is_not_suggested(tmp_path: Path, suffix: str | list[str], found: str, told: str) -> None:
    bids_dir = make_tree(tmp_path, f"sub-01_ses-1_{found}.nii")
    with pytest.raises(NothingSelected) as error:
        find_scans(bids_dir, filters={"t1w": {"suffix": suffix, "session": "2"}})
    assert f"found sub-01_ses-1_{found}.nii {told}" in str(error.value)


@pytest.mark.parametrize("place", ["sub-02/anat/sub-01_T1w.nii", "sub-02/ses-1/anat/sub-02_ses-2_T1w.nii"])
def test_a_name_that_contradicts_its_folder(tmp_path: Path, place: str) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii", place)
    told = f"no T1w image matches; found {Path(place).name} (its name contradicts its folder: rename it)"
    assert select_scans(bids_dir).notes == [
        f"{place} is skipped: its name contradicts its folder",
        f"sub-02: {told}",
    ]
    with pytest.raises(NothingSelected, match="contradicts its folder: rename it"):
        find_scans(bids_dir, participants=["02"])


@pytest.mark.parametrize("name", ["sub-02_acq-0.8mm_T1w.nii.gz", "sub-02_ses_1_T1w.nii", "sub-02_task-a b_T1w.nii"])
def test_a_name_that_is_not_one_of_bids(tmp_path: Path, name: str) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii", f"sub-02/anat/{name}")
    assert select_scans(bids_dir).notes == [
        f"sub-02/anat/{name} is skipped: not a BIDS file name",
        f"sub-02: no T1w image matches; found {name} (not a BIDS file name: rename it)",
    ]
    with pytest.raises(NothingSelected, match=r"found sub-02_.* \(not a BIDS file name: rename it\)"):
        find_scans(bids_dir, participants=["02"])


def test_a_filter_takes_another_suffix(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_UNIT1.nii.gz", "sub-02_T1w.nii", "sub-02_UNIT1.nii", "sub-03_T1w.nii")
    chosen = select_scans(bids_dir, filters={"t1w": {"suffix": "UNIT1"}})
    assert [scan.t1w.name for scan in chosen.scans] == ["sub-01_UNIT1.nii.gz", "sub-02_UNIT1.nii"]
    both = select_scans(bids_dir, filters={"t1w": {"suffix": ["T1w", "UNIT1"]}})
    assert [scan.t1w.name for scan in both.scans] == ["sub-01_UNIT1.nii.gz", "sub-02_T1w.nii", "sub-03_T1w.nii"]
    assert both.notes == ["sub-02_UNIT1.nii is skipped: sub-02_T1w.nii has the same entities"]


def test_only_magnitudes_are_taken(tmp_path: Path) -> None:
    parts = [
        f"sub-01_part-{part}_{suffix}.nii" for part in ("mag", "phase", "real", "imag") for suffix in ("T1w", "FLAIR")
    ]
    bids_dir = make_tree(tmp_path, *parts, "sub-02_T1w.nii", "sub-02_part-phase_T1w.nii", "sub-03_part-phase_T1w.nii")
    selection = select_scans(bids_dir)
    assert [scan.key for scan in selection.scans] == ["sub-01_part-mag", "sub-02"]
    assert selection.scans[0].flair == bids_dir / home("sub-01_part-mag_FLAIR.nii")
    skipped = [note for note in selection.notes if note.endswith("is not a magnitude image")]
    assert [note.split(" is skipped")[0] for note in skipped] == [
        "sub-01_part-imag_T1w.nii", "sub-01_part-phase_T1w.nii", "sub-01_part-real_T1w.nii",
        "sub-02_part-phase_T1w.nii", "sub-03_part-phase_T1w.nii",
    ]  # fmt: skip
    assert keys(bids_dir, filters={"t1w": {"part": "phase"}}, participants=["03"]) == ["sub-03_part-phase"]


def test_missing_empty_and_file_instead_of_folder(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="cannot read"):
        find_scans(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputMissing, match="is a file"):
        find_scans(tmp_path / "file")
    with pytest.raises(NothingSelected, match=r"no sub-\* folder"):
        find_scans(make_tree(tmp_path / "empty"))


def test_derivatives_and_sourcedata_are_not_looked_at(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii")
    for folder in ("derivatives/x", "sourcedata", "code", "sub-01/anat/sub-02/anat", "sub-01/anat/old", ".git"):
        (bids_dir / folder).mkdir(parents=True)
        (bids_dir / folder / "sub-01_run-9_T1w.nii").touch()
    (bids_dir / "sub-01_run-8_T1w.nii").touch()
    assert keys(bids_dir) == ["sub-01"]


def test_unselected_participants_are_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    bids_dir = make_tree(tmp_path, *(f"sub-{i:02}_T1w.nii" for i in range(12)), "sub-03/func/sub-03_bold.nii")
    walked, walk = [], LocalFileSystem.walk

    def noted(self: LocalFileSystem, path: str, **options: Any) -> Any:
        walked.append(path)
        return walk(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "walk", noted)
    assert keys(bids_dir, participants=["03"]) == ["sub-03"]
    assert sorted(Path(path).relative_to(bids_dir).as_posix() for path in walked) == [".", "sub-03", "sub-03/anat"]


@pytest.mark.parametrize("above", ["sub-99/ses-8", "with space", "désc-ü/日本", "acq-x_run-3/anat", "a#b%20c?d=[e]"])
def test_the_path_of_the_dataset_does_not_matter(tmp_path: Path, above: str) -> None:
    bids_dir = make_tree(tmp_path / above, "sub-01_T1w.nii", "sub-01_FLAIR.nii", "sub-02_ses-1_T1w.nii")
    scans = find_scans(bids_dir)
    assert [scan.key for scan in scans] == ["sub-01", "sub-02_ses-1"]
    assert scans[0].flair == bids_dir / "sub-01/anat/sub-01_FLAIR.nii"
    assert all(scan.t1w.is_file() for scan in scans)
    assert keys(bids_dir, filters={"t1w": {"session": "*"}}) == ["sub-02_ses-1"]
    assert keys(bids_dir, filters={"t1w": {"acquisition": None, "run": None}}) == ["sub-01", "sub-02_ses-1"]


def test_relative_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path / "ds", "sub-01_T1w.nii")
    monkeypatch.chdir(tmp_path)
    assert find_scans(Path("ds"))[0].t1w == Path("ds/sub-01/anat/sub-01_T1w.nii")


def test_links(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path / "bids", "sub-01_T1w.nii")
    elsewhere = make_tree(tmp_path / "store", "sub-07_T1w.nii")
    (bids_dir / "sub-07").symlink_to(elsewhere / "sub-07")
    (bids_dir / "sub-01/loop").symlink_to(bids_dir / "sub-01")
    (bids_dir / "sub-01/anat/anat").symlink_to("..")
    (bids_dir / "sub-02").symlink_to("sub-02")
    (bids_dir / "all").symlink_to(bids_dir)
    (bids_dir / "sub-01/anat/sub-01_run-2_T1w.nii").symlink_to("not-fetched")
    assert keys(bids_dir) == ["sub-01", "sub-01_run-2", "sub-07"]


def test_same_entities_twice(tmp_path: Path) -> None:
    selection = select_scans(make_tree(tmp_path, "sub-01_T1w.nii", "sub-01_T1w.nii.gz"))
    assert [scan.t1w.name for scan in selection.scans] == ["sub-01_T1w.nii.gz"]
    assert "sub-01_T1w.nii is skipped" in selection.notes[0]


def test_names_that_are_not_bids_are_noted(tmp_path: Path) -> None:
    wrong = ["sub-01/anat/sub-01_old_T1w.nii", "sub-01/anat/sub-02_T1w.nii", "sub-01/ses-1/anat/sub-01_ses-2_T1w.nii"]
    selection = select_scans(make_tree(tmp_path, "sub-01_T1w.nii.gz", *wrong))
    assert [scan.key for scan in selection.scans] == ["sub-01"]
    assert sorted(note.split(" is ")[0] for note in selection.notes) == sorted(wrong)


def test_nothing_is_written_beside_the_input(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path / "bids", "sub-01_T1w.nii")
    before = sorted(tmp_path.rglob("*"))
    find_scans(bids_dir)
    assert sorted(tmp_path.rglob("*")) == before


# -- filters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"acquisition": "hi"}, ["acq-hi", "acq-hi_run-01"]),
        ({"acquisition": None}, ["", "run-2"]),
        ({"acquisition": "*"}, ["acq-hi", "acq-hi_run-01", "acq-lo"]),
        ({"acquisition": ["lo", None]}, ["", "acq-lo", "run-2"]),
        ({"run": 1}, ["acq-hi_run-01"]),
        ({"run": "1"}, ["acq-hi_run-01"]),
        ({"run": ["01", "02"], "acquisition": None}, ["run-2"]),
        ({"datatype": "anat", "extension": ".nii.gz", "suffix": "T1w", "subject": "sub-01", "run": 2}, ["run-2"]),
        ({"suffix": "T2w"}, ["acq-t2"]),
    ],
)
def test_filters(tmp_path: Path, wanted: dict[str, Any], found: list[str]) -> None:
    names = ["T1w", "run-2_T1w", "acq-hi_T1w", "acq-hi_run-01_T1w", "acq-lo_T1w", "acq-t2_T2w"]
    bids_dir = make_tree(tmp_path / "bids", *(f"sub-01_{name}.nii.gz" for name in names))
    file = tmp_path / "filters.json"
    file.write_text(json.dumps({"T1w": wanted, "bold": {"task": "rest"}}), encoding="utf-8")
    assert keys(bids_dir, filters=read_filters(file)) == [f"sub-01_{name}".rstrip("_") for name in found]


@pytest.mark.parametrize("text", ["{", "[]", '{"t1w": "mprage"}'])
def test_filter_files_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    file = tmp_path / "filters.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"filters\.json"):
        read_filters(file)


def test_filters_with_errors(tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        read_filters(tmp_path / "nowhere.json")
    with pytest.raises(UsageError, match=r"'acq'.*acquisition"):
        find_scans(make_tree(tmp_path, "sub-01_T1w.nii"), filters={"t1w": {"acq": "x"}})


# -- FLAIR -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t1w", "flairs", "found"),
    [
        ("sub-01", ["sub-01"], "sub-01"),
        ("sub-01_acq-a_run-1", ["sub-01_acq-b"], "sub-01_acq-b"),
        ("sub-01_run-02", ["sub-01_run-1", "sub-01_run-2"], "sub-01_run-2"),
        ("sub-01", ["sub-01", "sub-01_run-2"], "sub-01"),
        ("sub-01_run-3", ["sub-01_run-1"], "sub-01_run-1"),
        ("sub-01_ses-1", ["sub-01_ses-1", "sub-01_ses-2"], "sub-01_ses-1"),
        ("sub-01_ses-1", ["sub-01_ses-2"], "no FLAIR image in session 1 of sub-01"),
        ("sub-01_ses-1", ["sub-01"], "no FLAIR image in session 1"),
        ("sub-01", ["sub-02"], "no FLAIR image in sub-01"),
        ("sub-01_run-3", ["sub-01_run-1", "sub-01_run-2"], "2 FLAIR images match"),
        ("sub-01_run-1", ["sub-01_acq-a_run-1", "sub-01_acq-b_run-1"], "--bids-filter-file"),
    ],
)
def test_pairs(tmp_path: Path, t1w: str, flairs: list[str], found: str) -> None:
    bids_dir = make_tree(tmp_path, f"{t1w}_T1w.nii.gz", *(f"{name}_FLAIR.nii.gz" for name in flairs))
    (scan,) = find_scans(bids_dir, participants=["01"])
    if scan.flair is None:
        assert scan.flair_reason is not None and found in scan.flair_reason
    else:
        assert scan.flair == bids_dir / home(f"{found}_FLAIR.nii.gz")
        assert scan.flair_reason is None


def test_a_filter_decides_between_flairs(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii", "sub-01_acq-2d_FLAIR.nii", "sub-01_acq-3d_FLAIR.nii")
    (scan,) = find_scans(bids_dir, filters={"flair": {"acquisition": "3d"}})
    assert scan.flair is not None and scan.flair.name == "sub-01_acq-3d_FLAIR.nii"


# -- index -------------------------------------------------------------------------------------------------------------


def test_database_is_made_once_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bids_dir, kept = make_tree(tmp_path / "bids", "sub-01_run-01_T1w.nii", "sub-02_ses-1_FLAIR.nii"), tmp_path / "kept"
    make_tree(bids_dir, "sub-02_ses-1_T1w.nii")
    assert keys(bids_dir, participants=["02"], database_dir=kept) == ["sub-02_ses-1"]
    assert [path.name for path in (kept / "bidsseg").iterdir()] == ["layout_index.sqlite"]
    from bids.layout import BIDSLayoutIndexer

    monkeypatch.setattr(BIDSLayoutIndexer, "__call__", lambda *_: pytest.fail("indexed again"))
    scans = find_scans(bids_dir, database_dir=kept)
    assert [scan.key for scan in scans] == ["sub-01_run-01", "sub-02_ses-1"]
    assert scans[1].flair is not None


def test_an_index_is_read_but_not_stored_in_a_dry_run(tmp_path: Path) -> None:
    bids_dir, kept = make_tree(tmp_path / "bids", "sub-01_T1w.nii"), tmp_path / "kept"
    assert keys(bids_dir, database_dir=kept, store_index=False) == ["sub-01"]
    assert not kept.exists()
    find_scans(bids_dir, database_dir=kept)
    before = index_in(kept / "bidsseg").read_bytes()
    make_tree(bids_dir, "sub-02_T1w.nii")
    assert keys(bids_dir, database_dir=kept, store_index=False) == ["sub-01", "sub-02"]
    assert index_in(kept / "bidsseg").read_bytes() == before


def index_in(folder: Path) -> Path:
    return folder / "layout_index.sqlite"


def test_an_old_database_is_made_anew(tmp_path: Path) -> None:
    bids_dir, kept = make_tree(tmp_path / "bids", "sub-01_T1w.nii"), tmp_path / "kept"
    find_scans(bids_dir, database_dir=kept)
    make_tree(bids_dir, "sub-01_run-2_T1w.nii", "sub-02_ses-1_T1w.nii")
    (bids_dir / home("sub-01_T1w.nii")).rename(bids_dir / home("sub-01_run-1_T1w.nii"))
    os.utime(index_in(kept / "bidsseg"), (2**31, 2**31))  # copied datasets have old times
    selection = select_scans(bids_dir, database_dir=kept)
    assert [scan.key for scan in selection.scans] == ["sub-01_run-1", "sub-01_run-2", "sub-02_ses-1"]
    assert any("does not match the dataset" in note for note in selection.notes)
    assert not select_scans(bids_dir, database_dir=kept).notes


@pytest.mark.parametrize("damage", [b"", b"not a database", None])
def test_a_damaged_database_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    bids_dir, kept = make_tree(tmp_path / "bids", "sub-01_T1w.nii"), tmp_path / "kept"
    find_scans(bids_dir, database_dir=kept)
    index = index_in(kept / "bidsseg")
    index.write_bytes(index.read_bytes()[:9000] if damage is None else damage)
    selection = select_scans(bids_dir, database_dir=kept)
    assert [scan.key for scan in selection.scans] == ["sub-01"]
    assert "damaged" in selection.notes[0]
    assert not select_scans(bids_dir, database_dir=kept).notes


@pytest.mark.parametrize("what", ["old", "damaged"])
def test_a_database_of_pybids_is_never_replaced(tmp_path: Path, what: str) -> None:
    from bids.layout import BIDSLayout

    bids_dir, kept = make_tree(tmp_path / "bids", "sub-01_T1w.nii"), tmp_path / "kept"
    BIDSLayout(bids_dir, validate=False, database_path=kept)
    make_tree(bids_dir, "sub-02_T1w.nii")
    if what == "damaged":
        index_in(kept).write_bytes(b"damaged")
    before = index_in(kept).read_bytes()
    for _ in range(2):
        assert keys(bids_dir, database_dir=kept) == ["sub-01", "sub-02"]
    assert index_in(kept).read_bytes() == before
    assert index_in(kept / "bidsseg").is_file()


def test_an_old_database_that_cannot_be_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bids_dir, kept = make_tree(tmp_path / "bids", "sub-01_T1w.nii"), tmp_path / "kept"
    find_scans(bids_dir, database_dir=kept)
    make_tree(bids_dir, "sub-02_T1w.nii")

    def refuse(**_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("bidsseg.bids.index.tempfile.TemporaryDirectory", refuse)
    selection = select_scans(bids_dir, database_dir=kept)
    assert [scan.key for scan in selection.scans] == ["sub-01", "sub-02"]
    assert "Read-only file system" in selection.notes[1]
    with pytest.raises(OutputNotWritable, match="cannot store an index"):
        find_scans(bids_dir, database_dir=tmp_path / "other")


def test_database_of_pybids_is_read(tmp_path: Path) -> None:
    from bids.layout import BIDSLayout

    bids_dir, kept = make_tree(tmp_path / "bids", "sub-01_T1w.nii", "sub-02_T1w.nii"), tmp_path / "kept"
    BIDSLayout(bids_dir, validate=False, database_path=kept)
    assert keys(bids_dir, participants=["02"], database_dir=kept) == ["sub-02"]
    assert not (kept / "bidsseg").exists()


def test_database_of_another_dataset_or_inside_this_one(tmp_path: Path) -> None:
    one, other = make_tree(tmp_path / "one", "sub-01_T1w.nii"), make_tree(tmp_path / "other", "sub-01_T1w.nii")
    find_scans(one, database_dir=tmp_path / "kept")
    with pytest.raises(UsageError, match=r"belongs to .*one"):
        find_scans(other, database_dir=tmp_path / "kept")
    with pytest.raises(UsageError, match="inside the dataset"):
        find_scans(one, database_dir=one / ".cache")


# -- real data ---------------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "scans", "flairs"),
    [("oasis", 15, 0), ("ds000011", 8, 0), ("ds002748", 24, 0), ("ms", 2, 2), ("clinical", 3, 3)],
)
def test_real_datasets(testdata: Path, name: str, scans: int, flairs: int) -> None:
    selection = select_scans(testdata / name)
    assert len(selection.scans) == scans
    assert sum(scan.flair is not None for scan in selection.scans) == flairs
    assert not selection.notes


@pytest.mark.data
def test_real_annotations(testdata: Path) -> None:
    for scan in find_scans(testdata / "oasis"):
        for folder, protocol in (("manual", "BrainCOLOR"), ("fast", "FAST")):
            found = find_annotations(testdata / "oasis/derivatives" / folder, scan, protocol)
            assert found is not None and f"{scan.key}_seg-{protocol}" in found.name
    patients, lesions = find_scans(testdata / "ms"), testdata / "ms/derivatives/manual"
    assert [scan.key for scan in patients] == ["sub-19", "sub-26"]
    assert all(find_annotations(lesions, scan, "lesion") is not None for scan in patients)
    assert len(find_label_maps(lesions, "lesion")) == 29
    assert len(find_label_maps(testdata / "heads", "head")) == 20


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_dataset(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii")
    bids_dir.chmod(0)
    try:
        with pytest.raises(InputMissing, match="cannot read"):
            find_scans(bids_dir)
    finally:
        bids_dir.chmod(0o755)
