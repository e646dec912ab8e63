import numpy as np
import pytest

from copymit.embedding.store import Embeddings
from copymit.scores.reconstruction import (
    reconstruction_similarities,
    score_reconstructions,
)


def embeddings(ids, rows):
    return Embeddings(list(ids), [np.array(rows, np.float32)])


def test_each_reconstruction_is_compared_with_its_own_original():
    references = embeddings("abc", [[2, 0], [0, 1], [1, 1]])
    # c could not be read among the references of another run, d was never one.
    found = reconstruction_similarities(
        embeddings("bda", [[0, 3], [1, 0], [3, 4]]), references
    )
    np.testing.assert_allclose(found, [1, 0.6], rtol=1e-6)


def test_an_embedder_that_would_not_know_a_perfect_copy_raises_an_alarm():
    similarities = np.array([0.5, 0.6, 0.7, 0.8])
    scores = score_reconstructions(similarities, 0, copy_threshold=0.75)
    (alarm,) = scores["alarms"]
    assert "75 % of 4 training images" in alarm
    assert "(0.65 on average) than 0.75" in alarm
    assert scores["reconstructions_recognised"] == 0.25
    mean = "reconstruction_similarity_mean"
    low, high = scores[f"{mean}_ci95"]
    assert scores[mean] == pytest.approx(0.65)
    assert low < scores[mean] < high


@pytest.mark.parametrize("threshold", [0.65, None])
def test_no_alarm_where_copies_are_recognised_or_not_decided(threshold):
    similarities = np.array([0.5, 0.7, 0.7, 0.8])
    scores = score_reconstructions(
        similarities, 0, prefix="pixels_", copy_threshold=threshold
    )
    assert "alarms" not in scores
    assert scores["pixels_reconstruction_similarity_mean"] == pytest.approx(0.675)
    assert ("reconstructions_recognised" in scores) == (threshold is not None)


def test_of_none_nothing_is_said():
    assert score_reconstructions(np.empty(0), 0, copy_threshold=0.5) == {}
