"""The scans of one process: read, segmented and written, with the stages of different scans in parallel.

While the network segments one scan, the next is read and the last is written, so that at most three scans are in
memory. A scan that fails is recorded and the others continue; only an output that cannot be written stops all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from bidsseg.bids.outputs import crash_path
from bidsseg.derivative.corrections import corrected
from bidsseg.derivative.job import Job
from bidsseg.derivative.run_log import Entry, crash_text, stamp, stopped
from bidsseg.errors import BidssegError, DataError, IOFailure, MemoryTooSmall, OutputNotWritable, explained
from bidsseg.execution.exports import export
from bidsseg.execution.machine import (
    PROCESS_MB,
    emulation,
    keep_freed_memory,
    peak_memory_mb,
    release_freed_memory,
)
from bidsseg.files import locked, write_text_atomic
from bidsseg.labels import covers_brain
from bidsseg.registration.align import Images
from bidsseg.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from bidsseg.execution.machine import Machine
    from bidsseg.image.volume import Volume
    from bidsseg.models.library import Model
    from bidsseg.segmentation.result import Segmentation

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Outcome:
    """The outcome of a scan.

    Attributes:
        entry: entry in the manifest.
        warnings: warnings for the user that were not reported yet.
        error: error of the scan.
        fatal: error that would make every further scan fail.
        machine: machine that segmented the scan.
    """

    entry: Entry
    warnings: Sequence[str] = ()
    error: Exception | None = None
    fatal: BidssegError | None = None
    machine: dict[str, Any] = field(default_factory=dict)


def process_mb(model: str, machine: Machine) -> int:
    """Return the memory (MB) of a process that segments usual scans with a model, given by its name or folder."""
    from bidsseg.models.library import load_model
    from bidsseg.segmentation.memory_needed import usual_mb

    return max(PROCESS_MB, usual_mb(load_model(model), machine.number_bytes))


def prepare(settings: Settings, sha256: str) -> tuple[Machine, Model]:
    """Return this machine, and the model in its folder."""
    from bidsseg.execution.machine import choose_machine
    from bidsseg.models.library import load_model

    return choose_machine(settings), load_model(settings.model)


def require_room(machine: Machine, model: Model, limit_mb: int) -> None:
    """Raise UsageError if a typical scan cannot be segmented on this machine within the user's limit (MB).

    The free memory may be smaller for a while, which only the scans of that time must wait for.
    """
    from bidsseg.segmentation.memory_needed import require_memory

    if machine.device == "cpu":
        require_memory(model, limit_mb, machine.number_bytes)


def segment_images(
    images: Images, model: Model, machine: Machine, *, strict: bool, filled: Volume | None = None, **asked: Any
) -> Segmentation:
    """Segment the images of one scan within the memory of the machine.

    Args:
        strict: whether the user has set the memory limit, so that exceeding it is an error.
        filled: the T1w with filled lesions, which is segmented instead.
        asked: further arguments of ``predict.segment``.

    Raises:
        DataError: no brain is found.
        MemoryTooSmall: the scan needs more memory than the limit.
    """
    from bidsseg.segmentation.memory_needed import left_for_network
    from bidsseg.segmentation.predict import segment

    memory_mb, volumes = machine.memory_mb, {**images.volumes, **({} if filled is None else {"T1w": filled})}
    if machine.device == "cpu":
        voxels = max(volume.data.size for volume in volumes.values())
        memory_mb = left_for_network(model, memory_mb, voxels, number_bytes=machine.number_bytes, strict=strict)
    return segment(volumes, model, device=machine.device, precision=machine.precision, memory_mb=memory_mb, **asked)


def require_brain(result: Segmentation, model: Model, name: str) -> None:
    """Raise DataError, with the name of the image, if a segmentation is empty where every head has a brain."""
    whole = [labels for protocol, labels in result.labels.items() if covers_brain(model.heads[protocol])]
    if not result.brain.any() or not all(labels.any() for labels in whole):
        raise DataError(f"{name}: the model found no brain; check that it is the T1w of a head [EMPTY_SEGMENTATION]")


def write_page(job: Job) -> None:
    """Write the page of a scan, from the files in the output folder."""
    from bidsseg.report import participant_page

    # Runs with other models or scans write the same page, each from the files that it finds.
    with locked((job.output_dir / job.paths.brain).parent):
        participant_page(job.output_dir, job.scan)


@contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """Add the name of a file to the message of a DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


