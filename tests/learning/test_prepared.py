"""Prepared scans: kept in files once, shared, checked, and the same as those that were read."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from labelled import HALF, RECIPE, Ask, console, weights
from recording_console import RecordingConsole

from bidsseg.errors import DataError, IOFailure, TemporaryFailure, UsageError
from bidsseg.execution.machine import memory_used_mb
from bidsseg.learning import prepared, training
from bidsseg.learning.case_reading import Source, read_source
from bidsseg.learning.cases import Case
from bidsseg.learning.datasets import find_sources
from bidsseg.learning.prepared import StoredCase, prepared_cases
from bidsseg.learning.processes import Processes
from bidsseg.learning.store import Content, Store
from bidsseg.levels.train import train_level
from bidsseg.settings import Settings

Prepare = Callable[..., list[StoredCase]]


def sources_of(settings: Settings) -> list[Source]:
    return find_sources(settings, settings.report, unlabelled=False, synthetic=True)


@pytest.fixture
def sources(ask: Ask) -> list[Source]:
    """Three scans, and a label map without image."""
    return sources_of(ask())


@pytest.fixture
def prepare(sources: list[Source], tmp_path: Path) -> Prepare:
    """``prepare()`` returns the prepared cases of `sources`."""

    def prepared_now(**more: Any) -> list[StoredCase]:
        report = more.setdefault("report", RecordingConsole())
        return prepared_cases(sources, ("T1w",), Store(tmp_path / "store", report.say), **more)

    return prepared_now


def never() -> Content:
    raise AssertionError("a file was made again")


def arrays(case: Case) -> list[torch.Tensor]:
    found = [case.image, case.brain, case.widening, *(annotation.values for annotation in case.annotations)]
    return [array for array in found if array is not None]


def equal(one: Case, other: Case) -> bool:
    pairs = zip(arrays(one), arrays(other), strict=True)
    return one.kind == other.kind and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def never_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """``never_read()``: from now on, reading a scan fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("a scan was read")

    return lambda: monkeypatch.setattr(prepared, "read_source", refuse)


# -- the same arrays ---------------------------------------------------------------------------------------------------


def test_prepared_cases_equal_those_that_are_read(sources: list[Source], prepare: Prepare) -> None:
    cases = prepare()
    assert [case.has_image for case in cases] == [True, True, True, False]
    for case, source in zip(cases, sources, strict=True):
        known = read_source(source, ("T1w",)).case
        assert equal(case.opened(), known)
        assert (case.name, case.dataset, case.kind, case.size) == (known.name, known.dataset, known.kind, known.size)
        assert case.has_image == known.has_image and list(case.protocols) == list(known.protocols)


