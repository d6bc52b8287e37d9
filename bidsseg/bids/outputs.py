"""Paths of all outputs, relative to the output folder. The patterns are data, in ``outputs.toml``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from bidsseg.bids.names import build_name, parse_name, with_extension
from bidsseg.bids.scan import Scan, without_desc
from bidsseg.errors import UsageError

FURTHER_TABLES = ("softvolume", "fraction", "asymmetry", "zscore", "long")
"""Tables of a cohort beside that of its volumes."""
LONGEST_KEY = 180
"""Longest key of a scan in the names of files that do not need the complete key."""


@cache
def _outputs() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("outputs.toml").read_text(encoding="utf-8"))


def _pattern(table: str, kind: str) -> str:
    """Return the pattern of an output's name."""
    pattern: str = _outputs()[table][kind]["name"]
    return pattern


@dataclass(frozen=True)
class SpacePaths:
    """Files of one scan in a standard space, named as in OutputPaths.

    Attributes:
        transform: from the T1w to the space: text for an affine, otherwise a displacement field; without a sidecar.
    """

    dseg: dict[str, Path]
    brain: Path
    lesion: Path | None
    transform: Path

    @property
    def files(self) -> list[Path]:
        """All images with their sidecars, and the transform."""
        lesion = [self.lesion] if self.lesion else []
        return [*_with_sidecars([*self.dseg.values(), self.brain, *lesion], self.dseg.values()), self.transform]


@dataclass(frozen=True)
class OutputPaths:
    """Files of one scan, relative to the output folder. Those in dictionaries are keyed by protocol.

    Attributes:
        dseg: label maps, each with a ``.json`` and the look-up table ``.tsv``.
        morph: tables of volumes, each with a ``.json``.
        brain: brain mask, with a ``.json``.
        lesion: lesion mask, with a ``.json``.
        lesions: map of lesions, with a ``.json`` and the look-up table ``.tsv``; None for a model without lesions.
        lesion_table: table of lesions, with a ``.json``; None for a model without lesions.
        lesion_figure: picture of the largest lesions for the report.
        filled: T1w with filled lesions, with a ``.json``; None unless requested.
        probseg: probabilities, with a ``.json``; empty unless requested.
        entropy: maps of uncertainty, with a ``.json``; empty unless requested.
        spaces: files in each requested standard space.
        figures: pictures for the report.
        viewer: 3-D page; None unless requested.
        report: page of the participant, or of the session where there are sessions; scans share it.
    """

    dseg: dict[str, Path]
    morph: dict[str, Path]
    brain: Path
    lesion: Path | None
    lesions: Path | None
    lesion_table: Path | None
    lesion_figure: Path
    probseg: dict[str, Path]
    entropy: dict[str, Path]
    filled: Path | None = None
    spaces: list[SpacePaths] = field(default_factory=list)
    figures: dict[str, Path] = field(default_factory=dict)
    viewer: Path | None = None
    report: Path = Path()

    @property
    def files(self) -> list[Path]:
        """All images and tables with their sidecars, and the viewer (not figures and report)."""
        lesion = [path for path in (self.lesion, self.lesions, self.lesion_table, self.filled) if path]
        main = [*self.dseg.values(), self.brain, *lesion, *self.probseg.values(), *self.entropy.values()]
        main += self.morph.values()
        more = [file for space in self.spaces for file in space.files] + ([self.viewer] if self.viewer else [])
        label_maps = [*self.dseg.values(), *([self.lesions] if self.lesions else [])]
        return _with_sidecars(main, label_maps) + more


def _with_sidecars(files: Iterable[Path], label_maps: Iterable[Path]) -> list[Path]:
    """Return files with their ``.json``, and the look-up tables of label maps."""
    lookups = [with_extension(path, ".tsv") for path in label_maps]
    return [file for path in files for file in (path, with_extension(path, ".json"))] + lookups


