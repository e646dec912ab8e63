"""Measured recall: found neighbours and exact ones enter, shares of them leave."""

import numpy as np
from jaxtyping import Int

from copymit.search.exact import Neighbours

# Recall is measured on, and settings are tuned on, at most this many queries each.
RECALL_QUERIES = 1_000
# Two float32 dot products of one pair of unit vectors differ by less than this.
TIE_TOLERANCE = 1e-5


def compute_recall(found: Neighbours, exact: Neighbours) -> tuple[float, float]:
    """Returns recall@1 and recall@k of `found`.

    A neighbour counts when it is as similar as an exact one, whichever of several
    equal references was returned: exact duplicates have no order of their own.
    """
    first = found.similarities[:, 0] >= exact.similarities[:, 0] - TIE_TOLERANCE
    every = found.similarities >= exact.similarities[:, -1:] - TIE_TOLERANCE
    return float(first.mean()), float(every.mean())


def split_sample(
    num_queries: int, seed: int
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " M"]]:
    """Draws rows of queries to tune on and to measure on, in increasing order.

    They are disjoint where there are two queries.
    """
    rows = np.random.default_rng(seed).permutation(num_queries)
    size = min(RECALL_QUERIES, max(1, num_queries // 2))
    return np.sort(rows[:size]), np.sort(rows[-size:])
