"""Training loses nothing: locks, full disks, records of runs, and checks before any image is read."""

import errno
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled import RECIPE, Ask, console, interrupt_after, weights

from bidsseg.errors import (
    InputMissing,
    IOFailure,
    NothingSelected,
    OutputNotWritable,
    TemporaryFailure,
    UsageError,
)
from bidsseg.files import held
from bidsseg.labels import load_protocol
from bidsseg.learning import clock, preconditions, training
from bidsseg.learning.cases import Annotation, Case
from bidsseg.learning.folds import held_out, split
from bidsseg.levels.train import train_level

HOLD = """
import sys, time
from pathlib import Path
from bidsseg.files import held
with held(Path(sys.argv[1])) as alone:
    print(alone, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holding() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Return a function that starts another process, which holds a lock file."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size of every file that this process writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if images are read."""
    monkeypatch.setattr(training, "prepared_cases", None)


def manifest(settings: Any) -> dict[str, Any]:
    (path,) = (settings.output_dir / "logs").glob("train-*.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


# -- two trainings to one output ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"cross_validate": 2}])
def test_a_second_training_is_refused_while_the_first_lives(
    more: dict[str, Any], ask: Ask, holding: Callable[[Path], subprocess.Popen[str]]
) -> None:
    settings = ask(**more)
    lock = settings.output_dir / "models" / "tiny" / ".lock"
    first = holding(lock)
    with pytest.raises(TemporaryFailure, match=r"another training is writing to .*/models/tiny: wait .* OUTPUT_DIR"):
        train_level(settings)
    assert [path for path in settings.output_dir.rglob("*") if path.is_file()] == [lock]
    first.kill()
    first.wait()
    assert lock.exists()
    if not more:
        train_level(settings)
        assert not lock.exists()


def test_a_lock_leaves_no_trace(tmp_path: Path) -> None:
    lock = tmp_path / "a" / "b" / ".lock"
    with held(lock) as alone:
        with held(lock) as second:
            assert (alone, second) == (True, False)
        assert lock.exists()
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    with held(lock):
        (lock.parent / "file").touch()
    assert (lock.parent / "file").exists() and not lock.exists()


def test_a_file_system_without_locks_is_used_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(tmp_path / ".lock") as alone:
        assert alone


def test_a_lock_that_cannot_be_created_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputNotWritable, match=r"cannot create .*; choose another folder"), held(tmp_path / "file/a"):
        pass


def test_a_refused_training_leaves_no_folder(ask: Ask) -> None:
    settings = ask(labels={"Atropos": [Path("none")]})
    with pytest.raises(InputMissing):
        train_level(settings)
    assert not settings.output_dir.exists()


# -- full disks --------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_last_checkpoint(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    long = RECIPE.replace("steps = 3", "steps = 5")
    whole = train_level(ask(long, output="whole"))
    with monkeypatch.context() as patched:
        interrupt_after(2, patched)
        with pytest.raises(TemporaryFailure):
            train_level(ask(long))
    checkpoint = ask().output_dir / "models" / "tiny" / "checkpoint.pt"
    before = checkpoint.read_bytes()
    resumed = ask(long, resume=True)
    with monkeypatch.context() as patched, largest_file(len(before) // 2):
        patched.setattr(clock, "CHECKPOINT_EVERY_S", -1)
        with pytest.raises(IOFailure, match=r"checkpoint\.pt: .*too large; the last one is kept: .*--resume") as got:
            train_level(resumed)
    assert got.value.code == 74
    assert checkpoint.read_bytes() == before
    assert not list(checkpoint.parent.glob(".*"))
    folder = train_level(resumed)
    one, other = weights(whole), weights(folder)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_half_files_of_killed_trainings_are_removed(ask: Ask) -> None:
    settings = ask()
    places = [
        settings.output_dir / "models" / "tiny" / ".checkpoint.pt",
        settings.output_dir / "prepared" / ".a.safetensors",
    ]
    left, written = ([place.with_name(f"{place.name}.{number:08x}.part") for place in places] for number in (1, 2))
    for half in (*left, *written):
        half.parent.mkdir(parents=True, exist_ok=True)
        half.touch()
    with ExitStack() as stack:
        for half in written:
            fcntl.flock(stack.enter_context(half.open("wb")), fcntl.LOCK_EX)
        train_level(settings)
    assert not any(half.exists() for half in left) and all(half.exists() for half in written)


def test_a_disk_with_too_little_room_is_refused_at_once(
    ask: Ask, nothing_is_read: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000_000))
    for dry_run in (True, False):
        settings = replace(ask(), dry_run=dry_run)
        with pytest.raises(IOFailure, match=r"the prepared scans need \d+ MB, but the disk has 10 MB: .* --work-dir"):
            train_level(settings)
        assert not settings.output_dir.exists()
    monkeypatch.setattr(preconditions, "prepared_mb", lambda setup, sources: 0.0)
    with pytest.raises(IOFailure, match=r"needs 21 MB for checkpoint and model, but the disk has 10 MB"):
        train_level(ask())


