"""Datasets of nnU-Net (``imagesTr``, ``labelsTr``, ``dataset.json``) to BIDS and back.

The format is that of nnU-Net v2 (github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md); ``dataset.json`` of v1
is read, too.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bidsseg.bids.names import as_label, build_name, parse_name
from bidsseg.errors import DataError, InputMissing, UsageError
from bidsseg.files import replacing, write_json_atomic, write_text_atomic
from bidsseg.image.nifti import map_image, write_labels
from bidsseg.image.volume import Volume
from bidsseg.labels import Protocol, Region
from bidsseg.labels.protocol import BACKGROUND
from bidsseg.learning.annotation_files import read_annotation
from bidsseg.learning.case_reading import Source
from bidsseg.learning.checks import check_names
from bidsseg.learning.datasets import find_sources
from bidsseg.learning.label_sources import label_sources
from bidsseg.reading import read_object
from bidsseg.registration.align import read_aligned
from bidsseg.registration.label_files import Remarks, with_known_values
from bidsseg.settings import Report, Settings

ENDINGS = (".nii.gz", ".nii")
SUFFIXES = {"flair": "FLAIR", "t2": "T2w", "t1": "T1w", "mri": "T1w"}
"""BIDS suffixes for words in the names of channels, the first that occurs."""
EMPTY, IGNORED = "background", "ignore"
"""Names in nnU-Net of the label 0 and of the label that is not trained on."""
DERIVATIVE = Path("derivatives") / "nnunet"


@dataclass(frozen=True)
class NnunetDataset:
    """A dataset of nnU-Net.

    Attributes:
        channels: BIDS suffix of each channel that is read, by its number.
        ending: extension of the images.
        protocol: regions of the label maps.
    """

    folder: Path
    channels: Mapping[int, str]
    ending: str
    protocol: Protocol

    def image(self, case: str, channel: int) -> Path:
        """Return the path of a channel of a training case."""
        return self.folder / "imagesTr" / f"{case}_{channel:04}{self.ending}"


def read_nnunet(folder: Path) -> NnunetDataset:
    """Return the description of a dataset of nnU-Net.

    Raises:
        InputMissing: there is no ``dataset.json``.
        DataError: it cannot be used: an entry is malformed, no channel is a T1w, labels are regions of several values,
            or the images are not NIfTI files.
    """
    path = folder / "dataset.json"
    content = read_object(path)
    key = "channel_names" if "channel_names" in content else "modality"
    names = _table(path, content, key)
    channels = {_number(path, key, n): suffix for n, name in names.items() if (suffix := _suffix(str(name)))}
    if len(names) == 1 and not channels:
        channels = {0: "T1w"}
    if "T1w" not in channels.values() or len(set(channels.values())) < len(channels):
        raise DataError(
            f"{path}: the channels {list(names.values())} must have one T1: bidsseg needs a T1w of each case"
        )
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending not in ENDINGS:
        raise DataError(f"{path}: images end with '{ending}': convert them to NIfTI (.nii.gz) first")
    name = as_label(re.sub(r"^(Dataset|Task)\d+_", "", folder.resolve().name))
    return NnunetDataset(folder, channels, ending, Protocol(name or "nnunet", _regions(path, content)))


def _table(path: Path, content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object in ``dataset.json``, empty if it is missing; DataError for another value."""
    table = content.get(key, {})
    if not isinstance(table, dict):
        raise DataError(f'{path}: {key} is a {type(table).__name__}: write names and numbers, as in {{"0": "T1w"}}')
    return table


def _number(path: Path, key: str, value: Any) -> int:
    """Return a number in ``dataset.json``, which may be a text; DataError for another value."""
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {key}: {value!r} must be a whole number") from error


def _suffix(channel: str) -> str | None:
    """Return the BIDS suffix of a channel; None for images that bidsseg does not read, such as those with contrast."""
    words = channel.lower()
    if re.search("t1(c|gd|ce|km)|gad|contrast", words):
        return None
    return next((suffix for word, suffix in SUFFIXES.items() if word in words), None)


