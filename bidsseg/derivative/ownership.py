"""Ownership of an output folder: files of other tools and results of other datasets are never replaced.

The records of this program are the dataset description, the sidecars of results, which contain checksums of the images,
the manifests in ``logs/`` and the mark on each page.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from bidsseg.bids.index import folders
from bidsseg.bids.names import suffix_of, with_extension
from bidsseg.bids.outputs import (
    FURTHER_TABLES,
    AgreementPaths,
    group_changes,
    group_report,
    group_table,
    manifest_path,
    root_path,
)
from bidsseg.derivative.cohort import QUALITY, STATUS, Cohort
from bidsseg.derivative.finished import has_page
from bidsseg.derivative.job import Job
from bidsseg.derivative.lesion_tables import is_foreign_region_table
from bidsseg.derivative.links import bids_uri
from bidsseg.derivative.results import anat_folders, is_own_page
from bidsseg.derivative.root import NAME_PREFIX, README_MARK, dataset_description
from bidsseg.derivative.sidecar_keys import TOOL, Sidecar, fingerprints, is_record, read_sidecar, source_paths, sources
from bidsseg.errors import BidssegError, InputMissing, OutputNotWritable, UsageError
from bidsseg.files import fingerprint
from bidsseg.models.card import CARD, WEIGHTS
from bidsseg.reading import columns, object_or_empty, read_object
from bidsseg.settings import Settings

ROOT_FILES = ("descriptions", "readme", "bidsignore")
CHECKPOINT = "checkpoint.pt"
"""The checkpoint in a model's folder."""
VALIDATION, CROSS_VALIDATION = "validation.tsv", "crossvalidation.tsv"
LOCK = ".lock"
"""The file in a model folder that a training holds while it writes there."""
MODEL_FILES = (CARD, WEIGHTS, "curve.tsv", "curve.png", "training.html", VALIDATION, CROSS_VALIDATION)
COMPARED = 20
"""Largest number of images that are compared with the records."""
LOOKED_AT = 500
"""Largest number of records that are read to find images to compare."""
OF_LONG = {"region", "brainmask-fraction"}
"""Columns of the long table of a cohort."""
OF_LESIONS = {"participant_id", "lesions"}
"""Columns that all tables of the lesions of a cohort have."""
OF_CHANGES = {"participant_id", "session_id", "change-mm3"}
"""Columns that all tables of the changes of a cohort have."""
OF_AGREEMENT = {"dice", "hausdorff95-mm", "found-mm3"}
"""Columns that both tables of the level evaluate have."""
ELSEWHERE = "choose another OUTPUT_DIR"


def check_tool(output_dir: Path) -> None:
    """Refuse a folder whose description names another tool or a raw dataset.

    Raises:
        OutputNotWritable: another tool has made the dataset, or its description cannot be read.
        UsageError: the dataset is not a derivative.
    """
    content = _description(output_dir)
    if content is None or TOOL in (tools := _tools(content)):
        return
    if tools:
        raise OutputNotWritable(f"{output_dir} contains results of {', '.join(sorted(tools))}: {ELSEWHERE}")
    if content.get("DatasetType") != "derivative":
        raise UsageError(f"{output_dir} contains a dataset that is not a derivative: {ELSEWHERE}")
    path = output_dir / root_path("description")
    raise OutputNotWritable(f"{path} does not name {TOOL} in GeneratedBy, so it belongs to another tool: {ELSEWHERE}")


def check_folder(output_dir: Path) -> None:
    """Refuse a folder as :func:`check_tool` does, and one with top-level files but without a description."""
    # Listed first: another run may be writing these files now, after its description.
    found = [path for kind in ROOT_FILES if os.path.lexists(path := output_dir / root_path(kind))]
    check_tool(output_dir)
    if found and _description(output_dir) is None and not (_is_readme(found) or Manifests(output_dir).any):
        raise OutputNotWritable(f"{found[0]} exists and was not written by {TOOL}: {ELSEWHERE}")


