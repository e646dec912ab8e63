"""Which generations are copies: one grade each, and what the grades come to.

Two witnesses that know nothing of each other: how much nearer a descriptor sees the
nearest training image than the next (nearness.py), with the chance that an image that is
no copy gets so near (conformal.py); and the pixels of the two images (tiled.py).
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from copymit.scores.conformal import (
    NullModel,
    adjust,
    effective_count,
    p_values,
    share_interval,
    share_unseen,
    value_at,
)
from copymit.scores.nearness import Nearness
from copymit.scores.similarity import Scores
from copymit.scores.tiled import EXTRACTED_BELOW

Grade = Literal["exact", "near copy", "likely copy", "pixels alone", "none"]
GRADES: tuple[Grade, ...] = get_args(Grade)
COPIES = GRADES[:3]
_KEYS: dict[Grade, str] = {
    "exact": "num_exact_copies",
    "near copy": "num_near_copies",
    "likely copy": "num_likely_copies",
    "pixels alone": "num_pixels_alone",
}
# Distance of the least similar tile up to which pixels agree, in [0, 1]: what one
# resampling and a JPEG of quality 90 leave of a photo.
EXACT_BELOW = 0.02
# Carlini et al.'s alpha: a pair agrees in pixels if it is this much nearer than others.
DISTINCT_BELOW = 0.5


class PixelWitness(NamedTuple):
    """What pixels say of each generation.

    Attributes:
      equal: row of a training image of equal pixels, or -1.
      reference: row of the candidate with the least tiled distance, -1 without any.
      distance: that distance, in [0, 1]; NaN without any.
      to_nearest: distance to the descriptor's nearest, or to an image of equal pixels.
      ratio: to_nearest over the mean distance to the next different pictures; NaN where
        it was not needed, or there are none.
      blank: whether the generation has one colour only.
    """

    equal: Int[np.ndarray, " Q"]
    reference: Int[np.ndarray, " Q"]
    distance: Float[np.ndarray, " Q"]
    to_nearest: Float[np.ndarray, " Q"]
    ratio: Float[np.ndarray, " Q"]
    blank: Bool[np.ndarray, " Q"]


class Decisions(NamedTuple):
    """The decision on each generation.

    Attributes:
      grades: of `GRADES`.
      copy_of: row of the training image that it is a copy of, or agrees with in pixels
        alone; else -1.
      p, q: of the descriptor; q is p after Benjamini and Hochberg. NaN where the
        descriptor tells nothing, and of generations that need no test: exact copies, and
        images of one colour.
    """

    grades: np.ndarray
    copy_of: Int[np.ndarray, " Q"]
    p: Float[np.ndarray, " Q"]
    q: Float[np.ndarray, " Q"]


def decide(
    nearness: Nearness,
    null: NullModel | None,
    pixels: PixelWitness,
    false_discovery_rate: float,
) -> Decisions:
    """Grades every generation.

    `exact`: its pixels are those of a training image, or differ by less than
    `EXACT_BELOW` in every tile. Of the others, `near copy` and `likely copy` are those
    whose q-value is at most the false discovery rate, with pixels that agree and without:
    a tiled distance below 0.15 that is less than half of those to other pictures.
    `pixels alone`: some tiled distance is below 0.15, and the descriptor does not call
    it a copy. Images of one colour are none: they agree with any other.

    Args:
      null: of images that are no copies; without it the descriptor says nothing.
    """
    exact = (pixels.equal >= 0) | (pixels.distance <= EXACT_BELOW)
    exact &= ~pixels.blank
    tested = ~exact & ~pixels.blank & (null is not None)
    values = np.where(tested, nearness.nearness, np.nan)
    p = np.full(len(values), np.nan) if null is None else p_values(null, values)
    q = adjust(p)
    near = q <= false_discovery_rate
    agree = (pixels.to_nearest < EXTRACTED_BELOW) & ~(pixels.ratio > DISTINCT_BELOW)
    alone = (pixels.distance < EXTRACTED_BELOW) & ~pixels.blank
    conditions = [exact, near & agree, near, alone]
    grades = np.select(conditions, GRADES[:4], GRADES[4])
    same = np.where(pixels.equal >= 0, pixels.equal, pixels.reference)
    copy_of = np.select(conditions, [same, *2 * [nearness.reference], same], -1)
    return Decisions(grades.astype(object), copy_of, p, q)


def needed_similarity(
    nearness: Nearness, null: NullModel, decisions: Decisions, rate: float
) -> float | None:
    """Is the similarity that makes half of the generations count as a copy.

    Where a picture has near others a copy needs more, elsewhere less: the median. None if
    no similarity is enough.

    Args:
      rate: false discovery rate.
    """
    found = (decisions.q <= rate).sum()
    p_value = rate * max(1, found) / max(1, (~np.isnan(decisions.p)).sum())
    logs = nearness.log_scale[np.isfinite(nearness.log_scale)] - value_at(null, p_value)
    if not len(logs) or not np.isfinite(logs).all():
        return None
    return float(np.median(np.maximum(1 - np.exp(2 * logs) / 2, -1)))


def summarise(
    decisions: Decisions,
    pictures: Int[np.ndarray, " R"],
    clusters: Int[np.ndarray, " Q"] | None,
) -> Scores:
    """Counts copies, with the exact interval of their share.

    Args:
      pictures: a number for each training image, equal for equal pixels.
      clusters: which generations are not independent; None takes each for independent.
    """
    copies = np.isin(decisions.grades.astype(str), COPIES)
    count = effective_count(copies, clusters)
    share = float(copies.mean())
    return {
        "num_copies": int(copies.sum()),
        **{key: int((decisions.grades == grade).sum()) for grade, key in _KEYS.items()},
        "copied_share": share,
        "copied_share_ci95": list(share_interval(share, count)),
        "copied_images": len(np.unique(pictures[decisions.copy_of[copies]])),
        "missed_share_upper": None if share else share_unseen(count),
    }