def _regions(path: Path, content: Mapping[str, Any]) -> tuple[Region, ...]:
    """Return the regions in ``dataset.json``: names to values in v2, values to names in v1."""
    regions = []
    for key, value in _table(path, content, "labels").items():
        name, index = (value, key) if isinstance(value, str) and key.isdecimal() else (key, value)
        if isinstance(index, list):
            raise DataError(f"{path}: the label {name} has several values {index}: give each value a label of its own")
        region = Region(_number(path, "labels", index), str(name), str(name), "#808080", None, scored=name != IGNORED)
        regions.append(region if region.index else BACKGROUND)
    return tuple(sorted(regions, key=lambda region: region.index))


def nnunet_to_bids(folder: Path, bids_dir: Path, report: Report) -> Path:
    """Write the training cases of nnU-Net as a BIDS dataset, and return its derivative with the labels.

    Images are copied unchanged. A case is a participant, named by the letters and digits of its name, unless this has
    the form ``sub-01_ses-1``.

    Raises:
        UsageError: the output folder is not empty.
        DataError, InputMissing: the dataset cannot be used, see `read_nnunet`, or files are missing.
    """
    dataset = read_nnunet(folder)
    check_empty(bids_dir)
    label_maps = (folder / "labelsTr").glob(f"[!.]*{dataset.ending}")  # not ._* of macOS
    cases = sorted(path.name.removesuffix(dataset.ending) for path in label_maps)
    if not cases:
        raise InputMissing(f"{folder / 'labelsTr'}: no label maps *{dataset.ending}")
    copies: dict[Path, Path] = {}
    labels_dir = bids_dir / DERIVATIVE
    for case in cases:
        entities = _entities(case)
        place = Path(*(f"{short}-{entities[long]}" for short, long in PLACES if long in entities), "anat")
        for number, suffix in dataset.channels.items():
            _enter(copies, bids_dir / place / build_name(entities, suffix, dataset.ending), dataset.image(case, number))
        seg = {**entities, "segmentation": dataset.protocol.name}
        labels = folder / "labelsTr" / f"{case}{dataset.ending}"
        _enter(copies, labels_dir / place / build_name(seg, "dseg", dataset.ending), labels)
    for target, source in copies.items():
        copy(source, target)
    _describe(bids_dir, dataset.protocol.name, "raw")
    _describe(labels_dir, f"Labels of {dataset.protocol.name}", "derivative")
    write_text_atomic(labels_dir / f"seg-{dataset.protocol.name}_dseg.tsv", dataset.protocol.to_tsv(scored=True))
    report.say(f"{len(cases)} cases written to {bids_dir}; train with --labels {labels_dir}")
    return labels_dir


PLACES = (("sub", "subject"), ("ses", "session"))
"""Entities of the folders of a BIDS dataset, in file names and in pybids."""


def _entities(case: str) -> dict[str, str]:
    """Return the entities of a case of nnU-Net."""
    parsed = parse_name(f"{case}_T1w.nii")
    if parsed is not None and "subject" in parsed[0]:
        return parsed[0]
    return {"subject": as_label(case) or "case"}


def _enter(copies: dict[Path, Path], target: Path, source: Path) -> None:
    """Add a file to those to copy; an error if it does not exist, or another file has its target."""
    if not source.is_file():
        raise InputMissing(f"{source}: no such file, but dataset.json or labelsTr names it")
    if target in copies:
        raise DataError(f"{copies[target]} and {source} would both be {target.name}: rename one case")
    copies[target] = source


