"""The scans and label maps of labelled BIDS datasets."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bidsseg.bids.query import select_scans
from bidsseg.bids.scan import Scan
from bidsseg.errors import DataError, NothingSelected
from bidsseg.labels import Protocol, covers_brain
from bidsseg.learning.case_reading import Source
from bidsseg.learning.cases import Case
from bidsseg.learning.label_sources import LabelSource, label_sources
from bidsseg.learning.prepared import opened_cases
from bidsseg.settings import Report, Settings


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
    sources = find_sources(settings, report, unlabelled=unlabelled, synthetic=synthetic)
    return opened_cases(sources, inputs, report)


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
        DataError: a label map fits scans of two datasets.
        NothingSelected: no scan has an annotation, or no file of an entry of ``--labels`` is used.
    """
    labels = label_sources(settings.labels) if labels is None else labels
    for note in dict.fromkeys(note for source in labels for note in source.notes):
        report.say(note)
    datasets = distinct([settings.bids_dir, *settings.training.also])
    queries = settings.queries()
    suffix = queries["t1w"]["suffix"]
    selection = {"participants": settings.participants or None, "sessions": settings.sessions or None}
    sources: list[Source] = []
    used: set[Path] = set()
    claimed: dict[Path, Path] = {}
    in_use: set[LabelSource] = set()
    owner = {source.folder: source.folder.name for source in labels}
    for dataset in datasets:
        own = [source for source in labels if may_annotate(source.folder, dataset, datasets)]
        chosen = {scan.key for scan in scans_of(dataset, report, **selection, filters=queries)}
        scans = scans_of(dataset, Report(), filters={"t1w": {"suffix": suffix}})
        for scan in scans:
            fitting = annotations_of(scan, dataset, own, among=scans, report=report)
            maps = {name: paths[0] for name, paths in fitting.items()}
            holders = [source for source in own if _holds(source, maps)]
            owner |= {source.folder: dataset.name for source in holders}
            in_use |= set(holders)
            used.update(*fitting.values())
            if scan.key in chosen and (maps or unlabelled):
                claim(maps.values(), dataset, claimed)
                sources.append(Source(f"{dataset.name}/{scan.key}", scan, maps, _protocols(own, maps)))
            elif scan.key in chosen:
                expected = " or ".join(source.files for source in own)
                report.warn(f"{scan.t1w}: no annotation ({expected}) in the folders of --labels, skipped")
    for source in labels:
        found = [each for each in source.label_maps() if each.path not in used]
        for label_map in (each for each in found if settings.selects(each.entities)):
            if synthetic and covers_brain(source.protocol):
                maps = {source.protocol.name: label_map.path}
                name = f"{owner[source.folder]}/{label_map.key}"
                sources.append(Source(name, None, maps, _protocols([source], maps)))
                in_use.add(source)
            else:
                report.warn(f"{label_map.path}: no matching image, skipped")
    if suffix != "T1w" and not any(source.scan for source in sources):
        raise NothingSelected(f"no {suffix} image has an annotation: check --anat-modality and the filters")
    warn_of_unused(settings, sources, report)
    check_used(labels, sources, in_use)
    return sorted(sources, key=lambda source: source.name)


def distinct(folders: Iterable[Path]) -> list[Path]:
    """Return folders without those that were given before, also by another path."""
    found: dict[Path, Path] = {}
    for folder in folders:
        found.setdefault(folder.resolve(), folder)
    return list(found.values())


def claim(maps: Iterable[Path], dataset: Path, claimed: dict[Path, Path]) -> None:
    """Note the dataset that label maps annotate. DataError if another one has claimed them: names may be of others."""
    for path in maps:
        other = claimed.setdefault(path, dataset)
        if other != dataset:
            raise DataError(
                f"{path}: fits participants of two datasets, {other} and {dataset}: move each folder of label maps "
                "into its dataset, such as to derivatives/"
            )


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


def scans_of(dataset: Path, report: Report, **selection: Any) -> list[Scan]:
    """Return the scans of a dataset as ``select_scans`` does; empty if none is selected.

    Folders that cannot be read are reported.
    """
    try:
        found = select_scans(dataset, **selection)
    except NothingSelected:
        return []
    for reason in found.closed.values():
        report.warn(reason)
    return found.scans


def warn_of_unused(settings: Settings, sources: Iterable[Source], report: Report) -> None:
    """Warn of selected participants and sessions of which no dataset has a case."""
    wanted = [*(f"sub-{label}" for label in settings.participants), *(f"ses-{label}" for label in settings.sessions)]
    found = {part for source in sources for part in source.name.partition("/")[2].split("_")}
    datasets = " or ".join(map(str, (settings.bids_dir, *settings.training.also)))
    for name in wanted:
        if name not in found:
            report.warn(f"{name}: nothing to train on in {datasets}")
