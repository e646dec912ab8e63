"""From a statistic of images that are no copies to p-values, and shares with bounds.

The p-value of an image is the share of images that are no copies, itself counted with
them, whose statistic is as large: valid for any distribution as long as it could be one
of them. With n of them none is below 1 / (n + 1), and a false discovery rate of 1 % among
rare copies asks for less, so the tail is continued by a model. Distances to a nearest
neighbour go to zero by a power, whatever the distribution is (Amsaleg et al. 2015,
Estimating Local Intrinsic Dimensionality); so the logarithm of how near it is has an
exponential tail. Its scale is estimated from a few images, which the predictive
distribution counts; a tail that is heavier in the sample is taken as it is.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from copymit.scores.bootstrap import cluster_numbers, finite_vector

# Least number of images that a tail is estimated from, and of all for that.
_MIN_TAIL = 10
_MIN_NULL = 4 * _MIN_TAIL
_MIN_TRIMMED = 200
_EXPECTED_CHANCE = 0.001


class NullModel(NamedTuple):
    """The distribution of a statistic among images that are no copies.

    Attributes:
      values: of each of them, ascending.
      start: of the tail; infinite where there are too few for one.
      size: how many lie in the tail.
      scale, shape: of the generalised Pareto distribution of what exceeds the start.
    """

    values: Float[np.ndarray, " n"]
    start: float
    size: int
    scale: float
    shape: float


def fit_null(values: Float[np.ndarray, " n"]) -> NullModel:
    """Fits the tail to the largest sqrt(n) values, at least ten.

    Exceedances over an order statistic of an exponential tail are independent and
    exponential, and the next one, the scale being unknown, exceeds y with probability
    (1 + y / (m mean))^-m: a generalised Pareto distribution of shape 1 / m. Where the
    sample's coefficient of variation tells a heavier tail, its shape is taken.

    Raises:
      ValueError: if a value is not finite, or there are none.
    Source: Renyi 1953 (spacings); Hosking and Wallis 1987 (shape by moments).
    """
    values = np.sort(finite_vector(values, "values of images that are no copies"))
    values = values[values < duplicates_from(values)]
    count = len(values)
    size = max(_MIN_TAIL, int(np.sqrt(count)))
    if count < _MIN_NULL:
        return NullModel(values, np.inf, 0, 0.0, 0.0)
    start = values[-size - 1]
    excess = values[-size:] - start
    mean = excess.mean()
    if mean <= 0:  # all tied
        return NullModel(values, np.inf, 0, 0.0, 0.0)
    heavier = (1 - (mean / excess.std(ddof=1)) ** 2) / 2
    shape = max(1 / size, heavier)
    scale = mean if shape == 1 / size else mean * (1 - shape)
    return NullModel(values, float(start), size, float(scale), float(shape))


def duplicates_from(values: Float[np.ndarray, " n"]) -> float:
    """Is the value that 0.001 of these images would reach, by those in the middle.

    What lies beyond has a duplicate among the training images that no threshold of
    similarity told. The exponential goes through median and upper quartile, which
    duplicates of fewer than a tenth of the images hardly disturb. Nearer values may be of
    pictures that look alike, as those of one scene, and stay: with one image expected
    beyond in place of 0.001, a tenth of what was found in photos by SSCD was no copy.

    Returns:
      Infinity where fewer than 200 images tell nothing of the sort.
    """
    if len(values) < _MIN_TRIMMED:
        return np.inf
    median, upper = np.percentile(values, [50, 75])
    scale = (upper - median) / np.log(2)
    return float(upper + scale * np.log(len(values) / 4 / _EXPECTED_CHANCE))


def p_values(null: NullModel, values: Float[np.ndarray, " Q"]) -> np.ndarray:
    """Is the p-value of each; NaN stays NaN.

    Source: Bates et al. 2023, Testing for outliers with conformal p-values (these are
      positively dependent, under which Benjamini and Hochberg's bound holds).
    """
    values = np.asarray(values, np.float64)
    count = len(null.values)
    as_large = count - np.searchsorted(null.values, values, side="left")
    conformal = (1 + as_large) / (count + 1)
    if null.size:
        beyond = np.maximum(values - null.start, 0)
        tail = (1 + null.shape * beyond / null.scale) ** (-1 / null.shape)
        in_tail = values > null.start
        conformal = np.where(in_tail, _tail_share(null) * tail, conformal)
    return np.where(np.isnan(values), np.nan, conformal)


def value_at(null: NullModel, p_value: float) -> float:
    """Is the least value whose p-value is at most this; infinite if none has."""
    count = len(null.values)
    if null.size and p_value <= _tail_share(null):
        ratio = (p_value / _tail_share(null)) ** -null.shape
        return null.start + null.scale * (ratio - 1) / null.shape
    allowed = int(np.floor(p_value * (count + 1) + 1e-9)) - 1  # values as large
    if allowed < 0:
        return np.inf
    if allowed >= count:
        return -np.inf
    return float(np.nextafter(null.values[count - 1 - allowed], np.inf))


def combine(p: Float[np.ndarray, "W Q"]) -> Float[np.ndarray, " Q"]:
    """Is one p-value of several witnesses, who may depend on each other in any way.

    The least of them times their number (Bonferroni); NaN tells nothing.
    """
    told = ~np.isnan(p)
    least = np.where(told, p, np.inf).min(axis=0)
    least = np.where(told.any(axis=0), least, np.nan)
    return np.minimum(least * told.sum(axis=0), 1)


def adjust(p: Float[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
    """Is Benjamini and Hochberg's q-value of each; NaN are no hypotheses."""
    q = np.full(len(p), np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        order = np.argsort(p[tested])[::-1]  # the largest first
        ranks = np.arange(len(order), 0, -1)
        scaled = p[tested][order] * len(order) / ranks
        adjusted = np.empty(len(order))
        adjusted[order] = np.minimum(np.minimum.accumulate(scaled), 1)
        q[tested] = adjusted
    return q


def effective_count(
    hits: Float[np.ndarray, " Q"], clusters: Int[np.ndarray, " Q"] | None
) -> float:
    """Is the number of independent images that tell as much of the share of hits.

    Where all agree no spread is seen, and it is the number of clusters.

    Source: Korn and Graubard 1998, Confidence intervals for proportions with small
      expected number of positive counts estimated from survey data.
    """
    hits = np.asarray(hits, np.float64)
    number = cluster_numbers(clusters, len(hits))
    count, share = len(hits), hits.mean()
    groups = int(number.max()) + 1
    if groups == count:
        return float(count)
    if share in (0.0, 1.0) or groups == 1:
        return float(groups)
    sums = np.bincount(number, hits - share)
    variance = groups / (groups - 1) * (sums**2).sum() / count**2
    if variance <= 0:
        return float(count)
    fewer = share * (1 - share) / variance
    quantiles = special.stdtrit([count - 1, groups - 1], 0.975)  # Student's t
    fewer *= (quantiles[0] / quantiles[1]) ** 2
    return float(min(count, fewer))


def share_interval(
    share: float, count: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Is the exact binomial interval of a share of so many independent images.

    Source: Clopper and Pearson 1934; for counts that are not whole Korn and Graubard 1998.
    """
    hits, tail = share * count, (1 - confidence) / 2
    low = special.betaincinv(hits, count - hits + 1, tail) if hits > 0 else 0.0
    high = special.betaincinv(hits + 1, count - hits, 1 - tail) if hits < count else 1.0
    return float(low), float(high)


def share_unseen(count: float, confidence: float = 0.95) -> float:
    """Is the largest share of which so many independent images show none that often.

    One-sided: with a larger share, fewer than 5 % of the samples would hold none.
    """
    return float(1 - (1 - confidence) ** (1 / count))


def _tail_share(null: NullModel) -> float:
    return (null.size + 1) / (len(null.values) + 1)
