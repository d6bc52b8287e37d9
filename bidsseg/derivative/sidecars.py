"""Metadata beside images: JSON sidecars, data dictionaries and the files at the top of the output."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import quote

from bidsseg import __version__
from bidsseg.bids.names import parse_name
from bidsseg.bids.outputs import root_path
from bidsseg.derivative.sidecar_keys import ModelUsed, Sidecar
from bidsseg.errors import InputMissing, OutputNotWritable
from bidsseg.files import locked, replacing, write_json_atomic, write_text_atomic
from bidsseg.models.card import find_card
from bidsseg.reading import NOT_AVAILABLE, object_or_empty, read_table

if TYPE_CHECKING:
    from bidsseg.models.card import Card
    from bidsseg.models.lesion_rule import LesionRule
    from bidsseg.registration.align import Images
    from bidsseg.segmentation.result import Segmentation

BIDS_VERSION = "1.10.1"
SOURCE = "raw"
"""Name of the input dataset in BIDS URIs."""
TOOL = "bidsseg"
"""Name of this program in ``GeneratedBy``."""
NAME_PREFIX = f"{TOOL}: segmentation of "
"""Beginning of the name of an output dataset, followed by the name of the source."""
README_MARK = f"# Segmentation of brain MRI by {TOOL}"
"""Beginning of the README of an output."""

BIDSIGNORE = (
    "*.html",
    "figures",
    "*_morph.tsv",
    "*_morph.json",
    "*_stats.tsv",
    "*_stats.json",
    "*_longitudinal.*",
    "group_*",
    "*_xfm.*",
    "models",
    "folds",
    "prepared",
    "labels",
)
"""Outputs without a BIDS name. No slash after a folder: otherwise, the validator still reports the folder."""

QUALITY = (
    "Expected mean Dice over the regions of the first protocol of the model, from 0 to 1; if the model is not "
    "calibrated, mean probability of the chosen region in the brain; n/a if the label map was corrected"
)
"""Meaning of the quality of a scan, see ``Segmentation.quality``."""
BY_REGION = "Lesions of the first model, found or given, in each region of a label map of the second"
"""Meaning of the ``desc-`` label of a table of lesions by region."""
ENVIRONMENT = {"Type": "BIDSSEG_CONTAINER_TYPE", "Tag": "BIDSSEG_CONTAINER_TAG", "URI": "BIDSSEG_CONTAINER_URI"}
"""Variables that a container image sets to name itself in ``GeneratedBy``."""


# -- of images ---------------------------------------------------------------------------------------------------------


def bids_uri(path: Path, bids_dir: Path, dataset: str = SOURCE) -> str:
    """Return the URI of a file in the input, or in another dataset: ``bids:raw:sub-01/anat/sub-01_T1w.nii.gz``.

    For a file outside of the folder, it is ``file:///…``.
    """
    if not path.is_relative_to(bids_dir):
        return path.absolute().as_uri()
    return f"bids:{dataset}:{quote(path.relative_to(bids_dir).as_posix(), safe='/+')}"


def dataset_name(output_dir: Path, name: str, folder: Path, *, bids_dir: Path) -> str:
    """Return the name of a dataset in BIDS URIs: that of its link in the output, otherwise a free one (name, name2)."""
    links = _links(_description(output_dir))
    ours = {_link(output_dir, bids_dir, folder), folder.resolve().as_uri()}
    names = itertools.chain([name], (f"{name}{number}" for number in itertools.count(2)))
    return next(each for each in names if each not in links or links[each] in ours)


def given_uri(path: Path, name: str, folder: Path, *, output_dir: Path, bids_dir: Path) -> str:
    """Return the URI of a file in a dataset that the user gave, such as ``CORRECTIONS``; see `dataset_name`."""
    return bids_uri(path, folder, dataset_name(output_dir, name, folder, bids_dir=bids_dir))


@dataclass(frozen=True)
class Origin:
    """Provenance of an output, identical in all sidecars of a scan.

    Attributes:
        sources: the input images; the grid is that of the first, the T1w. Empty for an image outside of a dataset.
        bids_dir: the dataset that they are in.
        details: further keys, e.g. ``Models`` and ``InputFindings``.
        correction: URI of the label map by which a person has corrected this output; empty for an output of the model.
        lesions: URI of the given mask of the lesions of the scan; empty if the model finds them.
        has_given_lesions: whether this output shows lesions, and they are given.
        is_drawn: whether a person drew this output; None if it is not known.
    """

    sources: Sequence[Path] = ()
    bids_dir: Path = Path()
    details: Sidecar = field(default_factory=Sidecar)
    correction: str = ""
    lesions: str = ""
    has_given_lesions: bool = False
    is_drawn: bool | None = False

    @property
    def uris(self) -> list[str]:
        """The BIDS URIs of the sources, of the given lesions and of the correction."""
        more = [uri for uri in (self.lesions, self.correction) if uri]
        return [*(bids_uri(path, self.bids_dir) for path in self.sources), *more]

    @property
    def manual(self) -> bool:
        """Whether a person has corrected this output."""
        return bool(self.correction)

    @property
    def made(self) -> Sidecar:
        """The entries of a sidecar about who made the labels."""
        drawn = True if self.manual else self.is_drawn
        manual: Sidecar = {} if drawn is None else {"Manual": drawn}
        given: Sidecar = {"LesionsGiven": True} if self.has_given_lesions else {}
        return {**manual, **given}

    def corrected(self, uri: str) -> Origin:
        """Return the origin of an output that is corrected by a file in a derivative dataset, without a confidence."""
        return replace(self.without_quality(), correction=uri, has_given_lesions=False)

    def given(self, *, is_drawn: bool | None) -> Origin:
        """Return the origin of an output that shows lesions that are given."""
        return replace(self, has_given_lesions=True, is_drawn=is_drawn)

    def without_quality(self) -> Origin:
        """Return the origin of an output without a confidence of the model."""
        details = cast(Sidecar, {key: value for key, value in self.details.items() if key != "Quality"})
        return replace(self, details=details)


def image_sidecar(description: str, origin: Origin, own: Sidecar | None = None) -> Sidecar:
    """Return the sidecar of an image, with the keys of its own between those of its origin."""
    uris = origin.uris
    made_from: Sidecar = {"Sources": uris, "SpatialReference": uris[0]} if uris else {}
    return {"Description": description, **made_from, **(own or {}), **origin.details}


def carried_over(image: Path, bids_dir: Path) -> Sidecar:
    """Return what BIDS requires of every image with the entities of the input image: ``Resolution`` for ``res-``.

    The value is that of the nearest JSON file that applies to the image.
    """
    parsed = parse_name(image.name)
    if parsed is None or "res" not in parsed[0]:
        return {}
    for folder in image.parents:
        for file in sorted(folder.glob(f"*{parsed[1]}.json"), key=lambda file: -len(file.name)):
            applies = parse_name(file.name)
            if applies and applies[1] == parsed[1] and applies[0].items() <= parsed[0].items():
                resolution = object_or_empty(file).get("Resolution")
                if resolution and isinstance(resolution, str | dict):
                    return {"Resolution": resolution}
        if folder == bids_dir:
            break
    return {"Resolution": f"same as {image.name}"}


def dseg_sidecar(protocol: str, origin: Origin) -> Sidecar:
    """Return the sidecar of a label map and of its look-up table."""
    text = f"Label map of the {protocol} protocol; the table of the same name lists the regions"
    return image_sidecar(text, origin, origin.made)


def native_sidecar(protocol: str, origin: Origin, *, table: str) -> Sidecar:
    """Return the sidecar of a label map of a comparison of sessions on the grid of a T1w, and of its look-up table.

    Args:
        table: name of the table of the comparison.
    """
    text = (
        f"Label map of the {protocol} protocol on the grid of the T1w, from the comparison of all sessions of the "
        f"participant; the volumes in {table} are counted in the halfway space, not in this label map"
    )
    return image_sidecar(text, origin, origin.made)


def mask_sidecar(kind: Literal["Brain", "Lesion"], origin: Origin) -> Sidecar:
    """Return the sidecar of a brain or lesion mask."""
    text = f"{kind} mask: 1 inside, 0 outside"
    return image_sidecar(text, origin, {"Type": kind, **origin.made})


def lesions_sidecar(origin: Origin) -> Sidecar:
    """Return the sidecar of a map of lesions and of its look-up table."""
    text = "Map of lesions: 1 in the largest, 2 in the second and so on, as in the table with label-lesion"
    return image_sidecar(text, origin, origin.made)


def filled_sidecar(origin: Origin, *, voxels: int, skull_stripped: bool) -> Sidecar:
    """Return the sidecar of a T1w with filled lesions; ``voxels`` is the number of voxels of the lesions."""
    text = "T1w in which lesions have the brightness and noise of the white matter around them"
    return image_sidecar(text, origin, {"SkullStripped": skull_stripped, "FilledVoxels": voxels})


def probseg_sidecar(protocol: str, labels: Sequence[str], origin: Origin) -> Sidecar:
    """Return the sidecar of a 4-D image of probabilities; ``labels`` are the abbreviations of its regions, in order."""
    text = f"Probability (0 to 1) of each region of the {protocol} protocol; fourth axis in the order of LabelMap"
    return image_sidecar(text, origin, {"Manual": False, "LabelMap": list(labels)})


def entropy_sidecar(protocol: str, origin: Origin) -> Sidecar:
    """Return the sidecar of a map of uncertainty."""
    text = (
        f"Uncertainty in the {protocol} protocol: entropy of the probabilities of a voxel, from 0 (certain) to 1 "
        "(all regions equally probable)"
    )
    return image_sidecar(text, origin, {"Manual": False})


def result_details(images: Images, result: Segmentation) -> Sidecar:
    """Return the entries of every sidecar of a scan about its result: quality, machine, notes and findings."""
    quality: Sidecar = {} if math.isnan(result.quality) else {"Quality": round(float(result.quality), 4)}
    return {
        **quality,
        "SoftwareVersion": __version__,
        "Device": result.device,
        "Precision": result.precision,
        "Notes": [*images.notes, *result.notes],
        "InputFindings": [str(finding) for finding in images.findings],
        "ResultFindings": [str(finding) for finding in result.findings],
    }


def provenance(card: Card, checksums: Iterable[str], *, fast: bool, lesions: LesionRule | None) -> Sidecar:
    """Return the entries of a sidecar about what determines a result: model, images, and `choices`.

    Args:
        checksums: of the images that the model reads.
        lesions: which voxels are lesions; None if they are given.
    """
    cards = [card, *([find_card(card.locator)] if card.locator else [])]
    found: Sidecar = {"Models": models_used(cards), "InputFingerprints": list(checksums)}
    return {**found, **choices(card, fast=fast, lesions=lesions)}


def choices(card: Card, *, fast: bool, lesions: LesionRule | None) -> Sidecar:
    """Return the entries of a sidecar about passes, temperatures and rule of lesions, see `provenance`."""
    found: Sidecar = {"Fast": True} if fast else {}
    if card.temperature:
        found["Temperature"] = dict(card.temperature)
    if card.lesion is not None and lesions is not None:
        found["LesionThreshold"] = lesions.recorded_threshold
        found["LeastLesionVolume"], found["LeastLesionPeak"] = lesions.least_mm3, lesions.least_peak
    return found


def models_used(cards: Iterable[Card]) -> list[ModelUsed]:
    """Return the entry ``Models`` of a sidecar, from the cards of a model and of its locator."""
    return [{"Name": card.name, "SHA256": card.sha256} for card in cards]


# -- of tables ---------------------------------------------------------------------------------------------------------

VOLUMES = {
    "index": {"Description": "Value of the region in the label map; n/a for what is no region"},
    "name": {
        "Description": "Name of the region; 'brain mask': brain, ventricles and as much of the fluid around the brain "
        "as the mask contains; 'estimated total intracranial volume': everything inside of the skull"
    },
    "abbreviation": {"Description": "Short name of the region"},
    "voxels": {"Description": "Number of voxels with this value"},
    "volume-mm3": {"Description": "Number of voxels times the volume of a voxel", "Units": "mm^3"},
    "softvolume-mm3": {
        "Description": "Sum of the probabilities of the region over all voxels times the volume of a voxel",
        "Units": "mm^3",
    },
    "expected-dice": {
        "Description": "Dice that the region is expected to have with a manual label map, from the probabilities of "
        "the network; calibrated on scans that it was not trained on"
    },
}
NO_SOFT_VOLUME = {
    "Description": "n/a: the label map was corrected by hand, and a corrected label map has no probabilities",
    "Units": "mm^3",
}


def morph_sidecar(
    protocol: str, origin: Origin, brain: Origin | None = None, *, intracranial: str = NOT_AVAILABLE
) -> dict[str, Any]:
    """Return the data dictionary of the table of volumes of a scan, with its provenance.

    Args:
        origin: origin of the label map.
        brain: origin of the brain mask, if it is another.
        intracranial: how the intracranial volume was estimated, or why it was not.
    """
    text = f"Volumes of the regions of the {protocol} protocol, of the head inside of the skull, and of the brain mask"
    uris = origin.uris
    if brain is not None and brain.manual:
        text += ", which was corrected by hand"
        uris = list(dict.fromkeys([*uris, *brain.uris]))
    corrected = {"Manual": True, **VOLUMES, "softvolume-mm3": NO_SOFT_VOLUME}
    estimate = {"EstimatedTotalIntracranialVolume": intracranial}
    columns = corrected if origin.manual else VOLUMES
    return {"Description": text, "Sources": uris, **estimate, **columns, **origin.details}


def group_sidecar(protocol: str, entities: Iterable[str], regions: Mapping[str, str]) -> dict[str, Any]:
    """Return the data dictionary of the table of a cohort.

    Args:
        entities: columns that identify the scans, e.g. ``participant_id``, ``session_id``, ``run_id``.
        regions: columns of volumes, each with the full name of its region.
    """
    return {
        "Description": f"Volumes in the {protocol} protocol, one row for each scan",
        **{name: {"Description": f"{name.removesuffix('_id')} of the scan"} for name in entities},
        "quality": {"Description": QUALITY},
        "findings": {"Description": "Codes of the findings in the scan and its result; the sidecars explain them"},
        **{
            column: {"LongName": name, "Description": f"Volume of: {name}", "Units": "mm^3"}
            for column, name in regions.items()
        },
    }


# -- of the dataset ----------------------------------------------------------------------------------------------------


def write_root_files(
    output_dir: Path,
    bids_dir: Path,
    descriptions: Mapping[str, str],
    *,
    lesions: Iterable[str] = (),
    before: Iterable[str] = (),
    by_region: Iterable[str] = (),
    links: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """Write ``dataset_description.json``, ``descriptions.tsv``, ``README.md`` and ``.bidsignore``.

    Args:
        descriptions: description of each model of this run, by its name; those of earlier runs are kept.
        lesions: names of the models with lesions.
        before: the ``desc-`` labels of images, which begin those of their results.
        by_region: the ``desc-`` labels of tables of lesions by region.
        links: other datasets in BIDS URIs, by name; see ``dataset_name``.
    """
    with locked(output_dir):  # other runs may add their models at the same time
        table = output_dir / root_path("descriptions")
        numbered = {f"{name}lesions": f"Lesions found by {name} or given, numbered by volume" for name in lesions}
        numbered |= {"filled": "T1w with filled lesions (--filled)"} if numbered else {}
        labels = {**_desc_labels(descriptions), **numbered}
        rows = {**dict.fromkeys(by_region, BY_REGION), **_read_descriptions(table), **labels}
        for desc in before:
            rows |= {f"{desc}{label}": f"{text}; of images with desc-{desc}" for label, text in labels.items()}
        links = {dataset_name(output_dir, name, folder, bids_dir=bids_dir): folder for name, folder in links.items()}
        description = _kept(_description(output_dir), dataset_description(output_dir, bids_dir, links=links))
        write_json_atomic(output_dir / root_path("description"), description)
        write_text_atomic(table, descriptions_table(rows))
        readme, bidsignore = output_dir / root_path("readme"), output_dir / root_path("bidsignore")
        if _text(readme).startswith(README_MARK) or not readme.exists():  # otherwise, the user has written it
            write_text_atomic(readme, _readme(bids_dir, rows))
        lines = dict.fromkeys([*_text(bidsignore).splitlines(), *BIDSIGNORE])
        with replacing(bidsignore) as stream:
            stream.write("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))


def describes(output_dir: Path, labels: Iterable[str]) -> bool:
    """Return whether ``descriptions.tsv`` contains all ``desc-`` labels."""
    return _read_descriptions(output_dir / root_path("descriptions")).keys() >= set(labels)


def _kept(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the new description of a dataset, with entries of users from the old one (authors, other tools)."""
    tools = before.get("GeneratedBy")
    others = [t for t in tools if isinstance(t, dict) and t.get("Name") != TOOL] if isinstance(tools, list) else []
    links = {**_links(before), **now["DatasetLinks"]}
    return {**before, **now, "GeneratedBy": [*now["GeneratedBy"], *others], "DatasetLinks": links}


