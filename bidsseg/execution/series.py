"""The sessions of one participant: read, brought to their halfway space, segmented together and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bidsseg.bids.scan import Scan
from bidsseg.derivative.corrections import corrected, read_corrections
from bidsseg.derivative.series import SeriesJob, Visit
from bidsseg.errors import DataError, OtherGrid
from bidsseg.image.brightness import rescaled
from bidsseg.image.guard import Finding
from bidsseg.image.matching import matched, mean_of, ties
from bidsseg.image.nifti import read_image
from bidsseg.image.volume import Volume
from bidsseg.registration.align import Images, about, about_motion, align
from bidsseg.registration.halfway import HalfwaySpace, halfway_space
from bidsseg.registration.label_files import nearest

if TYPE_CHECKING:
    from bidsseg.execution.machine import Machine
    from bidsseg.models.library import Model
    from bidsseg.segmentation.engine import Engine
    from bidsseg.segmentation.result import Segmentation
    from bidsseg.segmentation.together import NativeScan

FINEST_MM = 1.0
"""Finest voxels of the halfway space."""
BRIGHTEST = 0.9995
"""Share of the voxels of the mean image that are darker than 1 in the written images."""

Progress = Callable[[str], None]


@dataclass
class _Session:
    """One session on its way to the halfway space.

    Attributes:
        volumes: ``rescaled`` images by suffix, each on its own grid.
        motions: from each image to the T1w, (4, 4), RAS+ mm.
    """

    volumes: dict[str, Volume]
    motions: dict[str, np.ndarray]
    brain: np.ndarray
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare_sessions(
    job: SeriesJob, model: Model, machine: Machine, *, strict: bool, progress: Progress
) -> tuple[list[Visit], Volume]:
    """Return the segmented sessions, in their order, and the mean T1w in the halfway space.

    All steps use the sessions in the order of the checksums of their images, so that the result does not depend on
    their labels.

    Args:
        strict: whether the user has set the memory limit, so that exceeding it is an error.

    Raises:
        InputMissing, DataError: an image or correction cannot be used, no brain is found, or two sessions do not
            overlap.
        UsageError: SimpleITK is not installed.
        TemporaryFailure: the sessions need more memory than the limit.
    """
    from bidsseg.execution.pipeline import require_brain
    from bidsseg.segmentation.engine import Engine
    from bidsseg.segmentation.together import NativeScan, segment_together

    order = sorted(range(len(job.series.scans)), key=lambda number: job.checksums[number])
    engine = Engine(machine.device, machine.precision, machine.memory_mb)
    sessions = []
    for number in order:
        progress(f"reading {job.series.sessions[number]}")
        sessions.append(_read(job.series.scans[number], model, engine))
    progress("aligning the sessions")
    first = job.card.inputs[0]
    spacing = spacing_mm(model.card.spacing_mm, [session.volumes[first] for session in sessions])
    space = halfway_space([s.volumes[first] for s in sessions], [s.brain for s in sessions], spacing)
    given = [
        _read_corrections(job, number, model, space=space, notes=session.notes)
        for number, session in zip(order, sessions, strict=True)
    ]
    images, tie = alike(sessions, space, spacing)
    natives = [NativeScan(s.volumes[first], motion) for s, motion in zip(sessions, space.motions, strict=True)]
    largest = max(native.volume.data.size for native in natives)  # they are labelled one after the other
    voxels = 2 * len(images) * tie.size + largest
    engine = _within_memory(engine, model, machine, voxels=voxels, strict=strict)
    results, labels = segment_together(
        images, model, engine, tie=tie, natives=natives, fast=job.fast, lesions=job.lesions, progress=progress
    )
    for number, result in zip(order, results, strict=True):
        require_brain(result, model, str(job.series.scans[number].t1w))
    for place, number in enumerate(order):
        if given[place]:
            corrections, in_space = job.corrections[number], results[place]
            results[place] = _corrected(in_space, given[place], model, files=corrections.files, affine=space.affine)
            _carry_over(in_space, results[place], natives[place], labels=labels[place], affine=space.affine)
    shown = [dict[str, Volume]() for _ in images]
    for suffix in images[0]:
        mean = mean_of([each[suffix].data for each in images])
        scale = np.float32(1 / max(float(np.quantile(mean, BRIGHTEST)), 1e-6))
        for drawn, own in zip(shown, images, strict=True):
            drawn[suffix] = Volume(np.clip(own[suffix].data * scale, 0, 1), space.affine)
    visits: dict[int, Visit] = {}
    for number, session, drawn, native, result, own in zip(
        order, sessions, shown, natives, results, labels, strict=True
    ):
        maps = {protocol: replace(native.volume, data=data) for protocol, data in own.items()}
        visits[number] = Visit(Images(drawn, session.findings, session.notes), native.motion, result, maps)
    whole = Volume(mean_of([drawn[first].data for drawn in shown]), space.affine)
    return [visits[number] for number in sorted(visits)], whole


def alike(
    sessions: Sequence[_Session], space: HalfwaySpace, spacing: float
) -> tuple[list[dict[str, Volume]], np.ndarray]:
    """Return the images of each session on the grid of the space, matched in brightness, and how far they are tied."""
    seen = np.ones(space.shape, bool)
    inside = []
    for session, motion in zip(sessions, space.motions, strict=True):
        for suffix, volume in session.volumes.items():
            seen &= space.seen(volume, motion @ session.motions[suffix])
        t1w = next(iter(session.volumes.values()))
        inside.append(space.resampled(Volume(session.brain.astype(np.float32), t1w.affine), motion))
    brain = (mean_of(inside) > 0.5) & seen
    if not brain.any():
        raise DataError("the sessions show different parts of the head")
    tie, found = np.ones(space.shape, np.float32), [dict[str, Volume]() for _ in sessions]
    for suffix in sessions[0].volumes:
        moved = [
            np.where(seen, space.resampled(session.volumes[suffix], motion @ session.motions[suffix]).clip(min=0), 0)
            for session, motion in zip(sessions, space.motions, strict=True)
        ]
        same = matched([image.astype(np.float32) for image in moved], brain, spacing)
        np.minimum(tie, ties(same, brain, spacing), out=tie)
        for images, image in zip(found, same, strict=True):
            images[suffix] = Volume(image, space.affine)
    return found, tie


def spacing_mm(of_model: float, volumes: Sequence[Volume]) -> float:
    """Return the voxel size of the halfway space: that of the model, or an integral part of it for finer scans."""
    finest = max(FINEST_MM, min(volume.voxel_volume_mm3 ** (1 / 3) for volume in volumes))
    return of_model / max(1, int(np.ceil(of_model / finest - 1e-6)))


def _read(scan: Scan, model: Model, engine: Engine) -> _Session:
    """Return the images of a session with the motions between them, and the brain."""
    from bidsseg.segmentation.together import located_brain

    sources = scan.images(model.card.inputs)
    read = {suffix: read_image(path) for suffix, path in sources.items()}
    t1w = next(iter(read.values()))[0]
    aligned: dict[str, Volume] = {}
    session = _Session({suffix: rescaled(volume) for suffix, (volume, _) in read.items()}, {}, np.zeros(0, bool))
    for suffix, (volume, findings) in read.items():
        session.findings += findings if suffix == next(iter(read)) else about(suffix, findings)
        try:
            aligned[suffix], motion = align(volume, t1w)
        except DataError as error:
            raise DataError(f"{sources[suffix]}: {error}") from error
        session.motions[suffix] = np.eye(4) if motion is None else motion.matrix
        if motion is not None:
            note, findings = about_motion(suffix, motion, next(iter(read)))
            session.notes.append(note)
            session.findings += findings
    session.brain = located_brain(aligned, model, engine)
    return session


def _read_corrections(
    job: SeriesJob, number: int, model: Model, *, space: HalfwaySpace, notes: list[str]
) -> dict[str, np.ndarray]:
    """Return the corrected label maps (X, Y, Z) of a session, by output, and add notes on them to those given."""
    scan = Scan(job.series.scans[number].entities, job.paths.sessions[number].t1w)
    grid = Images({"T1w": Volume(np.zeros(space.shape, bool), space.affine)}, notes=notes)
    heads = model.heads
    try:
        return read_corrections(job.corrections[number], grid, scan=scan, protocols=heads, with_lesions=heads)
    except OtherGrid as error:
        raise OtherGrid(
            f"{error}: the halfway space is another one if sessions, images or the model changed: compare without this "
            "file, and correct the new label map"
        ) from error


def _corrected(
    result: Segmentation,
    given: Mapping[str, np.ndarray],
    model: Model,
    *,
    files: Mapping[str, Path],
    affine: np.ndarray,
) -> Segmentation:
    """Return the segmentation of a session with its corrected label maps (X, Y, Z), all in the halfway space.

    Regions that were not touched keep their volumes from probabilities.

    Args:
        files: the file of each label map.
        affine: (4, 4) of the grid.
    """
    grid = Volume(result.brain, affine)
    return corrected(
        result,
        given,
        model,
        protocols=model.heads,
        files=files,
        spacing_mm=grid.spacing_mm,
        voxel_mm3=grid.voxel_volume_mm3,
        by_region=True,
    )


def _carry_over(
    before: Segmentation, after: Segmentation, native: NativeScan, *, labels: dict[str, np.ndarray], affine: np.ndarray
) -> None:
    """Change label maps on the grid of a T1w as those in the halfway space were changed at the nearest voxel.

    Args:
        affine: (4, 4) of the grid of the halfway space.
    """
    back = np.linalg.inv(native.motion)
    for name in after.manual.keys() & labels.keys():
        was, now = (
            nearest(Volume(result.labels[name], affine), native.volume, motion=back).data for result in (before, after)
        )
        labels[name] = np.where(was != now, now, labels[name])


def _within_memory(engine: Engine, model: Model, machine: Machine, *, voxels: int, strict: bool) -> Engine:
    """Return the engine with the memory that images of a number of voxels leave for the network."""
    from bidsseg.segmentation.memory_needed import left_for_network

    if machine.device != "cpu":
        return engine
    left = left_for_network(model, machine.memory_mb, voxels, number_bytes=machine.number_bytes, strict=strict)
    return replace(engine, memory_mb=left)
