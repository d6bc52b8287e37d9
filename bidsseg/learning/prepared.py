"""Prepared scans: each is read once and kept in a file, which processes, folds and later runs share.

A training holds only the names of its scans in memory, so that its memory does not grow with their number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import nibabel as nib
import torch
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import SpatialImage

from bidsseg import __version__
from bidsseg.bids.scan import Scan
from bidsseg.errors import DataError
from bidsseg.files import fingerprint, remove_halves
from bidsseg.labels import Protocol, load_protocol
from bidsseg.learning.case_reading import LEARNING_MM, Reading, Source, locator_of, read_source
from bidsseg.learning.cases import Annotation, Case, ListedCase
from bidsseg.learning.processes import Processes
from bidsseg.learning.region_centres import Centres
from bidsseg.learning.store import Content, Store
from bidsseg.models.card import find_card
from bidsseg.registration.label_files import Remarks
from bidsseg.settings import Report

FORMAT = 2
"""Part of the key of a file. Raise it with each change of the code that changes cases within a version."""
READER_MB = 1000
"""Memory (MB) for reading one scan, in a thread of its own."""
ALONE = Processes()


@dataclass(frozen=True)
class Entry:
    """The place of a case in a store.

    Attributes:
        make: reads the case from its images and label maps.
    """

    store: Store
    key: str
    make: Callable[[], Content]

    @property
    def about(self) -> Mapping[str, Any] | None:
        """What the file says about its arrays; None if it is missing or damaged."""
        return self.store.about(self.key)


@dataclass(frozen=True, eq=False)
class StoredCase(ListedCase):
    """A case whose arrays are in a file.

    Attributes:
        annotated: protocols of its annotations, in their order.
        about: what the file says about its arrays.
    """

    name: str
    annotated: tuple[Protocol, ...]
    about: Mapping[str, Any]
    entry: Entry

    @property
    def protocols(self) -> Sequence[Protocol]:
        return self.annotated

    @property
    def centres(self) -> Sequence[Centres]:
        return list(self.about["centres"])

    @property
    def has_image(self) -> bool:
        return bool(self.about["has_image"])

    @property
    def size(self) -> int:
        return int(self.about["size"])

    def opened(self) -> Case:
        """Return the case with its arrays mapped into memory, for as long as the case is in use."""
        arrays = self.entry.store.read(self.entry.key, self.entry.make).arrays
        maps = tuple(Annotation(protocol, arrays[f"map-{i}"]) for i, protocol in enumerate(self.annotated))
        return Case(self.name, arrays.get("image"), maps, arrays["brain"], arrays.get("widening"))


def content_of(reading: Reading) -> Content:
    """Return what is kept of a case that was read."""
    case = reading.case
    arrays = {"image": case.image, "brain": case.brain, "widening": case.widening}
    arrays |= {f"map-{i}": annotation.values for i, annotation in enumerate(case.annotations)}
    about = {
        "protocols": [protocol.name for protocol in case.protocols],
        "centres": case.centres,
        "has_image": case.has_image,
        "size": case.size,
        "details": reading.details,
        "notes": reading.notes,
    }
    return Content({name: array for name, array in arrays.items() if array is not None}, about)


# -- which file belongs to which case ----------------------------------------------------------------------------------


def entry_of(source: Source, inputs: Sequence[str], store: Store) -> Entry:
    """Return the place of a case: its key is a checksum of everything that determines the arrays."""

    def made() -> Content:
        return content_of(read_source(source, inputs))

    images = {} if source.scan is None else source.scan.images(("T1w", "FLAIR"))
    determinants = {
        "version": (__version__, FORMAT),
        "inputs": [] if source.scan is None else list(inputs),
        "images": [(suffix, *identity(path)) for suffix, path in images.items()],
        "maps": [(asdict(source.protocols[name]), *identity(path)) for name, path in source.maps.items()],
        "locator": find_card(locator_of(source)).sha256,
        "aligned": len(images) > 1 and find_spec("SimpleITK") is not None,
    }
    return Entry(store, hashlib.sha256(json.dumps(determinants).encode()).hexdigest(), made)


def identity(path: Path) -> tuple[str, str]:
    """Return name and checksum of a file; the checksum is empty if it cannot be read."""
    try:
        state = path.stat()
    except OSError:
        return path.name, ""
    return path.name, _fingerprint(path, state.st_mtime_ns, state.st_size)


@cache
def _fingerprint(path: Path, modified_ns: int, size: int) -> str:
    return fingerprint(path)


def bytes_needed(entries: Sequence[Entry], sources: Sequence[Source], inputs: Sequence[str]) -> int:
    """Return about how many bytes the files of missing cases need, from the headers of their images."""
    pairs = zip(entries, sources, strict=True)
    return sum(_size(source, inputs) for entry, source in pairs if not entry.store.path(entry.key).exists())


def _size(source: Source, inputs: Sequence[str]) -> int:
    path = next(iter(source.maps.values())) if source.scan is None else source.scan.t1w
    try:
        image = cast(SpatialImage, nib.load(path))
        voxels = 1.0
        for count, spacing_mm in zip(image.shape, voxel_sizes(image.affine), strict=False):
            voxels *= max(1.0, count * spacing_mm / LEARNING_MM)
    except Exception:  # reading it later says what is wrong with it
        return 0
    images = 0 if source.scan is None else 4 * len(inputs)
    return round(voxels * (images + len(source.maps) + 1))


# -- all cases of a training -------------------------------------------------------------------------------------------


def prepared_cases(
    sources: Sequence[Source],
    inputs: Sequence[str],
    store: Store,
    *,
    report: Report,
    readers: int = 1,
    processes: Processes = ALONE,
    check: Callable[[], None] = lambda: None,
) -> list[StoredCase]:
    """Return the cases of a training, after those that are not in the store yet were read and written to it.

    Args:
        inputs: suffixes of the images that are read, the T1w first.
        readers: number of scans that are read at once.
        processes: they begin at different scans, so that they share the work if they share the folder.
        check: called before each scan is read; what it raises ends the work.

    Raises:
        DataError: cases that cannot be trained on; all of them are reported before.
    """
    warn_of_missing([source.scan for source in sources if source.scan is not None], inputs, report)
    with ThreadPoolExecutor(readers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        entries = list(pool.map(partial(entry_of, inputs=inputs, store=store), sources))
        missing = [number for number, entry in enumerate(entries) if entry.about is None]
        first = len(missing) * processes.rank // processes.count

        def prepare(number: int) -> None:
            check()
            report.detail(f"reading {sources[number].name}{'' if sources[number].maps else ', without annotation'}")
            store.make(entries[number].key, entries[number].make)

        if missing:
            remove_halves(store.folder.glob(".*.part"))
            needed_gb = bytes_needed(entries, sources, inputs) / 1e9
            report.say(f"{len(missing)} scans are read and kept in {store.folder}, about {needed_gb:.1f} GB")
            report.start(len(missing))
        jobs = {pool.submit(prepare, number): number for number in missing[first:] + missing[:first]}
        try:
            failed = _finished(jobs, sources, report)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            if missing:
                report.stop()
    cases = _listed(sources, [None if i in failed else entry for i, entry in enumerate(entries)], report)
    refuse(failed, report)
    check_not_empty(cases)
    return cases


def _finished(jobs: Mapping[Future[None], int], sources: Sequence[Source], report: Report) -> dict[int, DataError]:
    """Wait for all cases, and return the errors of those that cannot be used, by their number."""
    failed: dict[int, DataError] = {}
    for job in as_completed(jobs):
        number = jobs[job]
        try:
            job.result()
        except DataError as error:
            failed[number] = error
        report.advance(sources[number].name, "failed" if number in failed else "read")
    return failed


def _listed(sources: Sequence[Source], entries: Sequence[Entry | None], report: Report) -> list[StoredCase]:
    """Return the cases that are in the store, and report the remarks on their files."""
    cases: list[StoredCase] = []
    remarks = Remarks()
    for source, entry in zip(sources, entries, strict=True):
        if entry is None:
            continue
        about = entry.about or entry.store.read(entry.key, entry.make).about
        for remark in about["details"]:
            report.detail(f"{source.name}: {remark}")
        for number, remark in about["notes"]:
            remarks.add(list(source.maps.values())[number], remark)
        annotated = tuple(source.protocols.get(name) or load_protocol(name) for name in about["protocols"])
        cases.append(StoredCase(source.name, annotated, about, entry))
    for line in remarks.lines():
        report.say(line)
    return cases


def refuse(failed: Mapping[int, DataError], report: Report) -> None:
    """Raise DataError if cases cannot be used, after all of them are reported."""
    errors = [failed[number] for number in sorted(failed)]
    if len(errors) > 1:
        for each in errors:
            report.warn(str(each))
        raise DataError(f"{len(errors)} scans or label maps cannot be used, the first: {errors[0]}") from errors[0]
    if errors:
        raise errors[0]


def warn_of_missing(scans: Sequence[Scan], inputs: Sequence[str], report: Report) -> None:
    """Warn if scans lack an image that the network reads."""
    for suffix in inputs:
        lacking = [scan for scan in scans if suffix not in scan.images(inputs)]
        if lacking:
            names = ", ".join(scan.key for scan in lacking[:3]) + (", …" if len(lacking) > 3 else "")
            report.warn(f"{len(lacking)} of {len(scans)} scans have no {suffix} ({names}): it is 0 in training")


def check_not_empty(cases: Sequence[StoredCase]) -> None:
    """Raise DataError if all label maps of a protocol are empty."""
    drawn: dict[str, bool] = {}
    for case in cases:
        for protocol, centres in zip(case.protocols, case.centres, strict=True):
            drawn[protocol.name] = drawn.get(protocol.name, False) or any(voxels for voxels, *_ in centres)
    empty = [name for name, has_labels in drawn.items() if not has_labels]
    if empty:
        raise DataError(f"all label maps of {empty[0]} are empty: every voxel is background")


def opened_cases(sources: Sequence[Source], inputs: Sequence[str], report: Report) -> list[Case]:
    """Return cases with their arrays, for few scans; their files are removed when the arrays are no longer used."""
    with TemporaryDirectory() as folder:
        cases = prepared_cases(sources, inputs, Store(Path(folder)), report=report)
        return [case.opened() for case in cases]
