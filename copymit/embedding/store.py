"""Embeddings on disk: shards that are there whole or not at all, and can grow.

    DIRECTORY/00000-KEY.npy      features, float32, one row an image
    DIRECTORY/00000-KEY.parquet  id of each row, and a digest of the image's pixels; its
                                 metadata say what the set is made of, how, in how many
                                 shards, and which images could not be read

KEY is a digest of all that but the rows, so that nothing is ever written over something
else: several writers need not know of each other, and rows of an earlier set can be read,
by their images' pixels, until the new one is whole. A shard's table is written last and
removed first, so that a shard with a table is complete. A store sees only the set of its
own inputs. Readers on a local disk map the features into memory, one shard at a time; ten
million images of 512 features are 20 GB in 3,005 shards.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from jaxtyping import Float, Int, UInt8

from copymit.storage import is_remote, write_whole

DIGEST_BYTES = 16
# Images embedded between two writes, which a kill can lose: at least so many, or a
# multiple as large as the square root of all, so that their files stay few, too.
_LEAST_SHARD_ROWS = 256
_LISTED_AT_ONCE = 65_536
_OF_SHARDS = (".parquet", ".npy", ".partial")


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
        path = self._paths[index]
        if not is_remote(path):
            return np.load(path, mmap_mode="r", allow_pickle=False)
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)


class Plan(NamedTuple):
    """How a set is embedded: what all of its shards have in common.

    Attributes:
      protocol: how features are made.
      listing: digest of the ids of all images of the set.
      num_images: of the set, those that cannot be read included.
      shard_rows: images of each shard but the last.
    """

    protocol: str
    listing: str
    num_images: int
    shard_rows: int

    @property
    def num_shards(self) -> int:
        """Shards of the whole set."""
        return -(-self.num_images // self.shard_rows)

    def rows(self, index: int) -> range:
        """Lists the images of a shard by their places in the set."""
        start = index * self.shard_rows
        return range(start, min(start + self.shard_rows, self.num_images))


class Shard(NamedTuple):
    """Consecutive images of a set.

    Attributes:
      ids: of the images that could be read.
      digests: 16 bytes of each image's pixels.
      skipped: the images that could not be read.
    """

    ids: list[str]
    digests: list[bytes]
    skipped: list[Skipped]


def plan_shards(
    ids: Sequence[str], protocol: str, shard_rows: int | None = None
) -> Plan:
    """Splits a set into shards, the same ones whenever it is embedded.

    Args:
      shard_rows: by default 256 of up to 65,536 images, 1,024 of a million, 3,328 of ten.
    """
    count = len(ids)
    least = _LEAST_SHARD_ROWS
    rows = shard_rows or max(least, -(-math.isqrt(count) // least) * least)
    return Plan(protocol, listing_digest(ids), count, rows)


class EmbeddingStore:
    """The embeddings of one set of images by one embedder.

    Args:
      inputs: digest of everything that the features depend on, or a text that says why
        an image of the same name is still the same.
      shared: whether other evaluations may write the same set at the same time.
    """

    def __init__(
        self, directory: epath.PathLike, inputs: str = "", *, shared: bool = False
    ):
        self.directory = epath.Path(directory)
        self.inputs = inputs
        self._removed = (".parquet", ".npy") if shared else _OF_SHARDS

    def write(
        self, plan: Plan, index: int, shard: Shard, features: Float[np.ndarray, "R D"]
    ) -> None:
        """Writes a shard; its features are not normalised."""
        self.directory.mkdir(parents=True, exist_ok=True)
        stem = _stem(index, self._key(plan))
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(features, np.float32), allow_pickle=False)
        write_whole(self._features(stem), buffer.getvalue())
        about = {"inputs": self.inputs, "plan": json.dumps(plan)}
        about["protocol"], about["skipped"] = plan.protocol, json.dumps(shard.skipped)
        fields = [("id", pa.string()), ("digest", pa.binary(DIGEST_BYTES))]
        rows = pa.table(shard[:2], schema=pa.schema(fields, metadata=about))
        buffer = io.BytesIO()
        pq.write_table(rows, buffer)
        write_whole(self._table(stem), buffer.getvalue())

    def missing(self, plan: Plan) -> list[int]:
        """Lists the shards of a set that are not there; opens none."""
        there = self._stems()
        key = self._key(plan)
        return [i for i in range(plan.num_shards) if _stem(i, key) not in there]

    def keep_only(self, plan: Plan) -> None:
        """Removes what does not belong to a set: earlier ones and what kills left."""
        key = self._key(plan)
        kept = {_stem(i, key) for i in range(plan.num_shards)}
        paths = [path for path in self.directory.iterdir() if path.stem not in kept]
        for path in sorted(paths, key=lambda path: path.suffix != ".parquet"):
            if path.suffix in self._removed:
                path.unlink(missing_ok=True)

    def find(self) -> Plan | None:
        """Finds the set that was made of these inputs; None if it is not whole.

        Nor while there are two, of which the one of before is still to be removed.
        """
        there = self._stems()
        own = []
        for stem in {stem.partition("-")[2]: stem for stem in there}.values():
            about = self._about(stem)
            if about.get("inputs") == self.inputs and "plan" in about:
                own.append(Plan(*json.loads(about["plan"])))
        if len(own) != 1:
            return None
        wanted = {_stem(i, self._key(own[0])) for i in range(own[0].num_shards)}
        return own[0] if wanted <= there else None

    def shards(self, plan: Plan) -> Iterator[tuple[epath.Path, Shard]]:
        """Reads the shards of a set, each with the file of its features."""
        for index in range(plan.num_shards):
            stem = _stem(index, self._key(plan))
            with self._table(stem).open("rb") as file:
                rows = pq.read_table(file)
            skipped = json.loads(rows.schema.metadata[b"skipped"])
            ids, digests = rows["id"].to_pylist(), rows["digest"].to_pylist()
            yield (
                self._features(stem),
                Shard(ids, digests, [Skipped(*pair) for pair in skipped]),
            )

    def known(
        self, protocol: str
    ) -> Iterator[tuple[epath.Path, UInt8[np.ndarray, "R 16"]]]:
        """Reads the digests of every shard of a protocol, whatever its inputs.

        Yields:
          The file of the features, and the digest of each of its rows.
        """
        for stem in sorted(self._stems()):
            try:
                with self._table(stem).open("rb") as file:
                    table = pq.ParquetFile(file)
                    about = table.schema_arrow.metadata or {}
                    if about.get(b"protocol") != protocol.encode():
                        continue
                    column = table.read(["digest"])["digest"]
            except FileNotFoundError:
                continue  # another process has removed it since
            digests = column.cast(pa.binary(DIGEST_BYTES)).combine_chunks()
            data = np.frombuffer(digests.buffers()[1] or b"", np.uint8)
            yield self._features(stem), data.reshape(-1, DIGEST_BYTES)[: len(column)]

    def _key(self, plan: Plan) -> str:
        return hashlib.sha256(json.dumps([self.inputs, plan]).encode()).hexdigest()[:12]

    def _stems(self) -> set[str]:
        """Lists the shards that are there, of any set, by what their files are called."""
        if not self.directory.exists():
            return set()
        names = {path.name for path in self.directory.iterdir()}
        found = (re.fullmatch(r"(\d{5,}(-\w+)?)\.parquet", name) for name in names)
        return {match[1] for match in found if match and f"{match[1]}.npy" in names}

    def _about(self, stem: str) -> dict[str, str]:
        try:
            with self._table(stem).open("rb") as file:
                metadata = pq.read_schema(file).metadata or {}
        except FileNotFoundError:
            return {}  # another process has removed it since
        return {key.decode(): value.decode() for key, value in metadata.items()}

    def _features(self, stem: str) -> epath.Path:
        return self.directory / f"{stem}.npy"

    def _table(self, stem: str) -> epath.Path:
        return self.directory / f"{stem}.parquet"


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
    """Opens what the embed stage wrote; features are read when they are asked for.

    Raises:
      FileNotFoundError: if it is not there, not all of it, or of other inputs.
    """
    plan = store.find()
    if plan is None:
        raise FileNotFoundError(
            f"{store.directory} holds no embeddings of these inputs, or not all of them: "
            "embed them first"
        )
    ids: list[str] = []
    paths: list[epath.Path] = []
    skipped: list[Skipped] = []
    for path, shard in store.shards(plan):
        skipped += shard.skipped
        if shard.ids:
            ids += shard.ids
            paths.append(path)
    if not ids:
        raise FileNotFoundError(
            f"{store.directory} holds no embeddings: none of its images could be read"
        )
    return Embeddings(ids, StoredRows(paths), plan.protocol, skipped)


def listing_digest(ids: Sequence[str]) -> str:
    """Hashes a list of ids."""
    digest = hashlib.sha256(b"[")
    for start in range(0, len(ids), _LISTED_AT_ONCE):
        part = json.dumps(list(ids[start : start + _LISTED_AT_ONCE]))[1:-1]
        digest.update(f", {part}".encode() if start else part.encode())
    digest.update(b"]")
    return digest.hexdigest()


def unit_rows(features: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R D"]:
    """Scales rows to unit length; a row of zeros stays one."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.maximum(norms, 1e-12)).astype(np.float32)


def _stem(index: int, key: str) -> str:
    return f"{index:05d}-{key}"