@dataclass
class _Task:
    """A job, its outcome so far, and what is given of its scan.

    Attributes:
        corrections: corrected label maps (X, Y, Z).
        given: lesions, booleans (X, Y, Z); None if the model finds them.
        filled: the T1w in which they are filled.
    """

    job: Job
    entry: Entry
    corrections: Mapping[str, np.ndarray] = field(default_factory=dict)
    given: np.ndarray | None = None
    filled: Volume | None = None


@dataclass
class Pipeline:
    """Run jobs and pass on the outcome of each.

    Attributes:
        take: receives each outcome.
        prepare: returns the machine and the model for a checksum.
        turn: held while a scan is segmented.
        pages: whether to write the page of a scan, which two processes with scans of one participant must not do.
    """

    settings: Settings
    take: Callable[[Job, Outcome], None]
    prepare: Callable[[Settings, str], tuple[Machine, Model]] = prepare
    turn: AbstractContextManager[Any] = field(default_factory=nullcontext)
    pages: bool = True
    machine: dict[str, Any] = field(default_factory=dict)

    def process(self, jobs: Sequence[Job]) -> None:
        """Read, segment and write every scan, the three overlapping.

        Raises:
            BidssegError: the outputs cannot be written, or a scan failed and the user wants to stop at a failure.
        """
        keep_freed_memory()
        asked = self.settings
        tasks = [_Task(job, Entry(job.scan.key)) for job in jobs]
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            reading = reader.submit(self._attempt, "read", tasks[0], self._read, tasks[0])
            with self.turn:
                machine, model = self.prepare(asked, jobs[0].card.sha256)
            if asked.memory_mb is not None:
                require_room(machine, model, asked.memory_mb)
            self.machine = asdict(machine)
            if warning := emulation(machine):
                asked.report.warn(warning)
            writing: Future[bool | None] | None = None
            for task, following in zip(tasks, [*tasks[1:], None], strict=True):
                asked.report.stage(task.entry.scan, "reading")
                images = reading.result()
                if following is not None:
                    reading = reader.submit(self._attempt, "read", following, self._read, following)
                if images is None:
                    continue
                if asked.probseg and writing is not None:  # the probabilities of two scans need too much memory
                    writing.result()
                with self.turn:
                    result = self._attempt("segment", task, self._segment, task, images, model, machine=machine)
                if writing is not None:
                    writing.result()
                if result is not None:
                    asked.report.stage(task.entry.scan, "writing")
                    writing = writer.submit(self._attempt, "write", task, self._write, task, images, result)
                del images, result  # only the writer still needs them, and frees them before the scan after the next
            if writing is not None:
                writing.result()

    def _read(self, task: _Task) -> Images:
        images = task.job.read()
        task.corrections = task.job.read_corrections(images)
        task.given = task.job.read_given_lesions(images)
        if task.given is not None:
            task.filled = self._filled(task, images, task.given)
        task.entry.findings = [asdict(finding) for finding in images.findings]
        task.entry.notes = list(images.notes)
        for finding in images.findings:
            self.settings.report.warn(f"{task.entry.scan}: {finding.message} [{finding.code}]")
        return images

    def _filled(self, task: _Task, images: Images, lesion: np.ndarray) -> Volume:
        """Return the T1w with filled lesions. DataError, with the name of the given mask, if this is impossible."""
        from bidsseg.segmentation.filling import fill_lesions

        with naming(task.job.given.file or task.job.scan.t1w):
            return fill_lesions(images.volumes["T1w"], lesion)

    def _filled_if_possible(self, task: _Task, images: Images, lesion: np.ndarray) -> Volume | None:
        """Return the T1w with filled lesions of the result; None, after a warning, if this is impossible."""
        if lesion is task.given:
            return task.filled
        try:
            return self._filled(task, images, lesion)
        except DataError as error:
            self.settings.report.warn(f"{task.entry.scan}: --filled: {error}")
            return None

    def _segment(self, task: _Task, images: Images, model: Model, *, machine: Machine) -> Segmentation:
        asked, scan = self.settings, task.job.scan
        given, protocols, voxel_mm3 = task.given, task.job.protocols, images.volumes["T1w"].voxel_volume_mm3
        result = segment_images(
            images,
            model,
            machine,
            strict=asked.memory_mb is not None,
            filled=task.filled,
            fast=asked.fast,
            lesions=task.job.lesions,
            given=given,
            want_probabilities=asked.probseg,
            want_entropy=asked.entropy,
            progress=lambda stage: asked.report.stage(scan.key, stage),
        )
        release_freed_memory()
        if given is not None:
            from bidsseg.segmentation.given_lesions import with_given_lesions

            with naming(task.job.given.file):
                result = with_given_lesions(result, given, protocols, voxel_mm3=voxel_mm3)
        if task.corrections:
            files = task.job.corrections.files
            result = corrected(
                result,
                task.corrections,
                model,
                protocols=protocols,
                files=files,
                spacing_mm=images.volumes["T1w"].spacing_mm,
                voxel_mm3=voxel_mm3,
            )
            task.corrections = {}
        task.entry.findings += [asdict(finding) for finding in result.findings]
        for finding in result.findings:
            asked.report.warn(f"{scan.key}: {finding.message} [{finding.code}]")
        task.entry.notes += result.notes
        for note in result.notes:
            asked.report.warn(f"{scan.key}: {note}")
        require_brain(result, model, str(scan.t1w))
        return result

    def _write(self, task: _Task, images: Images, result: Segmentation) -> bool:
        from bidsseg.report import write_figures, write_lesion_figure, write_viewer

        job = task.job
        job.clear()
        t1w, labels, filled = images.volumes["T1w"], result.labels, None
        if job.paths.filled is not None and result.lesion is not None:
            filled = self._filled_if_possible(task, images, result.lesion)
        write_figures(
            job.output_dir,
            job.scan,
            job.card.name,
            image=t1w,
            labels=labels,
            protocols=job.protocols,
            brain=result.brain,
            lesion=result.lesion,
        )
        if result.lesion is not None:
            background = images.volumes.get("FLAIR", t1w)
            figure = job.output_dir / job.paths.lesion_figure
            write_lesion_figure(figure, background, result.lesion, brain=result.brain)
        if job.paths.viewer is not None:
            write_viewer(
                job.output_dir / job.paths.viewer,
                job.scan.key,
                t1w,
                labels=labels,
                protocols=job.protocols,
                lesion=result.lesion,
            )
        job.write(images, result, filled)
        if self.pages:
            write_page(job)
        export(job, self.settings)
        return True

    def _attempt(
        self, stage: str, task: _Task, function: Callable[P, T], *arguments: P.args, **named: P.kwargs
    ) -> T | None:
        """Return the result of one stage of one scan; None if it failed, after recording the failure.

        Errors that would make every further scan fail, such as an output that cannot be written, are raised.
        """
        entry = task.entry
        start = time.perf_counter()
        try:
            result = function(*arguments, **named)
        except Exception as raised:  # an error of one scan must not affect the others
            error = explained(raised) or raised
            self._fail(task, error)
            if stage == "write" and isinstance(error, OutputNotWritable | IOFailure):
                raise error from error.__cause__
            if self.settings.stop_on_first_crash:
                raise stopped(entry, error) from error
            return None
        entry.seconds[stage] = round(time.perf_counter() - start, 2)
        if stage == "write":
            entry.outcome, entry.peak_memory_mb = "done", peak_memory_mb()
            self.take(task.job, Outcome(entry, machine=self.machine))
        return result

    def _fail(self, task: _Task, error: Exception) -> None:
        """Record a failure, with its full traceback in a file."""
        entry = task.entry
        entry.outcome = "failed"
        known = isinstance(error, BidssegError)
        entry.reason = " ".join(str(error).split()) if known else f"internal error: {error!r}"
        if not isinstance(error, MemoryTooSmall):  # of which the reason says all
            path = crash_path(task.job.scan, stamp())
            with suppress(BidssegError):  # the disk may be full, which is reported anyway
                write_text_atomic(self.settings.output_dir / path, crash_text(error))
                entry.crash_file = str(path)
        self.take(task.job, Outcome(entry, error=error, machine=self.machine))
