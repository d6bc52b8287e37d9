"""Norms estimated in the user's own controls (``--controls``): the regression, and the z scores of all scans."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bidsseg.bids.particulars import AGE
from bidsseg.derivative.cohort import Absent
from bidsseg.derivative.cohort_numbers import DELIMITER, WHOLE, Numbers
from bidsseg.derivative.deviations import FEWEST, deviations, freedom
from bidsseg.derivative.results import Result
from bidsseg.errors import listed
from bidsseg.reading import NOT_AVAILABLE

Z, IN_CONTROLS, EXTRAPOLATED, DEVIATIONS = "control-z", "in-controls", "extrapolated", "deviations"
FAR = 1.96
"""Distance from 0 beyond which 1 in 20 z scores of normal brains are."""
NORMAL = f"In a normal brain, 1 region in 20 is on average beyond ±{FAR}"
USUAL = ((AGE,), ("sex", "gender"))
"""Names of the covariates that are used unless the user names others; one of each."""
MISSING = ("", "na", "n/a", "nan")
"""Cells without a value, in lower case, as R, pandas and MATLAB write them."""
CONTROLS, SUMMARY = "Controls", "Summary"
"""Key of the model in the data dictionary of the table of z scores, and of its first entry."""
SCORE = f"z score of the volume relative to the controls, see {CONTROLS}"
METHOD = (
    "z score of the difference between the volume and the prediction of a linear regression over the controls: the "
    "quantile of the standard normal distribution with the probability that the difference, divided by its standard "
    "error for a new person, has in the t distribution (Crawford and Garthwaite 2006). A control is compared with the "
    "other controls. The regression of regions contains the head size; that of the brain mask and of the intracranial "
    "volume does not. n/a if a covariate is unknown or no control is like the scan"
)


@dataclass(frozen=True)
class Controls:
    """What the tables of the dataset say about the scans that have results.

    Attributes:
        conditions: those that scans of controls meet.
        keys: the scans that meet them.
        cells: cells by column, by the key of the scan.
        covariates: columns that the user chose; none means those of USUAL that the dataset has.
        categorical: columns that are categories even if their values are numbers.
    """

    conditions: Sequence[str]
    keys: Collection[str]
    cells: Mapping[str, Mapping[str, str]]
    covariates: Sequence[str] = ()
    categorical: Collection[str] = ()

    def of(self, results: Sequence[Result]) -> list[Covariate]:
        """Return the covariates with their values for the scans."""
        rows = [self.cells.get(result.key, {}) for result in results]
        columns = dict.fromkeys(name for row in rows for name, cell in row.items() if cell != NOT_AVAILABLE)
        usual = (next((name for name in columns if name.lower() in names), None) for names in USUAL)
        found = []
        for name in self.covariates or filter(None, usual):
            cells = np.array([_known(row.get(name, NOT_AVAILABLE)) for row in rows], object)
            values = np.array([_number(cell) for cell in cells])
            is_linear = bool(np.isfinite(values[cells != NOT_AVAILABLE]).all()) or name.lower() == AGE
            found.append(Covariate(name, values if is_linear and name not in self.categorical else cells))
        return found

    def problems(self, covariates: Sequence[Covariate]) -> Iterator[str]:
        """Yield a warning for each column of numbers that counts as categories because some cells are no numbers."""
        for covariate in covariates:
            if covariate.is_linear or covariate.name in self.categorical:
                continue
            cells = sorted(set(covariate.values[covariate.known]))
            if any(np.isfinite(_number(cell.replace(",", "."))) for cell in cells):
                word = next(cell for cell in cells if not np.isfinite(_number(cell)))
                yield f"{covariate.name} has an effect for each value, not a linear one: {word} is no number"


@dataclass(frozen=True, eq=False)
class Covariate:
    """A column of the dataset.

    Attributes:
        values: of each scan, shape (N,): numbers, NaN where unknown, or categories, ``n/a`` where unknown.
    """

    name: str
    values: np.ndarray

    @property
    def is_linear(self) -> bool:
        """Whether the values are numbers."""
        return self.values.dtype != object

    @property
    def known(self) -> np.ndarray:
        """Whether the value of each scan is known, booleans (N,)."""
        return np.asarray(np.isfinite(self.values) if self.is_linear else self.values != NOT_AVAILABLE)

    def columns(self, controls: np.ndarray) -> np.ndarray:
        """Return the columns of the design, shape (N, K); none if all controls are equal."""
        if self.is_linear:
            return _standardised(self.values, controls)
        others = sorted(set(self.values[controls]))[1:]
        return (
            np.stack([self.values == level for level in others], axis=1) if others else np.empty((len(self.known), 0))
        )

    def outside(self, controls: np.ndarray) -> np.ndarray:
        """Return whether a known value is beyond those of the controls, booleans (N,)."""
        own = self.values[controls]
        if self.is_linear:
            return np.asarray((self.values < own.min()) | (self.values > own.max()))
        return np.asarray(~np.isin(self.values, own) & self.known)

    def summary(self, controls: np.ndarray) -> dict[str, Any]:
        """Return what the data dictionary says about the controls: range and mean, or the number in each category."""
        own = self.values[controls]
        if self.is_linear:
            numbers = {"Minimum": own.min(), "Maximum": own.max(), "Mean": own.mean()}
            return {name: float(f"{value:.6g}") for name, value in numbers.items()}
        return {"Levels": {level: int((own == level).sum()) for level in sorted(set(own))}}


@dataclass(frozen=True, eq=False)
class Norms:
    """The z scores of the scans of a cohort, and further columns of its table.

    Attributes:
        conditions: those that scans of controls meet.
        controls: the scans of the regression, booleans (N,).
        head: column of the volume that is the head size.
    """

    numbers: Numbers
    conditions: Sequence[str]
    covariates: Sequence[Covariate]
    controls: np.ndarray
    head: int

    @cached_property
    def outside(self) -> dict[str, np.ndarray]:
        """Whether each scan is beyond the controls, booleans (N,), by covariate."""
        return {covariate.name: covariate.outside(self.controls) for covariate in self.covariates}

    @cached_property
    def given(self) -> np.ndarray:
        """Intercept and covariates, without head size, shape (N, P); NaN for scans that no control is like."""
        columns = [covariate.columns(self.controls) for covariate in self.covariates]
        design = np.concatenate([np.ones((len(self.controls), 1)), *columns], axis=1, dtype=float)
        for covariate in self.covariates:
            design[~covariate.known] = np.nan
            if not covariate.is_linear:
                design[self.outside[covariate.name]] = np.nan
        return design

    @cached_property
    def design(self) -> np.ndarray:
        """The design of regions: intercept, covariates and head size."""
        size = _standardised(self.numbers.volumes[:, self.head], self.controls)
        return np.concatenate([self.given, size], axis=1)

    @cached_property
    def z(self) -> np.ndarray:
        """The z scores of all columns of volumes, shape (N, C)."""
        people = np.array([result.source["subject"] for result in self.numbers.results])
        whole, regions = np.split(self.numbers.volumes, [WHOLE], axis=1)
        scores = [
            deviations(volumes, design, people=people, controls=self.controls)
            for volumes, design in ((whole, self.given), (regions, self.design))
        ]
        return np.concatenate(scores, axis=1)

    @property
    def columns(self) -> dict[str, dict[str, Any]]:
        """The columns with their entries in the data dictionary."""
        return {
            IN_CONTROLS: {
                "Description": "Whether the scan is in the regression over the controls "
                f"({' and '.join(self.conditions)}): of each person the first scan that counts and has all covariates",
                "Levels": {"1": "yes", "0": "no"},
            },
            EXTRAPOLATED: {
                "Description": "Covariates of the regression whose values in the scan are beyond those of the controls",
                "Delimiter": DELIMITER,
            },
            DEVIATIONS: {
                "Description": f"Columns of volumes with a z score beyond {FAR} relative to the controls, the farthest "
                "first; in a normal brain, about one in 20",
                "Delimiter": DELIMITER,
            },
        }

    def cells(self, item: Result | Absent) -> dict[str, str]:
        """Return the cells of a scan."""
        row = self.numbers.rows.get(item.key)
        if row is None or not self.numbers.selected[row]:
            return {}
        beyond = [name for name, scans in self.outside.items() if scans[row]]
        far = np.nan_to_num(np.abs(self.z[row]))
        names = [self.numbers.regions[place].column for place in np.argsort(-far, kind="stable") if far[place] > FAR]
        return {
            IN_CONTROLS: str(int(self.controls[row])),
            EXTRAPOLATED: DELIMITER.join(beyond) or NOT_AVAILABLE,
            DEVIATIONS: DELIMITER.join(names) or NOT_AVAILABLE,
        }

    def about(self) -> dict[str, Any]:
        """Return the model as the data dictionary describes it."""
        keys = [result.key for result in self.numbers.results]
        return {
            SUMMARY: str(self),
            "Method": METHOD,
            "Conditions": list(self.conditions),
            "Scans": [key for key, is_control in zip(keys, self.controls, strict=True) if is_control],
            "Covariates": {covariate.name: covariate.summary(self.controls) for covariate in self.covariates},
            "HeadSize": self.numbers.regions[self.head].column,
            "DegreesOfFreedom": freedom(self.design[self.controls]),
        }

    def __str__(self) -> str:
        given = [covariate.name for covariate in self.covariates]
        size = f"head size ({self.numbers.regions[self.head].column})"
        controls = f"{self.controls.sum()} controls ({' and '.join(self.conditions)})"
        return f"z scores relative to {controls}, given {', '.join([*given, size])}"

    def problems(self) -> Iterator[str]:
        """Yield a warning for each reason why scans that count have no scores, or extrapolated ones."""
        for covariate in self.covariates:
            if unknown := self._keys(~covariate.known):
                yield f"no z scores of {unknown}: {covariate.name} is not known"
            if beyond := self._keys(self.outside[covariate.name]):
                known = covariate.summary(self.controls)
                yield (
                    f"z scores of {beyond} are extrapolated: {covariate.name} is beyond that of the controls "
                    f"({known['Minimum']:g} to {known['Maximum']:g})"
                    if covariate.is_linear
                    else f"no z scores of {beyond}: no control has their {covariate.name}"
                )
        is_complete = np.isfinite(self.design).all(axis=1)
        if undetermined := self._keys(is_complete & np.isnan(self.z).all(axis=1)):
            yield f"no z scores of {undetermined}: the controls do not determine the effect of a covariate"

    def _keys(self, scans: np.ndarray) -> str:
        return listed([self.numbers.results[row].key for row in np.flatnonzero(scans & self.numbers.selected)])


def find_norms(numbers: Numbers, about: Controls) -> tuple[Norms | None, list[str]]:
    """Return the norms of a cohort, None with too few controls, and problems, one line each."""
    covariates = about.of(numbers.results)
    head = int(np.isfinite(numbers.volumes[numbers.selected, 1]).all())  # the brain mask, unless all have the eTIV
    usable = numbers.selected & np.isfinite(numbers.volumes[:, head])
    usable &= np.array([result.key in about.keys for result in numbers.results], bool)
    for covariate in covariates:
        usable &= covariate.known
    first: dict[str, int] = {}
    for row in np.flatnonzero(usable).tolist():
        first.setdefault(numbers.results[row].source["subject"], row)
    controls = np.zeros(len(usable), bool)
    controls[list(first.values())] = True
    norms = Norms(numbers, about.conditions, covariates, controls, head)
    degrees = freedom(norms.design[controls]) if first else 0
    problems = list(about.problems(covariates))
    if degrees < FEWEST:
        names = [covariate.name for covariate in covariates]
        return None, [
            *problems,
            f"no z scores: {len(first)} controls with a result{' and known ' if names else ''}{' and '.join(names)}, "
            f"{len(first) - degrees} coefficients: the difference must be at least {FEWEST}",
        ]
    return norms, [*problems, *norms.problems()]


def _standardised(values: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Return values as z scores of the controls, shape (N, 1); none, (N, 0), if the controls are equal."""
    own = values[controls]
    return ((values - own.mean()) / own.std())[:, None] if own.max() > own.min() else np.empty((len(values), 0))


def _known(cell: str) -> str:
    """Return a cell, ``n/a`` for what programs write where a value is missing."""
    return NOT_AVAILABLE if cell.lower() in MISSING else cell


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return np.nan
