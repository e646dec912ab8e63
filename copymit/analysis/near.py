"""What is nearly the same: unit vectors in, groups of similar ones out.

Two vectors are near if their cosine reaches a threshold, and whatever is connected over
near pairs is one group. Memory beyond the vectors: a few numbers for each near pair.
"""

import functools
import logging
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from copymit.embedding.store import Embeddings, unit_rows
from copymit.scores.nearness import calibrate_threshold
from copymit.search.nearest import Backend, search
from copymit.search.vectors import Vectors, rows_at

logger = logging.getLogger(__name__)

# Among few images, families of similar ones stand out as copies do: of 60 random draws
# of 300 emoji 5 had a false pair above the calibrated threshold, of 500 emoji none.
MIN_CALIBRATION = 500
_FIRST_K = 16
_MAX_K = 1024


class Near(NamedTuple):
    """Which of the vectors belong together.

    Attributes:
      groups: number of the group of each vector; one that is near to none has its own.
      nearest: cosine of each to its nearest other.
      threshold: cosine from which two are near.
      facts: how they were searched, for `analysis.json`.
    """

    groups: Int[np.ndarray, " N"]
    nearest: Float[np.ndarray, " N"]
    threshold: float
    facts: dict[str, Any]


def find_near(
    embeddings: Embeddings,
    threshold: float | None,
    *,
    backend: Backend = "auto",
    recall_target: float = 0.99,
    index_dir: epath.Path | None = None,
) -> Near:
    """Groups vectors by similarity.

    Args:
      embeddings: not normalised; read shard by shard.
      threshold: least cosine of a near pair; None calibrates it.
    Raises:
      ValueError: if it is to be calibrated from too few vectors.
    """
    count = len(embeddings.ids)
    if threshold is None and count < MIN_CALIBRATION:
        raise ValueError(
            f"a threshold cannot be calibrated from {count} distinct images, only from "
            f"{MIN_CALIBRATION} or more: give one"
        )
    if count < 2:
        return Near(np.arange(count), np.empty(0), threshold or 1.0, {})
    vectors = _unit_vectors(embeddings)
    rows, k = np.arange(count), min(_FIRST_K, count - 1)
    options: dict[str, Any] = {"backend": backend, "recall_target": recall_target}
    found = search(vectors, vectors, k, exclude=rows, index_dir=index_dir, **options)
    nearest = found.neighbours.similarities[:, 0]
    if threshold is None:
        threshold = calibrate_threshold(nearest)
    pairs, neighbours = [], found.neighbours
    while True:
        near = neighbours.similarities >= threshold
        from_row, place = np.nonzero(near)
        pairs.append((rows[from_row], neighbours.indices[from_row, place]))
        rows = rows[near[:, -1]]  # these may have more
        if not len(rows) or k == min(_MAX_K, count - 1):
            break
        k = min(8 * k, _MAX_K, count - 1)
        neighbours = search(
            rows_at(vectors, rows),
            vectors,
            k,
            exclude=rows,
            index_dir=index_dir,
            **options,
        ).neighbours
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    ones = np.ones(len(first), np.int8)
    graph = coo_array((ones, (first, second)), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    lower, upper = np.minimum(first, second), np.maximum(first, second)
    facts = {
        "backend": found.backend,
        "settings": found.settings,
        "recall": found.recall,
        "near_pairs": len(np.unique(lower * np.int64(count) + upper)),
        # Their furthest near ones may be missing, which hardly ever splits a group.
        "with_more_neighbours_than_searched": len(rows) if k < count - 1 else 0,
    }
    return Near(groups, nearest, threshold, facts)


def mean_similarity(
    embeddings: Embeddings, rows: Int[np.ndarray, " N"], block: int = 4096
) -> float:
    """Computes the mean cosine over all pairs of rows, which may repeat.

    The sum of all vectors tells it: |sum|^2 counts every pair twice and every vector
    with itself once.
    """
    total = np.zeros(embeddings.shards[0].shape[1])
    for start in range(0, len(rows), block):
        total += unit_rows(embeddings.rows(rows[start : start + block])).sum(0, float)
    count = len(rows)
    mean = (float(total @ total) - count) / (count * (count - 1))
    return min(1.0, max(-1.0, mean))


def _unit_vectors(embeddings: Embeddings) -> Vectors:
    """Sees features as unit vectors; a shard is open only while it is read."""
    shards = embeddings.shards

    def rows(number: int) -> np.ndarray:
        return unit_rows(shards[number])

    return Vectors(
        "vectors",
        shards[0].shape[1],
        tuple(len(shard) for shard in shards),
        tuple(functools.partial(rows, number) for number in range(len(shards))),
    )