# -- records -----------------------------------------------------------------------------------------------------------


def test_a_training_leaves_its_messages_and_a_manifest(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(ask(folds=2, fold=0), command=("bidsseg", "…", "train"))
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        with pytest.raises(TemporaryFailure):
            train_level(settings)
    found = manifest(settings)
    assert found["command"] == ["bidsseg", "…", "train"]
    assert (found["outcome"], found["model"]["name"]) == ("interrupted", "tiny")
    assert "run again with --resume" in found["reason"]
    assert found["finished"] and found["versions"]["bidsseg"] and found["machine"]["device"] == "cpu"
    assert {entry["scan"]: entry["outcome"] for entry in found["scans"]} == {
        "bids/sub-01": "held out",
        "bids/sub-02": "training",
        "bids/sub-03": "held out",
        "bids/sub-04": "training",
    }
    (log,) = (settings.output_dir / "logs").glob("train-*.log")
    lines = log.read_text().splitlines()
    assert any("2 training scans, 2 held out" in line for line in lines)
    assert "reading bids/sub-01" in log.read_text()
    assert lines[-1].split(" ", 1)[1].startswith("interrupted: interrupted after 1 steps")

    shutil.rmtree(settings.output_dir / "logs")
    train_level(replace(ask(folds=2, fold=0, resume=True)))
    assert manifest(settings)["outcome"] == "finished"


def test_a_dry_run_writes_no_record(ask: Ask, nothing_is_read: None) -> None:
    settings = replace(ask(), dry_run=True)
    train_level(settings)
    assert not settings.output_dir.exists()


# -- what can be known beforehand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("asked", "error", "reason"),
    [
        ({"folds": 5, "fold": 4}, UsageError, "--fold 4 of --folds 5 holds out none of the 4 labelled participants"),
        ({"hold_out": ("*",)}, NothingSelected, "no labelled participant is left for training"),
        ({"hold_out": ("99",)}, UsageError, "--hold-out 99: no participant with this label"),
        ({"init": "neuronet"}, UsageError, "--init neuronet: none of its weights fit"),
    ],
)
def test_mistakes_are_found_before_images_are_read(
    asked: dict[str, Any], error: type[Exception], reason: str, dry_run: bool, ask: Ask, nothing_is_read: None
) -> None:
    settings = replace(ask(**asked), dry_run=dry_run)
    with pytest.raises(error, match=reason.replace("*", r"\*")):
        train_level(settings)
    assert not settings.output_dir.exists()


def test_a_time_budget_that_is_no_number_is_refused(ask: Ask) -> None:
    with pytest.raises(UsageError, match="--time-budget: give a positive number"):
        ask(time_budget_min=float("nan"))


def test_weak_settings_are_warned_about(ask: Ask, dataset: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "bids").symlink_to(dataset[0])
    shutil.copytree(dataset[0], tmp_path / "other" / "bids")
    labels = Path(shutil.copytree(dataset[1], tmp_path / "other" / "bids" / "labels"))
    recipe = RECIPE.replace('"tiny"', '"wholebrain"').replace("steps = 3", 'steps = 3\nkeep = "best"')
    settings = replace(ask(recipe, also=[tmp_path / "other" / "bids"], labels={"FAST": [labels]}), dry_run=True)
    train_level(settings)
    warnings = "\n".join(console(settings).warnings)
    assert "name = 'wholebrain' is the name of a shipped model" in warnings
    assert "2 datasets are in a folder bids" in warnings
    assert 'keep = "best" needs at least five labelled participants' in warnings