def _links(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the links of a dataset to others, by their names in BIDS URIs."""
    links = description.get("DatasetLinks")
    return links if isinstance(links, dict) else {}


def _text(path: Path) -> str:
    """Return the content of a text file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError:
        return ""


def dataset_description(
    output_dir: Path, bids_dir: Path, *, links: Mapping[str, Path] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the content of ``dataset_description.json`` of the derivative dataset.

    Args:
        links: other datasets in BIDS URIs, by name.
    """
    source = _description(bids_dir)
    generated_by = {"Name": TOOL, "Version": __version__, "Description": "Segmentation of brain MRI"}
    container = _container()
    return {
        "Name": f"{NAME_PREFIX}{source.get('Name') or bids_dir.resolve().name}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{**generated_by, "Container": container} if container else generated_by],
        "SourceDatasets": [_source_dataset(bids_dir, source)],
        "DatasetLinks": {name: _link(output_dir, bids_dir, path) for name, path in {SOURCE: bids_dir, **links}.items()},
    }


def descriptions_table(descriptions: Mapping[str, str]) -> str:
    """Return the content of ``descriptions.tsv``: the meaning of each ``desc-`` label."""
    lines = [f"desc-{label}\t{' '.join(text.split())}" for label, text in sorted(descriptions.items())]
    return "\n".join(["desc_id\tdescription", *lines]) + "\n"


def _desc_labels(models: Mapping[str, str]) -> dict[str, str]:
    labels = {"brain": "Brain mask", "aseg": "Label map with the values and names of FreeSurfer's aseg (--freesurfer)"}
    for name, text in models.items():
        labels[name] = text
        labels[f"{name}longitudinal"] = f"Label map of {name} from all sessions of a participant (longitudinal)"
        labels[f"{name}brain"] = f"Brain mask of {name} in the space halfway between sessions (longitudinal)"
        labels[f"{name}entropy"] = f"Uncertainty of {name}: entropy of its probabilities, 0 to 1"
    return labels


def _read_descriptions(table: Path) -> dict[str, str]:
    if not table.is_file():
        return {}
    try:
        rows = read_table(table, OutputNotWritable, quotes=False)
        return {row["desc_id"].removeprefix("desc-"): row["description"] for row in rows}
    except InputMissing as error:
        raise OutputNotWritable(str(error)) from error
    except KeyError as error:
        raise OutputNotWritable(f"{table} has no column {error}: correct or remove it") from error


def _readme(bids_dir: Path, descriptions: Mapping[str, str]) -> str:
    text = Path(__file__).with_name("readme.md").read_text(encoding="utf-8")
    source = _description(bids_dir).get("Name") or bids_dir.resolve().name
    models = "\n".join(f"- `{label}`: {what}" for label, what in sorted(descriptions.items()))
    return text.format(version=__version__, source=source, models=models)


def _description(dataset: Path) -> dict[str, Any]:
    """Return the description of a dataset; empty if it cannot be read, since no entry is required."""
    return object_or_empty(dataset / root_path("description"))


def _source_dataset(bids_dir: Path, source: Mapping[str, Any]) -> dict[str, str]:
    doi = source.get("DatasetDOI")
    known = {"DOI": doi} if isinstance(doi, str) and doi else {}
    return {"URL": bids_dir.resolve().as_uri(), **known}


def _link(output_dir: Path, bids_dir: Path, folder: Path) -> str:
    """Return the link to a dataset: relative if it and the output are inside the input and can move together."""
    source, output, target = bids_dir.resolve(), output_dir.resolve(), folder.resolve()
    if output.is_relative_to(source) and target.is_relative_to(source):
        return quote(Path(os.path.relpath(target, output)).as_posix(), safe="/+")
    return target.as_uri()


def _container() -> dict[str, str]:
    """Return the container named by the environment; empty outside of a container."""
    known = {key: os.environ[name] for key, name in ENVIRONMENT.items() if os.environ.get(name)}
    if os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER"):
        known["Type"] = "apptainer"
    return {"Tag": f"bidsseg:{__version__}", **known} if known else {}
