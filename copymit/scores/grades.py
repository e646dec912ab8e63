"""Which generations are copies: one grade each, and what the grades come to.

Witnesses that know nothing of each other: how much nearer a descriptor, and the
correlation of pixels, see the nearest training image than the next (nearness.py), each
with the chance that an image that is no copy gets so near (conformal.py); and the pixels
of the two images, tile by tile (tiled.py).
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from copymit.scores.conformal import (
    NullModel,
    adjust,
    combine,
    effective_count,
    p_values,
    share_interval,
    share_unseen,
    value_at,
)
from copymit.scores.nearness import Nearness
from copymit.scores.provenance import UNKNOWN_ROW, Provenance
from copymit.scores.similarity import Scores
from copymit.scores.tiled import EXTRACTED_BELOW, agrees

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


class PixelWitness(NamedTuple):
    """What pixels say of each generation.

    Attributes:
      equal: row of a training image of equal pixels, or -1.
      reference: row of the candidate with the least tiled distance, -1 without any.
      distance: that distance, in [0, 1]; NaN without any.
      to_nearest: distance to the nearest of each embedder that decides.
      ratio: that over the mean distance to the next different pictures; NaN where the
        embedder cannot call it a copy, or there are none.
      blank: whether the generation has one colour only.
    """

    equal: Int[np.ndarray, " Q"]
    reference: Int[np.ndarray, " Q"]
    distance: Float[np.ndarray, " Q"]
    to_nearest: Float[np.ndarray, "W Q"]
    ratio: Float[np.ndarray, "W Q"]
    blank: Bool[np.ndarray, " Q"]


class Finding(NamedTuple):
    """What one embedder says of each generation.

    Attributes:
      null: of images that are no copies; without it the embedder says nothing.
    """

    nearness: Nearness
    null: NullModel | None


class Decisions(NamedTuple):
    """The decision on each generation.

    Attributes:
      grades: of `GRADES`.
      copy_of: row of the training image that it is a copy of, or agrees with in pixels
        alone; else -1.
      p, q: of all embedders together; q is p after Benjamini and Hochberg. NaN where
        none tells anything, and of generations that need no test: exact copies, and
        images of one colour.
      unseen: whether it is a copy that the descriptor alone would not have called.
      num_witnesses: embedders that p-values are of.
    """

    grades: np.ndarray
    copy_of: Int[np.ndarray, " Q"]
    p: Float[np.ndarray, " Q"]
    q: Float[np.ndarray, " Q"]
    unseen: Bool[np.ndarray, " Q"]
    num_witnesses: int


def decide(
    descriptor: Finding,
    correlation: Finding | None,
    pixels: PixelWitness,
    false_discovery_rate: float,
) -> Decisions:
    """Grades every generation.

    `exact`: its pixels are those of a training image, or differ by less than
    `EXACT_BELOW` in every tile. The others are called copies whose q-value is at most the
    false discovery rate: `near copy` with pixels that agree, `likely copy` without. They
    agree with the nearest of an embedder at a tiled distance of less than 0.4 of those to
    other pictures; without that their correlation says nothing.
    `pixels alone`: some tiled distance is below 0.15, and no embedder calls it a copy.
    Images of one colour are none: they agree with any other.

    Args:
      correlation: of pixels, where the descriptor is something else.
    """
    exact = (pixels.equal >= 0) | (pixels.distance <= EXACT_BELOW)
    exact &= ~pixels.blank
    agree = agrees(pixels.to_nearest, pixels.ratio)
    witnesses = [descriptor] + ([correlation] if correlation else [])
    each = np.stack([_p_values(one, exact | pixels.blank) for one in witnesses])
    # Two skies correlate, and no tile of them is nearer than those of a third.
    each[1:] = np.where(np.isnan(each[1:]) | agree[1:], each[1:], 1.0)
    p = combine(each)
    q = adjust(p)
    called = q <= false_discovery_rate
    number = max(1, sum(witness.null is not None for witness in witnesses))
    calls = called & (each <= p[called].max(initial=0) / number)
    seen, near = calls[0], (calls & agree).any(axis=0)
    nearest = descriptor.nearness.reference
    if correlation:
        nearest = np.where(seen, nearest, correlation.nearness.reference)
    alone = (pixels.distance < EXTRACTED_BELOW) & ~pixels.blank
    conditions = [exact, near, called, alone]
    grades = np.select(conditions, GRADES[:4], GRADES[4])
    same = np.where(pixels.equal >= 0, pixels.equal, pixels.reference)
    copy_of = np.select(conditions, [same, nearest, nearest, same], -1)
    return Decisions(grades.astype(object), copy_of, p, q, called & ~seen, number)


def may_be_copies(
    witness: Finding, false_discovery_rate: float
) -> Bool[np.ndarray, " Q"]:
    """Says which generations an embedder can call: a q-value is at least its p-value."""
    nearness = witness.nearness.nearness
    return _p_values(witness, np.zeros(len(nearness), bool)) <= false_discovery_rate


def _p_values(
    witness: Finding, untested: Bool[np.ndarray, " Q"]
) -> Float[np.ndarray, " Q"]:
    if witness.null is None:
        return np.full(len(untested), np.nan)
    values = np.where(untested, np.nan, witness.nearness.nearness)
    return p_values(witness.null, values)


def needed_similarity(
    nearness: Nearness, null: NullModel, decisions: Decisions, rate: float
) -> float | None:
    """Is the similarity that makes half of the generations count as a copy.

    To the descriptor, whose nearness it is. Where a picture has near others a copy needs
    more, elsewhere less: the median. None if no similarity is enough.

    Args:
      rate: false discovery rate.
    """
    found = (decisions.q <= rate).sum()
    p_value = rate * max(1, found) / max(1, (~np.isnan(decisions.p)).sum())
    value = value_at(null, p_value / decisions.num_witnesses)
    logs = nearness.log_scale[np.isfinite(nearness.log_scale)] - value
    if not len(logs) or not np.isfinite(logs).all():
        return None
    return float(np.median(np.maximum(1 - np.exp(2 * logs) / 2, -1)))


def summarise(
    decisions: Decisions,
    pictures: Int[np.ndarray, " R"],
    provenance: Provenance,
) -> Scores:
    """Counts copies, with the exact intervals of their shares.

    Args:
      pictures: a number for each training image, equal for equal pixels.
    """
    copies = np.isin(decisions.grades.astype(str), COPIES)
    count = effective_count(copies, provenance.clusters)
    scores: Scores = {
        "num_copies": int(copies.sum()),
        **{key: int((decisions.grades == grade).sum()) for grade, key in _KEYS.items()},
        "num_copies_by_pixels": int(decisions.unseen.sum()),
        "copied_images": len(np.unique(pictures[decisions.copy_of[copies]])),
        "missed_share_upper": None if copies.any() else share_unseen(count),
    }
    everywhere = np.ones(len(copies), bool)
    for group, rows in {"": everywhere, **_by_duplication(provenance)}.items():
        scores |= _share(f"{group}copied_share", copies, rows, provenance.clusters)
    return scores


def _share(
    key: str,
    copies: Bool[np.ndarray, " Q"],
    rows: Bool[np.ndarray, " Q"],
    clusters: Int[np.ndarray, " Q"] | None,
) -> Scores:
    """Is the share of copies in chosen rows; None where no row is chosen."""
    if not rows.any():
        return {key: None, f"{key}_ci95": None}
    share = float(copies[rows].mean())
    count = effective_count(copies[rows], None if clusters is None else clusters[rows])
    return {key: share, f"{key}_ci95": list(share_interval(share, count))}


def _by_duplication(provenance: Provenance) -> dict[str, Bool[np.ndarray, " Q"]]:
    """Divides generations by whether the image that prompted them was duplicated."""
    prompted, duplicated, _ = provenance
    if prompted is None or duplicated is None or not duplicated.any():
        return {}
    known = prompted != UNKNOWN_ROW
    inside = known & duplicated[prompted]
    return {"prompted_duplicated_": inside, "prompted_unduplicated_": known & ~inside}
