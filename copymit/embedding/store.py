"""Embeddings on disk: shards that are there whole or not at all, and can grow.

    DIRECTORY/embedder.json   protocol and number of features
    DIRECTORY/00000.npy       features, float32, one row an image
    DIRECTORY/00000.parquet   id of each row, and a digest of the image's pixels; its
                              metadata list the images that could not be read

A shard's table is written last, so that a shard with a table is complete. Readers on a
local disk map the features into memory; ten million images of 512 features are 20 GB in
2,442 shards.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from jaxtyping import Float, Int

from copymit.storage import is_remote, write_whole

# Images embedded between two writes: what a kill can lose.
SHARD_ROWS = 4096


class Skipped(NamedTuple):
    """An image that could not be read, and why."""

    id: str
    reason: str


class StoredRows(Sequence[np.ndarray]):
    """The features of shards on disk, each mapped only while it is used.

    A map that is kept counts as memory of the process, page by page, as it is read.
    """

    def __init__(self, paths: Sequence[epath.Path]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            return StoredRows(self._paths[index])
        return _read_rows(self._paths[index])


class Shard(NamedTuple):
    """Consecutive images of a set.

    Attributes:
      ids: of the images that could be read.
      digests: 16 bytes of each image's pixels.
      features: not normalised.
      skipped: the images that could not be read.
      listing: digest of the ids of all images that the shard is about.
    """

    ids: list[str]
    digests: list[bytes]
    features: Float[np.ndarray, "R D"]
    skipped: list[Skipped]
    listing: str


class EmbeddingStore:
    """The embeddings of one set of images by one embedder."""

    def __init__(self, directory: epath.PathLike):
        self.directory = epath.Path(directory)

    def claim(self, protocol: str) -> None:
        """Makes the store the protocol's; shards of another one are removed."""
        if self.protocol() != protocol:
            self.clear()
            self.directory.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"protocol": protocol}, indent=1) + "\n"
            write_whole(self.directory / "embedder.json", text.encode())

    def clear(self) -> None:
        """Removes everything."""
        self.directory.rmtree(missing_ok=True)

    def protocol(self) -> str | None:
        """Says how the features were made, or None for a store that is not there."""
        path = self.directory / "embedder.json"
        return json.loads(path.read_text())["protocol"] if path.exists() else None

    def write(self, index: int, shard: Shard) -> None:
        """Writes a shard in place of the one before."""
        features, table = self._paths(index)
        table.unlink(missing_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(shard.features, np.float32), allow_pickle=False)
        write_whole(features, buffer.getvalue())
        about = {"listing": shard.listing, "skipped": json.dumps(shard.skipped)}
        fields = [("id", pa.string()), ("digest", pa.binary())]
        rows = pa.table(
            [shard.ids, shard.digests], schema=pa.schema(fields, metadata=about)
        )
        buffer = io.BytesIO()
        pq.write_table(rows, buffer)
        write_whole(table, buffer.getvalue())

    def read(self, index: int) -> Shard | None:
        """Reads a shard, or nothing if it is not complete."""
        features, table = self._paths(index)
        if not (table.exists() and features.exists()):
            return None
        with table.open("rb") as file:
            rows = pq.read_table(file)
        about = rows.schema.metadata
        return Shard(
            rows["id"].to_pylist(),
            rows["digest"].to_pylist(),
            _read_rows(features),
            [Skipped(*pair) for pair in json.loads(about[b"skipped"])],
            about[b"listing"].decode(),
        )

    def truncate(self, count: int) -> None:
        """Removes the shards from number `count` on, of a set that was larger."""
        for index in self.numbers():
            if index >= count:
                for path in reversed(self._paths(index)):
                    path.unlink(missing_ok=True)

    def shards(self) -> list[Shard]:
        """Reads all complete shards in their order; features stay on a local disk."""
        found = (self.read(index) for index in self.numbers())
        return [shard for shard in found if shard is not None]

    def features_path(self, index: int) -> epath.Path:
        """Is the file of a shard's features."""
        return self._paths(index)[0]

    def numbers(self) -> list[int]:
        """Lists the shards that are there, in their order."""
        if not self.directory.exists():
            return []
        names = [path for path in self.directory.iterdir() if path.suffix == ".parquet"]
        return sorted(int(path.stem) for path in names)

    def _paths(self, index: int) -> tuple[epath.Path, epath.Path]:
        stem = f"{index:05d}"
        return self.directory / f"{stem}.npy", self.directory / f"{stem}.parquet"


class Embeddings(NamedTuple):
    """The features of a set of images, in the order of their ids, shard by shard.

    Attributes:
      protocol: how they were made.
      skipped: images of the set that could not be read.
    """

    ids: list[str]
    shards: Sequence[Float[np.ndarray, "R D"]]
    protocol: str = ""
    skipped: Sequence[Skipped] = ()

    @property
    def features(self) -> Float[np.ndarray, "R D"]:
        """All features in memory."""
        return np.concatenate(self.shards)

    @property
    def unit(self) -> Float[np.ndarray, "R D"]:
        """All features in memory, scaled to unit length: dot products are cosines."""
        return np.concatenate([unit_rows(shard) for shard in self.shards])

    def rows(self, numbers: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N D"]:
        """Reads some rows."""
        lengths = [len(shard) for shard in self.shards]
        ends = np.cumsum(lengths)
        holders = np.searchsorted(ends, numbers, side="right")
        found = np.empty((len(numbers), self.shards[0].shape[1]), np.float32)
        for i in np.unique(holders):
            inside = holders == i
            start = ends[i] - lengths[i]
            found[inside] = self.shards[i][numbers[inside] - start]
        return found


def load_embeddings(store: EmbeddingStore) -> Embeddings:
    """Opens what the embed stage wrote.

    Raises:
      FileNotFoundError: if there is nothing.
    """
    ids: list[str] = []
    paths: list[epath.Path] = []
    skipped: list[Skipped] = []
    for index in store.numbers():
        shard = store.read(index)
        if shard is None:
            continue
        skipped += shard.skipped
        if shard.ids:
            ids += shard.ids
            paths.append(store.features_path(index))
    if not ids:
        raise FileNotFoundError(f"{store.directory} holds no embeddings")
    return Embeddings(ids, StoredRows(paths), store.protocol() or "", skipped)


def listing_digest(ids: Sequence[str]) -> str:
    """Hashes a list of ids."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def unit_rows(features: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R D"]:
    """Scales rows to unit length; a row of zeros stays one."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.maximum(norms, 1e-12)).astype(np.float32)


def _read_rows(path: epath.Path) -> np.ndarray:
    if not is_remote(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)
    return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