def check_files(output_dir: Path, jobs: Iterable[Job], done: Container[Job]) -> None:
    """Raise OutputNotWritable if a file that one of the jobs would write exists and is not from this program."""
    manifests = Manifests(output_dir)
    for job in jobs:
        if job not in done and (path := _foreign_result(job, manifests)):
            raise OutputNotWritable(f"{path} exists and was not written by {TOOL}: {ELSEWHERE}")
        if job in done and has_page(job):
            continue
        page = output_dir / job.paths.report
        if os.path.lexists(page) and not is_own_page(page) and not manifests.claim_page(page):
            raise OutputNotWritable(f"{page} exists and was not written by {TOOL}: {ELSEWHERE}")


def check_same_scan(job: Job, *, overwrite: bool) -> None:
    """Raise OutputNotWritable if the outputs of a job exist for another image and must not be overwritten."""
    mask = _mask_record(job)
    if sources(mask) and sources(mask)[0] != bids_uri(job.scan.t1w, job.bids_dir) and not overwrite:
        raise OutputNotWritable(
            f"{job.output_dir} contains results of {source_paths(mask)[0]} under the name {job.scan.key}: {ELSEWHERE}, "
            "rename the image, or give --overwrite to replace the results"
        )


def check_same_suffix(jobs: Iterable[Job]) -> None:
    """Raise OutputNotWritable if the outputs of a job exist for an image with another suffix."""
    for job in jobs:
        before = source_paths(_mask_record(job))
        if before and suffix_of(before[0]) != suffix_of(job.scan.t1w):
            raise OutputNotWritable(
                f"{job.output_dir} contains results of {before[0]}, not of {job.scan.t1w.name}: choose an "
                "OUTPUT_DIR for each contrast, or give --overwrite to replace the results"
            )


def _mask_record(job: Job) -> Sidecar:
    """Return the sidecar of the brain mask, which all models share, under the name of a job; empty if there is none."""
    return read_sidecar(job.output_dir / with_extension(job.paths.brain, ".json"))


def check_group_files(output_dir: Path, cohorts: Iterable[Cohort]) -> None:
    """Raise OutputNotWritable if a table or the page of the cohort would replace a file from another program."""
    names = [(cohort.model, cohort.protocol) for cohort in cohorts]
    tables = [group_table(*name, kind) for name in names for kind in ("table", *FURTHER_TABLES[:-1])]
    _check_tables(output_dir, group_report(), tables, names={STATUS, QUALITY})
    _check_tables(output_dir, group_report(), [group_table(*name, "long") for name in names], names=OF_LONG)


def check_lesion_files(output_dir: Path, tables: Iterable[Path]) -> None:
    """Raise OutputNotWritable if a table of the lesions of the cohort would replace a file from another program."""
    _check_tables(output_dir, group_report(), tables, names=OF_LESIONS)


def is_lesion_table(path: Path) -> bool:
    """Return whether a table of the lesions of a cohort is of this program."""
    return set(columns(path)) >= OF_LESIONS


def check_change_files(output_dir: Path, tables: Iterable[tuple[str, str]]) -> None:
    """Raise OutputNotWritable if a table of the changes of the cohort would replace a file from another program.

    Args:
        tables: model and protocol of each.
    """
    _check_tables(output_dir, group_report(), [group_changes(*table) for table in tables], names=OF_CHANGES)


def is_change_table(path: Path) -> bool:
    """Return whether a table of the changes of a cohort is of this program."""
    return set(columns(path)) >= OF_CHANGES


def check_agreement_files(output_dir: Path, paths: AgreementPaths) -> None:
    """Raise OutputNotWritable if a table or the page of evaluate would replace a file from another program."""
    _check_tables(output_dir, paths.page, [paths.table, paths.summary], names=OF_AGREEMENT)


def _check_tables(output_dir: Path, page: Path, tables: Iterable[Path], *, names: set[str]) -> None:
    """Raise OutputNotWritable if the page, or a table without the columns of this program, exists."""
    present = [path for path in (page, *tables) if os.path.lexists(output_dir / path)]
    own_page = is_own_page(output_dir / page)
    foreign = [
        output_dir / path
        for path in present
        if not (own_page if path == page else names <= set(columns(output_dir / path)))
    ]
    if foreign:
        raise OutputNotWritable(f"{foreign[0]} exists and was not written by {TOOL}: {ELSEWHERE}")


