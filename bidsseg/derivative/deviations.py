"""Deviations of scans from what a linear regression over controls predicts, as z scores."""

from __future__ import annotations

import numpy as np

FEWEST = 10
"""Fewest degrees of freedom of a regression: controls minus coefficients."""
NOTICEABLE = 1e-8
"""Smallest difference, as a fraction of a value, that is not rounding."""


def deviations(values: np.ndarray, design: np.ndarray, *, people: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Return the z scores of the differences between values and their predictions.

    A difference is divided by its standard error for a new person, which contains the uncertainty of the regression
    (Crawford and Garthwaite 2006, doi:10.1037/0894-4105.20.3.259). This quotient has a t distribution; the score is the
    quantile of the standard normal distribution with the same probability. Scores of new normal people are therefore
    normal, however few the controls. Scans of a control are compared with the other controls, so that the score of a
    control is its externally studentised residual.

    Args:
        values: shape (N, C), NaN where unknown.
        design: the intercept and the covariates of each scan, shape (N, P), NaN where unknown.
        people: label of the participant of each scan, shape (N,).
        controls: the scans of the regression, one for each person; their design is known. Booleans (N,).

    Returns:
        Shape (N, C). NaN for scans with unknown covariates, or with covariates whose effect the controls do not
        determine, and for columns that are unknown or without variance in the controls.
    """
    from scipy.special import ndtri, stdtr

    inverse = np.linalg.pinv(design[controls])
    differences = values - design @ (inverse @ values[controls])
    squares = np.square(differences[controls]).sum(axis=0)
    squares[squares <= np.square(NOTICEABLE * np.abs(values[controls]).max(axis=0))] = np.nan
    is_determined = np.isclose(design @ (inverse @ design[controls]), design, rtol=0, atol=NOTICEABLE).all(axis=1)
    products = np.where(is_determined, 1.0, np.nan)[:, None] * design @ (inverse @ inverse.T)
    leverage = (products * design).sum(axis=1, keepdims=True)
    # The own scan of a control is left out by the formulas of deleted residuals, without further regressions.
    first = int(np.flatnonzero(controls)[0])  # a placeholder for people who are no controls, with weight 0
    places = {person: row for row, person in zip(np.flatnonzero(controls).tolist(), people[controls], strict=True)}
    own = np.array([places.get(person, first) for person in people])
    has_own, rest = np.isin(people, people[controls])[:, None], 1 - leverage[own]
    weight = np.where(has_own, 1 / np.where(rest > NOTICEABLE, rest, np.nan), 0)
    shared = (products * design[own]).sum(axis=1, keepdims=True)
    others = squares - weight * np.square(differences[own])
    others[others <= NOTICEABLE * squares] = np.nan
    degrees = freedom(design[controls]) - has_own
    error = np.sqrt(others / degrees * (1 + leverage + weight * np.square(shared)))
    t = (differences + weight * shared * differences[own]) / error
    tail = np.maximum(stdtr(degrees, -np.abs(t)), np.finfo(float).tiny)  # np.maximum keeps NaN
    return np.asarray(-np.sign(t) * ndtri(tail))


def freedom(design: np.ndarray) -> int:
    """Return the degrees of freedom of the residuals of a regression, of shape (N, P)."""
    return len(design) - int(np.linalg.matrix_rank(design))
