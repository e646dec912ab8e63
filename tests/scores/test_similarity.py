import json

import numpy as np
import pytest

from copymit.scores.similarity import (
    dataset_similarity,
    duplicated_match_summary,
    nearest_l2_ratio,
    prompted_image_summary,
    similarity_summary,
)


def test_dataset_similarity_is_the_95th_percentile():
    assert dataset_similarity(np.arange(101) / 100) == pytest.approx(0.95)
    assert dataset_similarity(np.arange(101) / 100, 50) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("similarities", "message"),
    [
        (np.array([]), "non-empty"),
        (np.array([0.5, np.nan]), r"NaN or infinite, first at rows \[1\]"),
        (np.array([0.5, -np.inf]), "NaN or infinite"),
    ],
)
def test_no_or_broken_similarities_are_refused(similarities, message):
    with pytest.raises(ValueError, match=message):
        dataset_similarity(similarities)
    with pytest.raises(ValueError, match=message):
        similarity_summary(similarities)


def test_a_percentile_out_of_range_is_refused():
    with pytest.raises(ValueError, match="percentile is 101"):
        dataset_similarity(np.ones(3), 101)


def test_the_summary_has_every_key_and_numpys_values():
    top1 = np.random.default_rng(0).random(300).astype(np.float32)
    scores = similarity_summary(top1)
    wide = top1.astype(np.float64)
    expected = {
        "dataset_similarity": np.percentile(wide, 95),
        "similarity_mean": wide.mean(),
        "similarity_std": wide.std(),
        "similarity_p75": np.percentile(wide, 75),
        "similarity_p90": np.percentile(wide, 90),
        "similarity_p95": np.percentile(wide, 95),
        "similarity_above_0.5": (wide > 0.5).mean(),
    }
    assert scores.pop("similarity_count") == 300
    assert set(scores) == set(expected) | {f"{key}_ci95" for key in expected}
    for key, value in expected.items():
        low, high = scores[f"{key}_ci95"]
        assert scores[key] == pytest.approx(value)
        assert low < value < high
    assert scores["dataset_similarity"] == pytest.approx(dataset_similarity(top1))
    json.dumps(scores, allow_nan=False)


def test_one_half_is_not_above_one_half():
    assert similarity_summary(np.array([0.5, 0.6]))["similarity_above_0.5"] == 0.5


@pytest.mark.parametrize("prefix", ["background_", "heldout_"])
def test_a_prefix_goes_before_every_key(prefix):
    top1 = np.linspace(0, 1, 20)
    prefixed = similarity_summary(top1, prefix=prefix)
    plain = similarity_summary(top1)
    assert prefixed == {f"{prefix}{key}": value for key, value in plain.items()}


