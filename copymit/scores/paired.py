"""How much the similarities of two evaluations differ, with an interval.

Similarities of two runs to the same prompts from the same noise enter; their difference
leaves. Pairs share what makes a prompt easy to copy, so their difference is known far
better than the two numbers that it is between.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from copymit.scores.bootstrap import (
    Share,
    Statistic,
    bootstrap_ci,
    cluster_numbers,
    estimate,
    finite_vector,
    mean,
    percentile,
)


class Difference(NamedTuple):
    """Second minus first, and its interval, or None where nothing tells the spread."""

    value: float
    interval: tuple[float, float] | None


class PairedDifferences(NamedTuple):
    """Differences of paired similarities, each second minus first.

    Attributes:
      mean: of the similarities.
      dataset_similarity: of their 95th percentiles.
      share_lower: share of the pairs whose second similarity is lower.
      num_clusters: independent groups of pairs.
    """

    mean: Difference
    dataset_similarity: Difference
    share_lower: Difference
    num_pairs: int
    num_clusters: int


def paired_differences(
    first: Float[np.ndarray, " Q"],
    second: Float[np.ndarray, " Q"],
    clusters: Int[np.ndarray, " Q"] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> PairedDifferences:
    """Compares similarities pair by pair, with bootstrap intervals over clusters.

    Both members of a pair are always drawn together, and all pairs of a cluster are.

    Args:
      first, second: similarities of the two runs; row i of both is of the same prompt
        and noise.
      clusters: of each pair, such as the image that prompted it; None makes each pair
        its own.
    Raises:
      ValueError: if the lengths differ, there are no pairs, or a value is not finite.
    Source: Efron and Tibshirani 1993, section 8; Field and Welsh 2007 (clusters).
    """
    first = finite_vector(first, "first similarities")
    second = finite_vector(second, "second similarities")
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} similarities cannot be paired with {len(second)}: keep the "
            "prompts and seeds that both runs have"
        )
    statistics: dict[str, Statistic] = {
        "mean": _difference_of(mean, first, second),
        "dataset_similarity": _difference_of(percentile(95), first, second),
        "share_lower": Share(lambda rows: (second < first)[rows.astype(int)]),
    }
    rows = np.arange(len(first), dtype=np.float64)
    intervals = bootstrap_ci(
        rows, statistics, clusters, num_resamples, seed, confidence
    )
    differences = {
        name: Difference(estimate(rows, statistic), intervals[name])
        for name, statistic in statistics.items()
    }
    num_clusters = int(cluster_numbers(clusters, len(first)).max()) + 1
    return PairedDifferences(
        **differences, num_pairs=len(first), num_clusters=num_clusters
    )


def unpaired_difference(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> Difference:
    """Subtracts two independent estimates, each a value with its interval.

    Args:
      first, second: (value, low, high), low <= value <= high, of the same confidence.
    Returns:
      Second minus first; no interval where one of them lacks its own.
    Source: Zou and Donner 2008, method of variance estimates recovery: the distances
      from value to limit add in squares, and need not be symmetric.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    value = b - a
    if a_low == a_high or b_low == b_high:
        return Difference(value, None)
    low = value - float(np.hypot(b - b_low, a_high - a))
    high = value + float(np.hypot(b_high - b, a - a_low))
    return Difference(value, (low, high))


def _difference_of(
    statistic: Statistic, first: np.ndarray, second: np.ndarray
) -> Statistic:
    """Makes the statistic of row numbers: that of `second` less that of `first`."""
    orders = [np.argsort(values, kind="stable") for values in (first, second)]

    def of_samples(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        del rows  # they ascend already, so column i of the counts is that of row i
        ours, theirs = (
            statistic(values[order], counts[:, order])
            for values, order in zip((first, second), orders, strict=True)
        )
        return theirs - ours

    return of_samples
