import gc

import numpy as np
import pytest

from copymit.search.nearest import search, search_exact
from copymit.search.vectors import (
    as_vectors,
    blocks,
    open_vectors,
    part_of,
    row_range,
    rows_at,
)


def unit_rows(count, dimension, seed):
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


ROWS = unit_rows(50, 8, 0)
SHARDS = [ROWS[:20], ROWS[20:21], ROWS[21:21], ROWS[21:50]]


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{i:05d}.npy" for i in range(len(SHARDS))]
    for path, shard in zip(paths, SHARDS, strict=True):
        np.save(path, shard)
    return paths


@pytest.mark.parametrize("size", [1, 7, 20, 64])
def test_blocks_cross_shards_and_hold_every_row_once(size):
    found = list(blocks(as_vectors(SHARDS, "references"), size))
    assert [first for first, _ in found] == list(range(0, 50, size))
    assert {len(rows) for _, rows in found[:-1]} <= {size}
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in found]), ROWS)


def test_a_part_and_chosen_rows_are_those_of_the_whole():
    vectors = as_vectors(SHARDS, "references")
    part = part_of(vectors, 15, 30)
    assert part.num_rows == 15
    np.testing.assert_array_equal(row_range(part, 0, 15), ROWS[15:30])
    np.testing.assert_array_equal(row_range(part_of(part, 4, 9), 1, 5), ROWS[20:24])
    chosen = np.array([0, 19, 20, 21, 49])
    np.testing.assert_array_equal(rows_at(vectors, chosen), ROWS[chosen])


def test_rows_of_one_float32_array_are_not_copied():
    assert np.shares_memory(row_range(as_vectors(ROWS, "queries"), 5, 9), ROWS)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32_a_block_at_a_time(dtype):
    shards = [shard.astype(dtype) for shard in SHARDS]
    for _, rows in blocks(as_vectors(shards, "references"), 16):
        assert rows.dtype == np.float32


def test_files_are_searched_as_the_array_they_hold(files):
    expected = search_exact(ROWS[:9], ROWS, 5)
    for references in (
        open_vectors(files, "references"),
        [np.load(path, mmap_mode="r") for path in files],
    ):
        found = search(ROWS[:9], references, 5).neighbours
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.similarities, expected.similarities)


def test_a_file_is_mapped_only_while_its_rows_are_read(files):
    vectors = open_vectors(files, "references")
    gc.collect()
    mapped = [item for item in gc.get_objects() if isinstance(item, np.memmap)]
    assert not mapped
    assert isinstance(vectors.shards[0](), np.memmap)


def test_more_shards_than_a_process_may_have_files_open(tmp_path, few_open_files):
    paths = [tmp_path / f"{i:05d}.npy" for i in range(40)]
    for path, row in zip(paths, ROWS, strict=False):
        np.save(path, row[None])
    vectors = open_vectors(paths, "references")
    assert vectors.num_rows == 40
    found = search_exact(ROWS[:9], vectors, 1)
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(9))


def test_a_file_that_changed_since_it_was_opened_is_named(files):
    vectors = open_vectors(files, "references")
    np.save(files[1], ROWS[:3])
    with pytest.raises(ValueError, match=r"shard 1 of references.*\(3, 8\).*\(1, 8\)"):
        search(ROWS[:2], vectors, 1)


def test_a_pickle_is_refused_and_an_absent_file_named(files):
    np.save(files[0], np.array([{}], object))
    with pytest.raises(ValueError, match=r"00000\.npy of references is not"):
        open_vectors(files, "references")
    files[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"00000\.npy"):
        open_vectors(files, "references")


def test_a_broken_row_is_counted_from_the_first_shard():
    broken = ROWS.copy()
    broken[30] = np.nan
    shards = as_vectors([broken[:20], broken[20:]], "references")
    with pytest.raises(
        ValueError, match=r"1 of the 10 references from row 30 .*\[30\]"
    ):
        list(blocks(shards, 10))


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([], "no shards"),
        ([ROWS[:0]], r"non-empty.*\(0, 8\)"),
        ([ROWS, ROWS[0]], r"\(8,\)"),
        ([ROWS, ROWS[:, :5]], "shard 1 of references has 5 dimensions, shard 0 8"),
    ],
)
def test_shards_that_do_not_fit_are_named(shards, message):
    with pytest.raises(ValueError, match=message):
        search(ROWS, shards, 1)