def test_intervals_follow_the_seed_and_the_clusters():
    top1 = np.random.default_rng(0).random(40)
    same = similarity_summary(top1, seed=1)
    assert similarity_summary(top1, seed=1) == same
    key = "similarity_mean_ci95"
    assert similarity_summary(top1, seed=2)[key] != same[key]
    assert similarity_summary(top1, np.arange(40) // 4, seed=1)[key] != same[key]
    assert similarity_summary(top1, np.zeros(40, int))[key] is None


# Six generations; references 0 and 1 are duplicated.
DUPLICATED = np.array([True, True, False, False])
TOP1 = np.array([0.9, 0.8, 0.7, 0.3, 0.2, 0.1])
MATCHES = np.array([0, 1, 0, 2, 3, 3])
PROMPTED = np.array([0, 0, 2, 2, 3, 1])
TO_PROMPTED = np.array([0.9, 0.5, 0.4, 0.3, 0.2, 0.0])


def test_similarity_is_split_by_whether_the_match_is_duplicated():
    scores = duplicated_match_summary(TOP1, MATCHES, DUPLICATED)
    assert scores["similarity_to_duplicated"] == pytest.approx(0.8)
    assert scores["similarity_to_unduplicated"] == pytest.approx(0.2)
    assert scores["similarity_to_duplicated_count"] == 3
    assert scores["similarity_to_unduplicated_count"] == 3
    assert scores["similarity_to_duplicated_ci95"] == pytest.approx([0.7, 0.9])
    assert scores["similarity_to_unduplicated_ci95"] == pytest.approx([0.1, 0.3])
    json.dumps(scores, allow_nan=False)


def test_a_side_without_matches_is_none():
    scores = duplicated_match_summary(TOP1, MATCHES, np.ones(4, bool))
    assert scores["similarity_to_unduplicated"] is None
    assert scores["similarity_to_unduplicated_ci95"] is None
    assert scores["similarity_to_unduplicated_count"] == 0


def test_hits_and_similarity_are_split_by_the_prompted_image():
    scores = prompted_image_summary(TOP1, MATCHES, PROMPTED, TO_PROMPTED, DUPLICATED)
    # Rows 0, 3, 4 match their own image; rows 0, 1, 5 were prompted by duplicated ones.
    assert scores["prompted_image_hits"] == pytest.approx(3 / 6)
    assert scores["prompted_image_hits_duplicated"] == pytest.approx(1 / 3)
    assert scores["prompted_image_hits_unduplicated"] == pytest.approx(2 / 3)
    assert scores["prompted_duplicated_similarity_mean"] == pytest.approx(0.6)
    assert scores["prompted_unduplicated_similarity_mean"] == pytest.approx(0.4)
    assert scores["prompted_duplicated_count"] == 3
    assert scores["prompted_unduplicated_count"] == 3
    assert scores["similarity_to_prompted"] == pytest.approx(2.3 / 6)
    assert scores["similarity_to_prompted_duplicated"] == pytest.approx(1.4 / 3)
    assert scores["similarity_to_prompted_unduplicated"] == pytest.approx(0.3)
    for key in list(scores):
        if not key.endswith(("_ci95", "_count")):
            low, high = scores[f"{key}_ci95"]
            assert low <= scores[key] <= high
    json.dumps(scores, allow_nan=False)


def test_without_duplication_only_the_whole_is_reported():
    scores = prompted_image_summary(TOP1, MATCHES, PROMPTED, TO_PROMPTED)
    keys = {"prompted_image_hits", "similarity_to_prompted"}
    assert set(scores) == {
        "prompted_image_count",
        *keys,
        *(f"{key}_ci95" for key in keys),
    }


def test_an_exact_duplicate_under_another_id_is_a_hit():
    scores = prompted_image_summary(
        np.array([0.9, 0.9]), np.array([0, 1]), np.array([1, 1]), np.array([0.9, 0.9])
    )
    assert scores["prompted_image_hits"] == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"matches": MATCHES[:5]}, r"matches has shape \(5,\).*6 similarities"),
        ({"prompted": PROMPTED[:5]}, r"prompted has shape \(5,\)"),
        ({"to_prompted": TO_PROMPTED[:5]}, r"to_prompted has shape \(5,\)"),
        ({"top1": TOP1 * np.nan}, r"6 of 6 similarities are NaN"),
        ({"to_prompted": np.full(6, np.inf)}, r"similarities to the prompted image"),
        ({"prompted": PROMPTED + 1}, r"prompted holds 1 to 4.*0 to 3"),
        ({"prompted": PROMPTED - 1}, r"prompted holds -1 to 2"),
        ({"top1": TOP1[:0]}, r"non-empty"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changed, message):
    arguments = {
        "top1": TOP1,
        "matches": MATCHES,
        "prompted": PROMPTED,
        "to_prompted": TO_PROMPTED,
        "duplicated": DUPLICATED,
    }
    with pytest.raises(ValueError, match=message):
        prompted_image_summary(**(arguments | changed))


def test_clusters_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"clusters has shape \(2,\)"):
        duplicated_match_summary(TOP1, MATCHES, DUPLICATED, np.arange(2))


def test_the_l2_ratio_is_nearest_over_mean_of_the_next():
    distances = np.array([[0.1, 0.5, 1.0, 1.5], [1, 1, 1, 1], [0, 1, 2, 3]])
    np.testing.assert_allclose(nearest_l2_ratio(distances), [0.1, 1, 0])


def test_the_l2_ratio_of_an_image_repeated_everywhere_is_one():
    assert nearest_l2_ratio(np.zeros((1, 11))).tolist() == [1]


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (np.zeros((0, 11)), r"\(0, 11\)"),
        (np.zeros((3, 1)), r"\(3, 1\)"),
        (np.zeros(3), r"\(3,\)"),
        (np.array([[0.0, 1], [2, 1]]), "row 1 is not"),
        (np.array([[0, np.nan]]), "row 0 is not"),
        (np.array([[-1.0, 1]]), "row 0 is not"),
        (np.array([[1.0, np.inf]]), "row 0 is not"),
    ],
)
def test_distances_that_are_none_are_refused(distances, message):
    with pytest.raises(ValueError, match=message):
        nearest_l2_ratio(distances)
