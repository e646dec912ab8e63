"""Which images are duplicated is a uniform, seeded draw; how much is what was asked."""

import numpy as np
import pytest
from scipy import stats

from copymit.data.duplication import assign_duplication, duplication_table


def ids(count):
    return [f"{i}.png" for i in range(count)]


@pytest.mark.parametrize(
    ("num_examples", "fraction", "count"),
    [(10_000, 0.05, 500), (128, 0.2, 26), (7, 1.0, 7), (3, 0.34, 1), (20, 0.05, 1)],
)
@pytest.mark.parametrize("kind", ["partial", "full"])
def test_the_share_and_the_factor_are_those_asked_for(
    kind, num_examples, fraction, count
):
    weights, duplicated = assign_duplication(
        ids(num_examples), kind, fraction, 5, seed=0
    )
    assert duplicated.sum() == count
    np.testing.assert_array_equal(weights, np.where(duplicated, 5, 1))


def test_without_duplication_all_weights_are_one():
    weights, duplicated = assign_duplication(ids(10), "none", 0.5, 5, seed=0)
    np.testing.assert_array_equal(weights, np.ones(10))
    assert not duplicated.any()


@pytest.mark.parametrize("by_position", [False, True])
def test_every_image_is_equally_likely_to_be_duplicated(by_position):
    n, chosen, seeds = 20, 5, 2000
    counts = np.zeros(n)
    pairs = np.zeros((n, n))
    for seed in range(seeds):
        duplicated = assign_duplication(
            ids(n), "full", chosen / n, 3, seed, by_position=by_position
        ).duplicated
        counts += duplicated
        pairs += np.outer(duplicated, duplicated)
    # Draws without replacement vary less than independent ones, by this factor.
    statistic = ((counts - counts.mean()) ** 2).sum() / counts.mean()
    statistic /= (1 - chosen / n) * n / (n - 1)
    assert stats.chi2.sf(statistic, n - 1) > 1e-3
    # Any two images meet with probability 5/20 * 4/19; 4.5 deviations for 190 pairs.
    p = chosen / n * (chosen - 1) / (n - 1)
    expected, deviation = seeds * p, np.sqrt(seeds * p * (1 - p))
    met = pairs[np.triu_indices(n, 1)]
    assert np.abs(met - expected).max() < 4.5 * deviation


def test_the_draw_is_the_same_for_every_kind_factor_and_start():
    drawn = [
        assign_duplication(ids(200), kind, 0.1, factor, seed=4).duplicated
        for kind, factor in (("full", 5), ("partial", 5), ("full", 1), ("full", 50))
    ]
    for other in drawn[1:]:
        np.testing.assert_array_equal(other, drawn[0])
    other_seed = assign_duplication(ids(200), "full", 0.1, 5, seed=5).duplicated
    assert (other_seed != drawn[0]).any()


def test_the_same_images_are_duplicated_in_whatever_order_they_come():
    forward = assign_duplication(ids(200), "full", 0.1, 5, seed=4).duplicated
    backward = assign_duplication(ids(200)[::-1], "full", 0.1, 5, seed=4).duplicated
    np.testing.assert_array_equal(forward, backward[::-1])


def test_a_factor_of_one_marks_the_chosen_images_and_repeats_none():
    weights, duplicated = assign_duplication(ids(40), "full", 0.25, 1, seed=0)
    assert duplicated.sum() == 10
    assert set(weights.tolist()) == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "dup_both"}, r"data.duplication='dup_both' is not known.*partial"),
        ({"duplicated_fraction": 0.0}, r"data.duplicated_fraction=0.0 must lie in"),
        ({"duplicated_fraction": 1.5}, r"data.duplicated_fraction=1.5 must lie in"),
        ({"duplicated_fraction": float("nan")}, r"data.duplicated_fraction=nan must"),
        ({"duplication_factor": 0}, r"data.duplication_factor=0 must be at least 1"),
        ({"duplicated_fraction": 0.001}, r"of 100 examples is less than one image"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    settings = {
        "example_ids": ids(100),
        "kind": "full",
        "duplicated_fraction": 0.05,
        "duplication_factor": 5,
        "seed": 0,
    }
    with pytest.raises(ValueError, match=message):
        assign_duplication(**settings | changes)


def test_the_table_is_what_the_auditor_reads(tmp_path):
    duplication = assign_duplication(ids(4), "full", 0.5, 3, seed=0)
    table = duplication_table(list("abcd"), duplication, np.array([1, 2, 3, 4]))
    assert table.column_names == [
        "example_id",
        "weight",
        "duplicated",
        "caption_count",
    ]
    np.testing.assert_array_equal(table["weight"], duplication.weights)
    np.testing.assert_array_equal(table["duplicated"], duplication.duplicated)
    assert table["example_id"].to_pylist() == list("abcd")
    assert table["caption_count"].to_pylist() == [1, 2, 3, 4]
