"""Quality scores under their names, from embeddings whose answers are known."""

import numpy as np
import pytest

from copymit.embedding.store import Embeddings, unit_rows
from copymit.scores import quality
from copymit.scores.cmmd import clip_maximum_mean_discrepancy
from copymit.scores.frechet import frechet_distance, gaussian_moments, kernel_distance
from copymit.scores.quality import distance_names, moments_of, score_quality


def of(features, protocol="as it is"):
    ids = [str(i) for i in range(len(features))]
    return Embeddings(ids, np.array_split(features.astype(np.float32), 3), protocol)


@pytest.fixture
def sets(rng):
    references = rng.normal(size=(60, 8))
    generations = rng.normal(0.5, 1.2, size=(50, 8))
    heldout = rng.normal(size=(20, 8))
    return {"generations": generations, "references": references, "heldout": heldout}


def test_copies_have_no_distance_but_one_to_held_out_images(sets):
    embeddings = {name: of(rows) for name, rows in sets.items()}
    embeddings["generations"] = embeddings["references"]
    scores = score_quality("fake", embeddings, 0)
    assert scores["fd_fake"] == pytest.approx(0, abs=1e-5)
    assert scores["fd_fake_to_heldout"] > 0.1
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1


def test_distances_are_those_of_all_rows(sets):
    scores = score_quality("fake", {name: of(rows) for name, rows in sets.items()}, 0)
    generations, references = (
        sets[name].astype(np.float32) for name in ("generations", "references")
    )
    moments = (*gaussian_moments(references), *gaussian_moments(generations))
    assert scores["fd_fake"] == pytest.approx(frechet_distance(*moments), rel=1e-6)
    expected = kernel_distance(references, generations)
    assert scores["kd_fake"] == pytest.approx(expected, rel=1e-6)


def test_pairs_are_compared_among_at_most_so_many_images(sets, monkeypatch):
    monkeypatch.setattr(quality, "MAX_PAIRED_ROWS", 12)
    embeddings = {name: of(rows) for name, rows in sets.items()}
    scores = score_quality("fake", embeddings, 0)
    assert scores["quality_pairs_of"] == [12, 12]
    assert score_quality("fake", embeddings, 0) == scores
    assert score_quality("fake", embeddings, 1)["kd_fake"] != scores["kd_fake"]


def test_fid_is_a_name_for_the_published_network_and_preprocessing_alone():
    published = "Inception-v3 of 2015-12-05, weights sha256 6726825d0af5; ..."
    other = "weights sha256 123 (not the published file)"
    assert distance_names("inception_clean", published) == ("fid", "kid")
    assert distance_names("inception_legacy_pytorch", published) == ("fid", "kid")
    assert distance_names("inception_dcr", published)[0] == "fd_inception_dcr"
    assert distance_names("inception_clean", other)[0] == "fd_inception_clean"
    assert distance_names("dinov2_vitl14", "any") == (
        "fd_dinov2_vitl14",
        "kd_dinov2_vitl14",
    )


def test_cmmd_is_scored_for_its_clip_alone(sets):
    embeddings = {name: of(rows) for name, rows in sets.items()}
    assert "cmmd" not in score_quality("clip_vit_l14", embeddings, 0)
    scores = score_quality("clip_vit_l14_336", embeddings, 0)
    expected = clip_maximum_mean_discrepancy(
        unit_rows(sets["references"]), unit_rows(sets["generations"])
    )
    assert scores["cmmd"] == pytest.approx(expected, rel=1e-5)


def test_a_second_embedder_keeps_its_manifold_scores_apart(sets):
    scores = score_quality(
        "fake", {name: of(rows) for name, rows in sets.items()}, 0, "fake_"
    )
    assert {"fake_precision", "fake_coverage", "fd_fake"} <= scores.keys()
    assert "precision" not in scores


def test_few_images_are_measured_without_quality(sets):
    embeddings = {name: of(rows) for name, rows in sets.items()}
    scores = score_quality("fake", embeddings | {"generations": of(np.ones((3, 8)))}, 0)
    assert scores["warnings"] == [
        "3 generations and 60 references are too few to measure quality"
    ]
    assert not {"fd_fake", "kd_fake", "precision"} & scores.keys()


def test_few_samples_for_the_number_of_features_are_warned_of(sets):
    embeddings = {name: of(rows) for name, rows in sets.items()}
    (warning,) = score_quality("fake", embeddings, 0)["warnings"]
    assert "50 generations" in warning


def test_moments_shard_by_shard_are_those_of_all_rows(sets):
    embeddings = of(sets["references"])
    found, expected = moments_of(embeddings), gaussian_moments(embeddings.features)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_every_number_has_an_interval_over_clusters(sets):
    embeddings = {name: of(rows) for name, rows in sets.items()}
    embeddings["generations"] = of(np.repeat(sets["generations"][:10], 5, axis=0))
    apart = score_quality("clip_vit_l14_336", embeddings, 0)
    clusters = np.arange(50) // 5
    scores = score_quality("clip_vit_l14_336", embeddings, 0, "", clusters)
    measured = [key for key in scores if f"{key}_ci95" in scores]
    assert len(measured) == 8
    for key in measured:
        low, high = scores[f"{key}_ci95"]
        assert low <= scores[key] <= high
        assert scores[key] == apart[key]
    widths = [np.ptp(s["fd_clip_vit_l14_336_ci95"]) for s in (scores, apart)]
    # Five equal images are one: sqrt(5) of the width, about.
    assert 1.5 < widths[0] / widths[1] < 3.5


def test_copies_of_everything_have_exact_intervals_of_their_shares(sets):
    embeddings = {
        "generations": of(sets["references"]),
        "references": of(sets["references"]),
    }
    scores = score_quality("fake", embeddings, 0)
    # None of 60 images left outside.
    assert scores["precision_ci95"] == pytest.approx((0.025 ** (1 / 60), 1))


def test_one_prompt_has_numbers_without_intervals(sets):
    embeddings = {name: of(rows) for name, rows in sets.items()}
    scores = score_quality("fake", embeddings, 0, "", np.zeros(50, int))
    assert scores["fd_fake"] > 0
    assert {scores[k] for k in scores if k.endswith("_ci95")} == {None}
