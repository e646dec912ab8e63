"""Exact nearest references of each query, streamed in blocks over the local devices.

Unit vectors of any number enter, from memory or from disk; the `k` most similar
references of each query leave. Nothing grows with queries times references: 10,000
queries x 10 million references x k = 11 of 512 dimensions need, besides pages of the
files that the system caches, 20 MiB of queries, under 1 MiB of results, and on each
device one block of references (16 MiB) and of similarities (32 MiB).
"""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, Int32

from copymit.search.vectors import (
    BLOCK_ROWS,
    Vectors,
    VectorsLike,
    as_vectors,
    blocks,
    check_search,
)

_AXIS = "references"


class Neighbours(NamedTuple):
    """The nearest references of each query, most similar first.

    Attributes:
      indices: rows of the references; of equally similar ones the lower comes first.
      similarities: dot products in [-1, 1], in decreasing order.
    """

    indices: Int32[np.ndarray, "Q k"]
    similarities: Float32[np.ndarray, "Q k"]


class SearchResult(NamedTuple):
    """Neighbours and how they were found.

    Attributes:
      neighbours: see `Neighbours`.
      backend: `exact`, `approx` or `scann`, whichever ran.
      settings: every setting of the backend that could change a number.
      recall: share of sampled queries whose exact nearest reference came first.
      recall_at_k: share of their exact `k` nearest references that were returned.
    """

    neighbours: Neighbours
    backend: str
    settings: dict[str, Any]
    recall: float
    recall_at_k: float


def search_exact(
    queries: VectorsLike,
    references: VectorsLike,
    k: int,
    *,
    exclude: Int[np.ndarray, " Q"] | None = None,
    query_block: int = 1024,
    reference_block: int = 8192,
) -> Neighbours:
    """Finds the nearest references of each query by comparing every pair.

    The result is the same on any number of devices and for any shards. Memory beyond
    the inputs: 65,536 queries, the `(Q, k)` results, and per device one block of
    references and one of similarities, `(query_block, reference_block)`.

    Args:
      queries, references: unit vectors; shards on disk are read block by block.
      exclude: per query, the reference that must not be returned, or -1.
      query_block, reference_block: rows that one device compares at once.
    Raises:
      ValueError: if the vectors are not finite unit vectors of one dimension, or
        fewer than `k` references are left for a query.
    """
    queries = as_vectors(queries, "queries")
    references = as_vectors(references, "references")
    exclude = check_search(queries, references, k, exclude)
    return stream_neighbours(
        queries,
        references,
        k,
        exclude,
        query_block=query_block,
        reference_block=reference_block,
    )


def stream_neighbours(
    queries: Vectors,
    references: Vectors,
    k: int,
    exclude: Int[np.ndarray, " Q"],
    *,
    recall_target: float | None = None,
    query_block: int = 1024,
    reference_block: int = 8192,
    check: bool = True,
) -> Neighbours:
    """Is `search_exact` after its checks; the vectors are checked as they stream.

    Args:
      recall_target: take the best of each block with `jax.lax.approx_max_k`, which
        finds this share of them on a TPU; None is exact.
      check: whether the vectors still need to be checked.
    """
    indices = np.empty((queries.num_rows, k), np.int32)
    similarities = np.empty((queries.num_rows, k), np.float32)
    for start, rows in blocks(queries, BLOCK_ROWS, check=check):
        group = slice(start, start + len(rows))
        indices[group], similarities[group] = _search_group(
            rows,
            references,
            k,
            exclude[group],
            recall_target,
            query_block,
            reference_block,
            check=check and start == 0,
        )
    return Neighbours(indices, similarities)


def merge_neighbours(first: Neighbours, second: Neighbours, k: int) -> Neighbours:
    """Returns the best `k` of two tables of the same queries; ties to the lower row."""
    indices, similarities = (
        np.concatenate(pair, 1) for pair in zip(first, second, strict=True)
    )
    order = np.lexsort((indices, -similarities))[:, :k]
    return Neighbours(
        np.take_along_axis(indices, order, 1),
        np.take_along_axis(similarities, order, 1),
    )


