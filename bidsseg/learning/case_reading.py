"""Scans and label maps read from files, in the form of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bidsseg.bids.annotations import BRAIN
from bidsseg.bids.scan import Scan
from bidsseg.errors import DataError
from bidsseg.image.brightness import rescaled_each
from bidsseg.image.grid import canonical_spacing, whole_grid, within_content
from bidsseg.image.resampling import between, labels_to_grid, stack
from bidsseg.image.volume import Volume
from bidsseg.labels import Protocol, load_protocol, load_relation
from bidsseg.learning.annotation_files import annotation_of, read_annotation
from bidsseg.learning.cases import VENTRICLES, Annotation, Case
from bidsseg.models.library import load_model
from bidsseg.registration.align import read_aligned
from bidsseg.registration.label_files import Note, read_values
from bidsseg.segmentation.engine import Engine
from bidsseg.segmentation.locate import find_brain

LEARNING_MM = 1.0
"""Spacing of the grid of cases; samples are drawn from it at the spacing of the recipe."""
EMPTY, LARGEST_BRAIN_MM3 = 0.3, 2.2e6
"""Least share of voxels that are 0 in a stripped image, and largest volume of the other voxels."""
LOCATOR, ANY_LOCATOR = "locator", "openlocator"
"""The models that find the brain in a T1w, and in other images, if neither annotation nor image shows it."""


@dataclass(frozen=True)
class Source:
    """A case that was found and is not read yet.

    Attributes:
        name: name of the case: dataset/sub-01_ses-1.
        scan: the scan; None for a label map without an image.
        maps: annotations of the case, by the name of their protocol.
        protocols: these protocols.
    """

    name: str
    scan: Scan | None
    maps: Mapping[str, Path]
    protocols: Mapping[str, Protocol]


@dataclass(frozen=True)
class Reading:
    """A case that was read, and remarks on its files.

    Attributes:
        details: remarks for verbose output.
        notes: for users: the number of a label map, and a remark on it.
    """

    case: Case
    details: Sequence[str]
    notes: Sequence[tuple[int, str]]


def locator_of(source: Source) -> str:
    """Return the model that finds the brain of a case if neither annotation nor image shows it."""
    return LOCATOR if source.scan is None or source.scan.modality == "T1w" else ANY_LOCATOR


def read_source(source: Source, inputs: Sequence[str]) -> Reading:
    """Return a case with its images and annotations. DataError if it cannot be trained on."""
    details: list[str] = []
    locator = locator_of(source)
    notes: list[tuple[int, str]] = []
    paths = list(source.maps.values())

    def note(path: Path, remark: str) -> None:
        notes.append((paths.index(path), remark))

    maps = [(source.protocols[name], path) for name, path in source.maps.items()]
    if source.scan is not None:
        case = read_case(
            source.name, source.scan, maps, inputs=inputs, locator=locator, note=note, detail=details.append
        )
    else:
        ((protocol, path),) = maps
        case = read_label_map(source.name, path, protocol, note=note)
    return Reading(case, details, notes)


def read_case(
    name: str,
    scan: Scan,
    maps: Sequence[tuple[Protocol, Path]],
    *,
    inputs: Sequence[str],
    locator: str,
    note: Note,
    detail: Callable[[str], None],
) -> Case:
    """Return a scan and its annotations on the grid of its T1w, see `read_annotation`; a missing image is zeros.

    Args:
        locator: the model that finds the brain if neither annotation nor image shows it.
    """
    images = read_aligned(scan.images(inputs))
    for remark in [*images.notes, *(f"has no {suffix}" for suffix in inputs if suffix not in images.volumes)]:
        detail(remark)
    volume = images.volumes[inputs[0]]
    grid = whole_grid(volume, LEARNING_MM)
    annotations = []
    for protocol, path in maps:
        labels = read_annotation(path, scan, images, note=note)
        values = labels_to_grid(labels.data, labels.affine, grid, spacing=canonical_spacing(labels))
        annotations.append(annotation_of(values, protocol, path, note=note))
    return finish(name, stack(rescaled_each(images.volumes), inputs, grid), annotations, locator=locator)


def read_label_map(name: str, path: Path, protocol: Protocol, *, note: Note = lambda path, remark: None) -> Case:
    """Return a case from a label map, from which images are synthesised."""
    labels = read_values(path, note=note)
    grid = whole_grid(labels, LEARNING_MM)
    values = labels_to_grid(labels.data, labels.affine, grid, spacing=canonical_spacing(labels))
    return finish(name, None, [annotation_of(values, protocol, path, note=note)])


def finish(name: str, image: torch.Tensor | None, annotations: list[Annotation], *, locator: str = LOCATOR) -> Case:
    """Add the derived brain mask and ventricle direction.

    If no annotation shows the brain, such as those of lesions only, the mask comes from the image and becomes an
    annotation.
    """
    brain = brain_of(annotations)
    if brain is not None and not brain.any():
        names = " and ".join(each.protocol.name for each in annotations)
        raise DataError(f"{name}: the label map of {names} shows no brain; is it empty?")
    if brain is None and image is not None:
        brain = brain_in(name, image[0], locator)
        if annotations:
            annotations = [*annotations, Annotation(load_protocol(BRAIN), brain.to(torch.uint8))]
    if brain is None or not brain.any():
        raise DataError(f"{name}: no annotation gives the brain mask (a relation to the protocol 'brain' is needed)")
    widening = next((w for a in annotations if (w := towards_ventricles(a)) is not None), None)
    return Case(name, image, tuple(annotations), brain, widening)


def towards_ventricles(annotation: Annotation) -> torch.Tensor | None:
    """Return the direction (3, x, y, z) towards the ventricles, at most 1, on a 4 mm grid of a 1 mm label map."""
    fluid = [r.mapping == VENTRICLES and "Lateral" in r.name for r in annotation.protocol.regions]
    if not any(fluid):
        return None
    mask = torch.tensor(fluid)[annotation.values.long()].float()
    near = F.avg_pool3d(mask[None, None], 4, ceil_mode=True)
    for _ in range(6):
        near = F.avg_pool3d(near, 3, 1, 1)
    gradient = torch.stack(torch.gradient(near[0, 0]))
    steepest: torch.Tensor = gradient.norm(dim=0).max()
    return gradient / steepest.clamp(min=1e-6)


def brain_in(name: str, image: torch.Tensor, locator: str) -> torch.Tensor:
    """Return the non-zero voxels of a stripped image (X, Y, Z) on a 1 mm grid, or the brain that a locator finds.

    DataError if it finds none.
    """
    if is_stripped(image):
        return image != 0
    volume = Volume(image.numpy(), np.eye(4))
    inside, start_mm = within_content({"T1w": volume}, "T1w")
    try:
        brain = find_brain(inside, load_model(locator), Engine())
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return between(brain.probability, brain.grid.moved(start_mm), whole_grid(volume, LEARNING_MM)) > 0.5


def is_stripped(image: torch.Tensor) -> bool:
    """Return whether an image (X, Y, Z) on a 1 mm grid shows only a brain."""
    shown = int((image != 0).sum())
    return shown <= min((1 - EMPTY) * image.numel(), LARGEST_BRAIN_MM3)


def brain_of(annotations: Iterable[Annotation]) -> torch.Tensor | None:
    """Return the voxels that are certainly brain, from the annotation with the fewest ambiguous values."""
    head = load_protocol(BRAIN).scored()
    known = [(a, r) for a in annotations if (r := load_relation(a.protocol, head)) is not None]
    if not known:
        return None
    annotation, relation = min(known, key=lambda pair: (pair[1].allowed.all(1).sum(), len(pair[0].protocol.regions)))
    surely = relation.allowed[:, 1] & ~relation.allowed[:, 0]
    return torch.from_numpy(surely)[annotation.values.long()]
