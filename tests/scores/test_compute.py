"""The numbers of scores.json, from embeddings whose answers are known."""

import numpy as np
import pytest

from copymit.embedding.store import Embeddings
from copymit.scores.complexity import measure_complexity
from copymit.scores.compute import (
    View,
    compute_scores,
    neighbour_table,
    score_parts,
)
from copymit.scores.provenance import Provenance
from copymit.search.exact import Neighbours, SearchResult, search_exact

UNKNOWN = Provenance(None, None)
NOTHING_COPIED = Provenance(None, np.zeros(16, bool))


@pytest.fixture
def references(rng):
    return rng.normal(size=(16, 8)).astype(np.float32)


@pytest.fixture
def heldout(rng):
    return rng.normal(size=(10, 8)).astype(np.float32)


def embeddings(features, name):
    ids = [f"{name} {i}" for i in range(len(features))]
    halves = [part for part in np.split(features, [len(features) // 2]) if len(part)]
    return Embeddings(ids, halves, "as it is")


def view_of(generations, references, heldout=None, *, k=12, name="fake"):
    """Searches exactly, as the search stage does."""
    sets = {"generations": generations, "references": references}
    if heldout is not None:
        sets["heldout"] = heldout
    sets = {key: embeddings(value, key) for key, value in sets.items()}
    neighbours = {}
    for queries in ("generations", "background", "heldout"):
        own = "references" if queries == "background" else queries
        if own in sets:
            exclude = np.arange(len(references)) if queries == "background" else None
            found = search_exact(
                sets[own].unit, sets["references"].unit, k, exclude=exclude
            )
            neighbours[queries] = SearchResult(found, "exact", {}, 1.0, 1.0)
    return View(name, "as it is", sets, neighbours)


def scores_of(views, provenance=UNKNOWN):
    views = views if isinstance(views, list) else [views]
    count = len(views[0].embeddings["generations"].ids)
    rng = np.random.default_rng(1)
    images = list(rng.integers(0, 256, (count, 8, 8, 3), np.uint8))
    return compute_scores(views, provenance, measure_complexity(images), seed=0)


def test_copies_have_similarity_one_and_no_distance(references, heldout):
    provenance = Provenance(np.arange(16), np.arange(16) < 4)
    scores = scores_of(view_of(references, references, heldout), provenance)
    for key in ("dataset_similarity", "similarity_mean", "similarity_p75"):
        assert scores[key] == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(scores[f"{key}_ci95"], 1, atol=1e-6)
    assert scores["similarity_above_0.5"] == scores["prompted_image_hits"] == 1
    assert scores["nearest_l2_ratio_mean"] == pytest.approx(0, abs=1e-3)
    assert scores["background_similarity_mean"] < 0.95
    assert scores["heldout_similarity_mean"] < 0.95
    counts = {k: scores[f"num_{k}"] for k in ("generations", "references", "heldout")}
    assert counts == {"generations": 16, "references": 16, "heldout": 10}


def test_the_numbers_are_split_by_what_was_duplicated(references):
    # Duplicated images are copied; prompts of the others give the image opposite.
    duplicated = np.arange(16) < 4
    generations = np.where(duplicated[:, None], references, -references)
    scores = scores_of(
        view_of(generations, references), Provenance(np.arange(16), duplicated)
    )
    assert scores["prompted_image_hits_duplicated"] == 1
    assert scores["prompted_image_hits_unduplicated"] == 0
    assert scores["prompted_image_hits"] == pytest.approx(4 / 16)
    assert scores["similarity_to_prompted_duplicated"] == pytest.approx(1, abs=1e-6)
    assert scores["similarity_to_prompted_unduplicated"] == pytest.approx(-1, abs=1e-6)
    assert scores["similarity_to_prompted"] == pytest.approx((4 - 12) / 16, abs=1e-6)
    assert scores["prompted_duplicated_count"] == 4
    assert scores["prompted_unduplicated_count"] == 12
    assert scores["prompted_duplicated_similarity_mean"] == pytest.approx(1, abs=1e-6)
    assert scores["prompted_unduplicated_similarity_mean"] < 0.95


def test_without_provenance_its_keys_are_left_out(references):
    scores = scores_of(view_of(references, references))
    assert not [key for key in scores if "prompted" in key or "duplicated" in key]
    scores = scores_of(view_of(references, references), NOTHING_COPIED)
    assert not [key for key in scores if "duplicated" in key]
    scores = scores_of(
        view_of(references, references), Provenance(np.arange(16), np.zeros(16, bool))
    )
    assert scores["prompted_image_hits"] == 1
    assert not [key for key in scores if "duplicated" in key]


def test_generations_of_one_prompt_count_as_one_cluster(references, rng):
    generations = rng.normal(size=(16, 8)).astype(np.float32)
    view = view_of(generations, references)

    def width(provenance):
        low, high = scores_of(view, provenance)["similarity_mean_ci95"]
        return high - low

    apart = width(Provenance(None, None, np.arange(16)))
    assert width(Provenance(None, None, np.arange(16) // 8)) != apart
    assert width(UNKNOWN) == apart


def test_hits_are_of_the_generations_whose_prompted_image_is_known(references):
    prompted = np.where(np.arange(16) < 6, np.arange(16), -1)
    generations = np.where(np.arange(16)[:, None] < 3, references, -references)
    scores = scores_of(view_of(generations, references), Provenance(prompted, None))
    assert scores["prompted_image_hits"] == 3 / 6
    assert scores["prompted_image_count"] == 6
    nobody = Provenance(np.full(16, -1), None)
    scores = scores_of(view_of(generations, references), nobody)
    assert "prompted_image_hits" not in scores


def test_the_keys_of_the_second_embedder_carry_its_name(references, heldout):
    views = [
        view_of(references, references, heldout),
        view_of(-references, references, heldout, name="other"),
    ]
    scores = scores_of(views, Provenance(np.arange(16), np.arange(16) < 4))
    assert scores["embedder"] == "fake"
    assert scores["similarity_mean"] == pytest.approx(1, abs=1e-6)
    assert scores["other_similarity_to_prompted"] == pytest.approx(-1, abs=1e-6)
    for key in (
        "other_background_similarity_mean",
        "other_heldout_dataset_similarity_ci95",
        "other_similarity_to_duplicated",
        "other_nearest_l2_ratio_p5",
        "other_search_recall",
    ):
        assert key in scores
    assert scores["protocols"] == {"fake": "as it is", "other": "as it is"}


def test_parts_of_images_are_scored_with_intervals(rng):
    similarities, distances = rng.uniform(0, 1, (2, 40))
    scores = score_parts(
        {"template_similarity": similarities, "tile_l2": distances}, None, seed=0
    )
    assert scores["template_similarity_p95"] == np.percentile(similarities, 95)
    assert scores["tile_l2_below_0.15"] == (distances < 0.15).mean()
    assert scores["tile_l2_p5"] == pytest.approx(np.percentile(distances, 5))
    low, high = scores["tile_l2_mean_ci95"]
    assert low < distances.mean() < high


def test_ratios_need_ten_further_neighbours(references):
    key = "nearest_l2_ratio_mean"
    assert key in scores_of(view_of(references, references, k=11))
    assert key not in scores_of(view_of(references, references, k=10))


def test_how_the_search_was_done_is_told(references):
    view = view_of(references, references)
    found = view.neighbours["generations"]._replace(
        backend="scann", settings={"leaves": 9}, recall=0.995
    )
    view.neighbours["generations"] = found
    scores = scores_of(view)
    assert scores["search_backend"] == "scann"
    assert scores["search_settings"] == {"leaves": 9}
    assert scores["search_recall"] == 0.995


def test_a_neighbour_table_has_a_row_for_every_rank():
    found = SearchResult(
        Neighbours(
            np.array([[2, 0], [1, 2]], np.int32),
            np.array([[0.9, 0.5], [0.8, 0.25]], np.float32),
        ),
        "exact",
        {},
        1.0,
        1.0,
    )
    table = neighbour_table(found, ["q0", "q1"], ["r0", "r1", "r2"], "generation")
    assert table.to_dict("list") == {
        "generation": ["q0", "q0", "q1", "q1"],
        "rank": [0, 1, 0, 1],
        "reference": ["r2", "r0", "r1", "r2"],
        "similarity": pytest.approx([0.9, 0.5, 0.8, 0.25]),
    }