def check_model_folder(output_dir: Path, folder: Path) -> None:
    """Refuse to train a model into a folder of another tool, or among files without a card or a checkpoint."""
    check_tool(output_dir)
    present = [path for name in MODEL_FILES if os.path.lexists(path := folder / name)]
    card = object_or_empty(folder / CARD)
    if present and not {"network", "heads"} <= card.keys() and not os.path.lexists(folder / CHECKPOINT):
        raise OutputNotWritable(f"{present[0]} exists and was not written by {TOOL}: {ELSEWHERE}")


def check_source(settings: Settings) -> None:
    """Refuse an output folder with results of another dataset than the input.

    A dataset is the same if one of the recorded images has the same path inside it, wherever the dataset is now.
    Without such an image, its name and DOI must be equal, and images at equal paths may differ only if the path of the
    dataset is equal. Even so, if several images are compared and all differ (as when each dataset is mounted as
    ``/bids`` and has the name of a template), ``--overwrite`` is needed.

    Raises:
        OutputNotWritable: the results belong to another dataset.
    """
    output_dir, bids_dir = settings.output_dir, settings.bids_dir
    before = _description(output_dir)
    if before is None:
        return
    records = list(islice(_comparisons(output_dir, bids_dir), COMPARED))
    if any(records) or not (records or _has_results(output_dir)):
        return
    now = dataset_description(output_dir, bids_dir)
    same_path = _source(before).get("URL") == _source(now).get("URL")
    if _same_name(before, now, same_path=same_path):
        if not records or (same_path and (len(records) == 1 or settings.overwrite)):
            return
        if same_path:
            raise OutputNotWritable(
                f"{output_dir} contains results of a dataset that was previously at {bids_dir}, and none of its "
                f"{len(records)} compared images is the same: {ELSEWHERE}, or give --overwrite to replace the results"
            )
    path = _source_path(before) or "(path unknown)"
    raise OutputNotWritable(
        f"{output_dir} contains results of the dataset {path}, but {bids_dir.resolve()} is another dataset: {ELSEWHERE}"
    )


@dataclass(frozen=True)
class Manifests:
    """The records of the runs of this program in ``logs/``.

    Attributes:
        names: pattern of the names of the files.
    """

    output_dir: Path
    names: str = manifest_path("*").name

    @cached_property
    def contents(self) -> list[dict[str, Any]]:
        """Manifests of this program, read on first use."""
        found = map(object_or_empty, (self.output_dir / root_path("logs")).glob(self.names))
        return [content for content in found if TOOL in _mapping(content.get("versions"))]

    @property
    def any(self) -> bool:
        """Whether this program has run in this folder before."""
        return bool(self.contents)

    @cached_property
    def planned(self) -> dict[str, set[str]] | None:
        """Names of the models that a run planned to segment each scan with, by the key of the scan.

        None if runs before 0.10.0 did not record the scans.
        """
        if any("planned" not in content for content in self.contents):
            return None
        found: dict[str, set[str]] = {}
        for content in self.contents:
            for key in content["planned"] or ():
                found.setdefault(str(key), set()).add(str(_mapping(content.get("model")).get("name")))
        return found

    def claim(self, key: str, model: str | None = None) -> bool:
        """Return whether files of this scan may come from a run of this program, with the model if one is given."""
        if self.planned is None:
            return True
        models = self.planned.get(key, set())
        return bool(models) if model is None else model in models

    def claim_page(self, page: Path) -> bool:
        """Return whether a page may come from a run of this program."""
        return self.planned is None or any(f"{key}_".startswith(f"{page.stem}_") for key in self.planned)


def without_sidecar(files: Collection[Path]) -> list[Path]:
    """Return the files that exist without their ``.json``, which is one of the files, too."""
    beside = {path: with_extension(path, ".json") for path in files if os.path.lexists(path)}
    return [path for path, sidecar in beside.items() if sidecar in files and sidecar not in beside]