def output_paths(
    scan: Scan,
    model_name: str,
    protocols: Iterable[str],
    *,
    probseg: bool = False,
    entropy: bool = False,
    lesion: bool = False,
    filled: bool = False,
    spaces: Iterable[Mapping[str, str]] = (),
    viewer: bool = False,
) -> OutputPaths:
    """Return the paths of all outputs of a scan, relative to the output folder.

    Two scans never share a file, because all entities of the T1w are preserved. A ``desc-`` of the T1w
    (if the input is itself a derivative) is put before the model's name: ``desc-preproc`` becomes
    ``desc-preprocwholebrain``.

    Args:
        spaces: the entities ``space`` and ``res`` of each standard space, and the extension of its ``transform``.
    """
    protocols = list(protocols)

    def one(kind: str, protocol: str = "", **more: str) -> Path:
        return _fill(kind, scan.entities, model=model_name, protocol=protocol, modality=scan.modality, **more)

    def each(kind: str, **more: str) -> dict[str, Path]:
        return {protocol: one(kind, protocol, **more) for protocol in protocols}

    def in_space(space: Mapping[str, str]) -> SpacePaths:
        brain = one("space_brain", **space)
        source = build_name(without_desc(scan.entities))
        way, desc = f"from-{scan.modality}_to-{space['space']}_mode-image", scan.entities.get("desc", "")
        transform = f"{source}_{way}_desc-{desc}{model_name}_xfm{space['transform']}"
        found = one("space_lesion", **space) if lesion else None
        return SpacePaths(each("space_dseg", **space), brain, found, brain.with_name(transform))

    return OutputPaths(
        dseg=each("dseg"),
        morph=each("morph"),
        brain=one("brain"),
        lesion=one("lesion") if lesion else None,
        lesions=one("lesions") if lesion else None,
        lesion_table=one("lesion_table") if lesion else None,
        lesion_figure=one("lesion_figure"),
        probseg=each("probseg") if probseg else {},
        entropy=each("entropy") if entropy else {},
        filled=one("filled") if filled else None,
        spaces=[in_space(space) for space in spaces],
        figures=each("figure"),
        viewer=one("viewer") if viewer else None,
        report=report_path(scan),
    )


def _fill(kind: str, source: Mapping[str, str], **words: str) -> Path:
    return filled("scan", kind, source, **words)


def filled(table: str, kind: str, source: Mapping[str, str], **words: str) -> Path:
    """Return the path of an output, by the table and key of its pattern, with the entities of its source.

    UsageError if a word is not a BIDS label.
    """
    folders = {key: source[key] for key in ("subject", "session") if key in source}
    subject = build_name({"subject": source["subject"]})
    folder = "/".join(build_name({key: label}) for key, label in folders.items())
    pattern = PurePosixPath(_pattern(table, kind))
    parsed = parse_name(pattern.name.format(**words))
    if parsed is None:
        labels = " and ".join(f"'{word}'" for word in words.values())
        raise UsageError(f"{labels} must be BIDS labels: only letters, digits and +")
    added, suffix, extension = parsed
    entities = {**source, **added}
    if "desc" in source:
        entities["desc"] = source["desc"] + added["desc"]
    return Path(str(pattern.parent).format(folder=folder, subject=subject)) / build_name(entities, suffix, extension)


def aseg_path(scan: Scan) -> Path:
    """Return the label map with FreeSurfer's values of a scan; its table has the extension ``.tsv``."""
    return _fill("aseg", scan.entities)


def measure_path(scan: Scan, model_name: str, protocol: str, *, measure: str) -> Path:
    """Return the table of the values of another image in the regions of a scan."""
    return _fill("measure", scan.entities, model=model_name, protocol=protocol, measure=measure)


def report_path(scan: Scan) -> Path:
    """Return the page of the participant, or of the session where there are sessions."""
    return Path(build_name({k: v for k, v in scan.entities.items() if k in ("subject", "session")}, extension=".html"))


