"""Rows come back as they were written, and half a store knows what it lacks."""

import pickle

import numpy as np
import pytest

from copymit.data.row_store import RowStore


@pytest.fixture
def rows(rng):
    return rng.standard_normal((10, 3, 2)).astype(np.float32)


def filled(path, rows, **options):
    store = RowStore(path, len(rows), rows.shape[1:], **options)
    for index in store.missing_shards():
        store.write(index, rows[store.shard(index)])
    return store


@pytest.mark.parametrize("shard_rows", [None, 1, 4, 10, 64])
def test_rows_come_back_as_they_were_written(shard_rows, rows, tmp_path):
    filled(tmp_path, rows, shard_rows=shard_rows)
    again = RowStore(tmp_path, 10, (3, 2), shard_rows)
    assert again.missing_shards() == []
    for i in (0, 9, 4):
        np.testing.assert_array_equal(again[i], rows[i])
    again.load_small()
    np.testing.assert_array_equal(again[7], rows[7])


def test_a_store_in_the_making_lists_the_missing_shards(rows, tmp_path):
    store = RowStore(tmp_path, 10, (3, 2), 4)
    assert store.missing_shards() == [0, 1, 2]
    store.write(1, rows[4:8])
    assert RowStore(tmp_path, 10, (3, 2), 4).missing_shards() == [0, 2]
    assert list(store.shard(2)) == [8, 9]


def test_a_shard_of_zeros_is_finished_too(rows, tmp_path):
    store = filled(tmp_path, np.zeros_like(rows), shard_rows=4)
    assert store.missing_shards() == []


def test_a_store_goes_to_worker_processes(rows, tmp_path):
    store = pickle.loads(pickle.dumps(filled(tmp_path, rows, shard_rows=4)))
    np.testing.assert_array_equal(store[5], rows[5])


def test_another_shape_in_the_same_place_is_refused(rows, tmp_path):
    filled(tmp_path, rows)
    with pytest.raises(ValueError, match="shape"):
        RowStore(tmp_path, 11, (3, 2))
