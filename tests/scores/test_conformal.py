import numpy as np
import pytest
from scipy import stats

from copymit.scores.conformal import (
    adjust,
    combine,
    effective_count,
    fit_null,
    p_values,
    share_interval,
    share_unseen,
    value_at,
)


def nearness(rng, count, dimension=20, neighbours=11):
    """Logarithms of ratios of distances in a homogeneous cloud of points.

    Volumes up to the next neighbours are a Poisson process.
    """
    volumes = np.cumsum(rng.exponential(size=(count, neighbours)), axis=1)
    logs = np.log(volumes) / dimension
    return np.median(logs[:, 1:], axis=1) - logs[:, 0]


def test_p_values_of_images_like_the_null_are_uniform(rng):
    found = p_values(fit_null(nearness(rng, 2000)), nearness(rng, 2000))
    assert stats.kstest(found, "uniform").pvalue > 0.01


@pytest.mark.parametrize("count", [50, 200, 2000])
def test_the_tail_keeps_its_promise_on_average(rng, count):
    """The mean over many null sets counts that the scale is estimated from few."""
    level = 1e-3
    found = [
        (p_values(fit_null(nearness(rng, count)), nearness(rng, 5000)) <= level).mean()
        for _ in range(300)
    ]
    assert 0.2 * level < np.mean(found) < 1.6 * level


def test_ties_and_the_image_itself_are_counted():
    null = fit_null(np.array([0.1, 0.2, 0.2, 0.3]))
    found = p_values(null, np.array([0.05, 0.2, 0.3, 0.9, np.nan]))
    np.testing.assert_allclose(found, [1, 4 / 5, 2 / 5, 1 / 5, np.nan])


@pytest.mark.parametrize("p_value", [0.5, 0.05, 1e-3, 1e-6])
def test_the_value_of_a_p_value_is_the_least_that_has_it(rng, p_value):
    null = fit_null(nearness(rng, 500))
    value = value_at(null, p_value)
    assert p_values(null, np.array([value + 1e-9]))[0] <= p_value * (1 + 1e-6)
    assert p_values(null, np.array([value - 1e-6]))[0] > p_value * (1 - 1e-3)


def test_few_images_reach_no_small_p_value():
    null = fit_null(np.linspace(0, 1, 20))
    assert null.size == 0
    assert p_values(null, np.array([9.0]))[0] == pytest.approx(1 / 21)
    assert value_at(null, 0.01) == np.inf
    assert value_at(null, 1.0) == -np.inf


def test_a_heavier_tail_makes_large_values_less_surprising(rng):
    light, heavy = rng.exponential(size=900), rng.exponential(size=900) ** 1.3
    heavy *= np.percentile(light, 97) / np.percentile(heavy, 97)
    where = np.array([2 * np.percentile(light, 97)])
    assert p_values(fit_null(light), where)[0] < p_values(fit_null(heavy), where)[0]


def test_duplicates_among_the_images_are_left_out_of_the_null(rng):
    """Near copies among a tenth of the training set hid all copies."""
    alone = nearness(rng, 1800)
    both = np.concatenate([alone, 1.2 + 0.4 * rng.random(150)])
    assert len(fit_null(both).values) < 1850
    copy = np.array([1.3])
    assert p_values(fit_null(both), copy)[0] < 1e-3
    assert (both >= 1.3).mean() > 0.03
    assert len(fit_null(alone).values) >= 1795


def test_p_values_of_several_witnesses_are_one_valid_p_value(rng):
    p = rng.random((3, 20_000))
    np.testing.assert_allclose(combine(p[:1]), p[0])
    both = combine(p[:2])
    assert (both >= p[:2].min(axis=0)).all()
    # Closed form: 1 - (1 - x / 2)^2 of two independent ones, at most x; 5 deviations.
    for x in (0.01, 0.1, 0.5):
        expected = 1 - (1 - x / 2) ** 2
        assert abs((both <= x).mean() - expected) < 5 * np.sqrt(expected / 20_000)
    assert (combine(p[[0, 0]]) <= 0.1).mean() <= 0.1  # one witness twice
    some = np.array([[0.01, np.nan, np.nan], [0.3, 0.2, np.nan]])
    np.testing.assert_array_equal(combine(some), [0.02, 0.2, np.nan])


def test_q_values_are_scipys_and_what_is_not_tested_counts_not(rng):
    p = rng.random(50) ** 3
    np.testing.assert_allclose(adjust(p), stats.false_discovery_control(p))
    with_gaps = np.insert(p, [3, 20], np.nan)
    np.testing.assert_allclose(adjust(with_gaps)[~np.isnan(with_gaps)], adjust(p))
    assert np.isnan(adjust(np.full(3, np.nan))).all()


@pytest.mark.parametrize(("hits", "count"), [(0, 210), (12, 210), (7, 7), (1, 30)])
def test_the_interval_of_a_share_is_scipys(hits, count):
    exact = stats.binomtest(hits, count).proportion_ci(0.95, "exact")
    found = share_interval(hits / count, count)
    assert found == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_a_share_that_escapes_is_scipys_one_sided_bound():
    bound = stats.binomtest(0, 210, alternative="less").proportion_ci(0.95, "exact")
    assert share_unseen(210) == pytest.approx(bound.high)


def test_images_of_one_prompt_count_less(rng):
    alone = rng.random(400) < 0.3
    assert effective_count(alone, None) == 400
    by_prompt = np.repeat(alone[:40], 10)
    clusters = np.repeat(np.arange(40), 10)
    assert effective_count(by_prompt, clusters) == pytest.approx(40, rel=0.15)
    assert effective_count(np.zeros(400), clusters) == 40
    assert effective_count(alone, clusters) > 150
