"""Labelled BIDS datasets as cases in memory."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bidsseg.bids.annotations import BRAIN
from bidsseg.bids.query import find_scans
from bidsseg.bids.scan import Scan
from bidsseg.errors import DataError, NothingSelected
from bidsseg.image.brightness import rescaled_each
from bidsseg.image.grid import canonical_spacing, whole_grid, within_content
from bidsseg.image.resampling import between, labels_to_grid, stack
from bidsseg.image.volume import Volume
from bidsseg.labels import Protocol, load_protocol, load_relation
from bidsseg.learning.annotation_files import Remarks, annotation_of, check_not_empty, read_annotation
from bidsseg.learning.cases import Annotation, Case, towards_ventricles
from bidsseg.learning.label_sources import LabelSource, label_sources
from bidsseg.models.library import load_model
from bidsseg.registration.align import read_aligned
from bidsseg.registration.label_files import Note, read_values
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
        maps: annotations of the case, by the name of their protocol.
        protocols: these protocols.
    """

    name: str
    scan: Scan | None
    maps: Mapping[str, Path]
    protocols: Mapping[str, Protocol]


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


def find_sources(
    settings: Settings,
    report: Report,
    *,
    unlabelled: bool,
    synthetic: bool,
    labels: Sequence[LabelSource] | None = None,
) -> list[Source]:
    """Return the cases that `load_cases` reads, sorted by name.

    Args:
        labels: the label maps that the settings name; None if they are not known yet.

    Raises:
        NothingSelected: no scan has an annotation, or no file of an entry of ``--labels`` is used.
    """
    labels = label_sources(settings.labels) if labels is None else labels
    for note in dict.fromkeys(note for source in labels for note in source.notes):
        report.say(note)
    datasets = [settings.bids_dir, *settings.training.also]
    sources: list[Source] = []
    used: set[Path] = set()
    in_use: set[LabelSource] = set()
    owner = {source.folder: source.folder.name for source in labels}
    for dataset in datasets:
        own = [source for source in labels if may_annotate(source.folder, dataset, datasets)]
        chosen, scans = {scan.key for scan in scans_of(dataset, settings)}, scans_of(dataset)
        for scan in scans:
            fitting = annotations_of(scan, dataset, own, among=scans, report=report)
            maps = {name: paths[0] for name, paths in fitting.items()}
            holders = [source for source in own if _holds(source, maps)]
            owner |= {source.folder: dataset.name for source in holders}
            in_use |= set(holders)
            used.update(*fitting.values())
            if scan.key in chosen and (maps or unlabelled):
                sources.append(Source(f"{dataset.name}/{scan.key}", scan, maps, _protocols(own, maps)))
            elif scan.key in chosen:
                expected = " or ".join(source.files for source in own)
                report.warn(f"{scan.t1w}: no annotation ({expected}) in the folders of --labels, skipped")
    for source in labels:
        found = [each for each in source.label_maps() if each.path not in used]
        for label_map in (each for each in found if settings.selects(each.entities)):
            if synthetic and load_relation(source.protocol, load_protocol(BRAIN)) is not None:
                maps = {source.protocol.name: label_map.path}
                name = f"{owner[source.folder]}/{label_map.key}"
                sources.append(Source(name, None, maps, _protocols([source], maps)))
                in_use.add(source)
            else:
                report.warn(f"{label_map.path}: no matching image, skipped")
    check_used(labels, sources, in_use)
    return sorted(sources, key=lambda source: source.name)


def check_used(labels: Sequence[LabelSource], sources: Sequence[Source], fitting: Container[LabelSource]) -> None:
    """Raise NothingSelected if no case has an annotation, or no scan one from an entry of ``--labels``.

    Args:
        fitting: entries with a file that is used, or would be if its scan were selected.
    """
    if not any(source.maps for source in sources):
        folders = ", ".join(f"{each.folder} ({each.files})" for each in labels)
        raise NothingSelected(f"no scan has an annotation in {folders}: do these folders belong to the datasets?")
    unused = next((each for each in labels if each not in fitting), None)
    if unused is not None:
        raise NothingSelected(
            f"{unused.given}: none of its files is used: name them like the T1w images, with {unused.files} at the end"
        )


def _holds(source: LabelSource, maps: Mapping[str, Path]) -> bool:
    """Return whether one of the maps is in the folder of this source."""
    path = maps.get(source.protocol.name)
    return path is not None and path.is_relative_to(source.folder)


def _protocols(labels: Iterable[LabelSource], maps: Mapping[str, Path]) -> dict[str, Protocol]:
    """Return the protocols of the maps of a case, by name."""
    return {source.protocol.name: source.protocol for source in labels if _holds(source, maps)}


