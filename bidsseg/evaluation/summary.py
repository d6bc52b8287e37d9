"""Summary of the comparisons of many scans, for each region and for all regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bidsseg.evaluation.agreement import brain_means, scored_regions
from bidsseg.evaluation.bootstrap import Estimate, correlation_estimates, mean_estimates, participant_means
from bidsseg.evaluation.comparison import Case
from bidsseg.evaluation.pairs import About, Left
from bidsseg.labels.protocol import Protocol, Region

MEASURES = {
    "dice": "dice",
    "hausdorff95-mm": "hausdorff95_mm",
    "surface-distance-mm": "surface_distance_mm",
    "volume-difference-mm3": "volume_difference_mm3",
    "volume-difference-percent": "volume_difference_percent",
}
"""Attributes of an agreement by the columns of the tables."""
ABSOLUTE = "absolute-volume-difference-percent"
LESION_MEASURES = {"lesion-precision": "precision", "lesion-recall": "recall", "lesion-f1": "f1"}
LIMITS = 1.96
"""Half the distance between the limits of agreement, in standard deviations."""


@dataclass(frozen=True)
class BlandAltman:
    """Differences of volumes (found less reference, mm³) over scans; NaN where there are too few.

    Attributes:
        bias: mean difference.
        low, high: limits of agreement, the bias minus and plus 1.96 standard deviations.
    """

    bias: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """The results of a region over all scans.

    Attributes:
        region: the region; None for the mean over regions.
        scans: number of scans in which either map has the region.
        measures: mean of each measure; for the mean over regions, also the voxel error.
        found_mm3, reference_mm3: mean volumes.
        correlation: correlation of the volumes over scans.
        volumes: agreement of the volumes over scans.
        only_found, only_reference: number of scans in which only one of the maps has the region.
    """

    region: Region | None
    scans: int
    measures: dict[str, Estimate]
    found_mm3: float
    reference_mm3: float
    correlation: Estimate
    volumes: BlandAltman
    only_found: int
    only_reference: int


@dataclass(frozen=True, eq=False)
class Study:
    """All comparisons of a protocol, with B scans and R regions.

    Attributes:
        cases: comparisons, at least one, in the order of the tables.
        left: scans that were not compared.
    """

    protocol: Protocol
    cases: Sequence[Case]
    about: About
    left: Sequence[Left] = ()

    @cached_property
    def regions(self) -> list[Region]:
        """The regions of the measures."""
        return scored_regions(self.protocol)

    @cached_property
    def participants(self) -> np.ndarray:
        """Number of the participant of each scan, from 0, shape (B,)."""
        labels = [case.pair.source["subject"] for case in self.cases]
        numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
        return np.array([numbers[label] for label in labels])

    def values(self, name: str) -> np.ndarray:
        """Return an attribute of the agreements of all scans, shape (B, R)."""
        return np.stack([getattr(case.agreement, name) for case in self.cases])

    @cached_property
    def measures(self) -> dict[str, np.ndarray]:
        """Every measure of a region, each of shape (B, R)."""
        found = {column: self.values(name) for column, name in MEASURES.items()}
        found[ABSOLUTE] = np.abs(found["volume-difference-percent"])
        if self.protocol.lesions:
            for column, name in LESION_MEASURES.items():
                rows = [case.lesions for case in self.cases]
                found[column] = np.stack([getattr(row, name) for row in rows])
        return found

    @cached_property
    def voxel_errors(self) -> np.ndarray:
        """The voxel error of each scan, shape (B,)."""
        return np.array([case.agreement.voxel_error for case in self.cases])

    @cached_property
    def scan_means(self) -> dict[str, np.ndarray]:
        """Every measure as the mean over the regions of each scan, and the voxel error, each of shape (B,)."""
        means = {name: brain_means(values) for name, values in self.measures.items()}
        return {**means, "voxel-error": self.voxel_errors}

    @cached_property
    def volumes(self) -> tuple[np.ndarray, np.ndarray]:
        """Found and reference volumes (mm³), both (B, R); NaN for a region that neither map has."""
        absent = np.isnan(self.measures["dice"])
        found, reference = self.values("found_mm3"), self.values("reference_mm3")
        return np.where(absent, np.nan, found), np.where(absent, np.nan, reference)

    @cached_property
    def mean_volumes(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean found and reference volumes (mm³) over the scans of a participant, then participants, both (R,)."""
        found, reference = (brain_means(participant_means(each, self.participants).T) for each in self.volumes)
        return found, reference

    @cached_property
    def summaries(self) -> list[Summary]:
        """The mean over regions, then each region that any map has.

        Means are over the regions of a scan, the scans of a participant, and participants.
        """
        columns = [*self.measures.values(), *(means[:, None] for means in self.scan_means.values())]
        estimates = iter(mean_estimates(participant_means(np.column_stack(columns), self.participants)))
        of_regions = [dict[str, Estimate]() for _ in self.regions]
        for name in self.measures:
            for row in of_regions:
                row[name] = next(estimates)
        overall = dict(zip(self.scan_means, estimates, strict=True))
        correlations, mean_correlation = correlation_estimates(*self.volumes, self.participants)
        rows = [
            self._summary(place, of_regions[place], correlations[place])
            for place in range(len(self.regions))
            if np.isfinite(self.volumes[0][:, place]).any()
        ]
        nan = float("nan")
        everything = Summary(
            None,
            len(self.cases),
            overall,
            nan,
            nan,
            mean_correlation,
            BlandAltman(nan, nan, nan),
            sum(row.only_found for row in rows),
            sum(row.only_reference for row in rows),
        )
        return [everything, *rows]

    def in_words(self) -> str:
        """Return the number of scans and the mean Dice."""
        dice = self.summaries[0].measures["dice"]
        interval = f" ({dice.low:.3f} to {dice.high:.3f})" if np.isfinite(dice.low) else ""
        left = f", {len(self.left)} not compared" if self.left else ""
        return f"{len(self.cases)} scans{left}, mean Dice {dice.mean:.3f}{interval}"

    def _summary(self, place: int, measures: dict[str, Estimate], correlation: Estimate) -> Summary:
        """Return the summary of the region at that position."""
        found, reference = (volumes[:, place] for volumes in self.volumes)
        known = np.isfinite(found)
        found, reference = found[known], reference[known]
        return Summary(
            self.regions[place],
            int(known.sum()),
            measures,
            float(self.mean_volumes[0][place]),
            float(self.mean_volumes[1][place]),
            correlation,
            bland_altman(found, reference),
            int(((found > 0) & (reference == 0)).sum()),
            int(((found == 0) & (reference > 0)).sum()),
        )


def bland_altman(found: np.ndarray, reference: np.ndarray) -> BlandAltman:
    """Return bias and limits of agreement of two volumes (mm³) of each scan, each array of shape (B,).

    See Bland and Altman 1986, doi 10.1016/S0140-6736(86)90837-8.
    """
    difference = found - reference
    bias = float(difference.mean())
    half = LIMITS * float(difference.std(ddof=1)) if len(difference) > 1 else float("nan")
    return BlandAltman(bias, bias - half, bias + half)
