"""The numbers of a cohort: volumes, fractions of the brain mask, asymmetry, outliers, and the runs that count."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import Any, TypeVar

import numpy as np

from bidsseg.bids.names import build_name, natural, with_extension
from bidsseg.bids.particulars import Particulars
from bidsseg.derivative import sidecar_keys
from bidsseg.derivative.cohort import CONFIDENCE, EXPECTED_DICE, Absent, Cohort
from bidsseg.derivative.outliers import FAR, FEWEST, robust_z
from bidsseg.derivative.results import Result, mixed_modalities, mixed_passes, mixed_weights
from bidsseg.errors import BidssegError
from bidsseg.labels.protocol import read_protocol
from bidsseg.labels.sides import LEFT, partners, side_of, without_side
from bidsseg.reading import NOT_AVAILABLE
from bidsseg.settings import Runs

T = TypeVar("T")

OUTLIERS, CHECK, SELECTED = "outliers", "check", "selected"
DELIMITER = " "
"""Between the values of one cell, as the data dictionary says."""
RULE = (
    f"robust z score beyond {FAR} (distance from the median of the cohort, divided by 1.4826 times the median absolute "
    "deviation, or by 1.2533 times the mean absolute deviation if more than half of the values are equal; in cohorts "
    f"of at least {FEWEST} scans), of the fraction of the brain mask, and of the volume of the brain mask and the "
    "intracranial volume themselves"
)
WHOLE = 2
"""Number of the first columns, which are no regions: the brain mask and the estimated intracranial volume."""


@dataclass(frozen=True)
class Region:
    """A column of volumes: its name in tables, its full name, and its side (L, R or empty)."""

    column: str
    name: str
    side: str


@dataclass(frozen=True)
class Pair:
    """A region that both sides have, with the positions of both among the columns of volumes."""

    column: str
    name: str
    left: int
    right: int


@dataclass(frozen=True, eq=False)
class Numbers:
    """The numbers of the scans of a cohort that have a table of volumes.

    Attributes:
        results: one for each row, N.
        regions: one for each column, C; the first two are the brain mask and the estimated intracranial volume.
        volumes: counted voxels (mm³), shape (N, C), NaN where the table lacks the region.
        soft: sums of probabilities (mm³), shape (N, C), NaN for the first WHOLE columns.
        quality: shape (N,), NaN where unknown.
        calibrated: whether the quality is an expected Dice, booleans (N,).
        estimated: whether the table of the scan has a row for the intracranial volume, booleans (N,).
        findings: codes of the findings of each scan.
        weights: checksum of the weights that segmented each scan, empty where it is not recorded.
        modalities: modality of the image of each scan, empty where it is not recorded.
        fast: whether each scan was segmented with ``--fast``.
        selected: whether the scan counts, booleans (N,).
    """

    results: list[Result]
    regions: list[Region]
    pairs: list[Pair]
    volumes: np.ndarray
    soft: np.ndarray
    quality: np.ndarray
    calibrated: np.ndarray
    estimated: np.ndarray
    findings: list[list[str]]
    weights: list[str]
    modalities: list[str]
    fast: list[bool]
    selected: np.ndarray

    @cached_property
    def fractions(self) -> np.ndarray:
        """Volumes as fractions of the brain mask, shape (N, C)."""
        return _divided(self.volumes, self.volumes[:, :1])

    @cached_property
    def intracranial_fractions(self) -> np.ndarray:
        """Volumes as fractions of the intracranial volume, shape (N, C); NaN for scans where it is not known."""
        return _divided(self.volumes, self.volumes[:, 1:2])

    @cached_property
    def asymmetry(self) -> np.ndarray:
        """(L − R) / ((L + R) / 2) of each pair, shape (N, P); NaN if both sides are empty."""
        left = self.volumes[:, [pair.left for pair in self.pairs]]
        right = self.volumes[:, [pair.right for pair in self.pairs]]
        return _divided(left - right, (left + right) / 2)

    @cached_property
    def scores(self) -> np.ndarray:
        """Robust z scores of the fractions of the brain mask, and of the volumes in the first columns, shape (N, C)."""
        values = np.concatenate([self.volumes[:, :WHOLE], self.fractions[:, WHOLE:]], axis=1)
        return robust_z(values, self.selected)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each scan, by its key."""
        return {result.key: row for row, result in enumerate(self.results)}

    @cached_property
    def low_quality(self) -> np.ndarray:
        """Whether the quality of a scan is an outlier below the others, booleans (N,)."""
        low: np.ndarray = robust_z(self.quality[:, None], self.selected)[:, 0] < -FAR
        return low

    @cached_property
    def quality_names(self) -> list[str]:
        """What the quality of the scans is; both if scans of different versions of a model are in one folder."""
        known = np.isfinite(self.quality)
        kinds = {EXPECTED_DICE: self.calibrated & known, CONFIDENCE: ~self.calibrated & known}
        return [name for name, scans in kinds.items() if scans.any()]

    @property
    def mixtures(self) -> list[str]:
        """Warnings if weights, passes of the model or modalities of the images differ between the scans that count."""
        keys = [result.key for result in self.results]

        def counted(values: Sequence[T]) -> dict[str, T]:
            return dict(compress(zip(keys, values, strict=True), self.selected))

        found = (
            mixed_weights(counted(self.weights)),
            mixed_modalities(counted(self.modalities)),
            mixed_passes(counted(self.fast)),
        )
        return [warning for warning in found if warning]

    @property
    def without_estimate(self) -> list[str]:
        """Keys of the scans whose table, of a version before 0.17, has no row for the intracranial volume."""
        return [result.key for result, known in zip(self.results, self.estimated, strict=True) if not known]

    def outliers(self, row: int) -> list[str]:
        """Return the columns in which a scan is an outlier."""
        return [self.regions[place].column for place in np.flatnonzero(np.abs(self.scores[row]) > FAR)]

    def check(self, row: int) -> list[str]:
        """Return the reasons to look at a scan."""
        reasons = {
            "findings": bool(self.findings[row]),
            "quality": bool(self.low_quality[row]),
            "outliers": bool(self.outliers(row)),
        }
        return [reason for reason, applies in reasons.items() if applies]


