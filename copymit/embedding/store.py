"""Embeddings on disk: shards that are there whole or not at all, and can grow.

    DIRECTORY/00000.npy       features, float32, one row an image
    DIRECTORY/00000.parquet   id of each row, and a digest of the image's pixels; its
                              metadata say what the shard was made of, how, of how many
                              shards it is one, and which images could not be read

A shard's table is written last and removed first, so that a shard with a table is
complete. A store sees only shards of its own inputs: what an interrupted or an earlier
run left of others is not there. Readers on a local disk map the features into memory;
ten million images of 512 features are 20 GB in 2,442 shards.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
      protocol: how the features were made.
      num_shards: of the set.
    """

    ids: list[str]
    digests: list[bytes]
    features: Float[np.ndarray, "R D"]
    skipped: list[Skipped]
    listing: str
    protocol: str = ""
    num_shards: int = 1


class EmbeddingStore:
    """The embeddings of one set of images by one embedder.

    Args:
      inputs: digest of everything that the features depend on; "" if none is known, and
        then a name does not say that an image is still the same.
    """

    def __init__(self, directory: epath.PathLike, inputs: str = ""):
        self.directory = epath.Path(directory)
        self.inputs = inputs

    def write(self, index: int, shard: Shard) -> None:
        """Writes a shard in place of the one before."""
        features, table = self._paths(index)
        self.directory.mkdir(parents=True, exist_ok=True)
        table.unlink(missing_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(shard.features, np.float32), allow_pickle=False)
        write_whole(features, buffer.getvalue())
        about = {
            "inputs": self.inputs,
            "protocol": shard.protocol,
            "num_shards": str(shard.num_shards),
            "listing": shard.listing,
            "skipped": json.dumps(shard.skipped),
        }
        fields = [("id", pa.string()), ("digest", pa.binary())]
        rows = pa.table(
            [shard.ids, shard.digests], schema=pa.schema(fields, metadata=about)
        )
        buffer = io.BytesIO()
        pq.write_table(rows, buffer)
        write_whole(table, buffer.getvalue())

    def read(self, index: int) -> Shard | None:
        """Reads a shard, or nothing if it is not complete or of other inputs."""
        inputs, shard = self._read(index)
        return shard if inputs == self.inputs else None

    def shards_of_any_inputs(self) -> list[Shard]:
        """Reads all complete shards, for who knows images by their pixels' digests."""
        found = (self._read(index)[1] for index in self.numbers())
        return [shard for shard in found if shard is not None]

    def is_complete(self) -> bool:
        """Says whether every shard of the set is there; reads no features."""
        about = self._about(0)
        if about is None:
            return False
        with ThreadPoolExecutor(16) as pool:
            others = pool.map(self._about, range(1, int(about["num_shards"])))
            same = ("inputs", "protocol", "num_shards")
            return all(
                other is not None and all(other[key] == about[key] for key in same)
                for other in others
            )

    def truncate(self, count: int) -> None:
        """Removes the shards from number `count` on, of a set that was larger."""
        for index in self.numbers():
            if index >= count:
                for path in reversed(self._paths(index)):
                    path.unlink(missing_ok=True)

    def features_path(self, index: int) -> epath.Path:
        """Is the file of a shard's features."""
        return self._paths(index)[0]

    def numbers(self) -> list[int]:
        """Lists the shards that are there, of any inputs, in their order."""
        if not self.directory.exists():
            return []
        names = [path for path in self.directory.iterdir() if path.suffix == ".parquet"]
        return sorted(int(path.stem) for path in names)

    def _about(self, index: int) -> dict[str, str] | None:
        """Reads what a shard of these inputs says of itself."""
        features, table = self._paths(index)
        if not (table.exists() and features.exists()):
            return None
        with table.open("rb") as file:
            metadata = pq.read_schema(file).metadata or {}
        about = {key.decode(): value.decode() for key, value in metadata.items()}
        return about if about.get("inputs") == self.inputs else None

    def _read(self, index: int) -> tuple[str, Shard | None]:
        features, table = self._paths(index)
        if not (table.exists() and features.exists()):
            return "", None
        with table.open("rb") as file:
            rows = pq.read_table(file)
        about = {k.decode(): v.decode() for k, v in rows.schema.metadata.items()}
        if "inputs" not in about:
            return "", None  # an older copymit did not say
        shard = Shard(
            rows["id"].to_pylist(),
            rows["digest"].to_pylist(),
            _read_rows(features),
            [Skipped(*pair) for pair in json.loads(about["skipped"])],
            about["listing"],
            about["protocol"],
            int(about["num_shards"]),
        )
        return about["inputs"], shard

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
      FileNotFoundError: if it is not there, not all of it, or of other inputs.
    """
    first = store.read(0)
    count = first.num_shards if first else 0
    ids: list[str] = []
    paths: list[epath.Path] = []
    skipped: list[Skipped] = []
    for index in range(count):
        shard = store.read(index)
        if shard is None or shard[5:] != first[5:]:  # type: ignore[index]
            raise FileNotFoundError(
                f"{store.directory} holds no embeddings that are whole: shard {index} "
                f"of {count} is missing or of other inputs; embed again"
            )
        skipped += shard.skipped
        if shard.ids:
            ids += shard.ids
            paths.append(store.features_path(index))
    if first is None or not ids:
        raise FileNotFoundError(
            f"{store.directory} holds no embeddings of these inputs: embed them first"
        )
    return Embeddings(ids, StoredRows(paths), first.protocol, skipped)


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
