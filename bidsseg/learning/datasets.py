"""Labelled BIDS datasets as cases in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bidsseg.bids.annotations import annotation_names, find_annotations, find_label_maps
from bidsseg.bids.query import find_scans
from bidsseg.bids.scan import Scan
from bidsseg.errors import DataError, NothingSelected
from bidsseg.image.brightness import rescaled_each
from bidsseg.image.grid import canonical_spacing, whole_grid, within_content
from bidsseg.image.nifti import read_labels
from bidsseg.image.resampling import between, labels_to_grid, stack
from bidsseg.image.volume import Volume
from bidsseg.labels import Protocol, load_protocol, load_relation
from bidsseg.learning.cases import Annotation, Case, positions, towards_ventricles
from bidsseg.models.library import load_model
from bidsseg.registration.align import read_aligned
from bidsseg.segmentation.engine import Engine
from bidsseg.segmentation.locate import find_brain
from bidsseg.settings import Report, Settings

LEARNING_MM = 1.0
"""Spacing of the grid of cases; samples are drawn from it at the spacing of the recipe."""
EMPTY, LARGEST_BRAIN_MM3 = 0.3, 2.2e6
"""Least share of voxels that are 0 in a stripped image, and largest volume of the other voxels."""
LOCATOR = "locator"
"""The model that finds the brain if neither annotation nor image shows it."""


@dataclass(frozen=True)
class Source:
    """A case that was found and is not read yet.

    Attributes:
        name: name of the case: dataset/sub-01_ses-1.
        scan: the scan; None for a label map without an image.
        maps: annotations of the case, by protocol as ``--labels`` names it.
    """

    name: str
    scan: Scan | None
    maps: Mapping[str, Path]


def load_cases(
    settings: Settings,
    report: Report,
    inputs: Sequence[str] = ("T1w",),
    *,
    unlabelled: bool = False,
    synthetic: bool = True,
) -> list[Case]:
    """Return every scan of the datasets with its annotations, and every label map without an image, sorted by name.

    Unusable data is reported and skipped: scans without any annotation, and label maps in a folder of
    ``--labels`` without an image in any dataset, selected or not.

    Args:
        inputs: suffixes of the images that are read, the T1w first; a scan may lack the others.
        unlabelled: whether scans without any annotation are cases too, without annotations.
        synthetic: whether label maps without an image are cases too, from which images are synthesised.
    """
    return read_cases(find_sources(settings, report, unlabelled=unlabelled, synthetic=synthetic), inputs, report)


def find_sources(settings: Settings, report: Report, *, unlabelled: bool, synthetic: bool) -> list[Source]:
    """Return the cases that `load_cases` reads, sorted by name. NothingSelected if none has an annotation."""
    datasets = [settings.bids_dir, *settings.training.also]
    labels = [(name, folder) for name, folders in settings.labels.items() for folder in folders]
    protocols = {name: load_protocol(name) for name, _ in labels}
    sources: list[Source] = []
    used: set[Path] = set()
    owner = {folder: folder.name for _, folder in labels}
    for dataset in datasets:
        own = [(name, folder) for name, folder in labels if may_annotate(folder, dataset, datasets)]
        chosen = {scan.key for scan in scans_of(dataset, settings)}
        for scan in scans_of(dataset):
            maps = annotations_of(scan, dataset, own, protocols=protocols)
            owner |= {folder: dataset.name for name, folder in own if maps.get(name, Path()).is_relative_to(folder)}
            used |= set(maps.values())
            if scan.key in chosen and (maps or unlabelled):
                sources.append(Source(f"{dataset.name}/{scan.key}", scan, maps))
            elif scan.key in chosen:
                expected = " or ".join(file for name, _ in own for file in annotation_names(protocols[name].name))
                report.warn(f"{scan.t1w}: no annotation ({expected}) in the folders of --labels, skipped")
    for name, folder in labels:
        found = [each for each in find_label_maps(folder, protocols[name].name) if each.path not in used]
        for label_map in (each for each in found if settings.selects(each.entities)):
            if synthetic:
                sources.append(Source(f"{owner[folder]}/{label_map.key}", None, {name: label_map.path}))
            else:
                report.warn(f"{label_map.path}: no matching image, skipped")
    if not any(source.maps for source in sources):
        folders = ", ".join(
            f"{folder} (sub-*/…/anat/*_seg-{protocols[name].name}_*dseg.nii.gz)" for name, folder in labels
        )
        raise NothingSelected(f"no scan has an annotation in {folders}: do these folders belong to the datasets?")
    return sorted(sources, key=lambda source: source.name)


def read_cases(sources: Iterable[Source], inputs: Sequence[str], report: Report) -> list[Case]:
    """Return cases with their images and annotations read. DataError for a case that cannot be trained on."""
    cases: list[Case] = []
    for source in sources:
        report.detail(f"reading {source.name}{'' if source.maps else ', without annotation'}")
        if source.scan is not None:
            cases.append(read_case(source.name, source.scan, source.maps, inputs=inputs, report=report))
        else:
            cases += [read_label_map(source.name, path, load_protocol(name)) for name, path in source.maps.items()]
    return cases


def annotations_of(
    scan: Scan, dataset: Path, labels: Sequence[tuple[str, Path]], *, protocols: Mapping[str, Protocol]
) -> dict[str, Path]:
    """Return the annotations of a scan in folders, by protocol. DataError if two folders have one."""
    maps: dict[str, Path] = {}
    for name, folder in labels:
        path = find_annotations(folder, scan, protocols[name].name)
        if path is not None and name in maps:
            raise DataError(f"{maps[name]} and {path} both annotate {dataset.name}/{scan.key}: give one folder")
        if path is not None:
            maps[name] = path
    return maps


def may_annotate(folder: Path, dataset: Path, datasets: Sequence[Path]) -> bool:
    """Return whether annotations in a folder may belong to a dataset; a folder inside a dataset belongs to that one."""
    holders = [other for other in datasets if folder.resolve().is_relative_to(other.resolve())]
    return not holders or dataset in holders


def scans_of(dataset: Path, selection: Settings | None = None) -> list[Scan]:
    """Return the scans of a dataset, all or those selected; empty if there are no images."""
    try:
        if selection is None:
            return find_scans(dataset)
        return find_scans(
            dataset,
            participants=selection.participants or None,
            sessions=selection.sessions or None,
            filters=selection.filters or None,
        )
    except NothingSelected:
        return []


def read_case(name: str, scan: Scan, maps: Mapping[str, Path], *, inputs: Sequence[str], report: Report) -> Case:
    """Return a scan and its annotations, which must be on the grid of its T1w; a missing image is all zeros."""
    images = read_aligned(scan.images(inputs))
    for note in [*images.notes, *(f"has no {suffix}" for suffix in inputs if suffix not in images.volumes)]:
        report.detail(f"{name}: {note}")
    volume = images.volumes[inputs[0]]
    grid = whole_grid(volume, LEARNING_MM)
    annotations = []
    for spoken, path in maps.items():
        protocol, labels = load_protocol(spoken), read_labels(path)
        if not labels.on_grid_of(volume):
            raise DataError(f"{path}: not on the grid of {scan.t1w.name}")
        values = labels_to_grid(labels.data, labels.affine, grid, spacing=canonical_spacing(labels))
        annotations.append(Annotation(protocol, positions(values, protocol, str(path))))
    return finish(name, stack(rescaled_each(images.volumes), inputs, grid), annotations)


def read_label_map(name: str, path: Path, protocol: Protocol) -> Case:
    """Return a case from a label map, from which images are synthesised."""
    labels: Volume = read_labels(path)
    grid = whole_grid(labels, LEARNING_MM)
    values = labels_to_grid(labels.data, labels.affine, grid, spacing=canonical_spacing(labels))
    return finish(name, None, [Annotation(protocol, positions(values, protocol, str(path)))])


def finish(name: str, image: torch.Tensor | None, annotations: list[Annotation]) -> Case:
    """Add the derived brain mask and ventricle direction.

    If no annotation shows the brain, such as those of lesions only, the mask comes from the image and becomes an
    annotation.
    """
    brain = brain_of(annotations)
    if brain is None and image is not None:
        brain = brain_in(name, image[0])
        if annotations:
            annotations = [*annotations, Annotation(load_protocol("brain"), brain.to(torch.uint8))]
    if brain is None or not brain.any():
        raise DataError(f"{name}: no annotation gives the brain mask (a relation to the protocol 'brain' is needed)")
    widening = next((w for a in annotations if (w := towards_ventricles(a)) is not None), None)
    return Case(name, image, tuple(annotations), brain, widening)


def brain_in(name: str, image: torch.Tensor) -> torch.Tensor:
    """Return the non-zero voxels of a stripped image (X, Y, Z) on a 1 mm grid, or the brain found by the locator.

    DataError if it finds none.
    """
    if is_stripped(image):
        return image != 0
    volume = Volume(image.numpy(), np.eye(4))
    inside, start_mm = within_content({"T1w": volume}, "T1w")
    try:
        brain = find_brain(inside, load_model(LOCATOR), Engine())
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return between(brain.probability, brain.grid.moved(start_mm), whole_grid(volume, LEARNING_MM)) > 0.5


def is_stripped(image: torch.Tensor) -> bool:
    """Return whether an image (X, Y, Z) on a 1 mm grid shows only a brain."""
    shown = int((image != 0).sum())
    return shown <= min((1 - EMPTY) * image.numel(), LARGEST_BRAIN_MM3)


def brain_of(annotations: Iterable[Annotation]) -> torch.Tensor | None:
    """Return the voxels that are certainly brain, from the annotation with the fewest ambiguous values."""
    head = load_protocol("brain").scored()
    known = [(a, r) for a in annotations if (r := load_relation(a.protocol, head)) is not None]
    if not known:
        return None
    annotation, relation = min(known, key=lambda pair: (pair[1].allowed.all(1).sum(), len(pair[0].protocol.regions)))
    surely = relation.allowed[:, 1] & ~relation.allowed[:, 0]
    return torch.from_numpy(surely)[annotation.values.long()]