def bids_to_nnunet(settings: Settings, folder: Path, report: Report) -> int:
    """Write the labelled scans of datasets as a dataset of nnU-Net, and return the number of cases.

    The first channel is the T1w; a FLAIR that all scans have is the second, on the grid of the T1w. Labels are
    numbered from 1, as nnU-Net needs them; values that are not trained on become ``ignore``.

    Raises:
        UsageError: the output folder is not empty, or the labels have several protocols.
        DataError: two regions have one name, a region has a name with a meaning in nnU-Net, or a label map cannot be
            used.
    """
    check_empty(folder)
    labels = label_sources(settings.labels)
    protocols = {source.protocol.name: source.protocol for source in labels}
    if len(protocols) != 1:
        raise UsageError(
            f"nnU-Net has one protocol in a dataset, --labels has {len(protocols)}: {', '.join(protocols)}"
        )
    check_names(protocols.values())
    (protocol,) = protocols.values()
    named = named_regions(protocol)
    sources = find_sources(settings, report, unlabelled=False, synthetic=False, labels=labels)
    inputs = ["T1w", "FLAIR"] if all(source.scan and source.scan.flair for source in sources) else ["T1w"]
    numbers = numbered(protocol)
    remarks = Remarks()
    for source in sources:
        _write_case(source, folder, inputs, numbers=numbers, remarks=remarks)
    for line in remarks.lines():
        report.say(line)
    names = {EMPTY: 0} | {region.name: numbers[region.index] for region in named}
    if not all(region.scored for region in protocol.regions):
        names[IGNORED] = max(numbers.values())
    content = {
        "channel_names": {str(i): suffix for i, suffix in enumerate(inputs)},
        "labels": names,
        "numTraining": len(sources),
        "file_ending": ".nii.gz",
    }
    write_json_atomic(folder / "dataset.json", content)
    report.say(f"{len(sources)} cases written to {folder}")
    return len(sources)


def named_regions(protocol: Protocol) -> list[Region]:
    """Return the regions that nnU-Net learns by their names. DataError if a name has a meaning of its own there."""
    regions = [region for region in protocol.regions if region.scored and region.index]
    for region in regions:
        if region.name in (EMPTY, IGNORED):
            raise DataError(
                f"the value {region.index} of {protocol.name} has the name '{region.name}', which has another meaning "
                "in nnU-Net: rename it in the table of the labels"
            )
    return regions


def numbered(protocol: Protocol) -> dict[int, int]:
    """Return the value in nnU-Net for each value of a protocol: regions from 1, and one more for all not trained on."""
    scored = [region.index for region in protocol.scored().regions]
    return {index: scored.index(index) if index in scored else len(scored) for index in protocol.indices}


def _write_case(
    source: Source, folder: Path, inputs: Sequence[str], *, numbers: Mapping[int, int], remarks: Remarks
) -> None:
    """Write the images and labels of a scan."""
    assert source.scan is not None
    name = re.sub("[^0-9a-zA-Z-]", "_", source.name.partition("/")[2])
    images = read_aligned(source.scan.images(inputs))
    ((protocol, path),) = source.maps.items()
    labels = read_annotation(path, source.scan, images, note=remarks.add)
    known = with_known_values(labels.data, source.protocols[protocol], path, note=remarks.add)
    table = np.zeros(max(numbers) + 1, np.uint16)
    table[list(numbers)] = list(numbers.values())
    for channel, suffix in enumerate(inputs):
        target = folder / "imagesTr" / f"{name}_{channel:04}.nii.gz"
        if channel == 0 and source.scan.t1w.name.endswith(".nii.gz"):
            copy(source.scan.t1w, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            map_image(images.volumes[suffix].data, images.volumes["T1w"]).to_filename(target)
    values = table[known]
    write_labels(folder / "labelsTr" / f"{name}.nii.gz", values, Volume(values, labels.affine, labels.header))


def check_empty(folder: Path) -> None:
    """Raise UsageError if a folder has content."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: give a new folder for the converted dataset")


def copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with source.open("rb") as given, replacing(target) as stream:
        shutil.copyfileobj(given, stream)


def _describe(folder: Path, name: str, kind: str) -> None:
    """Write the description of a BIDS dataset."""
    content: dict[str, object] = {"Name": name, "BIDSVersion": "1.10.1", "DatasetType": kind}
    if kind == "derivative":
        content |= {"GeneratedBy": [{"Name": "nnU-Net dataset, converted by bidsseg"}]}
    write_json_atomic(folder / "dataset_description.json", content)