# -- files of other tools ----------------------------------------------------------------------------------------------


def _description(output_dir: Path) -> dict[str, Any] | None:
    """Return the content of the description of the output; None if there is none."""
    path = output_dir / root_path("description")
    try:
        return read_object(path, OutputNotWritable) if os.path.lexists(path) else None
    except BidssegError as error:
        raise OutputNotWritable(f"{error}; correct it, or {ELSEWHERE}") from error


def _tools(description: Mapping[str, Any]) -> set[str]:
    """Return the names of the tools that made a dataset, from ``GeneratedBy`` or its predecessor."""
    generated = description.get("GeneratedBy")
    entries = [*(generated if isinstance(generated, list) else [generated]), description.get("PipelineDescription")]
    return {str(name) for entry in entries if (name := _mapping(entry).get("Name"))}


def _is_readme(found: Iterable[Path]) -> bool:
    """Return whether the README among the files is from this program."""
    for path in found:
        if path.name == root_path("readme").name:
            try:
                return path.read_bytes().startswith(README_MARK.encode())
            except OSError:
                return False
    return False


def _foreign_result(job: Job, manifests: Manifests) -> Path | None:
    """Return an existing file of the job that has no record of this program; None if there is none."""
    files = dict.fromkeys(job.output_dir / path for path in (*job.paths.files, *job.paths.figures.values()))
    present = [path for path in files if os.path.lexists(path)]
    foreign = [table for table in job.region_tables if is_foreign_region_table(table)]
    sidecars = {path: content for path in present if path.suffix == ".json" and (content := read_sidecar(path))}
    foreign += [path for path, content in sidecars.items() if not is_record(content)]
    if foreign:
        return foreign[0]
    brain = job.output_dir / job.paths.brain  # which all models share
    doubtful = without_sidecar(files) if sidecars else present
    models = {path: None if path == brain else job.card.name for path in doubtful}
    return next((path for path, model in models.items() if not manifests.claim(job.scan.key, model)), None)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


# -- results of other datasets -----------------------------------------------------------------------------------------


def _has_results(output_dir: Path) -> bool:
    return next(_records(output_dir), None) is not None


def _records(output_dir: Path) -> Iterator[Sidecar]:
    """Yield the sidecar of a brain mask of each segmented image.

    Further masks of the image follow in the order of names: in other spaces, or of lesions for a model ``…brain``.
    """
    known: set[str] = set()
    try:
        participants = folders(output_dir, "sub-")
    except InputMissing:
        return
    for participant in participants:
        for folder in anat_folders(participant):
            for path in sorted(folder.glob("*_desc-*brain_mask.json")):
                content = read_sidecar(path)
                image = next(iter(sources(content)), "")
                if is_record(content) and image not in known:
                    known.add(image)
                    yield content


def _comparisons(output_dir: Path, bids_dir: Path) -> Iterator[bool]:
    """Yield for each recorded image that exists in the dataset whether its content is unchanged."""
    for record in islice(_records(output_dir), LOOKED_AT):
        paths, checksums = source_paths(record), fingerprints(record)
        if not (paths and checksums):
            continue
        found = fingerprint(bids_dir / paths[0])
        if found:
            yield found == checksums[0]


def _source(description: Mapping[str, Any]) -> Mapping[str, Any]:
    sources = description.get("SourceDatasets")
    return _mapping(sources[0]) if isinstance(sources, list) and sources else {}


def _source_path(description: Mapping[str, Any]) -> str:
    """Return the path of the source dataset of the results; empty if the description does not contain it."""
    return unquote(urlparse(str(_source(description).get("URL", ""))).path)


def _same_name(before: Mapping[str, Any], now: Mapping[str, Any], *, same_path: bool) -> bool:
    """Return whether two descriptions name the same source: by DOI if both have one, otherwise by name."""
    doi, doi_now = _source(before).get("DOI"), _source(now).get("DOI")
    if doi and doi_now:
        return bool(doi == doi_now)
    name = str(before.get("Name", ""))
    return name == now["Name"] if name.startswith(NAME_PREFIX) else same_path