def _search_group(
    queries: Float32[np.ndarray, "Q D"],
    references: Vectors,
    k: int,
    exclude: Int[np.ndarray, " Q"],
    recall_target: float | None,
    query_block: int,
    reference_block: int,
    *,
    check: bool,
) -> Neighbours:
    """Streams all references past a group of queries that the devices hold."""
    Q, R = len(queries), references.num_rows
    mesh = Mesh(np.array(jax.local_devices()), (_AXIS,))
    query_block = min(query_block, Q)
    reference_block = min(reference_block, -(-R // mesh.size))
    on_all = NamedSharding(mesh, PartitionSpec())
    by_row = NamedSharding(mesh, PartitionSpec(_AXIS))
    merge = _merge_on(mesh, recall_target)
    starts = range(0, Q, query_block)
    query_blocks, exclude_blocks = (
        [
            jax.device_put(_padded(rows[i : i + query_block], query_block), on_all)
            for i in starts
        ]
        for rows in (queries, exclude.astype(np.int32))
    )
    shape = (mesh.size, query_block, k)
    best = [
        (
            jnp.full(shape, -jnp.inf, jnp.float32, device=by_row),
            jnp.zeros(shape, jnp.int32, device=by_row),
        )
        for _ in starts
    ]
    step = reference_block * mesh.size
    for offset, rows in blocks(references, step, check=check):
        rows = jax.device_put(_padded(rows, step), by_row)
        # Without waiting, blocks would be read faster than compared and pile up.
        jax.block_until_ready(best)
        best = [
            merge(*so_far, block, own, rows, offset, R)
            for so_far, block, own in zip(
                best, query_blocks, exclude_blocks, strict=True
            )
        ]
    return _merge_devices(best, Q, k)


def _merge_devices(best: list[tuple[Array, Array]], Q: int, k: int) -> Neighbours:
    """Merges what each device found, once all references have passed."""
    similarities, indices = (
        np.concatenate([np.asarray(pair[field]) for pair in best], 1)[:, :Q]
        for field in (0, 1)
    )
    merged = Neighbours(indices[0], similarities[0])
    for device in range(1, len(indices)):
        other = Neighbours(indices[device], similarities[device])
        merged = merge_neighbours(merged, other, k)
    return merged


@cache
def _merge_on(mesh: Mesh, recall_target: float | None):
    """Compiles `_merge_block` to run on every device for its own rows."""
    own, all_ = PartitionSpec(_AXIS), PartitionSpec()
    merge = jax.shard_map(
        partial(_merge_block, recall_target=recall_target),
        mesh=mesh,
        in_specs=(own, own, all_, all_, own, all_, all_),
        out_specs=(own, own),
    )
    return jax.jit(merge, donate_argnums=(0, 1))


def _merge_block(
    similarities: Float[Array, "1 Q k"],
    indices: Int[Array, "1 Q k"],
    queries: Float[Array, "Q D"],
    exclude: Int[Array, " Q"],
    rows: Float[Array, "R D"],
    offset: Int[Array, ""] | int,
    num_references: Int[Array, ""] | int,
    *,
    recall_target: float | None,
) -> tuple[Float[Array, "1 Q k"], Int[Array, "1 Q k"]]:
    """Merges a device's block of references into the best that it has seen.

    The best so far go first and `top_k` is stable, so ties keep the lower index.
    """
    # HIGHEST: a TPU would otherwise multiply in bfloat16 and reorder neighbours.
    scores = jnp.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST)
    first = offset + jax.lax.axis_index(_AXIS) * rows.shape[0]
    ids = (first + jnp.arange(rows.shape[0]))[None, :]
    forbidden = (ids == exclude[:, None]) | (ids >= num_references)
    scores = jnp.where(forbidden, -jnp.inf, jnp.clip(scores, -1, 1))
    k = min(similarities.shape[2], rows.shape[0])
    if recall_target is None:
        scores, positions = jax.lax.top_k(scores, k)
    else:
        scores, positions = jax.lax.approx_max_k(scores, k, recall_target=recall_target)
    scores = jnp.concatenate([similarities[0], scores], 1)
    candidates = jnp.concatenate([indices[0], (first + positions).astype(jnp.int32)], 1)
    best, positions = jax.lax.top_k(scores, similarities.shape[2])
    return best[None], jnp.take_along_axis(candidates, positions, 1)[None]


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Pads the last block, so that all blocks share one compiled program."""
    if len(rows) == size:
        return rows
    return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))
