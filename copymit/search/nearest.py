"""Nearest references of each query by cosine similarity: the one call for any size.

Unit vectors enter; the `k` most similar references of each query leave, with the
backend, its settings and its measured recall.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from copymit.search.exact import Neighbours, SearchResult, search_exact
from copymit.search.scann_index import (
    RECALL_QUERIES,
    ScannSettings,
    search_scann,
)

__all__ = [
    "Neighbours",
    "ScannSettings",
    "SearchResult",
    "search",
    "search_exact",
    "search_scann",
]

Backend = Literal["auto", "exact", "scann"]

# Exact search over this many references costs less than building an index.
EXACT_REFERENCES = 200_000


def search(
    queries: Float[np.ndarray, "Q D"],
    references: Float[np.ndarray, "R D"],
    k: int,
    *,
    backend: Backend = "auto",
    exclude: Int[np.ndarray, " Q"] | None = None,
    recall_target: float = 0.99,
    seed: int = 0,
) -> SearchResult:
    """Finds the nearest references of each query with the backend that fits the size.

    Args:
      queries: unit vectors.
      references: unit vectors.
      k: neighbours of each query.
      backend: `auto` is exact up to 200,000 references, and for so few queries that
        checking an index would cost as much as doing without one.
      exclude: per query, the reference that must not be returned (its own row when
        the queries are references), or -1. Exact duplicates of it are returned.
      recall_target: recall@1 that ScaNN is tuned to.
      seed: chooses the queries that tune ScaNN and measure its recall.
    Raises:
      ValueError: on an unknown backend, or if the vectors cannot be searched.
    """
    if backend not in ("auto", "exact", "scann"):
        raise ValueError(f"backend is {backend!r}; use 'auto', 'exact' or 'scann'")
    few = len(references) <= EXACT_REFERENCES or len(queries) <= 2 * RECALL_QUERIES
    if backend == "scann" or (backend == "auto" and not few):
        return search_scann(
            queries,
            references,
            k,
            exclude=exclude,
            recall_target=recall_target,
            seed=seed,
        )
    neighbours = search_exact(queries, references, k, exclude=exclude)
    return SearchResult(neighbours, "exact", {}, 1.0, 1.0)
