"""Approximate nearest references on TPUs, streamed like the exact ones.

Unit vectors enter; the `k` most similar references of each query leave, with their
recall against exact search on sampled queries. Elsewhere than on TPUs XLA lowers the
same program to an exact one, which is slower than `copymit.search.exact`.
"""

import numpy as np
from jaxtyping import Int

from copymit.search.exact import Neighbours, SearchResult, stream_neighbours
from copymit.search.recall import compute_recall, split_sample
from copymit.search.vectors import VectorsLike, as_vectors, check_search, rows_at


def search_approx(
    queries: VectorsLike,
    references: VectorsLike,
    k: int,
    *,
    exclude: Int[np.ndarray, " Q"] | None = None,
    recall_target: float = 0.99,
    seed: int = 0,
) -> SearchResult:
    """Finds the nearest references with `jax.lax.approx_max_k`, and measures its recall.

    Args:
      recall_target: share of the best of each block of references that is kept.
    Raises:
      ValueError: as `search_exact`.
    Source: Chern et al. 2022, TPU-KNN.
    """
    queries = as_vectors(queries, "queries")
    references = as_vectors(references, "references")
    exclude = check_search(queries, references, k, exclude)
    neighbours = stream_neighbours(
        queries, references, k, exclude, recall_target=recall_target
    )
    _, measuring = split_sample(queries.num_rows, seed)
    sample = as_vectors(rows_at(queries, measuring), "queries")
    exact = stream_neighbours(sample, references, k, exclude[measuring], check=False)
    found = Neighbours(*(field[measuring] for field in neighbours))
    settings = {"recall_target": recall_target, "recall_queries": len(measuring)}
    return SearchResult(neighbours, "approx", settings, *compute_recall(found, exact))
