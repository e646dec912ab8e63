"""Rates of detectors against all pairs and all thresholds, one by one."""

import itertools

import numpy as np
import pytest

from copymit.scores.detection import (
    compute_auc,
    compute_roc,
    detection_summary,
    true_positive_rate_at,
)


def auc_by_pairs(scores, memorised):
    pairs = itertools.product(scores[memorised], scores[~memorised])
    return np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs])


def rate_by_thresholds(scores, memorised, limit):
    found = [0.0]
    for threshold in scores:
        called = scores >= threshold
        if called[~memorised].mean() <= limit:
            found.append(called[memorised].mean())
    return max(found)


def some_scores(kind, rng, count=80):
    memorised = rng.random(count) < 0.4
    scores = rng.normal(size=count) + memorised
    # Ties, within a kind and between them.
    return (np.round(scores) if kind == "tied" else scores), memorised


@pytest.mark.parametrize("kind", ["distinct", "tied"])
def test_auc_is_the_share_of_pairs_in_the_right_order(kind, rng):
    scores, memorised = some_scores(kind, rng)
    expected = auc_by_pairs(scores, memorised)
    assert 0.6 < expected < 0.95
    assert compute_auc(scores, memorised) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["distinct", "tied"])
def test_auc_is_the_area_under_the_curve(kind, rng):
    scores, memorised = some_scores(kind, rng)
    roc = compute_roc(scores, memorised)
    area = np.trapezoid(roc.true_positive_rates, roc.false_positive_rates)
    assert compute_auc(scores, memorised) == pytest.approx(area, abs=1e-12)


def test_the_curve_goes_from_nothing_to_everything_by_the_rates_of_thresholds(rng):
    scores, memorised = some_scores("tied", rng)
    roc = compute_roc(scores, memorised)
    assert roc.thresholds[0] == np.inf
    np.testing.assert_array_equal(roc.thresholds[1:], np.unique(scores)[::-1])
    for fpr, tpr, threshold in zip(*roc, strict=True):
        called = scores >= threshold
        assert fpr == pytest.approx(called[~memorised].mean())
        assert tpr == pytest.approx(called[memorised].mean())
    assert (roc.false_positive_rates[-1], roc.true_positive_rates[-1]) == (1, 1)


