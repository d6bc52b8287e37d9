"""The tables of the lesions of a scan: a row for each lesion, and lesions by region of other label maps.

Place and regions refer to label maps in the folder of the scan, which other models may write before or after the
lesions. The tables are therefore updated from the files of the folder: at the end of each scan, for the label maps that
are present, and by the level ``group``.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsseg.bids.names import build_name, parse_name, with_extension
from bidsseg.bids.outputs import lesion_regions
from bidsseg.bids.scan import without_desc
from bidsseg.derivative.sidecar_keys import TOOL, Sidecar, is_record, lesion_mask, read_sidecar
from bidsseg.derivative.sidecars import Origin
from bidsseg.errors import BidssegError, DataError, InputMissing
from bidsseg.files import locked, remove, write_json_atomic, write_table
from bidsseg.labels.anatomy import Anatomy, find_anatomy
from bidsseg.labels.protocol import BACKGROUND, LESION, Protocol, Region, read_protocol
from bidsseg.reading import columns, object_or_empty, read_table

if TYPE_CHECKING:
    import pandas as pd

    from bidsseg.image.volume import Volume
    from bidsseg.segmentation.lesion_places import Place
    from bidsseg.segmentation.lesions import Lesion

PLACES = ("periventricular", "juxtacortical", "infratentorial", "deep white")
COLORS = ("#e01010", "#f08030", "#f0c830", "#70c040", "#30b0b0", "#4080e0", "#9050e0", "#e050a0")
"""Colours of lesions in their map, repeated."""

LESIONS: dict[str, dict[str, Any]] = {
    "index": {"Description": "Value of the lesion in the map of lesions; 1 is the largest"},
    "voxels": {"Description": "Number of voxels; voxels that share a face, an edge or a corner belong to one lesion"},
    "volume-mm3": {"Description": "Number of voxels times the volume of a voxel", "Units": "mm^3"},
    "x-mm": {"Description": "Mean position of the voxels, to the right, in scanner coordinates (RAS+)", "Units": "mm"},
    "y-mm": {"Description": "Mean position of the voxels, to the front", "Units": "mm"},
    "z-mm": {"Description": "Mean position of the voxels, upwards", "Units": "mm"},
    "diameter-mm": {
        "Description": "Largest diameter: the longest line through the centres of two voxels, to their outer faces, "
        "and at least the longest edge of a voxel",
        "Units": "mm",
    },
    "probability": {"Description": "Mean probability of a lesion in the voxels, from 0 to 1"},
    "place": {
        "Description": "Place by the distances to regions of the label map named in Anatomy; n/a without such a map",
        "Levels": {
            "infratentorial": "more than half of the voxels are in the cerebellum or brain stem",
            "periventricular": "otherwise, a voxel is at most 2 mm, or a diagonal of a voxel, from a lateral ventricle",
            "juxtacortical": "otherwise, a voxel is as near to the cortex, or in it",
            "deep white": "all others",
        },
    },
    "ventricle-mm": {
        "Description": "Smallest distance between the centres of a voxel of the lesion and of a lateral ventricle",
        "Units": "mm",
    },
    "cortex-mm": {
        "Description": "Smallest distance between the centres of a voxel of the lesion and of the cortex, 0 inside",
        "Units": "mm",
    },
}
REGIONS: dict[str, dict[str, Any]] = {
    "index": {"Description": "Value of the region in its label map; 0 is no region"},
    "name": {"Description": "Name of the region"},
    "abbreviation": {"Description": "Short name of the region"},
    "lesions": {"Description": "Number of lesions with a voxel in the region"},
    "volume-mm3": {"Description": "Volume of the lesions in the region", "Units": "mm^3"},
    "nearest-mm3": {
        "Description": "Volume of the lesions to which this is the nearest region of the cortex, which assigns lesions "
        "of the white matter to a gyrus or lobe; n/a for other regions",
        "Units": "mm^3",
    },
}


# -- content -----------------------------------------------------------------------------------------------------------


def lesion_lookup(count: int) -> Protocol:
    """Return the look-up table of a map of lesions."""
    lesions = [Region(i, f"Lesion {i}", f"L{i}", COLORS[(i - 1) % len(COLORS)], LESION) for i in range(1, count + 1)]
    return Protocol("lesions", (BACKGROUND, *lesions))


def lesion_table(lesions: Sequence[Lesion], places: Sequence[Place] | None = None) -> pd.DataFrame:
    """Return one row for each lesion, with the columns of LESIONS; none without lesions.

    Args:
        places: place of each lesion; None without anatomy.
    """
    import pandas as pd

    rows = []
    for number, lesion in enumerate(lesions):
        chance = None if lesion.probability is None else round(lesion.probability, 4)
        x, y, z = (round(at, 2) for at in lesion.centre_mm)
        sizes = lesion.voxels, round(lesion.volume_mm3, 3), x, y, z, round(lesion.diameter_mm, 2)
        place = places[number] if places is not None else None
        rows.append((lesion.index, *sizes, chance, *_place_cells(place)))
    return pd.DataFrame(rows, columns=list(LESIONS))


def _place_cells(place: Place | None) -> tuple[str | None, float | None, float | None]:
    if place is None:
        return None, None, None
    distances = [round(mm, 2) if np.isfinite(mm) else None for mm in (place.ventricle_mm, place.cortex_mm)]
    return place.name, distances[0], distances[1]


def region_table(
    protocol: Protocol, lesions: np.ndarray, labels: np.ndarray, *, nearest: np.ndarray | None, voxel_mm3: float
) -> pd.DataFrame:
    """Return the lesions in each region of a label map, with the columns of REGIONS.

    Args:
        lesions: index of the lesion of each of N voxels.
        labels: their values in the label map, (N,).
        nearest: values of the nearest regions of the cortex, (N,); None for a protocol without cortex.
    """
    import pandas as pd

    pairs = np.unique(np.stack([lesions.astype(np.int64), labels.astype(np.int64)], 1), axis=0)
    anatomy = find_anatomy(protocol)
    cortex = set(anatomy.cortex) if anatomy else set()
    rows = []
    for region in protocol.regions:
        near = None
        if nearest is not None and region.index in cortex:
            near = round(float(np.count_nonzero(nearest == region.index)) * voxel_mm3, 3)
        count = int(np.count_nonzero(pairs[:, 1] == region.index))
        volume = round(float(np.count_nonzero(labels == region.index)) * voxel_mm3, 3)
        rows.append((region.index, region.name, region.abbreviation, count, volume, near))
    return pd.DataFrame(rows, columns=list(REGIONS))


def lesion_sidecar(origin: Origin, anatomy: str = "") -> dict[str, Any]:
    """Return the data dictionary of the table of lesions, with its provenance; ``anatomy`` is a label map."""
    named: Sidecar = {"Anatomy": anatomy} if anatomy else {}
    if origin.has_given_lesions or origin.manual:
        named = {**named, **origin.made}
    text = "Lesions: connected components of the lesion mask, the largest first"
    return {"Description": text, "Sources": origin.uris, **named, **LESIONS, **origin.details}


# -- update ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelFile:
    """A label map of a scan in its output folder.

    Attributes:
        desc: the ``desc-`` of its name, which names the model.
        about: sidecar of its table of volumes, which is written before its own.
    """

    path: Path
    protocol: Protocol
    desc: str
    about: Path

    @cached_property
    def anatomy(self) -> Anatomy | None:
        """The regions that places of lesions refer to."""
        return find_anatomy(self.protocol)

    @cached_property
    def has_given_lesions(self) -> bool:
        """Whether given lesions are among its regions, so that it does not say where they are."""
        return bool(self.protocol.lesions and lesion_mask(read_sidecar(self.about)))


@dataclass(frozen=True)
class LesionFiles:
    """The results about the lesions of a scan by one model.

    Attributes:
        source: entities of the T1w without ``desc``.
        model: the ``desc-`` label of the results.
        table: the table of lesions.
    """

    source: dict[str, str]
    model: str
    table: Path

    @property
    def key(self) -> str:
        """The source entities as in file names."""
        return build_name(self.source)

    @property
    def lesion_map(self) -> Path:
        """The map of lesions."""
        name = build_name({**self.source, "desc": f"{self.model}lesions"}, "dseg", ".nii.gz")
        return self.table.with_name(name)

    def region_table(self, protocol: str, desc: str) -> Path:
        """Return the table of lesions by region of a label map, given by its protocol and ``desc-``."""
        return self.table.with_name(lesion_regions(self.source, self.model, desc, protocol=protocol))

    def label_maps(self) -> list[LabelFile]:
        """Return the label maps of the scan on its own grid, those of the same model first."""
        found = []
        for path in sorted(self.table.parent.glob(f"{glob.escape(self.key)}_*seg-*_dseg.nii.gz")):
            parsed = parse_name(path.name)
            entities = parsed[0] if parsed else {}
            name, desc = entities.get("segmentation", ""), entities.get("desc", "")
            if not (name and desc) or entities != {**self.source, "segmentation": name, "desc": desc}:
                continue
            try:
                protocol, _ = read_protocol(with_extension(path, ".tsv"), name)
                found.append(LabelFile(path, protocol, desc, path.with_name(build_name(entities, "morph", ".json"))))
            except BidssegError:  # the look-up table is missing: a killed run
                continue
        return sorted(found, key=lambda label_map: label_map.desc != self.model)

    def others(self) -> list[LabelFile]:
        """Return the label maps other than that of this model with the lesions, and without given lesions."""
        maps = (one for one in self.label_maps() if not one.has_given_lesions)
        return [one for one in maps if not (one.desc == self.model and one.protocol.lesions)]

    def outdated(self) -> list[Path]:
        """Return the tables of lesions by region of label maps that are no longer among the others, with sidecars."""
        wanted = {self.region_table(one.protocol.name, one.desc) for one in self.others()}
        tables = own_region_tables(self.table.parent, self.source, self.model)
        return [file for path in tables if path not in wanted for file in (path, with_extension(path, ".json"))]


def find_lesions(folder: Path) -> Iterator[LesionFiles]:
    """Yield the results about lesions in the folder ``anat`` of a participant or session, sorted by name."""
    for path in sorted(folder.glob("sub-*_label-lesion_desc-*_morph.tsv")):
        parsed = parse_name(path.name)
        if parsed is None or "segmentation" in parsed[0]:
            continue
        source = {name: label for name, label in parsed[0].items() if name not in ("label", "desc")}
        files = LesionFiles(source, parsed[0]["desc"], path)
        if files.lesion_map.is_file():
            yield files


def own_region_tables(folder: Path, source: Mapping[str, str], model: str) -> list[Path]:
    """Return the tables of the lesions of a scan by region of other label maps that this program has written.

    Args:
        source: entities of the T1w without ``desc``.
        model: the ``desc-`` label of the results with the lesions.
    """
    pattern = f"{glob.escape(build_name(source))}_seg-*_label-lesion_desc-{model}+*_morph.tsv"
    return [path for path in sorted(folder.glob(pattern)) if is_record(read_sidecar(with_extension(path, ".json")))]


def is_foreign_region_table(table: Path) -> bool:
    """Return whether a file with the name of a table of lesions by region, or its sidecar, is not of this program.

    A table without a sidecar is one of this program if it has its columns: a run was killed between the two.
    """
    sidecar = with_extension(table, ".json")
    if os.path.lexists(sidecar):
        return not is_record(read_sidecar(sidecar))
    return os.path.lexists(table) and columns(table) != list(REGIONS)


def planned_region_tables(
    folder: Path, entities: Mapping[str, str], model: str, *, protocols: Mapping[str, Protocol], lesions: bool
) -> list[Path]:
    """Return the tables of lesions by region that `update_lesion_tables` writes when a model has segmented a scan.

    Args:
        folder: ``anat`` of a participant or session in the output folder.
        entities: of the T1w.
        model: the ``desc-`` label of the results.
        protocols: protocols of their label maps that do not say where given lesions are.
        lesions: whether the results have lesions; otherwise, those of an earlier run of the model are removed.
    """
    source = without_desc(entities)
    found = {files.model: files for files in find_lesions(folder) if files.source == source and files.model != model}
    if lesions:
        name = build_name({**source, "label": "lesion", "desc": model}, "morph", ".tsv")
        found[model] = LesionFiles(source, model, folder / name)
    tables = []
    for files in found.values():
        others = [(one.protocol.name, one.desc) for one in files.others() if one.desc != model]
        own = [(name, model) for name, of in protocols.items() if not (files.model == model and of.lesions)]
        tables += [files.region_table(name, desc) for name, desc in [*own, *others]]
    return tables


@dataclass
class Update:
    """What an update of the tables of the lesions of a scan did.

    Attributes:
        changed: whether a table was written or removed.
        problems: label maps that could not be used, one line each.
    """

    changed: bool = False
    problems: list[str] = field(default_factory=list)


def update_lesion_tables(folder: Path, entities: Mapping[str, str]) -> Update:
    """Update the tables of the lesions of a scan from the label maps in its folder.

    Tables that are newer than their label maps are kept.

    Args:
        folder: ``anat`` of a participant or session in the output folder.
        entities: of the T1w.
    """
    source = without_desc(entities)
    found = [files for files in find_lesions(folder) if files.source == source]
    update = Update()
    if found:
        with locked(folder):
            for files in found:
                _update(files, update)
    return update


def _update(files: LesionFiles, update: Update) -> None:
    """Update the tables of one model."""
    outdated = files.outdated()
    remove(outdated)
    update.changed |= bool(outdated)
    maps = files.label_maps()
    anatomy = next((one for one in maps if one.anatomy), None)
    tables = {one: files.region_table(one.protocol.name, one.desc) for one in files.others()}
    foreign = {one for one, table in tables.items() if is_foreign_region_table(table)}
    update.problems += [f"{tables[one]} exists and was not written by {TOOL}: it is kept" for one in foreign]
    others = [one for one, table in tables.items() if one not in foreign and _is_old(table, files.lesion_map, one.path)]
    before = object_or_empty(with_extension(files.table, ".json"))
    is_known = anatomy is None or before.get("Anatomy") == anatomy.path.name
    if anatomy is not None and is_known and not _is_old(files.table, files.lesion_map, anatomy.path):
        anatomy = None
    if not others and anatomy is None:
        return
    from bidsseg.image.nifti import read_labels

    try:
        lesions = read_labels(files.lesion_map)
    except (DataError, InputMissing) as error:
        update.problems.append(f"lesions of {files.key} without places and regions: {error}")
        return
    for one in dict.fromkeys([*others, *([anatomy] if anatomy else [])]):
        try:
            labels = read_labels(one.path)
            if not labels.on_grid_of(lesions):
                raise DataError(f"{one.path} is not on the grid of {files.lesion_map.name}")
            if one == anatomy:
                _write_places(files, one, lesions, labels=labels, before=before)
            if one in others:
                _write_regions(files, one, lesions, labels=labels, before=before)
            update.changed = True
        except (DataError, InputMissing) as error:
            update.problems.append(f"lesions of {files.key} without {one.path.name}: {error}")


def _is_old(table: Path, *maps: Path) -> bool:
    """Return whether a table, or its sidecar, is missing or older than a label map."""
    try:
        age = min(path.stat().st_mtime_ns for path in (table, with_extension(table, ".json")))
    except OSError:
        return True
    return any(path.stat().st_mtime_ns > age for path in maps)


def _write_places(
    files: LesionFiles, anatomy: LabelFile, lesions: Volume, *, labels: Volume, before: Mapping[str, Any]
) -> None:
    """Add the places to the table of lesions."""
    import pandas as pd

    from bidsseg.segmentation.lesion_places import find_places

    assert anatomy.anatomy is not None
    places = find_places(lesions.data, labels.data, lesions.affine, anatomy=anatomy.anatomy)
    cells = read_table(files.table)
    if len(cells) != len(places):
        raise DataError(f"{files.table} does not fit {files.lesion_map.name}: give --overwrite to write both again")
    added = ("place", "ventricle-mm", "cortex-mm")
    rows = [{**row, **dict(zip(added, _place_cells(p), strict=True))} for row, p in zip(cells, places, strict=True)]
    write_table(files.table, pd.DataFrame(rows, columns=list(LESIONS)))
    write_json_atomic(with_extension(files.table, ".json"), {**before, "Anatomy": anatomy.path.name})


def _write_regions(
    files: LesionFiles, other: LabelFile, lesions: Volume, *, labels: Volume, before: Mapping[str, Any]
) -> None:
    """Write the table of lesions by region of a label map, with its sidecar."""
    from bidsseg.segmentation.lesion_places import nearest_regions

    inside, nearest = lesions.data > 0, None
    if other.anatomy is not None:
        nearest = nearest_regions(inside, labels.data, lesions.affine, indices=other.anatomy.cortex)
    table = region_table(
        other.protocol,
        lesions.data[inside],
        labels.data[inside],
        nearest=nearest,
        voxel_mm3=lesions.voxel_volume_mm3,
    )
    path = files.region_table(other.protocol.name, other.desc)
    write_table(path, table)
    kept = {key: value for key, value in before.items() if key not in LESIONS and key != "Anatomy"}
    text = f"Lesions in each region of the {other.protocol.name} protocol, from {other.path.name}"
    write_json_atomic(with_extension(path, ".json"), {**kept, "Description": text, **REGIONS})