def gather(cohort: Cohort, results: Sequence[Result], runs: Runs, *, unmarked: Container[str] = ()) -> Numbers:
    """Return the numbers of a cohort; scans whose table of volumes cannot be read are left out.

    Args:
        results: results of the cohort, in natural order.
        runs: the runs that count, see `chosen_runs`.
        unmarked: keys of the scans that the user left out (``--where``).
    """
    names = {name: place for place, name in enumerate(cohort.regions.values())}
    readable, counted, soft, calibrated, estimated = [], [], [], [], []
    qualities, corrected, findings, weights, modalities, fast = [], [], [], [], [], []
    for result in results:
        try:
            table = result.volumes()
        except (OSError, ValueError):  # reported when the table of the cohort is written
            continue
        rows = np.full((2, len(names)), np.nan)
        for volume in table:
            if (place := names.get(volume.name)) is not None:
                rows[:, place] = volume.volume_mm3, np.nan if volume.soft_mm3 is None else volume.soft_mm3
        readable.append(result)
        calibrated.append(result.is_calibrated(table))
        estimated.append(any(volume.is_intracranial for volume in table))
        counted.append(rows[0])
        soft.append(rows[1])
        sidecar = result.sidecar()
        qualities.append(sidecar_keys.quality(sidecar))
        corrected.append(runs == "best" and result.is_corrected())
        findings.append(sidecar_keys.finding_codes(sidecar))
        weights.append(sidecar_keys.weights(sidecar))
        modalities.append(sidecar_keys.modality(sidecar))
        fast.append(sidecar_keys.is_fast(sidecar))
    regions, pairs = _regions(cohort, readable)
    quality = np.array([np.nan if value is None else value for value in qualities])
    rank = np.where(corrected, np.inf, quality)
    shape = len(readable), len(names)
    marked = [row for row, result in enumerate(readable) if result.key not in unmarked]
    selected = np.zeros(len(readable), bool)
    selected[marked] = chosen_runs([readable[row].source for row in marked], rank[marked], runs)
    return Numbers(
        readable,
        regions,
        pairs,
        volumes=np.array(counted).reshape(shape),
        soft=np.array(soft).reshape(shape),
        quality=quality.reshape(shape[0]),
        calibrated=np.array(calibrated, bool),
        estimated=np.array(estimated, bool),
        findings=findings,
        weights=weights,
        modalities=modalities,
        fast=fast,
        selected=selected,
    )


