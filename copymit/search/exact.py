"""Exact nearest references of each query, streamed in blocks.

Unit vectors enter; the `k` most similar references of each query leave, in memory that
does not grow with queries times references.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

# Slack on the norm of a unit vector: float16 embeddings are off by up to 5e-4.
NORM_TOLERANCE = 1e-3


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
      backend: `exact` or `scann`, whichever ran.
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
    queries: Float[np.ndarray, "Q D"],
    references: Float[np.ndarray, "R D"],
    k: int,
    *,
    exclude: Int[np.ndarray, " Q"] | None = None,
    query_block: int = 1024,
    reference_block: int = 8192,
) -> Neighbours:
    """Finds the nearest references of each query by comparing every pair.

    Memory beyond the inputs is one block of similarities (32 MiB with the default
    blocks) and the `(Q, k)` best so far, whatever the sizes.

    Raises:
      ValueError: if the vectors are not finite unit vectors of one dimension, or
        fewer than `k` references are left for a query.
    """
    queries, references, exclude = validated(queries, references, k, exclude)
    return exact_neighbours(
        queries, references, k, exclude, query_block, reference_block
    )


def exact_neighbours(
    queries: Float32[np.ndarray, "Q D"],
    references: Float32[np.ndarray, "R D"],
    k: int,
    exclude: Int32[np.ndarray, " Q"],
    query_block: int = 1024,
    reference_block: int = 8192,
) -> Neighbours:
    """Is `search_exact` for inputs that `validated` has returned."""
    Q, R = len(queries), len(references)
    query_block, reference_block = min(query_block, Q), min(reference_block, R)
    starts = range(0, Q, query_block)
    query_blocks = [_padded(queries[i : i + query_block], query_block) for i in starts]
    exclude_blocks = [
        _padded(exclude[i : i + query_block], query_block, fill=-1) for i in starts
    ]
    best = [
        (
            jnp.full((query_block, k), -jnp.inf, jnp.float32),
            jnp.zeros((query_block, k), jnp.int32),
        )
        for _ in starts
    ]
    for offset in range(0, R, reference_block):
        rows = _padded(references[offset : offset + reference_block], reference_block)
        best = [
            _merge_block(*so_far, block, own, rows, offset, R)
            for so_far, block, own in zip(
                best, query_blocks, exclude_blocks, strict=True
            )
        ]
    similarities = np.concatenate([np.asarray(block) for block, _ in best])[:Q]
    indices = np.concatenate([np.asarray(block) for _, block in best])[:Q]
    return Neighbours(indices, similarities)


@partial(jax.jit, donate_argnums=(0, 1))
def _merge_block(
    similarities: Float[Array, "Q k"],
    indices: Int[Array, "Q k"],
    queries: Float[Array, "Q D"],
    exclude: Int[Array, " Q"],
    rows: Float[Array, "R D"],
    offset: Int[Array, ""] | int,
    num_references: Int[Array, ""] | int,
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """Merges one block of references into the best so far.

    The best so far go first and `top_k` is stable, so ties keep the lower index.
    """
    # HIGHEST: a TPU would otherwise multiply in bfloat16 and reorder neighbours.
    scores = jnp.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST)
    ids = jnp.broadcast_to(offset + jnp.arange(rows.shape[0])[None, :], scores.shape)
    forbidden = (ids == exclude[:, None]) | (ids >= num_references)
    scores = jnp.where(forbidden, -jnp.inf, jnp.clip(scores, -1, 1))
    k = similarities.shape[1]
    best, positions = jax.lax.top_k(jnp.concatenate([similarities, scores], 1), k)
    candidates = jnp.concatenate([indices, ids.astype(jnp.int32)], 1)
    return best, jnp.take_along_axis(candidates, positions, 1)


def _padded(rows: np.ndarray, size: int, fill: int = 0) -> Array:
    """Pads the last block, so that all blocks share one compiled program."""
    pad = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
    return jnp.asarray(np.pad(rows, pad, constant_values=fill))


def validated(
    queries: np.ndarray, references: np.ndarray, k: int, exclude: np.ndarray | None
) -> tuple[
    Float32[np.ndarray, "Q D"], Float32[np.ndarray, "R D"], Int32[np.ndarray, " Q"]
]:
    """Returns float32 queries and references and a full `exclude`, or says what is off.

    Raises:
      ValueError: as `search_exact`.
    """
    queries = _unit_vectors(queries, "queries")
    references = _unit_vectors(references, "references")
    Q, R = len(queries), len(references)
    if queries.shape[1] != references.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions, references "
            f"{references.shape[1]}: embed both with the same embedder"
        )
    if exclude is None:
        exclude = np.full(Q, -1, np.int32)
    exclude = np.asarray(exclude)
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
    return queries, references, exclude.astype(np.int32)


def _unit_vectors(vectors: np.ndarray, name: str) -> np.ndarray:
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(
            f"{name} must be a non-empty array of shape (count, dimension); it has "
            f"shape {vectors.shape}: check that the embedding stage found any images"
        )
    vectors = np.ascontiguousarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    broken = np.flatnonzero(~np.isfinite(norms))
    if broken.size:
        raise ValueError(
            f"{broken.size} of {len(vectors)} {name} hold NaN or infinite values, "
            f"first at rows {broken[:5].tolist()}: remove or re-embed these images"
        )
    off = np.flatnonzero(np.abs(norms - 1) > NORM_TOLERANCE)
    if off.size:
        raise ValueError(
            f"{off.size} of {len(vectors)} {name} are not unit vectors, first at rows "
            f"{off[:5].tolist()} with norms {norms[off[:5]].round(4).tolist()}: divide "
            "each embedding by its L2 norm"
        )
    return vectors
