import numpy as np
import pytest

from copymit.scores import frechet, manifold
from copymit.scores.jackknife import group_clusters
from copymit.scores.manifold import NEIGHBOURS, manifold_scores

GROUPS = group_clusters(np.arange(40) // 4, 40, seed=0)


def loop_balls(centres, points, k):
    """Whether each ball (row) of a centre holds each point (column)."""
    inside = np.zeros((len(centres), len(points)), bool)
    for i, centre in enumerate(centres):
        others = np.delete(centres, i, axis=0)
        radius = sorted(np.linalg.norm(others - centre, axis=1))[k - 1]
        for j, point in enumerate(points):
            inside[i, j] = np.linalg.norm(point - centre) <= radius
    return inside


def loop_scores(references, generations, neighbours=NEIGHBOURS):
    near, far = neighbours
    inside = loop_balls(references, generations, far)
    return {
        "precision": loop_balls(references, generations, near).any(0).mean(),
        "recall": loop_balls(generations, references, near).any(0).mean(),
        "density": inside.sum(0).mean() / far,
        "coverage": inside.any(1).mean(),
    }


def of_all(references, generations):
    found = manifold_scores(references, generations)
    assert all(len(values) == 1 for values in found.values())
    return {name: values[0] for name, values in found.items()}


@pytest.fixture(params=[frechet.BLOCK_ELEMENTS, 5 * 40])
def pair(request, monkeypatch):
    """Overlapping but different sets, compared in one block and in many."""
    monkeypatch.setattr(frechet, "BLOCK_ELEMENTS", request.param)
    rng = np.random.default_rng(3)
    return rng.normal(size=(45, 4)), rng.normal(0.7, 0.8, (40, 4))


@pytest.mark.parametrize("neighbours", [(3, 5), (1, 1), (5, 3)])
def test_scores_of_all_and_without_each_group_equal_a_plain_loop(pair, neighbours):
    references, generations = pair
    found = manifold_scores(references, generations, GROUPS, neighbours)
    kept = [np.ones(40, bool), *~GROUPS]
    for i, rows in enumerate(kept):
        expected = loop_scores(references, generations[rows], neighbours)
        assert {k: v[i] for k, v in found.items()} == pytest.approx(expected)


def test_each_set_is_compared_with_itself_once(pair, monkeypatch):
    compared = []

    def spy(first, second):
        compared.append((len(first), len(second)))
        return frechet.squared_distances(first, second)

    monkeypatch.setattr(manifold, "squared_distances", spy)
    manifold_scores(*pair, GROUPS)
    assert sorted(compared) == [(40, 40), (45, 40), (45, 45)]


def test_copies_of_the_references_are_precise_and_cover_all():
    references = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    references[1:7] = references[0]  # a ball of radius zero
    found = of_all(references, references)
    assert found.pop("density") >= 1
    assert set(found.values()) == {1}


def test_one_image_repeated_is_precise_but_recalls_nothing():
    references = np.random.default_rng(0).normal(size=(60, 8))
    found = of_all(references, np.repeat(references[:1], 40, axis=0))
    assert found["precision"] == 1
    assert found["recall"] == pytest.approx(1 / 60)
    assert found["coverage"] < 0.5


def test_far_generations_score_zero():
    references = np.random.default_rng(0).normal(size=(30, 8))
    assert set(of_all(references, references + 100).values()) == {0}