def test_a_training_has_the_same_weights_as_one_with_all_scans_in_memory(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = train_level(ask(output="stored", fold=0))

    def in_memory(sources: list[Source], inputs: list[str], store: Store, **_: Any) -> list[Case]:
        return [read_source(source, inputs).case for source in sources]

    monkeypatch.setattr(training, "prepared_cases", in_memory)
    whole = train_level(ask(output="whole", fold=0))
    one, other = weights(stored), weights(whole)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (stored / "validation.tsv").read_bytes() == (whole / "validation.tsv").read_bytes()


def test_arrays_are_mapped_and_not_copied(tmp_path: Path) -> None:
    store, size = Store(tmp_path), 64 * 10**6
    store.make("large", lambda: Content({"ones": torch.ones(size, dtype=torch.uint8)}, {}))
    store.read("large", never)
    before = memory_used_mb()
    kept = [store.read("large", never).arrays["ones"] for _ in range(5)]
    assert all(array[::1024].all() for array in kept)  # a value of every page; a sum would need memory of its own
    assert memory_used_mb() - before < 2 * size / 1e6


# -- once --------------------------------------------------------------------------------------------------------------


def test_later_runs_read_no_scan(prepare: Prepare, never_read: Callable[[], None]) -> None:
    first = RecordingConsole()
    before = prepare(report=first)
    assert len(first.messages) == 1 and first.messages[0].startswith("4 scans are read and kept in ")
    never_read()
    again = RecordingConsole()
    after = prepare(report=again)
    assert again.messages == []
    assert all(equal(one.opened(), other.opened()) for one, other in zip(before, after, strict=True))


def test_other_settings_and_another_output_use_the_same_files(
    ask: Ask, tmp_path: Path, never_read: Callable[[], None]
) -> None:
    shared = tmp_path / "work"
    train_level(replace(ask(output="one"), work_dir=shared))
    assert len(list((shared / "prepared").glob("*.safetensors"))) == 4 and not (tmp_path / "one" / "prepared").exists()
    never_read()
    train_level(replace(ask(RECIPE.replace("3.0", "4.0"), output="two", seed=1), work_dir=shared))


def test_the_files_that_determine_a_case_are_its_key(ask: Ask, tmp_path: Path) -> None:
    settings = ask()
    first, *_ = sources_of(settings)
    assert first.scan is not None
    images = {name: tmp_path / name for name in ("sub-01_T1w.nii.gz", "map.nii.gz")}
    for path, given in zip(images.values(), (first.scan.t1w, first.maps["FAST"]), strict=True):
        path.write_bytes(given.read_bytes())
    t1w, labels = images.values()
    source = replace(first, scan=replace(first.scan, t1w=t1w), maps={"FAST": labels})

    def key(given: Source = source, inputs: tuple[str, ...] = ("T1w",)) -> str:
        return prepared.entry_of(given, inputs, Store(tmp_path)).key

    keys = [key(), key(inputs=("T1w", "FLAIR"))]
    renamed = replace(source.protocols["FAST"], regions=source.protocols["FAST"].regions[:-1])
    keys.append(key(replace(source, protocols={"FAST": renamed})))
    for path in images.values():
        image = nib.load(path)
        data = np.asarray(image.dataobj).copy()  # type: ignore[attr-defined]
        data.flat[0] += 1
        nib.save(nib.Nifti1Image(data, HALF), path)
        keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == keys[-1] == key(replace(source, name="other/sub-01"))


def test_two_processes_share_the_work(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both wait for each other's files, and each scan is read once."""
    read: list[str] = []
    meet = threading.Barrier(2)

    def once(source: Source, inputs: Any) -> Any:
        if len(read) < 2:
            meet.wait(10)
        read.append(source.name)
        return read_source(source, inputs)

    monkeypatch.setattr(prepared, "read_source", once)
    found: dict[int, list[StoredCase]] = {}

    def of_rank(rank: int) -> None:
        found[rank] = prepare(processes=Processes(rank, 2))

    threads = [threading.Thread(target=of_rank, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(read) == sorted({case.name for case in found[0]})
    assert all(equal(one.opened(), other.opened()) for one, other in zip(found[0], found[1], strict=True))


# -- damage ------------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_header(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, empty, no_header, flip_one_bit])
def test_a_damaged_file_is_made_again(
    damage: Callable[[Path], None], prepare: Prepare, sources: list[Source], tmp_path: Path
) -> None:
    first = prepare()[0].entry
    path = first.store.path(first.key)
    damage(path)
    report = RecordingConsole()
    case = prepare(report=report)[0].opened()
    assert f"{path}: damaged, made again" in report.messages
    assert equal(case, read_source(sources[0], ("T1w",)).case)
    assert equal(prepare()[0].opened(), case)


def test_a_file_that_is_removed_during_a_training_is_made_again(prepare: Prepare, sources: list[Source]) -> None:
    case = prepare()[0]
    case.opened()
    case.entry.store.path(case.entry.key).unlink()
    with torch.device("meta"):  # as samples on a GPU, which are drawn with another default
        assert equal(case.opened(), read_source(sources[0], ("T1w",)).case)


def test_an_interruption_keeps_what_was_prepared(prepare: Prepare, tmp_path: Path) -> None:
    calls = iter(range(9))

    def check() -> None:
        if next(calls) >= 2:
            raise TemporaryFailure("interrupted")

    with pytest.raises(TemporaryFailure):
        prepare(check=check)
    kept = list((tmp_path / "store").iterdir())
    assert len(kept) == 2 and all(path.suffix == ".safetensors" for path in kept)
    assert len(prepare()) == 4


def test_unusable_scans_are_reported_together_and_the_others_are_kept(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(source: Source, inputs: Any) -> Any:
        if source.name.endswith(("02", "03")):
            raise DataError(f"{source.name}: unusable")
        return read_source(source, inputs)

    monkeypatch.setattr(prepared, "read_source", fail)
    report = RecordingConsole()
    with pytest.raises(DataError, match="2 scans or label maps cannot be used, the first: bids/sub-02: unusable"):
        prepare(report=report)
    assert report.warnings == ["bids/sub-02: unusable", "bids/sub-03: unusable"]
    assert len(list((tmp_path / "store").iterdir())) == 2


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_memory_limit_ends_a_training_that_needs_more(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bidsseg.execution.machine.memory_used_mb", lambda: 1500)
    with pytest.raises(UsageError, match=r"cannot be done in --mem 1000M: the training holds 1500 MB"):
        train_level(replace(ask(), memory_mb=1000))
    assert train_level(replace(ask(), memory_mb=2000)).is_dir()


def test_a_disk_without_room_for_prepared_scans_is_refused(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bidsseg.learning.preconditions.bytes_needed", lambda *_: 10**15)
    with pytest.raises(IOFailure, match=r"prepared: the prepared scans need 1000000000 MB, .* give --work-dir"):
        train_level(replace(ask(), dry_run=True))


def test_the_size_is_known_before(sources: list[Source], prepare: Prepare, tmp_path: Path) -> None:
    entries = [prepared.entry_of(source, ("T1w",), Store(tmp_path / "none")) for source in sources]
    needed = prepared.bytes_needed(entries, sources, ("T1w",))
    prepare()
    assert needed == pytest.approx(sum(path.stat().st_size for path in (tmp_path / "store").iterdir()), rel=0.05)
    assert prepared.bytes_needed([case.entry for case in prepare()], sources, ("T1w",)) == 0


def test_the_share_of_waiting_is_reported(ask: Ask) -> None:
    settings = ask()
    folder = train_level(settings)
    (line,) = [line for line in console(settings).messages if "samples/s" in line]
    assert line.startswith("3 steps in ") and line.endswith("% of the time waiting for samples")
    (log,) = (settings.output_dir / "logs").glob("train-*.json")
    assert json.loads(log.read_text())["outcome"] == "finished" and folder.is_dir()