def chosen_runs(sources: Sequence[Mapping[str, str]], quality: np.ndarray, runs: Runs) -> np.ndarray:
    """Return which scans count, among those whose entities are equal except for the run.

    Args:
        sources: entities of the scans.
        quality: shape (N,), NaN where unknown, infinite for results that were corrected by hand.
        runs: ``all``; ``first``, the run with the lowest number; or ``best``, that with the highest quality, the first
            of equal ones.

    Returns:
        Booleans, shape (N,).
    """
    chosen: dict[str, int] = {}
    # Not the order of the keys, in which space- without run- follows run-1.
    for row in sorted(range(len(sources)), key=lambda row: natural(sources[row].get("run", ""))):
        key = build_name({name: label for name, label in sources[row].items() if name != "run"})
        before = chosen.setdefault(key, row)
        if runs == "best" and np.nan_to_num(quality[row], nan=-1.0) > np.nan_to_num(quality[before], nan=-1.0):
            chosen[key] = row
    counts = np.full(len(sources), runs == "all")
    counts[list(chosen.values())] = True
    return counts


@dataclass(frozen=True, eq=False)
class Flags:
    """Columns that flag the scans to look at, and those that count unless all do.

    Attributes:
        where: conditions of the scans that count.
    """

    numbers: Numbers
    runs: Runs
    where: Sequence[str] = ()

    @property
    def columns(self) -> dict[str, dict[str, Any]]:
        """The columns with their entries in the data dictionary."""
        described: dict[str, dict[str, Any]] = {
            OUTLIERS: {
                "Description": f"Columns of volumes in which the scan is an outlier: {RULE}",
                "Delimiter": DELIMITER,
            },
            CHECK: {
                "Description": "Reasons to look at the scan, separated by blanks; n/a: none",
                "Delimiter": DELIMITER,
                "Levels": {
                    "status": "the scan has no result",
                    "findings": "the scan or its result has findings",
                    "quality": f"robust z score of the quality below -{FAR}",
                    "outliers": "volumes are outliers",
                },
            },
        }
        if self._rules:
            described[SELECTED] = {
                "Description": "Whether the scan counts in the other tables and in the rule of outliers: "
                f"{', and '.join(self._rules)}",
                "Levels": {"1": "the scan counts", "0": "it does not, another run counts, or there is no result"},
            }
        return described

    @property
    def _rules(self) -> list[str]:
        """What is said of a scan that counts; empty if all do."""
        marked = [f"{' and '.join(self.where)} in the tables of the dataset"] if self.where else []
        if self.runs == "all":
            return marked
        rule = {"best": "corrected by hand, otherwise highest quality", "first": "lowest number"}[self.runs]
        return [*marked, f"{rule} among the scans with results whose other entities are equal"]

    def cells(self, item: Result | Absent) -> dict[str, str]:
        """Return the cells of a scan."""
        row = self.numbers.rows.get(item.key)
        selected = {SELECTED: str(int(row is not None and self.numbers.selected[row]))} if self._rules else {}
        if row is None:
            return {CHECK: "status", **selected}
        return {
            OUTLIERS: DELIMITER.join(self.numbers.outliers(row)) or NOT_AVAILABLE,
            CHECK: DELIMITER.join(self.numbers.check(row)) or NOT_AVAILABLE,
            **selected,
        }


