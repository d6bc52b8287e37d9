"""Errors of the system, of names and of decoding: one clear message, and no effect on other scans."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fake_model import App, app_for_everybody
from permissions import not_root

from bidsseg.bids.index import closed_folders
from bidsseg.errors import BidssegError, DataError, InputMissing, IOFailure, OutputNotWritable, explained


@pytest.fixture
def open_app(monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    with app_for_everybody(monkeypatch, 2, 2) as app:
        yield app


def test_system_errors_have_exit_codes() -> None:
    def explain(number: int, name: str | None = "/data/x") -> BidssegError | None:
        return explained(OSError(number, os.strerror(number), name))

    for number, kind in (
        (errno.ENOSPC, IOFailure),
        (errno.EDQUOT, IOFailure),
        (errno.EIO, IOFailure),
        (errno.ESTALE, IOFailure),
        (errno.EROFS, OutputNotWritable),
        (errno.EACCES, InputMissing),
        (errno.ENOENT, InputMissing),
    ):
        error = explain(number)
        assert type(error) is kind
        assert str(error).startswith(f"/data/x: {os.strerror(number)}; ")
    assert str(explain(errno.EIO, None)).startswith("Input/output error; ")
    assert isinstance(explained(UnicodeEncodeError("ascii", "é", 0, 1, "no")), DataError)
    assert explained(ZeroDivisionError()) is None
    same = IOFailure("full")
    assert explained(same) is same


def test_an_unforeseen_error_of_the_system_is_no_internal_error(
    app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/x")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))  # the report of the crash: there is no output folder yet
        patch.setattr("bidsseg.levels.participant.write_root", fail)
        assert app() == 74
    err = capsys.readouterr().err
    assert "bidsseg: /data/x: Input/output error" in err and "internal" not in err
    with monkeypatch.context() as patch:
        patch.setattr("bidsseg.derivative.job.read_aligned", fail)
        assert app() == 1
    assert {entry["reason"] for entry in app.manifest["scans"]} == {
        "/data/x: Input/output error; check the disk or the network, and run again"
    }
    assert app() == 0


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ascii_only", [False, True])
def test_paths_that_are_not_ascii_in_the_locale_of_batch_systems(ascii_only: bool, app: App, tmp_path: Path) -> None:
    """One folder has a name in UTF-8; the folder in it has one that is not, if the file system takes it."""
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/donn\xc3\xa9es \xe8\x85\xa6"))
    place.mkdir()
    with suppress(OSError):
        (inner := Path(os.fsdecode(os.fsencode(place) + b"/donn\xe9es"))).mkdir()
        place = inner
    app.bids = app.bids.rename(place / "bids")
    app.output = place / "out"
    locale = {"LC_ALL": "C", **({"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"} if ascii_only else {})}
    for words in ((), ("--overwrite", "--skip-bids-validation")):
        process = app.process("--n-cpus", "1", *words, **locale)
        _, err = process.communicate()
        assert process.returncode == 0, err
        assert "not validated" not in err and "rror" not in err
    assert app("--dry-run") == 0 and app.fates == {"sub-01": "done", "sub-02": "done"}
    assert os.fsencode(app.manifest["command"][1]) == os.fsencode(app.bids)
    description = json.loads((app.output / "dataset_description.json").read_text())
    assert description["SourceDatasets"][0]["URL"] == app.bids.resolve().as_uri()
    assert app(level="group") == 0


def test_a_name_too_long_for_its_results_costs_only_its_own_scan(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    good = app.bids / "sub-01/anat/sub-01_T1w.nii.gz"
    label = "a" * (240 - len("sub-01_acq-_T1w.nii.gz"))
    shutil.copy(good, good.with_name(f"sub-01_acq-{label}_T1w.nii.gz"))
    assert app() == 1
    assert app.fates == {"sub-01": "done", "sub-02": "done", f"sub-01_acq-{label}": "failed"}
    err = capsys.readouterr().err
    assert "too long for a file name" in err and "shorten the labels" in err
    assert err.splitlines()[-1].startswith("bidsseg: 1 of 3 scans failed")
    assert app("--dry-run") == 0
    assert "would fail" in capsys.readouterr().err


def test_a_crash_file_of_a_long_name(app: App) -> None:
    good = app.bids / "sub-01/anat/sub-01_T1w.nii.gz"
    label = "a" * 170
    good.with_name(f"sub-01_acq-{label}_T1w.nii.gz").write_bytes(b"no image")
    assert app("--skip-bids-validation") == 1
    (crash,) = (app.output / "logs").glob("crash-*")
    assert "Traceback" in crash.read_text()


def test_only_names_too_long(app: App) -> None:
    shutil.rmtree(app.bids / "sub-02")
    good = app.bids / "sub-01/anat/sub-01_T1w.nii.gz"
    good.rename(good.with_name(f"sub-01_acq-{'a' * 215}_T1w.nii.gz"))
    assert app() == 65


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("closed", "failed"),
    [("sub-01", "sub-01"), ("sub-01/ses-2", "sub-01_ses-2"), ("sub-02/ses-1/anat", "sub-02_ses-1")],
)
def test_a_folder_that_may_not_be_read_costs_only_its_own_scans(
    closed: str, failed: str, open_app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    (open_app.bids / closed).chmod(0)
    with not_root():
        code = open_app("--skip-bids-validation")
        assert open_app("--skip-bids-validation", "--participant-label", closed[4:6]) in (1, 66)
    assert code == 1
    err = capsys.readouterr().err
    assert f"{open_app.bids / closed} cannot be read: Permission denied" in err
    assert "internal error" not in err and "no T1w image" not in err
    first = json.loads(sorted((open_app.output / "logs").glob("run-*.json"))[0].read_text())["scans"]
    assert {entry["scan"] for entry in first if entry["outcome"] == "failed"} == {failed}
    done = {entry["scan"] for entry in first if entry["outcome"] == "done"}
    scans = ("sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-02_ses-2")
    assert done == {key for key in scans if not key.startswith(failed)}


def test_a_folder_that_cannot_be_listed_in_any_way(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """This test also runs on machines where permissions are ignored."""
    real = os.scandir

    def scandir(path: object = ".") -> object:
        if str(path).endswith("sub-01"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    assert closed_folders(app.bids, ["01", "02"]) == {Path("sub-01"): "Input/output error"}


def test_a_temporary_folder_that_is_full(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    full = tmp_path / "full"
    full.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(full))
    real = Path.write_bytes

    def write_bytes(path: Path, content: bytes) -> int:
        if full in path.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert app() == 74
    err = capsys.readouterr().err
    assert f"temporary files cannot be written to {full}: No space left on device; give another --work-dir" in err
    assert not list(full.iterdir()) and not app.output.exists()


# -- the output folder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"[" * 100_000, b'{"model": 3, "scans": 4, "versions": []}', b'{"scans": [5, {"scan": "sub-01"}]}'],
)
def test_odd_manifests_do_not_matter(content: bytes, app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("--skip-bids-validation") == 0
    (app.output / "logs" / "run-0.json").write_bytes(content)
    (app.output / "logs" / "run-1.json").mkdir()
    shutil.rmtree(app.output / "sub-01" / "anat")
    for level in ("participant", "group"):
        assert app("--skip-bids-validation", level=level) == 0
    assert "internal error" not in capsys.readouterr().err


@pytest.mark.parametrize("place", ["logs", "sub-01", "sub-01/anat", "sub-01/figures"])
def test_a_file_where_a_folder_should_be(place: str, app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("--skip-bids-validation", "--participant-label", "02") == 0
    (app.output / place).parent.mkdir(exist_ok=True)
    shutil.rmtree(app.output / place, ignore_errors=True)
    (app.output / place).write_text("taken")
    assert app("--skip-bids-validation") == 73
    err = capsys.readouterr().err
    assert "internal error" not in err and ("cannot be written" in err or "cannot be replaced" in err)


@pytest.mark.parametrize("name", ["_dseg.tsv", "_morph.tsv", "_morph.json", "_dseg.json"])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a\tb\n1\t" + b"x" * 200_000 + b"\n", b"[]", b'{"Notes": null}'])
def test_odd_results_beside_others(name: str, content: bytes, app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("--skip-bids-validation") == 0
    (app.output / f"sub-01/anat/sub-01_seg-FAST_desc-wholebrain{name}").write_bytes(content)
    page = app.output / "sub-01.html"
    page.unlink()
    app("--skip-bids-validation")
    assert app(level="group") == 0
    assert "internal error" not in capsys.readouterr().err