@pytest.mark.parametrize("kind", ["distinct", "tied"])
@pytest.mark.parametrize("limit", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_the_rate_is_that_of_the_best_threshold_that_may_be_used(kind, limit, rng):
    scores, memorised = some_scores(kind, rng)
    expected = rate_by_thresholds(scores, memorised, limit)
    actual = true_positive_rate_at(scores, memorised, limit)
    assert actual == pytest.approx(expected, abs=1e-12)


def test_a_tie_with_a_false_positive_is_not_counted_as_found():
    scores = np.array([2.0, 1.0, 1.0, 0.0])
    memorised = np.array([True, True, False, False])
    assert true_positive_rate_at(scores, memorised, 0.01) == 0.5
    # Half of the others may be called: then the tie is.
    assert true_positive_rate_at(scores, memorised, 0.5) == 1.0


def test_exactly_one_percent_is_allowed():
    # 3 of 300 are false positives, and 0.01 * 300 is a little more or less than 3.
    scores = np.concatenate([np.full(3, 2.0), np.zeros(297), np.ones(10)])
    memorised = np.arange(310) >= 300
    assert true_positive_rate_at(scores, memorised, 0.01) == 1.0


def test_perfect_useless_and_wrong_detectors_have_the_known_numbers():
    memorised = np.arange(10) < 4
    for scores, auc, rate in (
        (memorised * 1.0, 1.0, 1.0),
        (np.ones(10), 0.5, 0.0),
        (-1.0 * memorised, 0.0, 0.0),
    ):
        summary = detection_summary(scores, memorised)
        assert summary["auc"] == auc
        assert summary["tpr_at_1_percent_fpr"] == rate
        low, high = summary["auc_ci95"]
        assert low <= auc <= high
        # Ties alone have no spread; four pairs in order do not tell that all others are.
        assert (high - low > 0.5) == (auc != 0.5)
        assert (summary["memorised_count"], summary["other_count"]) == (4, 6)


def test_the_interval_covers_the_true_value_about_as_often_as_it_says():
    # For unit normals one deviation apart the AUC is Phi(1 / sqrt(2)).
    truth, covered = 0.7602499, 0
    rng = np.random.default_rng(1)
    for _ in range(100):
        scores = np.concatenate([rng.normal(1, 1, 40), rng.normal(0, 1, 60)])
        summary = detection_summary(scores, np.arange(100) < 40, num_resamples=300)
        low, high = summary["auc_ci95"]
        assert low < summary["auc"] < high
        covered += low < truth < high
    # 95 expected; four standard deviations of a binomial are 9.
    assert covered >= 86


def test_the_same_seed_gives_the_same_interval(rng):
    scores, memorised = some_scores("distinct", rng)
    first, again = (detection_summary(scores, memorised, seed=3) for _ in range(2))
    assert first == again
    assert detection_summary(scores, memorised, seed=4) != first


def delong_deviation(scores, memorised):
    """Standard deviation of the AUC by DeLong, DeLong and Clarke-Pearson 1988."""
    wins = (scores[memorised][:, None] > scores[~memorised]) * 1.0
    wins += 0.5 * (scores[memorised][:, None] == scores[~memorised])
    variances = [wins.mean(axis).var(ddof=1) / wins.shape[1 - axis] for axis in (0, 1)]
    return np.sqrt(sum(variances))


@pytest.mark.parametrize("kind", ["distinct", "tied"])
def test_the_interval_of_the_auc_is_as_wide_as_delongs(kind, rng):
    scores, memorised = some_scores(kind, rng, count=400)
    low, high = detection_summary(scores, memorised)["auc_ci95"]
    expected = 2 * 1.96 * delong_deviation(scores, memorised)
    assert high - low == pytest.approx(expected, rel=0.1)


def test_a_detector_that_was_always_right_may_be_wrong_elsewhere():
    """Of perfect samples the interval was [1, 1]; it must hold detectors that give them."""
    memorised = np.arange(50) < 10
    summary = detection_summary(memorised + np.linspace(0, 0.5, 50), memorised)
    low, high = summary["auc_ci95"]
    assert (summary["auc"], high) == (1, 1)
    assert summary["tpr_at_1_percent_fpr_ci95"] == [low, high]
    # One that finds a memorised prompt with probability `low` finds all ten so rarely.
    assert low**10 == pytest.approx(0.025)


def test_a_single_prompt_of_a_kind_has_only_an_exact_interval():
    summary = detection_summary(np.array([0.0, 1, 2, 3, 2.5]), np.arange(5) == 4)
    assert summary["auc"] == 0.75
    assert summary["auc_ci95"] is None
    # A threshold found nothing, of one: this says next to nothing.
    assert summary["tpr_at_1_percent_fpr_ci95"] == pytest.approx([0, 0.975])


@pytest.mark.parametrize(
    ("scores", "memorised", "message"),
    [
        ([1.0, 2.0], [True, True], r"all 2 prompts are memorised.*add prompts"),
        ([1.0, 2.0], [False, False], r"all 2 prompts are not memorised"),
        ([1.0, np.nan], [True, False], r"1 of 2 scores are NaN"),
        ([1.0, 2.0], [True], r"memorised has shape \(1,\), but there are 2 scores"),
        ([], [], r"scores must be a non-empty vector"),
    ],
)
def test_what_cannot_be_measured_is_named(scores, memorised, message):
    with pytest.raises(ValueError, match=message):
        compute_auc(np.array(scores), np.array(memorised, bool))


def test_a_rate_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"false_positive_rate is 1.5; choose"):
        true_positive_rate_at(np.arange(2.0), np.array([True, False]), 1.5)
