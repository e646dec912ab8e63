"""How well a detector tells memorised prompts from others: ROC, AUC, TPR at a FPR.

One score a prompt and whether it is memorised enter, shares in [0, 1] leave. Scores are
higher the likelier memorised. A threshold calls memorised what reaches it, so prompts of
equal score are called together, and no number depends on the order of prompts.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from copymit.scores.bootstrap import (
    BLOCK_ELEMENTS,
    finite_vector,
    unanimous_interval,
)
from copymit.scores.similarity import Scores

# Of each detector in detection.json, under each comparison; and what heads their columns.
AUC, FOUND_AT_1_PERCENT = "auc", "tpr_at_1_percent_fpr"
DETECTOR_SCORES = {AUC: "AUC", FOUND_AT_1_PERCENT: "found at 1 %"}
# Whose prompts memorised ones are told from.
COMPARISONS = {"unmemorised": "others", "unseen": "unseen"}

# How often each distinct score, ascending, occurs among memorised and among other
# prompts, in S samples each (S, U), gives (S,) numbers.
_Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Roc(NamedTuple):
    """The rates of every threshold, from calling nothing memorised to calling all.

    Attributes:
      false_positive_rates: share of the other prompts that are called memorised.
      true_positive_rates: share of the memorised prompts that are.
      thresholds: descending; infinity, then every distinct score.
    """

    false_positive_rates: Float[np.ndarray, " U+1"]
    true_positive_rates: Float[np.ndarray, " U+1"]
    thresholds: Float[np.ndarray, " U+1"]


def compute_roc(
    scores: Float[np.ndarray, " Q"], memorised: Bool[np.ndarray, " Q"]
) -> Roc:
    """Computes the receiver operating characteristic.

    Raises:
      ValueError: if scores are not finite, or all prompts are of one kind.
    """
    values, positive, negative = _counts(scores, memorised)
    false, true = (
        np.concatenate([[0], np.cumsum(counts[::-1]) / counts.sum()])
        for counts in (negative, positive)
    )
    return Roc(false, true, np.concatenate([[np.inf], values[::-1]]))


def compute_auc(
    scores: Float[np.ndarray, " Q"], memorised: Bool[np.ndarray, " Q"]
) -> float:
    """Computes the area under the ROC curve.

    It is the probability that a memorised prompt scores higher than another one, with
    half a point for a tie: 1 is perfect, 0.5 chance, 0 perfectly wrong.

    Raises:
      ValueError: if scores are not finite, or all prompts are of one kind.
    Source: Hanley and McNeil 1982 (the Mann-Whitney statistic).
    """
    _, positive, negative = _counts(scores, memorised)
    return float(_auc(positive[None], negative[None])[0])


def true_positive_rate_at(
    scores: Float[np.ndarray, " Q"],
    memorised: Bool[np.ndarray, " Q"],
    false_positive_rate: float = 0.01,
) -> float:
    """Is the largest share of memorised prompts found by a threshold that may be used.

    That is one whose false positives are at most this share of the other prompts;
    nothing is interpolated, so with fewer than 100 of these, 1 % allows none.

    Raises:
      ValueError: if scores are not finite, all prompts are of one kind, or the rate is
        outside [0, 1].
    Source: Carlini et al. 2022 (Membership Inference Attacks From First Principles).
    """
    _, positive, negative = _counts(scores, memorised)
    rate = _rate_at(false_positive_rate)
    return float(rate(positive[None], negative[None])[0])


def detection_summary(
    scores: Float[np.ndarray, " Q"],
    memorised: Bool[np.ndarray, " Q"],
    num_resamples: int = 2000,
    seed: int = 0,
) -> Scores:
    """Describes a detector: each of `DETECTOR_SCORES`, with `_ci95`.

    The intervals are of a percentile bootstrap that draws memorised and other prompts
    separately, the threshold anew each time; None where one kind has a single prompt.
    Numbers of 0 or 1, where resampling finds no spread, get exact binomial ones: the rate
    of as many trials as there are memorised prompts, at its threshold; the AUC of as many
    as the smaller kind has prompts, which is how many pairs have no prompt in common
    (all pairs in order are no likelier than all of these). Also `memorised_count` and
    `other_count`.

    Raises:
      ValueError: if scores are not finite, or all prompts are of one kind.
    Source: Efron 1979; Clopper and Pearson 1934.
    """
    _, positive, negative = _counts(scores, memorised)
    kinds = int(positive.sum()), int(negative.sum())
    statistics = {AUC: _auc, FOUND_AT_1_PERCENT: _rate_at(0.01)}
    trials = {AUC: min(kinds), FOUND_AT_1_PERCENT: kinds[0]}
    drawn = _resampled(positive, negative, statistics, num_resamples, seed)
    summary: Scores = {}
    for name, statistic in statistics.items():
        value = float(statistic(positive[None], negative[None])[0])
        interval = None
        if value in (0.0, 1.0):
            interval = list(unanimous_interval(value, trials[name]))
        elif min(kinds) > 1:
            interval = np.percentile(drawn[name], [2.5, 97.5]).tolist()
        summary |= {name: value, f"{name}_ci95": interval}
    return summary | {"memorised_count": kinds[0], "other_count": kinds[1]}


def _counts(scores, memorised) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the distinct scores, and how often each occurs of either kind."""
    scores, memorised = finite_vector(scores, "scores"), np.asarray(memorised, bool)
    if memorised.shape != scores.shape:
        raise ValueError(
            f"memorised has shape {memorised.shape}, but there are {len(scores)} scores: "
            "give one entry for each prompt"
        )
    if memorised.all() or not memorised.any():
        kind = "memorised" if memorised.all() else "not memorised"
        raise ValueError(
            f"all {len(scores)} prompts are {kind}, so nothing is to be told apart: "
            "add prompts of the other kind, or change the threshold of similarity"
        )
    values, rows = np.unique(scores, return_inverse=True)
    positive, negative = (
        np.bincount(rows[kind], minlength=len(values))
        for kind in (memorised, ~memorised)
    )
    return values, positive, negative


def _auc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    return (positive * below).sum(1) / pairs


def _rate_at(false_positive_rate: float) -> _Statistic:
    if not 0 <= false_positive_rate <= 1:
        raise ValueError(
            f"false_positive_rate is {false_positive_rate}; choose one from 0 to 1"
        )

    def rate(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        called = np.cumsum(negative[:, ::-1], axis=1)[:, ::-1]
        # The margin is for products such as 0.01 * 300, which may fall below 3.
        allowed = false_positive_rate * negative.sum(1, keepdims=True) * (1 + 1e-12)
        return (positive * (called <= allowed)).sum(1) / positive.sum(1)

    return rate


def _resampled(positive, negative, statistics, num_resamples, seed):
    """Returns each statistic of samples drawn with replacement, kind by kind."""
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_ELEMENTS // len(positive))
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        samples = [
            rng.multinomial(counts.sum(), counts / counts.sum(), size)
            for counts in (positive, negative)
        ]
        for name, statistic in statistics.items():
            drawn[name].append(statistic(*samples))
    return {name: np.concatenate(samples) for name, samples in drawn.items()}
