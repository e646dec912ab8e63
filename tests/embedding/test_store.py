"""Shards of features on disk: complete or not there, and readable as one set."""

import numpy as np
import pytest

from copymit.embedding.store import (
    Embeddings,
    EmbeddingStore,
    Shard,
    Skipped,
    load_embeddings,
    unit_rows,
)


def shard(rng, ids, skipped=()):
    digests = [rng.bytes(16) for _ in ids]
    return Shard(
        list(ids), digests, rng.normal(size=(len(ids), 3)), [*skipped], "digest"
    )


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(tmp_path / "store", "these images")


def test_a_shard_comes_back_as_it_was_written(store, rng):
    written = shard(rng, ["a", "über b", "c/d.png"], [Skipped("e", "is corrupt")])
    store.write(2, written)
    read = store.read(2)
    assert read._replace(features=None) == written._replace(features=None)
    np.testing.assert_allclose(read.features, written.features, rtol=1e-6)
    assert isinstance(read.features, np.memmap)
    assert store.read(1) is None


def test_a_shard_without_its_table_was_never_finished(store, rng):
    store.write(0, shard(rng, "ab"))
    (store.directory / "00000.parquet").unlink()
    assert store.read(0) is None
    assert store.shards_of_any_inputs() == []


def test_shards_of_other_inputs_are_not_seen(store, rng):
    store.write(0, shard(rng, "ab"))
    other = EmbeddingStore(store.directory, "other images")
    assert (other.read(0), other.is_complete()) == (None, False)
    with pytest.raises(FileNotFoundError, match="holds no embeddings of these"):
        load_embeddings(other)
    assert load_embeddings(store).ids == ["a", "b"]


def test_a_set_is_complete_with_all_its_shards(store, rng):
    for index in (0, 2):
        store.write(index, shard(rng, "ab")._replace(num_shards=3))
        assert not store.is_complete()
    with pytest.raises(FileNotFoundError, match="shard 1 of 3 is missing"):
        load_embeddings(store)
    store.write(1, shard(rng, "cd")._replace(num_shards=3, protocol="another"))
    assert not store.is_complete()
    store.write(1, shard(rng, "cd")._replace(num_shards=3))
    assert store.is_complete()


def test_shards_read_as_one_set_and_empty_ones_are_no_rows(store, rng):
    first, second = (shard(rng, ids)._replace(num_shards=3) for ids in ("ab", "c"))
    store.write(0, first)
    skipped = [Skipped("x", "is corrupt")]
    store.write(1, Shard([], [], np.empty((0, 1)), skipped, "", num_shards=3))
    store.write(2, second)
    found = load_embeddings(store)
    assert found.ids == ["a", "b", "c"]
    expected = np.concatenate([first.features, second.features])
    np.testing.assert_allclose(found.features, expected, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.unit, axis=1), 1, rtol=1e-6)
    assert found.skipped == [Skipped("x", "is corrupt")]


def test_rows_are_found_in_whichever_shard_has_them(rng):
    shards = [rng.normal(size=(n, 2)).astype(np.float32) for n in (3, 1, 4)]
    together = Embeddings([str(i) for i in range(8)], shards)
    rows = np.array([7, 0, 3, 3, 2, 4])
    np.testing.assert_array_equal(together.rows(rows), together.features[rows])


def test_a_store_that_is_not_there_is_named(tmp_path):
    store = EmbeddingStore(tmp_path / "none")
    assert not store.is_complete()
    with pytest.raises(FileNotFoundError, match="none holds no embeddings"):
        load_embeddings(store)


def test_unit_rows_have_length_one_and_nothing_stays_nothing():
    unit = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert unit.dtype == np.float32
