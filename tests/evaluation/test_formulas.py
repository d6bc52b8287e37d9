"""The measures of agreement equal plain formulas."""

import numpy as np
import pytest

from bidsseg.evaluation.bootstrap import correlation_estimates, estimate, mean_estimates, participant_means
from bidsseg.evaluation.lesions import count_lesions
from bidsseg.evaluation.summary import bland_altman


def test_lesions_are_connected_pieces() -> None:
    reference, found = np.zeros((12, 12, 12), int), np.zeros((12, 12, 12), int)
    reference[1:3, 1:3, 1:3] = 1  # found
    reference[3, 3, 3] = 1  # touches it at a corner: the same lesion
    reference[8, 8, 8] = 1  # missed
    found[2:4, 2, 2] = 1
    found[8, 1, 1] = found[1, 8, 1] = 1  # two that are not there
    lesions = count_lesions(found, reference, [1, 2], lesions=[1])
    assert (lesions.found[0], lesions.reference[0]) == (3, 2)
    precision, recall = 1 / 3, 1 / 2
    assert (lesions.precision[0], lesions.recall[0]) == (precision, recall)
    assert lesions.f1[0] == pytest.approx(2 * precision * recall / (precision + recall))
    assert np.isnan(lesions.f1[1]) and np.isnan(lesions.found[1])


def test_one_found_lesion_may_match_several() -> None:
    reference, found = np.zeros((1, 1, 9), int), np.ones((1, 1, 9), int)
    reference[0, 0, [1, 4, 7]] = 1
    lesions = count_lesions(found, reference, [1], lesions=[1])
    assert (lesions.precision[0], lesions.recall[0], lesions.f1[0]) == (1, 1, 1)


def test_lesions_that_one_map_lacks() -> None:
    none, some = np.zeros((3, 3, 3), int), np.ones((3, 3, 3), int)
    only_found = count_lesions(some, none, [1], lesions=[1])
    assert (only_found.precision[0], only_found.f1[0]) == (0, 0) and np.isnan(only_found.recall[0])
    only_reference = count_lesions(none, some, [1], lesions=[1])
    assert (only_reference.recall[0], only_reference.f1[0]) == (0, 0) and np.isnan(only_reference.precision[0])
    assert np.isnan(count_lesions(none, none, [1], lesions=[1]).f1[0])


def test_limits_of_agreement() -> None:
    found, reference = np.array([10.0, 12, 15, 9]), np.array([11.0, 11, 13, 9])
    limits = bland_altman(found, reference)
    difference = [-1, 1, 2, 0]
    assert limits.bias == pytest.approx(0.5)
    assert limits.high - limits.bias == pytest.approx(1.96 * np.std(difference, ddof=1))
    assert limits.bias - limits.low == pytest.approx(limits.high - limits.bias)
    assert np.isnan(bland_altman(found[:1], reference[:1]).low)


def test_correlation_is_that_of_numpy() -> None:
    random = np.random.default_rng(0)
    reference = random.normal(100, 10, (20, 3))
    found = reference + random.normal(0, [1, 5, 20], (20, 3))
    found[3, 1] = np.nan
    each, mean = correlation_estimates(found, reference, np.arange(20))
    expected = [np.corrcoef(found[:, 0], reference[:, 0])[0, 1]]
    kept = np.arange(20) != 3
    expected += [np.corrcoef(found[kept, 1], reference[kept, 1])[0, 1], np.corrcoef(found[:, 2], reference[:, 2])[0, 1]]
    np.testing.assert_allclose([entry.mean for entry in each], expected)
    assert mean.mean == pytest.approx(np.mean(expected))
    assert all(entry.low < entry.mean < entry.high for entry in each)
    assert each[0].high - each[0].low < each[2].high - each[2].low
    assert [entry.brains for entry in each] == [20, 19, 20]


def test_correlation_without_spread_or_with_few_scans_is_not_defined() -> None:
    found, reference = np.array([[1.0, 5, 2], [2, 6, 2], [3, 7, np.nan]]), np.array([[7.0, 1, 1], [7, 2, 2], [7, 3, 3]])
    each, mean = correlation_estimates(found, reference, np.arange(3))
    assert np.isnan([each[0].mean, each[2].mean]).all()
    assert [each[1].mean, mean.mean] == pytest.approx([1, 1])
    assert np.isnan(each[1].low), "draws of three people are often of the same one"


def test_scans_of_a_participant_count_as_one() -> None:
    values = np.array([[1.0, 1], [0, np.nan], [0.2, 0.2], [np.nan, np.nan]])
    means = participant_means(values, np.array([0, 0, 1, 2]))
    np.testing.assert_array_equal(means, [[0.5, 1], [0.2, 0.2], [np.nan, np.nan]])
    (first, second) = mean_estimates(means)
    assert first.mean == pytest.approx(0.35) and first.brains == 2
    assert second.mean == pytest.approx(0.6)


def test_the_interval_is_the_bootstrap_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.1, (40, 2))
    values[30:, 1] = np.nan
    for found, column in zip(mean_estimates(values), values.T, strict=True):
        expected = estimate(column)
        assert found.mean == pytest.approx(expected.mean) and found.brains == expected.brains
        np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], atol=0.004)
    (one,) = mean_estimates(np.array([[0.5]]))
    assert one.mean == 0.5 and np.isnan([one.low, one.high]).all()
