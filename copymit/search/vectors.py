"""Rows of unit vectors of any number, in shards that are read when they are needed.

An array, a memory map, a list of either, or `Vectors` enter; checked float32 blocks of
rows leave, one at a time.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

# Slack on the norm of a unit vector: float16 embeddings are off by up to 5e-4.
NORM_TOLERANCE = 1e-3
# Rows that are read and checked at once where no other number is asked for: 128 MiB of
# 512 dimensions.
BLOCK_ROWS = 65_536


class Vectors(NamedTuple):
    """Unit vectors in shards: shard `i` is opened only while its rows are read.

    Attributes:
      name: what errors call them.
      dim: length of each vector.
      lengths: rows of each shard.
      shards: per shard, a function that returns its `(rows, dim)` array or memory map.
    """

    name: str
    dim: int
    lengths: tuple[int, ...]
    shards: tuple[Callable[[], np.ndarray], ...]

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return sum(self.lengths)


# What searches accept; a sequence holds shards, which may be memory maps.
VectorsLike = Vectors | Float[np.ndarray, "N D"] | Sequence[np.ndarray]


def as_vectors(source: VectorsLike, name: str) -> Vectors:
    """Wraps arrays without reading or copying them.

    Args:
      source: one array, shards in order, or `Vectors`.
      name: what errors call them, such as `references`.
    Raises:
      ValueError: if there are no rows, or shards are not of one dimension.
    """
    if isinstance(source, Vectors):
        return source._replace(name=name)
    shards = source if isinstance(source, list | tuple) else [np.asarray(source)]
    shapes = [np.shape(shard) for shard in shards]
    odd = next((i for i, shape in enumerate(shapes) if len(shape) != 2), None)
    if not shapes or odd is not None or sum(np.prod(shape) for shape in shapes) == 0:
        which = "no shards" if not shapes else f"shape {shapes[odd or 0]}"
        raise ValueError(
            f"{name} must be a non-empty array of shape (count, dimension), or a list "
            f"of such shards; it has {which}: check that the embedding stage found "
            "any images"
        )
    dim = shapes[0][1]
    odd = next((i for i, shape in enumerate(shapes) if shape[1] != dim), None)
    if odd is not None:
        raise ValueError(
            f"shard {odd} of {name} has {shapes[odd][1]} dimensions, shard 0 {dim}: "
            "embed all shards with the same embedder"
        )
    return Vectors(
        name,
        dim,
        tuple(shape[0] for shape in shapes),
        tuple(lambda shard=shard: shard for shard in shards),
    )


def open_vectors(paths: Sequence[str | os.PathLike[str]], name: str) -> Vectors:
    """Maps `.npy` files as shards in the given order; only their headers are read now.

    Raises:
      FileNotFoundError: if a file is absent.
      ValueError: if a file is not a numeric `.npy` array, or the shards do not fit.
    """

    def open_shard(path: str) -> np.ndarray:
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(
                f"{path} of {name} is not a .npy array ({error}): write it again"
            ) from error

    openers = tuple(partial(open_shard, os.fspath(path)) for path in paths)
    # Shapes alone: a map that is kept holds its file open, and a process may have 1,024.
    shapes = [opener().shape for opener in openers]
    stand_ins = [np.broadcast_to(np.float32(0), shape) for shape in shapes]
    return as_vectors(stand_ins, name)._replace(shards=openers)


def part_of(vectors: Vectors, start: int, stop: int) -> Vectors:
    """Returns rows `start` to `stop` as vectors of their own, still unread."""
    lengths: list[int] = []
    shards: list[Callable[[], np.ndarray]] = []
    first = 0
    for i, length in enumerate(vectors.lengths):
        low, high = max(start - first, 0), min(stop - first, length)
        if low < high:
            lengths.append(high - low)
            shards.append(partial(_shard_rows, vectors, i, low, high))
        first += length
    return vectors._replace(lengths=tuple(lengths), shards=tuple(shards))


def row_range(vectors: Vectors, start: int, stop: int) -> Float32[np.ndarray, "N D"]:
    """Returns rows `start` to `stop`; without a copy where one float32 shard has them.

    Raises:
      ValueError: if a shard does not have the shape that was promised.
    """
    part = part_of(vectors, start, stop)
    if len(part.shards) == 1:
        return np.ascontiguousarray(part.shards[0](), np.float32)
    rows = np.empty((part.num_rows, part.dim), np.float32)
    first = 0
    for shard, length in zip(part.shards, part.lengths, strict=True):
        rows[first : first + length] = shard()  # and no other is open meanwhile
        first += length
    return rows


def rows_at(
    vectors: Vectors, rows: Int[np.ndarray, " N"]
) -> Float32[np.ndarray, "N D"]:
    """Returns the given rows, which must be in increasing order."""
    bounds = np.cumsum((0, *vectors.lengths))
    pieces = []
    for i, shard in enumerate(vectors.shards):
        own = rows[(rows >= bounds[i]) & (rows < bounds[i + 1])] - bounds[i]
        if own.size:
            pieces.append(np.asarray(shard()[own], np.float32))
    return np.concatenate(pieces)


def blocks(
    vectors: Vectors,
    size: int = BLOCK_ROWS,
    *,
    start: int = 0,
    stop: int | None = None,
    check: bool = True,
) -> Iterator[tuple[int, Float32[np.ndarray, "N D"]]]:
    """Yields the first row and the rows of each block; only the last may be shorter.

    Raises:
      ValueError: if `check` and a block holds anything but finite unit vectors.
    """
    stop = vectors.num_rows if stop is None else stop
    for first in range(start, stop, size):
        rows = row_range(vectors, first, min(first + size, stop))
        if check:
            _check_unit(rows, first, vectors)
        yield first, rows


def check_search(
    queries: Vectors, references: Vectors, k: int, exclude: np.ndarray | None
) -> Int64[np.ndarray, " Q"]:
    """Checks everything but the vectors themselves, and returns a full `exclude`.

    Raises:
      ValueError: if dimensions differ, `exclude` does not fit, or fewer than `k`
        references are left for a query.
    """
    Q, R = queries.num_rows, references.num_rows
    if queries.dim != references.dim:
        raise ValueError(
            f"queries have {queries.dim} dimensions, references {references.dim}: "
            "embed both with the same embedder"
        )
    exclude = np.full(Q, -1) if exclude is None else np.asarray(exclude)
    if exclude.shape != (Q,) or exclude.dtype.kind not in "iu":
        raise ValueError(
            f"exclude must hold one integer for each of {Q} queries; it has shape "
            f"{exclude.shape} and type {exclude.dtype}"
        )
    if exclude.min() < -1 or exclude.max() >= R:
        raise ValueError(
            f"exclude holds {exclude.min()} to {exclude.max()}, but rows of the "
            f"references are 0 to {R - 1} (or -1 to exclude none)"
        )
    available = R - int((exclude >= 0).any())
    if not 1 <= k <= available:
        raise ValueError(
            f"k is {k}, but {available} references are available for each query: "
            f"choose k between 1 and {available}, or add references"
        )
    return exclude.astype(np.int64)


def _shard_rows(vectors: Vectors, shard: int, low: int, high: int) -> np.ndarray:
    rows = vectors.shards[shard]()
    promised = (vectors.lengths[shard], vectors.dim)
    if rows.shape != promised:
        raise ValueError(
            f"shard {shard} of {vectors.name} has shape {rows.shape} where {promised} "
            "was promised: write the shards again"
        )
    return rows[low:high]


def _check_unit(rows: np.ndarray, first: int, vectors: Vectors) -> None:
    """Raises a ValueError that names the rows of a block which cannot be searched."""
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    where = f"{len(rows)} {vectors.name}"
    if len(rows) < vectors.num_rows:
        where = f"the {where} from row {first} on"
    broken = np.flatnonzero(~np.isfinite(norms))
    if broken.size:
        raise ValueError(
            f"{broken.size} of {where} hold NaN or infinite values, first at rows "
            f"{(first + broken[:5]).tolist()}: remove or re-embed these images"
        )
    off = np.flatnonzero(np.abs(norms - 1) > NORM_TOLERANCE)
    if off.size:
        raise ValueError(
            f"{off.size} of {where} are not unit vectors, first at rows "
            f"{(first + off[:5]).tolist()} with norms "
            f"{norms[off[:5]].round(4).tolist()}: divide each embedding by its L2 norm"
        )
