import numpy as np
import pytest

from copymit.scores import frechet
from copymit.scores.cmmd import clip_maximum_mean_discrepancy as cmmd


def unit_rows(count, size, shift=0.0, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, size))
    rows[:, 0] += shift
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def loop_cmmd(references, generations):
    def mean_kernel(first, second):
        pairs = [(x, y) for x in first for y in second]
        return np.mean([np.exp(-np.square(x - y).sum() / 200) for x, y in pairs])

    within = mean_kernel(references, references) + mean_kernel(generations, generations)
    return 1000 * (within - 2 * mean_kernel(references, generations))


@pytest.mark.parametrize("block", [frechet.BLOCK_ELEMENTS, 5 * 23])
def test_it_equals_a_plain_loop_over_all_pairs(block, monkeypatch):
    monkeypatch.setattr(frechet, "BLOCK_ELEMENTS", block)
    references, generations = unit_rows(31, 6), unit_rows(23, 6, shift=1.0, seed=1)
    expected = loop_cmmd(references, generations)
    assert expected > 1
    # The loop's own rounding: 1,000 times a difference of numbers near 1.
    assert cmmd(references, generations) == pytest.approx(expected, abs=1e-10)


def test_two_points_have_a_closed_form():
    # Kernels 1 and 1 within, exp(-2 / 200) across.
    expected = 1000 * 2 * (1 - np.exp(-0.01))
    assert cmmd(np.eye(2)[:1], np.eye(2)[1:]) == pytest.approx(expected, rel=1e-12)


def test_equal_sets_are_at_distance_zero_in_any_order():
    rows = unit_rows(40, 8)
    assert cmmd(rows, rows[::-1]) == pytest.approx(0, abs=1e-11)


def test_float32_embeddings_are_taken():
    pair = unit_rows(30, 16), unit_rows(30, 16, shift=0.5, seed=1)
    expected = cmmd(*pair)
    found = cmmd(*(rows.astype(np.float32) for rows in pair))
    # Rounding of the embeddings themselves, 6e-8 each.
    assert found == pytest.approx(expected, rel=1e-6)


def test_embeddings_that_are_not_unit_vectors_are_named():
    rows = unit_rows(9, 4)
    longer = rows * np.where(np.arange(9) == 3, 2, 1)[:, None]
    with pytest.raises(ValueError, match=r"1 of 9 generations .* row 3 of length 2:"):
        cmmd(rows, longer)


def test_embeddings_of_two_embedders_are_named():
    with pytest.raises(ValueError, match="references have 4 features, generations 3"):
        cmmd(np.eye(4), np.eye(3))
