import numpy as np
import pytest
from scipy.stats import binomtest

from copymit.scores import bootstrap
from copymit.scores.bootstrap import (
    bootstrap_ci,
    estimate,
    mean,
    percentile,
    share_above,
    share_below,
    std,
    unanimous_interval,
)

STATISTICS = {
    "mean": (mean, np.mean),
    "std": (std, np.std),
    "p0": (percentile(0.0), lambda x: np.percentile(x, 0)),
    "p75": (percentile(75.0), lambda x: np.percentile(x, 75)),
    "p95": (percentile(95.0), lambda x: np.percentile(x, 95)),
    "p100": (percentile(100.0), lambda x: np.percentile(x, 100)),
    "above": (share_above(0.5), lambda x: np.mean(x > 0.5)),
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_a_statistic_of_counts_equals_numpy_on_the_repeated_values(name, count):
    statistic, oracle = STATISTICS[name]
    rng = np.random.default_rng(count)
    values = np.sort(rng.random(count).round(1))  # with ties
    counts = rng.integers(0, 4, (20, count))
    counts[:, 0] += 1
    found = statistic(values, counts)
    expected = [oracle(np.repeat(values, row)) for row in counts]
    # Float64 sums of at most 160 terms; a standard deviation of 0 is off by its root.
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_an_estimate_does_not_need_sorted_values():
    values = np.array([0.9, 0.1, 0.5, 0.3])
    assert estimate(values, percentile(50.0)) == pytest.approx(0.4)
    assert values[0] == 0.9


def test_the_interval_equals_a_plain_loop_over_the_same_draws():
    values, clusters = np.random.default_rng(0).random(12), np.arange(12) // 3
    drawn = np.random.default_rng(5).integers(0, 4, (300, 4))
    samples = [
        np.concatenate([values[clusters == cluster] for cluster in row]).mean()
        for row in drawn
    ]
    interval = bootstrap_ci(values, {"mean": mean}, clusters, 300, seed=5)["mean"]
    np.testing.assert_allclose(interval, np.percentile(samples, [2.5, 97.5]))


def test_blocks_of_resamples_do_not_change_the_interval(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_ci(values, {"p": percentile(90.0)}, None, 200, seed=1)
    monkeypatch.setattr(bootstrap, "BLOCK_ELEMENTS", 50 * 7)
    assert bootstrap_ci(values, {"p": percentile(90.0)}, None, 200, seed=1) == whole


def test_the_names_and_order_of_clusters_do_not_matter():
    rng = np.random.default_rng(0)
    values, clusters = rng.random(60), np.repeat(np.arange(20), 3)
    shuffled = rng.permutation(60)
    first = bootstrap_ci(values, {"mean": mean}, clusters, 500)["mean"]
    second = bootstrap_ci(
        values[shuffled], {"mean": mean}, 7 + 100 * clusters[shuffled], 500
    )["mean"]
    np.testing.assert_allclose(first, second)


def test_one_cluster_has_no_interval():
    assert bootstrap_ci(np.ones(5), {"mean": mean}, np.zeros(5, int)) == {"mean": None}


@pytest.mark.parametrize("hit", [0, 12])
def test_a_share_in_which_all_agree_has_the_exact_binomial_interval(hit):
    exact = binomtest(hit, 12).proportion_ci(method="exact")
    # Sixteen generations of each of twelve images.
    values, clusters = np.full(192, hit / 12), np.repeat(np.arange(12), 16)
    found = bootstrap_ci(values, {"share": share_above(0.5)}, clusters)["share"]
    assert found == pytest.approx((exact.low, exact.high))
    below = bootstrap_ci(values, {"share": share_below(0.5)}, clusters)["share"]
    assert below == pytest.approx((1 - exact.high, 1 - exact.low))


def test_one_cluster_that_agrees_says_next_to_nothing():
    values, one = np.ones(5), np.zeros(5, int)
    found = bootstrap_ci(values, {"share": share_above(0.5), "mean": mean}, one)
    assert found == {"share": pytest.approx((0.025, 1)), "mean": None}
    assert unanimous_interval(0.0, 1) == pytest.approx((0, 0.975))


@pytest.mark.parametrize(
    ("name", "statistic", "truth"),
    [("mean", mean, 0.0), ("p75", percentile(75.0), 0.674490), ("std", std, 1.0)],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(name, statistic, truth):
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_ci(
            rng.normal(size=150), {name: statistic}, num_resamples=400, seed=trial
        )[name]
        covered += low <= truth <= high
    # 95 % of 200, and three standard deviations of a binomial.
    assert 180 <= covered <= 199


def test_clustered_values_are_covered_only_by_the_clustered_interval():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 5)
    covered = {"clustered": 0, "naive": 0}
    for trial in range(200):
        values = rng.normal(size=60)[clusters] + 0.3 * rng.normal(size=300)
        for name, by in {"clustered": clusters, "naive": None}.items():
            low, high = bootstrap_ci(values, {"m": mean}, by, 400, seed=trial)["m"]
            covered[name] += low <= 0 <= high
    assert 180 <= covered["clustered"] <= 199
    assert covered["naive"] < 150


def test_a_clustered_interval_is_wider_than_the_naive_one():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(100), 4)
    values = rng.normal(size=100)[clusters] + 0.1 * rng.normal(size=400)
    width = {}
    for name, by in {"clustered": clusters, "naive": None}.items():
        low, high = bootstrap_ci(values, {"mean": mean}, by)["mean"]
        width[name] = high - low
    # Four near-equal values a cluster count once: twice the width, less their noise.
    assert width["clustered"] / width["naive"] == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        (np.array([]), None, r"non-empty.*\(0,\)"),
        (np.ones((2, 2)), None, r"\(2, 2\)"),
        (np.array([0.1, np.nan]), None, r"1 of 2 values are NaN.*\[1\]"),
        (np.array([np.inf, 0.1]), None, r"1 of 2 values.*\[0\]"),
        (np.ones(3), np.arange(2), r"clusters has shape \(2,\).*3 values"),
    ],
)
def test_bad_input_is_named(values, clusters, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ci(values, {"mean": mean}, clusters)


def test_a_percentile_beyond_a_hundred_is_refused():
    with pytest.raises(ValueError, match=r"percentile is 950\.0"):
        percentile(950.0)
