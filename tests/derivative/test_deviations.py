"""z scores of scans relative to a regression over controls."""

import numpy as np
import pytest
from scipy import stats

from bidsseg.derivative.deviations import deviations, freedom


def cohort(n: int, seed: int = 0, columns: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return values that depend on age, sex and head size, and the design, for n people."""
    random = np.random.default_rng(seed)
    age, sex, head = random.uniform(20, 80, n), np.arange(n) % 2, random.normal(1400, 120, n)
    design = np.column_stack([np.ones(n), (age - 50) / 17, sex, (head - 1400) / 120])
    effects = random.normal(size=(4, columns))
    return 100 + design @ effects + random.normal(size=(n, columns)), design


def people(n: int) -> np.ndarray:
    return np.array([f"{number:02}" for number in range(n)])


def test_a_new_person_has_the_score_of_the_textbook_formula() -> None:
    values, design = cohort(30)
    controls = np.arange(30) < 20
    found = deviations(values, design, people=people(30), controls=controls)
    x, y = design[controls], values[controls]
    normal = np.linalg.inv(x.T @ x)
    beta = normal @ x.T @ y
    s = np.sqrt(((y - x @ beta) ** 2).sum(axis=0) / (20 - 4))
    leverage = np.array([row @ normal @ row for row in design[20:]])
    t = (values[20:] - design[20:] @ beta) / (s * np.sqrt(1 + leverage)[:, None])
    np.testing.assert_allclose(found[20:], stats.norm.ppf(stats.t.cdf(t, 16)), rtol=1e-8)


def test_a_control_has_its_externally_studentised_residual() -> None:
    values, design = cohort(20)
    found = deviations(values, design, people=people(20), controls=np.ones(20, bool))
    hat = design @ np.linalg.inv(design.T @ design) @ design.T
    residual, leverage = values - hat @ values, np.diag(hat)[:, None]
    total = (residual**2).sum(axis=0)
    deleted = np.sqrt((total - residual**2 / (1 - leverage)) / (20 - 4 - 1))
    t = residual / (deleted * np.sqrt(1 - leverage))
    np.testing.assert_allclose(found, stats.norm.ppf(stats.t.cdf(t, 15)), rtol=1e-8)


def test_scores_of_new_normal_people_are_standard_normal_with_few_controls() -> None:
    n, repeats = 15, 400
    scores = []
    for seed in range(repeats):
        values, design = cohort(n + 5, seed)
        scores.append(deviations(values, design, people=people(n + 5), controls=np.arange(n + 5) < n))
    new, own = np.concatenate([each[n:] for each in scores]), np.concatenate([each[:n] for each in scores])
    for found in (new, own):
        assert found.mean() == pytest.approx(0, abs=0.05) and found.std() == pytest.approx(1, abs=0.03)
        assert (np.abs(found) > 1.96).mean() == pytest.approx(0.05, abs=0.01)


def test_no_scan_of_a_control_is_compared_with_that_person() -> None:
    values, design = cohort(21)
    values[20], design[20] = values[0], design[0]  # the second session of the first control
    labels = people(21)
    labels[20] = labels[0]
    controls = np.arange(21) < 20
    found = deviations(values, design, people=labels, controls=controls)
    np.testing.assert_array_equal(found[20], found[0])
    others = deviations(values, design, people=people(21), controls=controls & (np.arange(21) > 0))
    np.testing.assert_allclose(found[20], others[20], rtol=1e-9)


def test_covariates_that_say_the_same_count_once() -> None:
    values, design = cohort(30)
    controls = np.arange(30) < 20
    twice = np.column_stack([design, 12 * design[:, 1] + design[:, 2]])
    expected = deviations(values, design, people=people(30), controls=controls)
    np.testing.assert_allclose(deviations(values, twice, people=people(30), controls=controls), expected, rtol=1e-6)
    assert freedom(twice[controls]) == freedom(design[controls]) == 16


def test_what_the_controls_do_not_determine_has_no_score() -> None:
    values, design = cohort(30)
    controls = np.arange(30) < 20
    only = np.zeros(30)
    only[[0, 25]] = 1  # a site of one control and one patient
    found = deviations(values, np.column_stack([design, only]), people=people(30), controls=controls)
    assert np.isnan(found[0]).all(), "no other control is of this site"
    assert np.isfinite(found[1:]).all()
    unknown = design.copy()
    unknown[25, 1] = np.nan
    found = deviations(values, unknown, people=people(30), controls=controls)
    assert np.isnan(found[25]).all() and np.isfinite(np.delete(found, 25, axis=0)).all()


def test_columns_without_variance_or_with_gaps_have_no_score() -> None:
    values, design = cohort(30, columns=4)
    controls = np.arange(30) < 20
    values[:, 0] = 0
    values[:, 1] = design @ [500.0, 20, 3, 40]
    values[3, 2] = np.nan
    values[25, 3] = np.nan
    found = deviations(values, design, people=people(30), controls=controls)
    assert np.isnan(found[:, :3]).all() and np.isnan(found[25, 3])
    assert np.isfinite(np.delete(found[:, 3], 25)).all()


def test_an_extreme_value_has_a_finite_score() -> None:
    values, design = cohort(400)
    values[399] = 1e9
    found = deviations(values, design, people=people(400), controls=np.arange(400) < 399)
    assert (found[399] > 30).all() and np.isfinite(found[399]).all()


def test_a_column_in_which_one_control_differs() -> None:
    values, design = cohort(30)
    controls = np.arange(30) < 20
    values[:, 0] = 0
    values[4, 0] = 1000
    found = deviations(values, design, people=people(30), controls=controls)
    assert np.isnan(found[4, 0]), "the others are equal"
    assert np.isfinite(np.delete(found[:, 0], 4)).all()
