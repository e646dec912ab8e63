"""Nearest references of each query by cosine similarity: the one call for any size.

Unit vectors enter, from memory or as shards on disk; the `k` most similar references of
each query leave, with the backend, its settings and its measured recall. What 10 million
references cost is in `copymit.search.scann_search`, and without an index in
`copymit.search.exact`.
"""

from typing import Literal

import jax
import numpy as np
from etils import epath
from jaxtyping import Int

from copymit.search.approx import search_approx
from copymit.search.exact import Neighbours, SearchResult, search_exact
from copymit.search.recall import RECALL_QUERIES
from copymit.search.scann_index import ScannSettings
from copymit.search.scann_search import search_scann
from copymit.search.vectors import Vectors, VectorsLike, as_vectors, open_vectors

__all__ = [
    "Neighbours",
    "ScannSettings",
    "SearchResult",
    "Vectors",
    "open_vectors",
    "search",
    "search_approx",
    "search_exact",
    "search_scann",
]

Backend = Literal["auto", "exact", "approx", "scann"]

# Numbers that exact search multiplies in about two minutes on two cores. An index takes
# as long to build, tune and check, and ScaNN does not build the same one twice.
EXACT_PRODUCTS = 10**13


def search(
    queries: VectorsLike,
    references: VectorsLike,
    k: int,
    *,
    backend: Backend = "auto",
    exclude: Int[np.ndarray, " Q"] | None = None,
    recall_target: float = 0.99,
    seed: int = 0,
    index_dir: epath.PathLike | None = None,
    part_rows: int | None = None,
) -> SearchResult:
    """Finds the nearest references of each query with the backend that fits the size.

    Args:
      queries: unit vectors: an array, a list of shards (memory maps, too) or `Vectors`.
      references: unit vectors likewise.
      k: neighbours of each query.
      backend: `auto` is exact up to 10^13 products of numbers (10,000 queries in two
        million references of 512), and for so few queries that checking an index would
        cost as much as doing without one; beyond that it is `approx` on TPUs and `scann`
        elsewhere.
      exclude: per query, the reference that must not be returned (its own row when
        the queries are references), or -1. Exact duplicates of it are returned.
      recall_target: recall@1 that the approximate backends are to reach.
      seed: chooses the queries that tune ScaNN and measure recall.
      index_dir: local folder in which ScaNN's index is kept for the next search.
      part_rows: references that ScaNN indexes at once, which bounds its memory.
    Raises:
      ValueError: on an unknown backend, or if the vectors cannot be searched.
    """
    if backend not in ("auto", "exact", "approx", "scann"):
        raise ValueError(
            f"backend is {backend!r}; use 'auto', 'exact', 'approx' or 'scann'"
        )
    queries = as_vectors(queries, "queries")
    references = as_vectors(references, "references")
    if backend == "auto":
        backend = _fitting_backend(queries, references)
    if backend == "approx":
        return search_approx(
            queries,
            references,
            k,
            exclude=exclude,
            recall_target=recall_target,
            seed=seed,
        )
    if backend == "scann":
        return search_scann(
            queries,
            references,
            k,
            exclude=exclude,
            recall_target=recall_target,
            seed=seed,
            index_dir=index_dir,
            part_rows=part_rows,
        )
    neighbours = search_exact(queries, references, k, exclude=exclude)
    return SearchResult(neighbours, "exact", {}, 1.0, 1.0)


def _fitting_backend(queries: Vectors, references: Vectors) -> Backend:
    products = queries.num_rows * references.num_rows * references.dim
    if products <= EXACT_PRODUCTS or queries.num_rows <= 2 * RECALL_QUERIES:
        return "exact"
    return "approx" if jax.default_backend() == "tpu" else "scann"
