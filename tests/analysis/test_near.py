import numpy as np
import pytest
from etils import epath

from copymit.analysis import near as near_module
from copymit.analysis.near import calibrate_threshold, find_near, mean_similarity
from copymit.embedding.store import Embeddings, StoredRows


def embeddings(*shards):
    count = sum(len(shard) for shard in shards)
    return Embeddings([str(i) for i in range(count)], list(shards))


def test_what_is_connected_over_others_is_one_group():
    angles = np.deg2rad([0, 20, 40, 120, 200, 215])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    near = find_near(embeddings(rows[:4] * 3, rows[4:]), np.cos(np.deg2rad(21)))
    groups = near.groups
    assert groups[0] == groups[1] == groups[2]
    assert groups[4] == groups[5]
    assert len(set(groups.tolist())) == 3
    assert near.facts["near_pairs"] == 3
    np.testing.assert_allclose(near.nearest[0], np.cos(np.deg2rad(20)), atol=1e-6)


def test_more_shards_than_a_process_may_have_files_open(tmp_path, few_open_files):
    paths = [epath.Path(tmp_path / f"{i}.npy") for i in range(40)]
    for i, path in enumerate(paths):
        np.save(path, np.eye(20, dtype=np.float32)[[i // 2]])
    stored = Embeddings([str(i) for i in range(40)], StoredRows(paths))
    groups = find_near(stored, 0.9).groups
    assert len(set(groups.tolist())) == 20
    np.testing.assert_array_equal(groups[::2], groups[1::2])


def test_groups_larger_than_the_first_search_are_whole(rng, monkeypatch):
    monkeypatch.setattr(near_module, "_FIRST_K", 2)
    centres = np.eye(8, dtype=np.float32)[[0, 3]]
    rows = np.repeat(centres, [30, 40], 0) + 0.01 * rng.normal(size=(70, 8))
    near = find_near(embeddings(rows.astype(np.float32)), 0.9)
    assert np.unique(near.groups, return_counts=True)[1].tolist() == [30, 40]
    assert near.facts["near_pairs"] == 30 * 29 // 2 + 40 * 39 // 2
    assert near.facts["with_more_neighbours_than_searched"] == 0


def test_calibration_lies_above_different_images_and_below_copies(rng):
    background = 1 - np.exp(rng.normal(np.log(0.3), 0.2, 2000))
    copies = np.full(200, 0.97)
    threshold = calibrate_threshold(np.concatenate([background, copies]))
    assert np.sort(background)[-3] < threshold < 0.97


def test_families_of_similar_images_raise_the_threshold(rng):
    alone = 1 - np.exp(rng.normal(np.log(0.3), 0.2, 1500))
    family = 1 - np.exp(rng.normal(np.log(0.05), 0.5, 500))
    threshold = calibrate_threshold(np.concatenate([alone, family]))
    assert threshold > calibrate_threshold(alone)


def test_more_images_give_a_higher_threshold(rng):
    few = 1 - np.exp(rng.normal(np.log(0.3), 0.2, 1000))
    assert calibrate_threshold(np.tile(few, 100)) > calibrate_threshold(few)


def test_the_mean_over_pairs_is_that_of_every_pair(rng):
    rows = rng.normal(size=(7, 5)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    chosen = np.array([1, 1, 4, 6])
    products = unit[chosen] @ unit[chosen].T
    expected = products[np.triu_indices(4, 1)].mean()
    # float32 products of five numbers
    got = mean_similarity(embeddings(rows[:3], rows[3:]), chosen, block=3)
    assert got == pytest.approx(expected, abs=1e-6)
