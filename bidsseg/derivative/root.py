"""The files at the top of an output folder, and the tables for viewers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bidsseg import __version__
from bidsseg.bids.outputs import root_path, viewer_table
from bidsseg.bids.scan import Scan
from bidsseg.derivative.links import SOURCE, dataset_name, description_of, link_to, links_in
from bidsseg.derivative.sidecar_keys import CORRECTIONS, LESIONS, TOOL
from bidsseg.errors import InputMissing, OutputNotWritable
from bidsseg.files import locked, remove_halves, replacing, write_json_atomic, write_text_atomic
from bidsseg.labels.viewer_tables import MARK, itksnap_labels, slicer_colors
from bidsseg.models.card import Card, protocol_with_lesions
from bidsseg.reading import read_table
from bidsseg.settings import Settings

BIDS_VERSION = "1.10.1"
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

BY_REGION = "Lesions of the first model, found or given, in each region of a label map of the second"
"""Meaning of the ``desc-`` label of a table of lesions by region."""
ENVIRONMENT = {"Type": "BIDSSEG_CONTAINER_TYPE", "Tag": "BIDSSEG_CONTAINER_TAG", "URI": "BIDSSEG_CONTAINER_URI"}
"""Variables that a container image sets to name itself in ``GeneratedBy``."""


def write_root(settings: Settings, card: Card, scans: Iterable[Scan], *, by_region: Iterable[str] = ()) -> None:
    """Write the files at the top of the output, keeping the entries of other models, and the tables for viewers.

    Args:
        by_region: the ``desc-`` labels of tables of lesions by region that are in the output.
    """
    remove_root_halves(settings.output_dir)
    has_lesions = card.lesion is not None or settings.lesions is not None
    descriptions, lesions = {card.name: card.description or card.title}, [card.name] if has_lesions else []
    others = {CORRECTIONS: settings.corrections, LESIONS: settings.lesions}
    links = {name: folder for name, folder in others.items() if folder is not None}
    write_root_files(
        settings.output_dir,
        settings.bids_dir,
        descriptions,
        lesions=lesions,
        before={scan.entities["desc"] for scan in scans if "desc" in scan.entities},
        by_region=by_region,
        links=links,
    )
    for name in card.protocols:
        protocol = protocol_with_lesions(card, name)
        for kind, text in (("itksnap", itksnap_labels(protocol)), ("slicer", slicer_colors(protocol))):
            path = settings.output_dir / viewer_table(kind, card.name, name)
            if _is_due(path, text):
                write_text_atomic(path, text)


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
        description = _kept(description_of(output_dir), dataset_description(output_dir, bids_dir, links=links))
        write_json_atomic(output_dir / root_path("description"), description)
        write_text_atomic(table, descriptions_table(rows))
        readme, bidsignore = output_dir / root_path("readme"), output_dir / root_path("bidsignore")
        if _text(readme).startswith(README_MARK) or not readme.exists():  # otherwise, the user has written it
            write_text_atomic(readme, _readme(bids_dir, rows))
        lines = dict.fromkeys([*_text(bidsignore).splitlines(), *BIDSIGNORE])
        with replacing(bidsignore) as stream:
            stream.write("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))


def remove_root_halves(output_dir: Path) -> None:
    """Remove temporary files that killed runs have left at the top of the output, among logs and tables for viewers."""
    folders = [output_dir, output_dir / root_path("logs"), (output_dir / viewer_table("itksnap", "M", "P")).parent]
    remove_halves(part for folder in folders for part in folder.glob(".*.part"))


def _is_due(path: Path, text: str) -> bool:
    """Return whether a table for a viewer is missing, or is an older one of this program that can be read."""
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return MARK.encode() in found[:1000] and found != text.encode()


def describes(output_dir: Path, labels: Iterable[str]) -> bool:
    """Return whether ``descriptions.tsv`` contains all ``desc-`` labels."""
    return _read_descriptions(output_dir / root_path("descriptions")).keys() >= set(labels)


def _kept(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the new description of a dataset, with entries of users from the old one (authors, other tools)."""
    tools = before.get("GeneratedBy")
    others = [t for t in tools if isinstance(t, dict) and t.get("Name") != TOOL] if isinstance(tools, list) else []
    links = {**links_in(before), **now["DatasetLinks"]}
    return {**before, **now, "GeneratedBy": [*now["GeneratedBy"], *others], "DatasetLinks": links}


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
    source = description_of(bids_dir)
    generated_by = {"Name": TOOL, "Version": __version__, "Description": "Segmentation of brain MRI"}
    container = _container()
    linked = {SOURCE: bids_dir, **links}
    return {
        "Name": f"{NAME_PREFIX}{source.get('Name') or bids_dir.resolve().name}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{**generated_by, "Container": container} if container else generated_by],
        "SourceDatasets": [_source_dataset(bids_dir, source)],
        "DatasetLinks": {name: link_to(output_dir, bids_dir, path) for name, path in linked.items()},
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
    source = description_of(bids_dir).get("Name") or bids_dir.resolve().name
    models = "\n".join(f"- `{label}`: {what}" for label, what in sorted(descriptions.items()))
    return text.format(version=__version__, source=source, models=models)


def _source_dataset(bids_dir: Path, source: Mapping[str, Any]) -> dict[str, str]:
    doi = source.get("DatasetDOI")
    known = {"DOI": doi} if isinstance(doi, str) and doi else {}
    return {"URL": bids_dir.resolve().as_uri(), **known}


def _container() -> dict[str, str]:
    """Return the container named by the environment; empty outside of a container."""
    known = {key: os.environ[name] for key, name in ENVIRONMENT.items() if os.environ.get(name)}
    if os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER"):
        known["Type"] = "apptainer"
    return {"Tag": f"bidsseg:{__version__}", **known} if known else {}
