"""Means over seeds with 95 % intervals that stay within what a score can be.

Student's, because seeds are few and their spread is estimated. Near the ends of its range
the values of a score are skewed, and there Student's covers far less than it says: for
shares it is taken on the logit scale, elsewhere what lies outside the range is cut off.
"""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special, stats

from configs.sweeps_types import Changes, Score

_SHARES = re.compile(
    r"auc$|tpr_|_hits|_above_|_below_|precision$|recall$|coverage$|_share$"
)
# Of other scores, by their names; what is not named here may be any number.
_RANGES = (
    (re.compile(r"similarity_std|^fid|^fd_|density$|seconds|^num_"), 0.0, np.inf),
    (re.compile(r"similarity|_pearson$"), -1.0, 1.0),
)
_NORMAL = 1.96


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval.

    Attributes:
      low, high: NaN where nothing is known about the spread.
      num_seeds: that were averaged.
    """

    mean: float
    low: float
    high: float
    num_seeds: int


def estimate(rows: pd.DataFrame, score: Score) -> Estimate | None:
    """Estimates a score from the trials of one setting that differ in their seed.

    The interval is over seeds; of one seed, the trial's own bootstrap over prompted
    images.
    """
    key = present_key(rows, score)
    if key is None:
        return None
    known = rows.dropna(subset=[key])
    values = known[key].to_numpy(float)
    if len(values) == 1:
        low, high = (
            float(known[name].iloc[0]) if name in known else np.nan
            for name in (f"{key}_ci95_low", f"{key}_ci95_high")
        )
        return Estimate(float(values[0]), low, high, 1)
    if is_share(score, key):
        return of_shares(values, _count_behind(known, key))
    return of_numbers(values, *_range_of(key))


def estimate_change(
    rows: pd.DataFrame, table: pd.DataFrame, score: Score, changes: Changes
) -> Estimate | None:
    """Estimates how far one setting lies from the baseline, from differences by seed.

    Args:
      rows: trials of the setting.
      table: all trials.
    Returns:
      None for the baseline itself, and where no seed has both.
    """
    key = present_key(rows, score)
    if key is None or (rows[changes.label] == changes.baseline).all():
        return None
    baseline = table[table[changes.label] == changes.baseline]
    pairing = ["seed", *changes.within]
    pairs = rows[[*pairing, key]].merge(baseline[[*pairing, key]], on=pairing)
    differences = (pairs[f"{key}_x"] - pairs[f"{key}_y"]).dropna().to_numpy(float)
    if not len(differences):
        return None
    low, high = (0.0, 1.0) if is_share(score, key) else _range_of(key)
    return of_numbers(differences, low - high, high - low)


def of_numbers(values: np.ndarray, low: float, high: float) -> Estimate:
    """Returns the mean with Student's interval, cut at the range of the values.

    The interval is unknown for a single value.
    """
    mean, half = float(values.mean()), _half_width(values)
    return Estimate(
        mean,
        float(np.maximum(mean - half, low)),
        float(np.minimum(mean + half, high)),
        len(values),
    )


def of_shares(values: np.ndarray, count: float) -> Estimate:
    """Returns the mean of shares with Student's interval on the logit scale.

    Shares that agree by chance, as when all are 0, say nothing of their spread. So the
    interval is at least as wide as that of `count` independent draws, half a draw added
    on either side.

    Args:
      count: images or prompts that the shares are of, over all seeds; inf = unknown,
        then nothing is known of the spread when the values agree.
    """
    mean = float(values.mean())
    center = (mean * count + 0.5) / (count + 1) if np.isfinite(count) else mean
    variance = center * (1 - center)
    half = max(_half_width(values), _NORMAL * np.sqrt(variance / count))
    if not half:
        return Estimate(mean, np.nan, np.nan, len(values))
    low, high = (
        float(special.expit(special.logit(center) + side * half / variance))
        for side in (-1, 1)
    )
    return Estimate(mean, min(low, mean), max(high, mean), len(values))


def _half_width(values: np.ndarray) -> float:
    count = len(values)
    if count < 2:
        return np.nan
    return stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)


def present_key(rows: pd.DataFrame, score: Score) -> str | None:
    """Finds the first key of a score of which there is a number."""
    return next((k for k in score.keys if k in rows and rows[k].notna().any()), None)


def is_share(score: Score, key: str) -> bool:
    """Whether a score lies in [0, 1] by its nature."""
    return score.percent or bool(_SHARES.search(key))


def _range_of(key: str) -> tuple[float, float]:
    found = (ends for pattern, *ends in _RANGES if pattern.search(key))
    low, high = next(found, (-np.inf, np.inf))
    return low, high


def _count_behind(rows: pd.DataFrame, key: str) -> float:
    """Counts the independent draws that a share is of, over all seeds; inf if unknown.

    Of an area under a ROC curve it is the rarer of both kinds (Birnbaum and Klose 1957:
    the variance is at most A (1 - A) over its number). Generations for one image are one
    draw: where shares agree, nothing shows that they are more.
    """
    kind = "unseen_" if key.startswith("unseen_") else ""
    of_detector = [f"{kind}memorised_count", f"{kind}other_count"]
    if set(of_detector) <= set(rows):
        return float(rows[of_detector].min(axis=1).sum())
    if "num_generations" not in rows:
        return np.inf
    counts = rows["num_generations"]
    group = re.search("(?:un)?duplicated", key)
    if group and (own := f"prompted_{group[0]}_count") in rows:
        counts = rows[own]
    if "num_clusters" in rows:
        counts = counts * (rows["num_clusters"] / rows["num_generations"]).fillna(1)
    return float(counts.sum())
