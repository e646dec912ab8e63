"""Shards of features on disk: complete or not there, and readable as one set."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from copymit.embedding import store as store_module
from copymit.embedding.store import (
    Embeddings,
    EmbeddingStore,
    Shard,
    Skipped,
    StoredRows,
    listing_digest,
    load_embeddings,
    plan_shards,
    unit_rows,
)

IDS = ["a", "über b", "c/d.png", "e", "f"]
PLAN = plan_shards(IDS, "mean colour", shard_rows=2)


def shard(rng, ids, skipped=()):
    shard = Shard(list(ids), [rng.bytes(16) for _ in ids], [*skipped])
    return shard, rng.normal(size=(len(ids), 3)).astype(np.float32)


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(tmp_path / "store", "these images")


def fill(store, rng, plan=PLAN, ids=IDS):
    """Writes all shards of a set and returns what was written."""
    written = []
    for index in range(plan.num_shards):
        written.append(shard(rng, [ids[row] for row in plan.rows(index)]))
        store.write(plan, index, *written[-1])
    return written


def test_shards_come_back_as_they_were_written(store, rng):
    skipped = [Skipped("f", "is corrupt")]
    written = [
        *(shard(rng, ids) for ids in (IDS[:2], IDS[2:4])),
        shard(rng, [], skipped),
    ]
    for index in (2, 0, 1):
        store.write(PLAN, index, *written[index])
    paths, shards = zip(*store.shards(store.find()), strict=True)
    assert list(shards) == [own for own, _ in written]
    for features, (_, expected) in zip(StoredRows(paths), written, strict=True):
        np.testing.assert_array_equal(features, expected)
        assert isinstance(features, np.memmap)
    found = load_embeddings(store)
    assert (found.ids, found.skipped) == (IDS[:4], skipped)
    assert found.protocol == "mean colour"
    np.testing.assert_array_equal(
        found.features, np.concatenate([rows for _, rows in written[:2]])
    )
    np.testing.assert_allclose(np.linalg.norm(found.unit, axis=1), 1, rtol=1e-6)


def test_a_set_is_whole_with_all_its_shards(store, rng):
    for index in (2, 0):
        store.write(PLAN, index, *shard(rng, "a"))
        assert store.find() is None
    assert store.missing(PLAN) == [1]
    with pytest.raises(FileNotFoundError, match="holds no embeddings of these inputs"):
        load_embeddings(store)
    store.write(PLAN, 1, *shard(rng, "a"))
    assert (store.missing(PLAN), store.find()) == ([], PLAN)


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_a_shard_without_one_of_its_files_was_never_finished(store, rng, suffix):
    fill(store, rng)
    next(store.directory.glob(f"00001-*.{suffix}")).unlink()
    assert (store.missing(PLAN), store.find()) == ([1], None)
    assert len(list(store.known("mean colour"))) == 2


def test_sets_of_other_inputs_are_not_seen(store, rng):
    fill(store, rng)
    other = EmbeddingStore(store.directory, "other images")
    assert (other.find(), other.missing(PLAN)) == (None, [0, 1, 2])
    with pytest.raises(FileNotFoundError, match="holds no embeddings of these"):
        load_embeddings(other)
    assert load_embeddings(store).ids == IDS


def test_a_new_set_of_the_same_inputs_leaves_the_old_one_readable_until_it_is_whole(
    store, rng
):
    old = fill(store, rng)
    plan = plan_shards(IDS[:3], "mean colour", shard_rows=2)
    new = fill(store, rng, plan, IDS[:3])
    assert store.find() is None
    known = dict(store.known("mean colour"))
    assert {bytes(row) for rows in known.values() for row in rows} == {
        digest for written, _ in [*old, *new] for digest in written.digests
    }
    assert list(store.known("another")) == []
    (store.directory / "00000-of-a-kill.npy").touch()
    store.keep_only(plan)
    assert store.find() == plan
    assert len(list(store.directory.iterdir())) == 2 * plan.num_shards


def test_a_shared_store_leaves_what_another_process_is_writing(store, rng):
    fill(store, rng)
    partial = store.directory / "00001-half.npy.another-host-17.partial"
    partial.touch()
    shared = EmbeddingStore(store.directory, store.inputs, shared=True)
    plan = plan_shards(IDS[:3], "mean colour", shard_rows=2)
    fill(shared, rng, plan, IDS[:3])
    shared.keep_only(plan)
    assert (shared.find(), partial.exists()) == (plan, True)
    store.keep_only(plan)
    assert not partial.exists()


def test_a_store_that_is_not_there_is_named(tmp_path):
    store = EmbeddingStore(tmp_path / "none")
    assert store.find() is None
    with pytest.raises(FileNotFoundError, match="none holds no embeddings"):
        load_embeddings(store)


def test_an_older_copymits_shards_are_known_by_their_pixels_alone(store, rng):
    """They were called 00000.parquet, and their digests had no fixed length."""
    digests = [rng.bytes(16) for _ in range(3)]
    about = {"inputs": "these images", "protocol": "mean colour", "num_shards": "1"}
    fields = [("id", pa.string()), ("digest", pa.binary())]
    table = pa.table([IDS[:3], digests], schema=pa.schema(fields, metadata=about))
    store.directory.mkdir()
    pq.write_table(table, store.directory / "00000.parquet")
    np.save(store.directory / "00000.npy", np.zeros((3, 2), np.float32))
    ((path, known),) = store.known("mean colour")
    assert path.name == "00000.npy"
    assert [bytes(row) for row in known] == digests
    assert store.find() is None


@pytest.mark.parametrize(
    ("count", "rows", "shards"),
    [
        (1, 256, 1),
        (4_000, 256, 16),
        (65_536, 256, 256),
        (1_000_000, 1_024, 977),
        (10_000_000, 3_328, 3_005),
    ],
)
def test_shards_of_small_sets_are_small_and_those_of_large_ones_few(
    count, rows, shards, monkeypatch
):
    monkeypatch.setattr(store_module, "listing_digest", lambda _: "")
    plan = plan_shards(range(count), "mean colour")
    assert (plan.shard_rows, plan.num_shards) == (rows, shards)
    assert plan.rows(shards - 1).stop == count


def test_a_long_listing_has_the_digest_of_its_json(monkeypatch):
    monkeypatch.setattr(store_module, "_LISTED_AT_ONCE", 2)
    for count in range(6):
        expected = hashlib.sha256(json.dumps(IDS[:count]).encode()).hexdigest()
        assert listing_digest(IDS[:count]) == expected


def test_rows_are_found_in_whichever_shard_has_them(rng):
    shards = [rng.normal(size=(n, 2)).astype(np.float32) for n in (3, 1, 4)]
    together = Embeddings([str(i) for i in range(8)], shards)
    rows = np.array([7, 0, 3, 3, 2, 4])
    np.testing.assert_array_equal(together.rows(rows), together.features[rows])


def test_unit_rows_have_length_one_and_nothing_stays_nothing():
    unit = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert unit.dtype == np.float32