def group_table(model_name: str, protocol: str, kind: str = "table") -> Path:
    """Return a table of a cohort; its data dictionary has the extension ``.json``.

    Args:
        kind: ``table``, or one of FURTHER_TABLES.
    """
    build_name({"desc": model_name, "segmentation": protocol})
    return Path(_pattern("group", kind).format(model=model_name, protocol=protocol))


def lesion_regions(source: Mapping[str, str], model: str, other: str, *, protocol: str) -> str:
    """Return the name of the table of lesions by region of a label map.

    Args:
        source: entities of the T1w without ``desc``.
        model, other: ``desc-`` labels of the results with the lesions and with the label map.
    """
    return _fill("lesion_regions", source, model=model, other=other, protocol=protocol).name


def group_lesions(model: str) -> Path:
    """Return the table of the lesions of a cohort; ``model`` is the ``desc-`` label of the results."""
    return Path(_pattern("group", "lesions").format(model=model))


def group_lesion_regions(model: str, other: str, protocol: str) -> Path:
    """Return the table of the lesions of a cohort by region of another label map, see `lesion_regions`."""
    return Path(_pattern("group", "lesion_regions").format(model=model, other=other, protocol=protocol))


def group_changes(model: str, protocol: str) -> Path:
    """Return the table of the changes of a cohort in the regions of a protocol; without one, of its lesions."""
    kind = "changes" if protocol else "lesion_changes"
    return Path(_pattern("group", kind).format(model=model, protocol=protocol))


def group_report() -> Path:
    """Return the page of the cohort."""
    return Path(_pattern("group", "report"))


@dataclass(frozen=True)
class AgreementPaths:
    """Files that compare the label maps of a protocol with a reference, relative to the output folder.

    Attributes:
        table: a row for each scan and region; its data dictionary has the extension ``.json``.
        summary: a row for each region and one for all; its data dictionary has the extension ``.json``.
    """

    table: Path
    summary: Path
    page: Path


def agreement_paths(protocol: str, model: str, reference: str) -> AgreementPaths:
    """Return the outputs of the level evaluate.

    Args:
        model, reference: names of both sides; file names keep their letters, digits and +.
    """
    patterns = [_pattern("group", kind) for kind in ("agreement", "summary", "agreement_page")]
    labels = [re.sub("[^0-9a-zA-Z+]", "", name) or "labels" for name in (protocol, model, reference)]
    words = dict(zip(("protocol", "model", "reference"), labels, strict=True))
    table, summary, page = (Path(pattern.format(**words)) for pattern in patterns)
    return AgreementPaths(table, summary, page)


def root_path(kind: str) -> Path:
    """Return a file or folder at the top of the output, by its key in the patterns: description, readme, logs …"""
    return Path(_pattern("root", kind))


def viewer_table(kind: str, model_name: str, protocol: str) -> Path:
    """Return the table of the regions of a protocol for a viewer: ``itksnap`` or ``slicer``."""
    return Path(_pattern("root", kind).format(model=model_name, protocol=protocol))


def manifest_path(stamp: str) -> Path:
    """Return the manifest of a run; ``stamp`` is its time, e.g. ``20261120T231500``."""
    return root_path("logs") / f"run-{stamp}.json"


def series_log_path(stamp: str) -> Path:
    """Return the manifest of a run of the level longitudinal; ``stamp`` is its time."""
    return root_path("logs") / f"longitudinal-{stamp}.json"


def training_log_path(stamp: str, extension: str) -> Path:
    """Return the manifest (``.json``) or the messages (``.log``) of a training; ``stamp`` is its time."""
    return root_path("logs") / f"train-{stamp}{extension}"


def crash_path(scan: Scan, stamp: str) -> Path:
    """Return the file for the traceback of a failed scan."""
    return root_path("logs") / f"crash-{stamp}_{scan.key[:LONGEST_KEY]}.txt"