def test_registration_without_targets_is_refused(ask: Ask, nothing_is_read: None) -> None:
    with pytest.raises(UsageError, match="needs scans without annotation: give some with --also"):
        train_level(ask(RECIPE + "\n[registration]\n"))


@pytest.mark.parametrize("hold_out", [("01", "02"), ("01", "03", "04")])  # sub-04 is a label map alone
def test_held_out_scans_are_not_registered(
    hold_out: tuple[str, ...], ask: Ask, dataset: tuple[Path, Path], tmp_path: Path, nothing_is_read: None
) -> None:
    shutil.copytree(dataset[0], tmp_path / "other")
    labels = Path(shutil.copytree(dataset[1], tmp_path / "bids" / "labels"))
    shutil.copytree(dataset[0], tmp_path / "bids", dirs_exist_ok=True)
    settings = ask(
        RECIPE + "\n[registration]\n", hold_out=hold_out, also=[tmp_path / "other"], labels={"FAST": [labels]}
    )
    settings = replace(settings, bids_dir=tmp_path / "bids")
    for dry_run in (True, False):
        with pytest.raises(UsageError, match="needs at least two labelled training scans"):
            train_level(replace(settings, dry_run=dry_run))
    assert not settings.output_dir.exists()


def test_held_out_scans_do_not_select_the_weights(ask: Ask, dataset: tuple[Path, Path], tmp_path: Path) -> None:
    labels = Path(shutil.copytree(dataset[1], tmp_path / "labels"))
    (fifth,) = Path(shutil.copytree(labels / "sub-04", labels / "sub-05")).rglob("*.nii.gz")
    fifth.rename(fifth.with_name("sub-05_seg-FAST_dseg.nii.gz"))
    recipe = RECIPE.replace("steps = 3", 'steps = 3\nkeep = "best"')
    for hold_out in ((), ("01",)):
        settings = replace(ask(recipe, labels={"FAST": [labels]}, hold_out=hold_out), dry_run=True)
        train_level(settings)
        warned = any(line.startswith('keep = "best" needs at least five') for line in console(settings).warnings)
        assert warned == bool(hold_out)


# -- folds -------------------------------------------------------------------------------------------------------------


def test_every_kind_of_annotation_is_held_out() -> None:
    tissue = [f"all/sub-a{number}" for number in range(7)]
    lesions = [f"all/sub-z{number}" for number in range(3)]
    kinds = {**dict.fromkeys(tissue, ("FAST",)), **dict.fromkeys(lesions, ("lesion",)), "all/sub-b": ("other",)}
    people = sorted(kinds)
    folds = [held_out(people, 5, fold, kinds=kinds) for fold in range(5)]
    assert sorted(name for fold in folds for name in fold) == people
    assert {kinds[name][0] for name in folds[0]} >= {"FAST", "lesion"}
    assert sum(any(name in fold for name in lesions) for fold in folds) == 3
    assert max(map(len, folds)) - min(map(len, folds)) <= 1


def test_every_kind_selects_the_weights() -> None:
    """Nine participants with tissues and five with lesions: both kinds are among those that select the weights."""
    kinds = {f"a/sub-{number:02}": "FAST" if number < 10 else "lesion" for number in range(1, 15)}
    cases = [case_of(name, kind) for name, kind in kinds.items()]
    _, watched = split(cases, 5, 4)
    assert {kinds[case.name] for case in watched} == {"FAST", "lesion"}


def case_of(name: str, protocol: str) -> Case:
    values = torch.zeros((2, 2, 2), dtype=torch.uint8)
    return Case(name, None, (Annotation(load_protocol(protocol), values),), values == 0, None)


def test_one_kind_of_annotation_is_divided_in_turn() -> None:
    people = [f"all/sub-{number:02}" for number in range(11)]
    for fold in range(4):
        assert held_out(people, 4, fold, kinds=dict.fromkeys(people, ("FAST",))) == set(people[fold::4])
