"""Means over seeds have intervals that stay in range and cover what they say."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from configs.sweeps_types import Score
from launch.estimates import estimate, estimate_change, of_shares
from tests.launch.fake_sweep import CHANGES, SIMILARITY, make_mitigated

QUALITY = Score("FID", ("fid", "fd_efficientnet_lite0"))
AUC = Score("AUC", ("auc",))
FOUND = Score("found", ("unseen_tpr_at_1_percent_fpr",), percent=True)


def test_intervals_are_students_over_seeds():
    rows = pd.DataFrame({"dataset_similarity": [0.5, 0.6, 0.7]})
    found = estimate(rows, SIMILARITY)
    # t of 2 degrees of freedom is 4.3027; the deviation is 0.1.
    half = 4.3027 * 0.1 / np.sqrt(3)
    np.testing.assert_allclose(found[:3], [0.6, 0.6 - half, 0.6 + half], atol=1e-5)
    assert found.num_seeds == 3


def test_one_seed_has_the_interval_of_its_trial():
    rows = pd.DataFrame(
        {
            "dataset_similarity": [0.5],
            "dataset_similarity_ci95_low": [0.4],
            "dataset_similarity_ci95_high": [0.7],
        }
    )
    assert estimate(rows, SIMILARITY)[:3] == (0.5, 0.4, 0.7)
    assert np.isnan(estimate(rows[["dataset_similarity"]], SIMILARITY).low)
    assert estimate(rows, QUALITY) is None


def test_changes_are_paired_by_seed():
    table = make_mitigated()
    rows = table[(table.mitigation == "GN") & (table.prompts == "trigger")]
    change = estimate_change(rows, table, SIMILARITY, CHANGES)
    differences = np.array([-0.1, -0.1, -0.11])
    half = 4.302653 * differences.std(ddof=1) / np.sqrt(3)  # Student's, 2 degrees
    np.testing.assert_allclose(
        change[:3], [differences.mean() + d for d in (0, -half, half)], rtol=1e-6
    )
    assert change.num_seeds == 3
    unpaired = estimate(rows, SIMILARITY)
    assert unpaired.high - unpaired.low > 20 * half


def test_changes_compare_the_same_prompts_and_one_seed_has_no_interval():
    table = make_mitigated()
    rows = table[(table.mitigation == "GN") & (table.prompts == "general")]
    change = estimate_change(rows, table, SIMILARITY, CHANGES)
    assert change.mean == pytest.approx(0.1)
    assert np.isnan(change.low)


def test_the_baseline_and_what_it_lacks_have_no_change():
    table = make_mitigated()
    none = table[table.mitigation == "none"]
    assert estimate_change(none, table, SIMILARITY, CHANGES) is None
    alone = table[table.seed == 2].assign(seed=9)
    assert estimate_change(alone, table, SIMILARITY, CHANGES) is None


@pytest.mark.parametrize("spread", [0, 1 / 20, 1 / 3])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("num_seeds", [3, 5])
def test_intervals_of_shares_cover_the_truth(share, spread, num_seeds):
    """Seeds differ as a Beta distribution of this mean, `spread` from none to wide."""
    rng, images = np.random.default_rng(0), 18
    size = (800, num_seeds)
    of_seeds = np.full(size, share)
    if spread:
        of_seeds = rng.beta(share / spread, (1 - share) / spread, size)
    drawn = rng.binomial(images, of_seeds) / images
    found = [of_shares(values, images * num_seeds) for values in drawn]
    covered = np.mean([e.low <= share <= e.high for e in found])
    assert covered > 0.93
    assert all(0 <= e.low <= e.mean <= e.high <= 1 for e in found)


def test_students_own_interval_would_not():
    drawn = np.random.default_rng(0).binomial(18, 0.02, (800, 3)) / 18
    half = stats.t.ppf(0.975, 2) * drawn.std(1, ddof=1) / np.sqrt(3)
    assert np.mean(np.abs(drawn.mean(1) - 0.02) <= half) < 0.75


def test_shares_that_agree_have_the_interval_of_as_many_draws():
    none = of_shares(np.zeros(3), 54)
    assert (none.mean, none.low) == (0, 0)
    assert 0.05 < none.high < 0.15  # the rule of three gives 0.054
    assert of_shares(np.ones(3), 54).high == 1
    assert np.isnan(of_shares(np.ones(3), np.inf).low)
    assert np.isnan(of_shares(np.full(3, 0.5), np.inf).low)


def test_the_number_behind_a_share_is_that_of_its_own_comparison():
    counts = {"memorised_count": 18, "other_count": 30, "num_generations": 500}
    rows = pd.DataFrame({"unseen_tpr_at_1_percent_fpr": [0.0, 0.0, 0.0], "auc": 1.0})
    rows = rows.assign(unseen_memorised_count=18, unseen_other_count=9, **counts)
    assert estimate(rows, FOUND) == of_shares(np.zeros(3), 27)
    assert estimate(rows, AUC) == of_shares(np.ones(3), 54)
    hits = Score("hits", ("prompted_image_hits",))
    rows = pd.DataFrame({"prompted_image_hits": [0.0, 0.0], "num_generations": [8, 8]})
    assert estimate(rows, hits) == of_shares(np.zeros(2), 16)
    rows = rows.assign(num_clusters=[2, 4])  # prompts, of four and of two generations
    assert estimate(rows, hits) == of_shares(np.zeros(2), 6)


def test_the_number_behind_a_share_of_some_prompts_is_theirs():
    """Twelve of twelve in three seeds were shown as if they were 750 of 750."""
    groups = ("duplicated", "unduplicated")
    shares = {f"prompted_{group}_copied_share": [1.0] * 3 for group in groups}
    counts = {"prompted_duplicated_count": 12, "prompted_unduplicated_count": 238}
    rows = pd.DataFrame(shares).assign(num_generations=250, num_clusters=250, **counts)
    for group, count in zip(groups, (36, 714), strict=True):
        score = Score("", (f"prompted_{group}_copied_share",), percent=True)
        assert estimate(rows, score) == of_shares(np.ones(3), count)


@pytest.mark.parametrize(
    ("key", "values", "low", "high"),
    [
        ("auc", [0.99, 0.9, 0.8], 0, 1),
        ("precision", [0.2, 0.99, 0.6], 0, 1),
        ("dataset_similarity", [0.99, 0.9, 0.8], -1, 1),
        ("complexity_entropy_pearson", [-0.99, -0.3, -0.6], -1, 1),
        ("fd_efficientnet_lite0", [1.0, 9.0, 3.0], 0, np.inf),
        ("seconds_per_image", [0.01, 0.1, 0.2], 0, np.inf),
        ("num_memorised", [0, 1, 14], 0, np.inf),
    ],
)
def test_no_interval_leaves_the_range_of_its_score(key, values, low, high):
    found = estimate(pd.DataFrame({key: values}), Score("", (key,)))
    assert low <= found.low < found.mean < found.high <= high


def test_changes_of_shares_stay_between_minus_one_and_one():
    hits = Score("hits", ("prompted_image_hits",))
    table = make_mitigated().query("prompts == 'trigger'")
    table = table.assign(prompted_image_hits=[0.9, 0.5, 1.0, 0.9, 0.1, 0.0])
    found = estimate_change(table[table.mitigation == "GN"], table, hits, CHANGES)
    assert -1 <= found.low < found.mean < found.high <= 1


def test_what_may_be_any_number_is_not_cut():
    rows = pd.DataFrame({"kid": [-0.001, 0.003, 0.001], "clip_score": [0.1, 2.0, 9.0]})
    assert estimate(rows, Score("KID", ("kid",))).low < 0
    assert estimate(rows, Score("CLIP", ("clip_score",))).low < 0
