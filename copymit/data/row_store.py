"""Arrays computed once and read at random: rows of one shape, on disk or in a bucket.

Rows are written a shard at a time, each shard one object that is there whole or not at
all, so that an interrupted writer goes on with the shards that are missing, and several
writers can share the work.
"""

import re
from collections.abc import Sequence

import numpy as np
import tensorstore as ts
from etils import epath
from jaxtyping import Float

from copymit.storage import writing

# Bytes of a shard: large enough for a bucket, small enough to lose in a kill.
_SHARD_BYTES = 32 * 2**20

# Rows are kept in memory when all of them together are smaller than this.
_MEMORY_BYTES = 2**30

# Holds the indices of the shards, which every read needs.
_CACHE_POOL = {"cache_pool": {"total_bytes_limit": 64 * 2**20}}


class RowStore:
    """Rows 0 to `num_rows` of shape `row_shape`.

    Args:
      path: directory of this store alone; created if need be.
      shard_rows: rows written together; by default as many as make 32 MiB.
      dtype: float32 or bfloat16.
    """

    def __init__(
        self,
        path: epath.PathLike,
        num_rows: int,
        row_shape: Sequence[int],
        shard_rows: int | None = None,
        dtype: str = "float32",
    ):
        row_bytes = row_size(row_shape, dtype)
        self.path = epath.Path(path)
        self.num_rows = num_rows
        self.row_shape = tuple(row_shape)
        self.num_bytes = row_bytes * num_rows
        self.shard_rows = shard_rows or max(1, min(num_rows, _SHARD_BYTES // row_bytes))
        self._memory: np.ndarray | None = None
        self._store = ts.open(
            _spec(self.path, num_rows, self.row_shape, self.shard_rows, dtype),
            open=True,
            create=True,
        ).result()

    def shard(self, index: int) -> range:
        """Returns the rows of a shard."""
        start = index * self.shard_rows
        return range(start, min(start + self.shard_rows, self.num_rows))

    def missing_shards(self) -> list[int]:
        """Lists the shards that are not written yet."""
        keys = ts.KvStore.open(_kvstore(self.path)).result().list().result()
        names = (re.fullmatch(rb"c/(\d+)(?:/0)+", key) for key in keys)
        there = {int(name[1]) for name in names if name}
        return sorted(set(range(-(-self.num_rows // self.shard_rows))) - there)

    def write(self, index: int, rows: Float[np.ndarray, "S ..."]) -> None:
        """Writes a whole shard."""
        where = self.shard(index)
        with writing(self.path):
            self._store[where.start : where.stop].write(rows).result()

    def load_small(self) -> "RowStore":
        """Reads all rows into memory if they are few; returns itself."""
        if self._memory is None and self.num_bytes <= _MEMORY_BYTES:
            self._memory = self._store.read().result()
        return self

    def __getitem__(self, row: int) -> Float[np.ndarray, "..."]:
        """Reads one row; what was never written is zero."""
        if self._memory is not None:
            return self._memory[row]
        return self._store[row].read().result()


def row_size(row_shape: Sequence[int], dtype: str) -> int:
    """Returns the bytes of a row."""
    return int(np.prod(row_shape)) * {"float32": 4, "bfloat16": 2}[dtype]


def _kvstore(path: epath.Path) -> dict | str:
    text = str(path)
    if text.startswith("gs://"):
        return text.rstrip("/") + "/"
    return {"driver": "file", "path": str(path.absolute()) + "/"}


def _spec(
    path: epath.Path,
    num_rows: int,
    row_shape: tuple[int, ...],
    shard_rows: int,
    dtype: str,
) -> ts.Spec:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [1, *row_shape],
            "codecs": [little],
            "index_codecs": [little, {"name": "crc32c"}],
        },
    }
    metadata = {
        "shape": [num_rows, *row_shape],
        "data_type": dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [shard_rows, *row_shape]},
        },
        "codecs": [sharding],
    }
    return ts.Spec(
        {
            "driver": "zarr3",
            "kvstore": _kvstore(path),
            "metadata": metadata,
            "context": _CACHE_POOL,
            # A shard of zeros is a finished shard, too.
            "store_data_equal_to_fill_value": True,
        }
    )
