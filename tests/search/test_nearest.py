import logging

import numpy as np
import pytest

from copymit.search import scann_index
from copymit.search.nearest import (
    Neighbours,
    ScannSettings,
    search,
    search_exact,
    search_scann,
)
from copymit.search.recall import compute_recall


def unit_rows(count, dimension, seed):
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered_rows(count, dimension, num_clusters, seed, centres_seed=0):
    """Unit vectors in groups, as embeddings of a data set with families are."""
    centres = np.random.default_rng(centres_seed).normal(size=(num_clusters, dimension))
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, num_clusters, count)]
    rows = rows + 0.7 * rng.normal(size=rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def dense_oracle(queries, references, k, exclude=None):
    scores = queries.astype(np.float64) @ references.astype(np.float64).T
    if exclude is not None:
        scores[np.arange(len(queries)), exclude] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize(
    ("query_block", "reference_block"), [(1024, 8192), (7, 11), (64, 97), (1, 1)]
)
def test_exact_search_equals_a_dense_sort_for_any_block_size(
    query_block, reference_block
):
    queries, references = unit_rows(23, 16, 0), unit_rows(97, 16, 1)
    found = search_exact(
        queries,
        references,
        5,
        query_block=query_block,
        reference_block=reference_block,
    )
    indices, similarities = dense_oracle(queries, references, 5)
    np.testing.assert_array_equal(found.indices, indices)
    # float32 dot products of 16 terms.
    np.testing.assert_allclose(found.similarities, similarities, atol=1e-6)
    assert found.indices.dtype == np.int32
    assert found.similarities.dtype == np.float32


def test_all_references_can_be_asked_for():
    queries, references = unit_rows(3, 4, 0), unit_rows(6, 4, 1)
    found = search_exact(queries, references, 6, reference_block=4)
    np.testing.assert_array_equal(
        found.indices, dense_oracle(queries, references, 6)[0]
    )


def test_generations_equal_to_references_have_similarity_one():
    references = unit_rows(50, 8, 0)
    result = search(references, references, 1)
    np.testing.assert_array_equal(result.neighbours.indices[:, 0], np.arange(50))
    np.testing.assert_allclose(result.neighbours.similarities, 1, atol=1e-6)
    assert result.neighbours.similarities.max() <= 1
    assert (result.backend, result.recall, result.recall_at_k) == ("exact", 1.0, 1.0)


def test_five_planted_copies_among_a_thousand_are_found():
    references = unit_rows(1000, 32, 0)
    planted = np.array([3, 141, 592, 653, 999])
    noise = 0.05 * np.random.default_rng(1).normal(size=(5, 32))
    copies = references[planted] + noise
    copies /= np.linalg.norm(copies, axis=1, keepdims=True)
    found = search_exact(copies, references, 1, reference_block=256)
    np.testing.assert_array_equal(found.indices[:, 0], planted)


def test_ties_go_to_the_lower_index_across_blocks():
    row = unit_rows(1, 8, 0)
    references = np.concatenate([unit_rows(3, 8, 1), row, unit_rows(3, 8, 2), row, row])
    found = search_exact(row, references, 3, reference_block=2)
    assert found.indices[0].tolist() == [3, 7, 8]


def test_self_exclusion_keeps_exact_duplicates():
    references = unit_rows(20, 8, 0)
    references[13] = references[4]
    found = search_exact(
        references, references, 2, exclude=np.arange(20), reference_block=6
    )
    assert found.indices[4, 0] == 13
    assert found.indices[13, 0] == 4
    assert not (found.indices == np.arange(20)[:, None]).any()
    expected = dense_oracle(references, references, 2, np.arange(20))[0]
    np.testing.assert_array_equal(found.indices, expected)


def test_minus_one_excludes_nothing():
    references = unit_rows(5, 8, 0)
    found = search_exact(references, references, 1, exclude=np.array([0, -1, 2, 3, 4]))
    assert found.indices[1, 0] == 1
    assert found.indices[0, 0] != 0


def broken(vectors, row, value):
    vectors = vectors.copy()
    vectors[row] = value
    return vectors


GOOD = unit_rows(6, 4, 0)


@pytest.mark.parametrize("searcher", [search, search_exact, search_scann])
@pytest.mark.parametrize(
    ("queries", "references", "k", "exclude", "message"),
    [
        (broken(GOOD, 2, np.nan), GOOD, 1, None, r"1 of 6 queries .*NaN.*\[2\]"),
        (GOOD, broken(GOOD, [1, 4], np.inf), 1, None, r"2 of 6 references.*\[1, 4\]"),
        (GOOD[:0], GOOD, 1, None, r"queries must be a non-empty.*\(0, 4\)"),
        (GOOD, GOOD[:0], 1, None, r"references must be a non-empty"),
        (GOOD[0], GOOD, 1, None, r"queries must be .*\(4,\)"),
        (GOOD, unit_rows(6, 5, 0), 1, None, r"4 dimensions, references 5"),
        (GOOD, 2 * GOOD, 1, None, r"6 of 6 references are not unit.*2\.0"),
        (broken(GOOD, 3, 0), GOOD, 1, None, r"1 of 6 queries are not unit.*\[3\]"),
        (GOOD, GOOD, 7, None, r"k is 7, but 6 references"),
        (GOOD, GOOD, 6, np.arange(6), r"k is 6, but 5 references"),
        (GOOD, GOOD, 0, None, r"k is 0"),
        (GOOD, GOOD, 1, np.arange(5), r"each of 6 queries.*\(5,\)"),
        (GOOD, GOOD, 1, np.arange(6) / 2, r"integer.*float64"),
        (GOOD, GOOD, 1, np.arange(1, 7), r"exclude holds 1 to 6"),
    ],
)
def test_bad_input_is_named(searcher, queries, references, k, exclude, message):
    with pytest.raises(ValueError, match=message):
        searcher(queries, references, k, exclude=exclude)


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"'faiss'.*'exact', 'approx' or 'scann'"):
        search(GOOD, GOOD, 1, backend="faiss")