def read_cases(sources: Sequence[Source], inputs: Sequence[str], report: Report) -> list[Case]:
    """Return cases with their images and annotations read.

    DataError for cases that cannot be trained on; all of them are reported before.
    """
    cases: list[Case] = []
    failed: list[DataError] = []
    remarks = Remarks()
    warn_of_missing([source.scan for source in sources if source.scan is not None], inputs, report)
    for source in sources:
        report.detail(f"reading {source.name}{'' if source.maps else ', without annotation'}")
        try:
            if source.scan is not None:
                maps = [(source.protocols[name], path) for name, path in source.maps.items()]
                cases.append(read_case(source.name, source.scan, maps, inputs=inputs, report=report, note=remarks.add))
            else:
                for name, path in source.maps.items():
                    cases.append(read_label_map(source.name, path, source.protocols[name], note=remarks.add))
        except DataError as error:
            failed.append(error)
    for line in remarks.lines():
        report.say(line)
    if len(failed) > 1:
        for each in failed:
            report.warn(str(each))
        raise DataError(f"{len(failed)} scans or label maps cannot be used, the first: {failed[0]}") from failed[0]
    if failed:
        raise failed[0]
    check_not_empty(cases)
    return cases


def warn_of_missing(scans: Sequence[Scan], inputs: Sequence[str], report: Report) -> None:
    """Warn if scans lack an image that the network reads."""
    for suffix in inputs:
        lacking = [scan for scan in scans if suffix not in scan.images(inputs)]
        if lacking:
            names = ", ".join(scan.key for scan in lacking[:3]) + (", …" if len(lacking) > 3 else "")
            report.warn(f"{len(lacking)} of {len(scans)} scans have no {suffix} ({names}): it is 0 in training")


def annotations_of(
    scan: Scan, dataset: Path, labels: Sequence[LabelSource], *, among: Sequence[Scan], report: Report
) -> dict[str, list[Path]]:
    """Return the annotations of a scan, by the name of their protocol, the chosen one first.

    DataError if two folders have one.

    Args:
        among: all scans of the dataset.
    """
    maps: dict[str, list[Path]] = {}
    for source in labels:
        name, found = source.protocol.name, source.find(scan, among)
        if found and name in maps:
            raise DataError(f"{maps[name][0]} and {found[0]} both annotate {dataset.name}/{scan.key}: give one folder")
        if found:
            maps[name] = found
        if len(found) > 1:
            others = ", ".join(path.name for path in found[1:])
            report.warn(f"{found[0]}: chosen for {scan.key}, not {others}")
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


def read_case(
    name: str, scan: Scan, maps: Sequence[tuple[Protocol, Path]], *, inputs: Sequence[str], report: Report, note: Note
) -> Case:
    """Return a scan and its annotations on the grid of its T1w, see `read_annotation`; a missing image is zeros."""
    images = read_aligned(scan.images(inputs))
    for remark in [*images.notes, *(f"has no {suffix}" for suffix in inputs if suffix not in images.volumes)]:
        report.detail(f"{name}: {remark}")
    volume = images.volumes[inputs[0]]
    grid = whole_grid(volume, LEARNING_MM)
    annotations = []
    for protocol, path in maps:
        labels = read_annotation(path, scan, images, note=note)
        values = labels_to_grid(labels.data, labels.affine, grid, spacing=canonical_spacing(labels))
        annotations.append(annotation_of(values, protocol, path, note=note))
    return finish(name, stack(rescaled_each(images.volumes), inputs, grid), annotations)


def read_label_map(name: str, path: Path, protocol: Protocol, *, note: Note = lambda path, remark: None) -> Case:
    """Return a case from a label map, from which images are synthesised."""
    labels = read_values(path, note=note)
    grid = whole_grid(labels, LEARNING_MM)
    values = labels_to_grid(labels.data, labels.affine, grid, spacing=canonical_spacing(labels))
    return finish(name, None, [annotation_of(values, protocol, path, note=note)])


def finish(name: str, image: torch.Tensor | None, annotations: list[Annotation]) -> Case:
    """Add the derived brain mask and ventricle direction.

    If no annotation shows the brain, such as those of lesions only, the mask comes from the image and becomes an
    annotation.
    """
    brain = brain_of(annotations)
    if brain is not None and not brain.any():
        names = " and ".join(each.protocol.name for each in annotations)
        raise DataError(f"{name}: the label map of {names} shows no brain; is it empty?")
    if brain is None and image is not None:
        brain = brain_in(name, image[0])
        if annotations:
            annotations = [*annotations, Annotation(load_protocol(BRAIN), brain.to(torch.uint8))]
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
    head = load_protocol(BRAIN).scored()
    known = [(a, r) for a in annotations if (r := load_relation(a.protocol, head)) is not None]
    if not known:
        return None
    annotation, relation = min(known, key=lambda pair: (pair[1].allowed.all(1).sum(), len(pair[0].protocol.regions)))
    surely = relation.allowed[:, 1] & ~relation.allowed[:, 0]
    return torch.from_numpy(surely)[annotation.values.long()]
