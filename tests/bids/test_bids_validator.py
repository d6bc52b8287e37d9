"""The real validator on the input: errors, warnings and cost."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from bids_trees import home, make_tree

from bidsseg.bids import validator
from bidsseg.bids.query import find_scans, select_scans
from bidsseg.bids.validator import Issue, validate
from bidsseg.errors import InvalidInputDataset


def codes(issues: list[Issue]) -> list[str]:
    return [issue.code for issue in issues]


def test_a_good_dataset(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii.gz", "sub-01_FLAIR.nii.gz", "sub-02_ses-1_run-1_T1w.nii")
    (bids_dir / "README").write_text("A dataset for tests. " * 20, encoding="utf-8")
    before = sorted(bids_dir.rglob("*"))
    assert validate(bids_dir, find_scans(bids_dir)) == []
    assert sorted(bids_dir.rglob("*")) == before


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory")
def test_where_only_shared_memory_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root of a container may be read-only; the validator reads nothing below /dev."""
    bids_dir, output_dir = make_tree(tmp_path, "sub-01_T1w.nii.gz"), tmp_path / "out"
    (bids_dir / "README").write_text("A dataset for tests. " * 20, encoding="utf-8")
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    assert codes(validate(bids_dir, find_scans(bids_dir))) == ["VALIDATOR_FAILED"]
    assert validate(bids_dir, find_scans(bids_dir), output_dir) == []
    assert list(output_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "MISSING_DATASET_DESCRIPTION"),
        (b"", "EMPTY_FILE"),
        (b'{"Name": ', "JSON_INVALID"),
        (b"[]", "JSON_NOT_AN_OBJECT"),
        (b"\xff\xfe{", "INVALID_JSON_ENCODING"),
    ],
)
def test_the_description_must_be_there_and_readable(tmp_path: Path, content: bytes | None, code: str) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii.gz")
    (bids_dir / "dataset_description.json").unlink()
    if content is not None:
        (bids_dir / "dataset_description.json").write_bytes(content)
    with pytest.raises(InvalidInputDataset, match=code) as caught:
        validate(bids_dir, find_scans(bids_dir))
    assert caught.value.code == 16
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("sub-01/anat/sub-01_run-1_acq-a_T1w.nii.gz", "FILENAME_MISMATCH"),
        ("sub-01/anat/sub-01_foo-bar_T1w.nii.gz", "ENTITY_NOT_IN_RULE"),
        ("sub-01/ses-1/anat/sub-01_T1w.nii.gz", "INVALID_LOCATION"),
    ],
)
def test_wrong_names_stop_only_when_they_are_read(tmp_path: Path, name: str, code: str) -> None:
    bids_dir = make_tree(tmp_path, name, "sub-02_T1w.nii.gz")
    with pytest.raises(InvalidInputDataset, match=code):
        validate(bids_dir, find_scans(bids_dir))
    assert validate(bids_dir, find_scans(bids_dir, participants=["02"])) == []


def test_other_errors_are_warnings(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz", "nonsense.xyz/x")
    description = {"Name": "x", "BIDSVersion": "1.0.0", "ReferencesAndLinks": "a text"}
    (bids_dir / "dataset_description.json").write_text(json.dumps(description), encoding="utf-8")
    (bids_dir / "participants.tsv").write_text("participant_id\tgender\nsub-01\tm\nsub-02\tf\n", encoding="utf-8")
    (bids_dir / "strange.txt").write_text("x", encoding="utf-8")
    for stem in ("sub-01", "sub-02"):
        (bids_dir / home(f"{stem}_T1w.json")).write_text("{", encoding="utf-8")
    issues = {issue.code: issue for issue in validate(bids_dir, find_scans(bids_dir))}
    assert "JSON_SCHEMA_VALIDATION_ERROR/ReferencesAndLinks" in issues
    assert issues["NOT_INCLUDED"].location == "strange.txt"
    assert issues["JSON_INVALID"] == Issue("JSON_INVALID", "sub-01/anat/sub-01_T1w.json", "Not a valid JSON file", 1)
    assert str(issues["JSON_INVALID"]) == (
        "sub-01/anat/sub-01_T1w.json (and 1 more): Not a valid JSON file [JSON_INVALID]"
    )


def test_the_content_of_images_is_left_to_their_reader(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii.gz")
    (bids_dir / home("sub-02_T1w.nii.gz")).parent.mkdir(parents=True)
    (bids_dir / home("sub-02_T1w.nii.gz")).symlink_to("not-fetched")
    (bids_dir / home("sub-03_T1w.nii.gz")).parent.mkdir(parents=True)
    (bids_dir / home("sub-03_T1w.nii.gz")).write_text("no image", encoding="utf-8")
    scans = find_scans(bids_dir)
    assert len(scans) == 3
    assert validate(bids_dir, scans) == []


def test_sidecars_of_others_are_not_missed(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_acq-a_T1w.nii", "sub-02_acq-b_T1w.nii", "sub-01/func/sub-01_task-x_bold.nii")
    for name in ("task-x_bold.json", "acq-b_T1w.json", "acq-a_T1w.json", "T2w.json"):
        (bids_dir / name).write_text("{}", encoding="utf-8")
    (bids_dir / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\n", encoding="utf-8")
    assert validate(bids_dir, find_scans(bids_dir, participants=["01"])) == []


def test_only_the_selected_is_shown_to_the_validator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bids_dir = make_tree(tmp_path, *(f"sub-{i:02}_T1w.nii" for i in range(30)), "sub-07/func/sub-07_task-x_bold.nii")
    (bids_dir / home("sub-07_T1w.json")).write_text("{}", encoding="utf-8")
    (bids_dir / "loop").symlink_to(bids_dir)
    (bids_dir / "self").symlink_to("self")
    shown: list[str] = []
    run = validator._run

    def noted(program: str, view: Path) -> object:
        shown.extend(sorted(path.relative_to(view).as_posix() for path in view.rglob("*") if not path.is_dir()))
        return run(program, view)

    monkeypatch.setattr(validator, "_run", noted)
    validate(bids_dir, find_scans(bids_dir, participants=["07"]))
    assert shown == [
        "dataset_description.json",
        "self",
        "sub-07/anat/sub-07_T1w.json",
        "sub-07/anat/sub-07_T1w.nii",
    ]


def test_spaces_and_other_letters(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path / "my dätä 日本", "sub-01_T1w.nii.gz")
    assert validate(bids_dir, find_scans(bids_dir)) == []


def test_a_missing_validator_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii.gz")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert codes(validate(bids_dir, find_scans(bids_dir))) == ["NO_VALIDATOR"]


@pytest.mark.parametrize("output", [b"", b"not JSON", b"{}"])
def test_a_failing_validator_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: bytes) -> None:
    bids_dir = make_tree(tmp_path, "sub-01_T1w.nii.gz")
    done = subprocess.CompletedProcess([], 1, output, b"no\nluck")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    (issue,) = validate(bids_dir, find_scans(bids_dir))
    assert issue.code == "VALIDATOR_FAILED"
    assert "\n" not in str(issue)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ds000011", ["JSON_SCHEMA_VALIDATION_ERROR/ReferencesAndLinks"]),
        ("ds002748", ["TSV_VALUE_INCORRECT_TYPE/gender"]),
        ("oasis", []),
        ("clinical", []),
        ("ms", []),
    ],
)
def test_real_datasets_go_on(testdata: Path, name: str, expected: list[str]) -> None:
    assert codes(validate(testdata / name, select_scans(testdata / name).scans)) == expected