class People:
    """Columns with what the dataset says about participants and sessions.

    Args:
        measured: further columns of the long table.
    """

    def __init__(self, particulars: Particulars, cohort: Cohort, measured: Iterable[str] = ()) -> None:
        taken = {*cohort.data_dictionary(), *RESERVED, *measured}
        self.particulars, self.names = particulars, particulars.columns(taken)

    @property
    def columns(self) -> dict[str, dict[str, Any]]:
        """The columns with their entries in the data dictionary."""
        return {name: self.particulars.description(*column) for column, name in self.names.items()}

    def cells(self, item: Result | Absent) -> dict[str, str]:
        """Return the cells of a scan."""
        return {self.names[column]: cell for column, cell in self.particulars.cells(item.source).items()}


LONG: dict[str, dict[str, Any]] = {
    "region": {"Description": "Name of the region's column in the table of the cohort"},
    "name": {"Description": "Name of the region"},
    "hemisphere": {"Description": "Side of the region", "Levels": {"L": "left", "R": "right", "n/a": "midline"}},
    "volume-mm3": {"Description": "Number of voxels times the volume of a voxel", "Units": "mm^3"},
    "softvolume-mm3": {
        "Description": "Sum of the probabilities of the region over all voxels times the volume of a voxel",
        "Units": "mm^3",
    },
    "brainmask-fraction": {
        "Description": "Volume divided by the volume of the brain mask (column BrainMask), which contains brain, "
        "ventricles and the fluid around the brain that the model includes"
    },
    "intracranial-fraction": {
        "Description": "Volume divided by the estimated total intracranial volume (column eTIV); n/a where it is not "
        "known"
    },
    "asymmetry": {"Description": "(L - R) / ((L + R) / 2) of the region and its partner; the same in both rows"},
    "robust-z": {"Description": f"Robust z score; {RULE} is an outlier"},
    "outlier": {"Description": f"Whether the region is an outlier: {RULE}", "Levels": {"1": "yes", "0": "no"}},
}
"""Columns of the long table that belong to a region, with their entries in the data dictionary."""
RESERVED = {*LONG, OUTLIERS, CHECK, SELECTED, "Description"}
"""Names that columns of the dataset cannot have in the tables of a cohort."""


def _divided(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return quotients, NaN where the divisor is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(by > 0, values / by, np.nan))


def _regions(cohort: Cohort, results: Sequence[Result]) -> tuple[list[Region], list[Pair]]:
    """Return the regions of the columns, and the pairs of regions, by the label map's table or else by their names."""
    names, columns = list(cohort.regions.values()), list(cohort.regions)
    sides, others = [side_of(name) for name in names], list(partners(names, [""] * len(names)))
    for result in results[:1]:
        try:
            protocol, _ = read_protocol(with_extension(result.dseg, ".tsv"))
        except BidssegError:
            break
        spoken = [region.name for region in protocol.regions]
        if len(set(spoken)) == len(spoken):
            known = {name: place for place, name in enumerate(spoken)}
            sides = [protocol.hemispheres[known[name]] if name in known else "" for name in names]
            others = [_other(protocol.sides[known[name]] if name in known else None, spoken, names) for name in names]
    left = [
        (place, other)
        for place, (side, other) in enumerate(zip(sides, others, strict=True))
        if side == LEFT and other is not None and other != place
    ]
    short = [without_side(columns[place]) for place, _ in left]
    unique = len(set(short)) == len(short)
    pairs = [
        Pair(name if unique else columns[place], without_side(names[place]), place, other)
        for name, (place, other) in zip(short, left, strict=True)
    ]
    return [Region(*each) for each in zip(columns, names, sides, strict=True)], pairs


def _other(partner: int | None, spoken: Sequence[str], names: Sequence[str]) -> int | None:
    """Return the column of a partner in a protocol; None if there is none."""
    return names.index(spoken[partner]) if partner is not None and spoken[partner] in names else None
