"""Confidence intervals of statistics, by resampling clusters of values.

Values with a cluster each enter, an interval a statistic leaves. Generations of one
prompt resemble each other, so resampling single generations would call a result surer
than it is: whole clusters are drawn instead.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

# A statistic of S samples at once: the ascending values (Q,) and how often each of them
# occurs in each sample (S, Q) give (S,) numbers.
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Elements of one block of counts: 32 MiB of int64.
BLOCK_ELEMENTS = 1 << 22


def mean(values: Float[np.ndarray, " Q"], counts: Int[np.ndarray, "S Q"]) -> np.ndarray:
    """Is the mean of each sample."""
    return counts @ values / counts.sum(1)


def std(values: Float[np.ndarray, " Q"], counts: Int[np.ndarray, "S Q"]) -> np.ndarray:
    """Is the standard deviation of each sample, dividing by its size."""
    # The shift keeps the difference of squares from cancelling.
    values = values - values.mean()
    variances = mean(values**2, counts) - mean(values, counts) ** 2
    return np.sqrt(np.maximum(variances, 0))


@dataclass(frozen=True)
class Share:
    """The statistic: share of a sample whose values are as `holds` (Q,) -> (Q,) asks."""

    holds: Callable[[np.ndarray], np.ndarray]

    def __call__(self, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return mean(self.holds(values).astype(np.float64), counts)


def share_above(threshold: float) -> Share:
    """Makes the statistic: share of a sample above a threshold."""
    return Share(lambda values: values > threshold)


def share_below(threshold: float) -> Share:
    """Makes the statistic: share of a sample below a threshold."""
    return Share(lambda values: values < threshold)


def percentile(percent: float) -> Statistic:
    """Makes the statistic: percentile of a sample, interpolated as numpy does it.

    Raises:
      ValueError: if `percent` is outside [0, 100].
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"percentile is {percent}; choose one from 0 to 100")

    def of_samples(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        # The value at place p (from 0) is the first whose cumulated count exceeds p.
        ends = np.cumsum(counts, axis=1)
        places = (ends[:, -1] - 1) * (percent / 100)
        lower = (ends > np.floor(places)[:, None]).argmax(1)
        upper = (ends > np.ceil(places)[:, None]).argmax(1)
        weights = places - np.floor(places)
        return values[lower] + weights * (values[upper] - values[lower])

    return of_samples


def estimate(values: Float[np.ndarray, " Q"], statistic: Statistic) -> float:
    """Is the statistic of the values themselves."""
    ones = np.ones((1, len(values)), np.int64)
    return float(statistic(np.sort(np.asarray(values, np.float64)), ones)[0])


def unanimous_interval(
    share: float, count: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Exact binomial interval of a share of 0 or 1 of so many independent trials.

    Resampling finds no spread where all agree, but more trials might not have agreed.

    Source: Clopper and Pearson 1934; what their beta quantiles are at 0 and 1.
    """
    reach = 1 - ((1 - confidence) / 2) ** (1 / count)
    return (0.0, reach) if share == 0 else (1 - reach, 1.0)


def bootstrap_ci(
    values: Float[np.ndarray, " Q"],
    statistics: Mapping[str, Statistic],
    clusters: Int[np.ndarray, " Q"] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float] | None]:
    """Percentile bootstrap intervals of statistics, all from the same resamples.

    As many clusters as there are get drawn with replacement, and each brings all of its
    values. A `Share` in which all values agree gets the exact binomial interval of as many
    trials as there are clusters.

    Args:
      values: finite numbers.
      statistics: by name; see `Statistic`.
      clusters: the cluster of each value; None makes each value its own.
    Returns:
      By name (low, high), or None where one cluster alone says nothing about spread.
    Raises:
      ValueError: if there are no values, or a value is not finite, or the lengths
        differ.
    Source: Field and Welsh 2007 (cluster bootstrap); Efron 1979.
    """
    values = finite_vector(values, "values")
    clusters = cluster_numbers(clusters, len(values))
    intervals: dict[str, tuple[float, float] | None] = dict.fromkeys(statistics)
    unanimous = {
        name: unanimous_interval(share, int(clusters.max()) + 1, confidence)
        for name, statistic in statistics.items()
        if isinstance(statistic, Share)
        and (share := estimate(values, statistic)) in (0.0, 1.0)
    }
    if clusters.max() == 0:
        return intervals | unanimous
    order = np.argsort(values, kind="stable")
    values, clusters = values[order], clusters[order]
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for counts in _resampled_counts(clusters, num_resamples, seed):
        for name, statistic in statistics.items():
            drawn[name].append(statistic(values, counts))
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    for name, samples in drawn.items():
        low, high = np.percentile(np.concatenate(samples), tails)
        intervals[name] = (float(low), float(high))
    return intervals | unanimous


def finite_vector(values: Float[np.ndarray, " Q"], name: str) -> np.ndarray:
    """Returns the values in float64.

    Raises:
      ValueError: if there are none, or they are not a vector of finite numbers.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"{name} must be a non-empty vector; it has shape {values.shape}: check "
            "that there are any generations"
        )
    broken = np.flatnonzero(~np.isfinite(values))
    if broken.size:
        raise ValueError(
            f"{broken.size} of {len(values)} {name} are NaN or infinite, first at rows "
            f"{broken[:5].tolist()}: search again or leave these images out"
        )
    return values


def cluster_numbers(clusters: np.ndarray | None, count: int) -> np.ndarray:
    """Numbers clusters from 0; None makes each value its own cluster.

    Raises:
      ValueError: if there is not one cluster for each value.
    """
    if clusters is None:
        return np.arange(count)
    clusters = np.asarray(clusters)
    if clusters.shape != (count,):
        raise ValueError(
            f"clusters has shape {clusters.shape}, but there are {count} values: give "
            "one cluster for each value"
        )
    return np.unique(clusters, return_inverse=True)[1]


def _resampled_counts(
    clusters: np.ndarray, num_resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yields, in blocks of resamples, how often each value occurs in each."""
    rng = np.random.default_rng(seed)
    num_clusters = int(clusters.max()) + 1
    block = max(1, BLOCK_ELEMENTS // len(clusters))
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        draws = rng.integers(0, num_clusters, (size, num_clusters))
        draws += num_clusters * np.arange(size)[:, None]
        counts = np.bincount(draws.ravel(), minlength=size * num_clusters)
        yield counts.reshape(size, num_clusters)[:, clusters]