def test_float16_embeddings_are_searched():
    found = search_exact(GOOD.astype(np.float16), GOOD, 1)
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(6))


def test_auto_is_exact_for_few_queries_however_many_references(monkeypatch):
    monkeypatch.setattr("copymit.search.nearest.EXACT_PRODUCTS", 10)
    result = search(unit_rows(30, 8, 0), unit_rows(40, 8, 1), 2)
    assert result.backend == "exact"


def test_auto_turns_to_scann_for_many_references_and_queries(monkeypatch):
    pytest.importorskip("scann", reason="ScaNN has wheels for Linux only")
    monkeypatch.setattr("copymit.search.nearest.EXACT_PRODUCTS", 10)
    monkeypatch.setattr("copymit.search.nearest.RECALL_QUERIES", 10)
    result = search(unit_rows(30, 8, 0), unit_rows(40, 8, 1), 2)
    assert result.backend == "scann"
    assert result.settings["kind"] == "brute_force"


def test_without_scann_the_search_is_exact_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(scann_index.sys, "platform", "darwin")
    with caplog.at_level(logging.WARNING):
        result = search(GOOD, GOOD, 2, backend="scann")
    assert result.backend == "exact"
    assert "ScaNN is not installed" in caplog.text
    np.testing.assert_array_equal(result.neighbours.indices[:, 0], np.arange(6))


def test_recall_counts_equal_references_as_found():
    exact = Neighbours(np.array([[1, 2]]), np.array([[0.9, 0.5]], np.float32))
    twin = Neighbours(np.array([[7, 2]]), np.array([[0.9, 0.5]], np.float32))
    missed = Neighbours(np.array([[2, 3]]), np.array([[0.5, 0.1]], np.float32))
    assert compute_recall(twin, exact) == (1.0, 1.0)
    assert compute_recall(missed, exact) == (0.0, 0.5)


