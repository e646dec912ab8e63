import numpy as np
import pytest

from copymit.scores.bootstrap import bootstrap_ci, mean
from copymit.scores.paired import paired_differences, unpaired_difference


def clustered_pairs(rng, num_clusters=40, size=5, shift=-0.05):
    """Pairs that share a strong effect of their cluster, and differ by `shift`.

    The difference itself varies by cluster too, as prompts react differently.
    """
    cluster = np.repeat(np.arange(num_clusters), size)
    common = rng.normal(0.6, 0.2, num_clusters)[cluster]
    reaction = rng.normal(shift, 0.03, num_clusters)[cluster]
    noise = rng.normal(0, 0.01, (2, len(cluster)))
    return common + noise[0], common + reaction + noise[1], cluster


def test_the_same_similarities_do_not_differ():
    values = np.random.default_rng(0).random(30)
    found = paired_differences(values, values)
    assert found.mean == (0, (0, 0))
    assert found.dataset_similarity == (0, (0, 0))
    assert found.share_lower == (0, (0, pytest.approx(1 - 0.025 ** (1 / 30))))


def test_a_constant_shift_is_found_exactly_and_without_spread():
    values = np.random.default_rng(0).random(30)
    found = paired_differences(values, values - 0.25)
    for difference in (found.mean, found.dataset_similarity):
        # 1e-12: sums and interpolation of float64.
        np.testing.assert_allclose(difference.value, -0.25, atol=1e-12)
        np.testing.assert_allclose(difference.interval, [-0.25, -0.25], atol=1e-12)
    assert found.share_lower == (1, (pytest.approx(0.025 ** (1 / 30)), 1))


def test_values_are_those_of_numpy():
    first, second, cluster = clustered_pairs(np.random.default_rng(1))
    found = paired_differences(first, second, cluster)
    expected = np.percentile(second, 95) - np.percentile(first, 95)
    np.testing.assert_allclose(found.mean.value, np.mean(second - first))
    np.testing.assert_allclose(found.dataset_similarity.value, expected)
    np.testing.assert_allclose(found.share_lower.value, np.mean(second < first))
    assert (found.num_pairs, found.num_clusters) == (200, 40)


def test_the_mean_has_the_interval_of_the_single_differences():
    first, second, cluster = clustered_pairs(np.random.default_rng(1))
    found = paired_differences(first, second, cluster, seed=3)
    expected = bootstrap_ci(second - first, {"mean": mean}, cluster, seed=3)["mean"]
    np.testing.assert_allclose(found.mean.interval, expected)


def test_the_order_of_the_pairs_does_not_matter_beyond_resampling():
    first, second, cluster = clustered_pairs(np.random.default_rng(1))
    order = np.random.default_rng(2).permutation(len(first))
    straight = paired_differences(first, second, cluster)
    mixed = paired_differences(first[order], second[order], cluster[order])
    np.testing.assert_allclose(straight.mean.interval, mixed.mean.interval)
    np.testing.assert_allclose(
        straight.dataset_similarity.interval, mixed.dataset_similarity.interval
    )


def test_intervals_cover_the_true_difference_as_often_as_they_say():
    rng = np.random.default_rng(0)
    clustered = single = 0
    for trial in range(250):
        first, second, cluster = clustered_pairs(rng, num_clusters=30, size=4)
        found = paired_differences(first, second, cluster, 300, trial)
        low, high = found.mean.interval
        clustered += low <= -0.05 <= high
        low, high = paired_differences(first, second, None, 300, trial).mean.interval
        single += low <= -0.05 <= high
    # 95 % of 250 has a standard deviation of 1.4 %, and percentile intervals of 30
    # clusters are known to be a little short; single draws are far too sure here.
    assert 0.89 <= clustered / 250 <= 0.99
    assert single / 250 < 0.8


def test_pairs_tell_a_difference_that_two_intervals_hide():
    first, second, cluster = clustered_pairs(np.random.default_rng(0))
    paired = paired_differences(first, second, cluster).mean
    estimates = [
        (values.mean(), *bootstrap_ci(values, {"m": mean}, cluster)["m"])
        for values in (first, second)
    ]
    unpaired = unpaired_difference(*estimates)
    assert paired.interval[1] < 0
    assert unpaired.interval[0] < 0 < unpaired.interval[1]
    assert unpaired.value == pytest.approx(paired.value)


def test_an_unpaired_difference_adds_limits_in_squares():
    found = unpaired_difference((0.5, 0.47, 0.54), (0.7, 0.66, 0.73))
    # Distances 0.04 and 0.04 below, 0.03 and 0.03 above.
    assert found.value == pytest.approx(0.2)
    assert found.interval[0] == pytest.approx(0.2 - 0.04 * np.sqrt(2))
    assert found.interval[1] == pytest.approx(0.2 + 0.03 * np.sqrt(2))


def test_an_unpaired_interval_of_normal_means_has_its_closed_form():
    # Of two normal means the difference has variance s1^2/n1 + s2^2/n2.
    first = (1.0, 1 - 1.96 * 0.3, 1 + 1.96 * 0.3)
    second = (2.0, 2 - 1.96 * 0.4, 2 + 1.96 * 0.4)
    low, high = unpaired_difference(first, second).interval
    assert (low, high) == pytest.approx((1 - 1.96 * 0.5, 1 + 1.96 * 0.5))


def test_without_spread_there_is_no_interval():
    assert unpaired_difference((0.5, 0.5, 0.5), (0.7, 0.6, 0.8)).interval is None
    one = paired_differences(
        np.array([0.1, 0.3]), np.array([0.2, 0.5]), np.zeros(2, int)
    )
    assert one.mean == (pytest.approx(0.15), None)


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="3 similarities cannot be paired with 2"):
        paired_differences(np.ones(3), np.ones(2))
