"""Confidence intervals of numbers of whole sets of generations, by leaving groups out.

Distances of distributions, recall and coverage depend on how many different images there
are, so samples that draw an image twice would move them. What is left out instead are
groups of clusters, in turn; how much the number then varies tells its spread.

References stay fixed: an interval says what other generations against the same images
would give. A bias that comes from the number of images is in the number and its interval.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Int

from copymit.scores.bootstrap import cluster_numbers, unanimous_interval
from copymit.scores.frechet import (
    Gaussian,
    kernel_blocks,
    sum_of_roots,
)

MAX_GROUPS = 20


def group_clusters(
    clusters: Int[np.ndarray, " Q"] | None, count: int, seed: int
) -> Bool[np.ndarray, "G Q"]:
    """Draws at most `MAX_GROUPS` groups of whole clusters: who is in which.

    Source: Kott 2001, The Delete-a-Group Jackknife.
    """
    numbers = cluster_numbers(clusters, count)
    num_clusters = int(numbers.max()) + 1
    num_groups = min(num_clusters, MAX_GROUPS)
    drawn = np.random.default_rng(seed).permutation(num_clusters) % num_groups
    return np.arange(num_groups)[:, None] == drawn[numbers]


def jackknife_ci(
    value: float,
    replicates: Float[np.ndarray, " G"],
    bounds: tuple[float, float] = (-np.inf, np.inf),
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Interval of a number from what it is without each group; Student's t.

    Args:
      replicates: of at least two groups, up to a constant.
      bounds: within which the number always lies.
    Source: Efron and Stein 1981: the variance is on average not too small.
    """
    from scipy.special import stdtrit

    G = len(replicates)
    variance = (G - 1) / G * np.square(replicates - replicates.mean()).sum()
    reach = stdtrit(G - 1, (1 + confidence) / 2) * np.sqrt(variance)
    low, high = np.clip([value - reach, value + reach], *bounds)
    return float(low), float(high)


def share_jackknife_ci(
    value: float, replicates: Float[np.ndarray, " G"], num_clusters: int
) -> tuple[float, float]:
    """As `jackknife_ci`, of a share; exact binomial at 0 and 1 that no group changes."""
    if value in (0.0, 1.0) and np.ptp(replicates) == 0:
        return unanimous_interval(value, num_clusters)
    return jackknife_ci(value, replicates, (0.0, 1.0))


def frechet_replicates(
    references: Gaussian,
    generations: Float[np.ndarray, "Q D"],
    groups: Bool[np.ndarray, "G Q"],
) -> Float[np.ndarray, " G"]:
    """Frechet distance without each group, up to the trace of the references."""
    rows = generations.astype(np.float64)
    rows -= rows.mean(0)
    offset = references.mean - generations.mean(0, dtype=np.float64)
    Q, D = rows.shape
    products = references.products(rows) if Q <= D else references.project(rows)
    replicates = []
    for group in groups:
        kept = rows[~group]
        mean = kept.mean(0)
        distance = np.square(offset - mean).sum()
        spread = (np.square(kept).sum() - len(kept) * np.square(mean).sum()) / (
            len(kept) - 1
        )
        if Q <= D:
            square = products[np.ix_(~group, ~group)]
            square = square - square.mean(0) - square.mean(1)[:, None] + square.mean()
        else:
            centred = products[~group] - products[~group].mean(0)
            square = centred.T @ centred
        replicates.append(
            distance + spread - 2 * sum_of_roots(square) / (len(kept) - 1) ** 0.5
        )
    return np.array(replicates)


def kernel_replicates(
    kernel: str,
    references: Float[np.ndarray, "R D"],
    generations: Float[np.ndarray, "Q D"],
    groups: Bool[np.ndarray, "G Q"],
) -> Float[np.ndarray, " G"]:
    """MMD^2 without each group, up to the references' own part.

    Args:
      kernel: `cubic`, without the diagonal as the kernel distance takes it, or
        `gaussian`, with it as CMMD does.
    """
    within = _group_sums(kernel_blocks(kernel, generations, generations), groups)
    across = sum(
        block.sum(0) for _, block in kernel_blocks(kernel, references, generations)
    )
    counts = (~groups).sum(1)
    kept = within.sum() - within.sum(0) - within.sum(1) + np.diag(within)
    pairs = counts**2
    if kernel == "cubic":
        squares = np.square(generations.astype(np.float64)).mean(1)
        kept = kept - (~groups) @ (squares + 1) ** 3
        pairs = pairs - counts
    return kept / pairs - 2 * ((~groups) @ across) / (len(references) * counts)


def _group_sums(
    blocks: Iterable[tuple[slice, np.ndarray]], groups: np.ndarray
) -> Float[np.ndarray, "G G"]:
    members = groups.astype(np.float64)
    return sum(
        (members[:, rows] @ (block @ members.T) for rows, block in blocks),
        start=np.zeros((len(groups), len(groups))),
    )