def test_tuning_finds_the_cheapest_settings_that_reach_the_target():
    start = ScannSettings("tree_ah", 316, 31, 100)

    def measure(trial):
        return 1.0 if trial.num_leaves_to_search >= 6 and trial.reorder >= 150 else 0.9

    tuned = scann_index.tune_scann(
        measure, start, num_references=100_000, recall_target=0.99
    )
    assert (tuned.num_leaves_to_search, tuned.reorder) == (8, 200)


def test_tuning_ends_with_every_leaf_where_the_target_is_out_of_reach():
    start = ScannSettings("tree_ah", 300, 30, 100)
    tuned = scann_index.tune_scann(
        lambda _: 0.5, start, num_references=100_000, recall_target=0.99
    )
    assert (tuned.num_leaves_to_search, tuned.reorder) == (300, 10_000)


@pytest.mark.parametrize(
    ("count", "kind"), [(19_999, "brute_force"), (20_000, "ah"), (100_000, "tree_ah")]
)
def test_the_kind_of_index_follows_the_number_of_references(count, kind):
    assert scann_index.scann_settings(count, 1).kind == kind


class TestScann:
    @pytest.fixture(autouse=True)
    def _needs_scann(self):
        pytest.importorskip("scann", reason="ScaNN has wheels for Linux only")

    def test_brute_force_equals_exact_search(self):
        queries, references = unit_rows(30, 16, 0), unit_rows(400, 16, 1)
        result = search_scann(queries, references, 4)
        exact = search_exact(queries, references, 4)
        np.testing.assert_array_equal(result.neighbours.indices, exact.indices)
        np.testing.assert_allclose(
            result.neighbours.similarities, exact.similarities, atol=1e-6
        )
        assert (result.recall, result.recall_at_k) == (1.0, 1.0)

    def test_the_excluded_reference_is_dropped_and_duplicates_stay(self):
        references = unit_rows(300, 16, 0)
        references[13] = references[4]
        own = np.arange(300)
        result = search_scann(references, references, 3, exclude=own)
        exact = search_exact(references, references, 3, exclude=own)
        np.testing.assert_array_equal(result.neighbours.indices, exact.indices)
        assert result.neighbours.indices[4, 0] == 13

    def test_queries_whose_leaves_hold_too_few_points_are_completed(self):
        references = unit_rows(2000, 16, 0)
        settings = ScannSettings("tree_ah", 200, 1, 100)
        result = search_scann(references[:20], references, 50, settings=settings)
        exact = search_exact(references[:20], references, 50)
        np.testing.assert_array_equal(result.neighbours.indices, exact.indices)

    def test_a_recall_below_the_target_is_reported(self, caplog):
        references = unit_rows(3000, 32, 0)
        settings = ScannSettings("tree_ah", 60, 1, 10)
        with caplog.at_level(logging.WARNING):
            result = search_scann(
                unit_rows(200, 32, 1), references, 1, settings=settings
            )
        # One leaf in sixty of unclustered data cannot hold most nearest neighbours.
        assert result.recall < 0.9
        assert "below the target" in caplog.text

    def test_too_little_reordering_is_refused(self):
        with pytest.raises(ValueError, match=r"reorder is 2.*at least the 3"):
            search_scann(GOOD, GOOD, 3, settings=ScannSettings("ah", reorder=2))

    def test_asymmetric_hashing_alone_reaches_the_target(self):
        references = clustered_rows(20_000, 32, 500, 1)
        result = search_scann(clustered_rows(400, 32, 500, 2), references, 3)
        assert result.settings["kind"] == "ah"
        assert result.recall >= 0.99

    def test_recall_on_a_hundred_thousand_clustered_vectors(self):
        references = clustered_rows(100_000, 128, 2000, 1)
        queries = clustered_rows(2_000, 128, 2000, 2)
        result = search_scann(queries, references, 10)
        exact = search_exact(queries, references, 1)
        agree = result.neighbours.indices[:, 0] == exact.indices[:, 0]
        assert result.settings["kind"] == "tree_ah"
        assert result.settings["num_leaves_to_search"] < 100
        assert agree.mean() >= 0.99
        assert result.recall >= 0.99
        # The recall that is reported is measured on half of these queries.
        assert abs(result.recall - agree.mean()) < 0.01
