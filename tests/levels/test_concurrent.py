"""Simultaneous runs into one output folder, and the remains of killed runs."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_model import App, make_app, save_card

from bidsseg import files
from bidsseg.files import is_being_written, locked, replacing


@pytest.fixture
def app(tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> App:
    return make_app(tmp_path, make_bids(4), monkeypatch)


def test_the_same_command_three_times_at_once(app: App, tmp_path: Path) -> None:
    processes = [app.process("--skip-bids-validation", "--n-cpus", "1", FAKE_MODEL_SECONDS="0.1") for _ in range(3)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert not list(app.output.rglob("*.part"))
    assert app() == 0 and app.fake.segmented == 0
    together, app.output = app.files(), tmp_path / "alone"
    assert app() == 0
    assert app.files() == together


def test_shards_of_two_models_at_once(app: App, tmp_path: Path) -> None:
    cards = [app.card, save_card(tmp_path / "other", name="other", heads=("FAST",))]
    processes = []
    for app.card in cards:
        for part in (1, 2):
            processes.append(app.process("--skip-bids-validation", "--shard", f"{part}/2", FAKE_MODEL_SECONDS="0.1"))
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    rows = (app.output / "descriptions.tsv").read_text()
    assert "desc-wholebrain\t" in rows and "desc-other\t" in rows
    for app.card in cards:
        assert app() == 0
    assert app.fake.segmented == 0
    for label in ("01", "02", "03", "04"):
        page = (app.output / f"sub-{label}.html").read_text()
        assert "desc-other" in page and "desc-wholebrain" in page
    assert json.loads((app.output / "dataset_description.json").read_text())["GeneratedBy"][0]["Name"] == "bidsseg"


def test_files_of_another_running_process_are_kept(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as stream:
        (part,) = tmp_path.glob(".file.*.part")
        stream.write(b"half")
        assert is_being_written(part)
    assert (tmp_path / "file").read_bytes() == b"half"
    part.write_bytes(b"of a killed run")
    assert not is_being_written(part)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", fail)
    with locked(tmp_path), replacing(tmp_path / "file") as stream:
        (part,) = tmp_path.glob(".file.*.part")
        assert is_being_written(part)
        stream.write(b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
    part.touch()
    os.utime(part, (0, 0))
    assert not is_being_written(part)


def test_a_file_system_with_locks_of_each_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as BeeGFS, and Lustre with localflock: what another machine writes does not look locked."""
    with replacing(tmp_path / "file"):
        (part,) = tmp_path.glob(".file.*.part")
    part.touch()
    assert not is_being_written(part)
    monkeypatch.setattr(files, "machine_mark", lambda: "another")
    assert is_being_written(part)
    os.utime(part, (0, 0))
    assert not is_being_written(part)


def test_nobody_waits_for_a_lock_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.1)
    reached = []
    with locked(tmp_path), locked(tmp_path):
        reached.append(1)
    assert reached


def test_a_temporary_file_that_is_taken_away_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    taken: list[int] = []

    def flock(stream: object, how: int) -> None:
        if not taken:
            taken.append(1)
            next(tmp_path.glob(".*.part")).unlink()
        real(stream, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", flock)
    with replacing(tmp_path / "file") as stream:
        stream.write(b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole" and taken
