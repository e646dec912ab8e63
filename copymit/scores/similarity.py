"""How much a set of generations copies: statistics of similarities, with intervals.

Similarities of generations to their nearest training images enter; flat entries of
`scores.json` leave. An entry is None where nothing was there to be measured.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from copymit.scores.bootstrap import (
    Statistic,
    bootstrap_ci,
    estimate,
    finite_vector,
    mean,
    percentile,
    share_above,
    std,
)

Scores = dict[str, Any]

# Tolerance of a tie between two float32 dot products of unit vectors.
TIE_TOLERANCE = 1e-5


def dataset_similarity(
    similarities: Float[np.ndarray, " Q"], percentile: float = 95.0
) -> float:
    """Summarises the top-1 similarities of one set of generations.

    Args:
      similarities: largest dot product of each generation's unit descriptor with any
        reference's, in [-1, 1].
      percentile: in [0, 100]; 95 in the paper, because a mean hides rare copies.
    Raises:
      ValueError: if there are no generations or any value is not finite.
    Source: Somepalli et al. 2023, metrics paragraph; DCR's diff_retrieval.py logs it as
      sim_95pc.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile is {percentile}; choose one from 0 to 100")
    return float(np.percentile(finite_vector(similarities, "similarities"), percentile))


def similarity_summary(
    top1: Float[np.ndarray, " Q"],
    clusters: Int[np.ndarray, " Q"] | None = None,
    seed: int = 0,
    prefix: str = "",
) -> Scores:
    """Describes the distribution of top-1 similarities, each number with `_ci95`.

    Args:
      top1: similarity of each image to its nearest reference, in [-1, 1].
      clusters: which generations are not independent; None makes each its own.
      seed: of the bootstrap.
      prefix: of every key: "" for generations, `background_` for training images to
        their nearest others, `heldout_` for images that were never trained on.
    Raises:
      ValueError: if there are no values or any is not finite.
    Source: DCR's diff_retrieval.py (sim_mean, sim_std, sim_75pc, ..., sim_gt_05pc).
    """
    statistics: dict[str, Statistic] = {
        "similarity_mean": mean,
        "similarity_std": std,
        "similarity_p75": percentile(75.0),
        "similarity_p90": percentile(90.0),
        "similarity_p95": percentile(95.0),
        "similarity_above_0.5": share_above(0.5),
    }
    scores = _with_intervals(top1, statistics, clusters, seed, prefix)
    for suffix in ("", "_ci95"):
        scores[f"{prefix}dataset_similarity{suffix}"] = scores[
            f"{prefix}similarity_p95{suffix}"
        ]
    scores[f"{prefix}similarity_count"] = len(top1)
    return scores


def duplicated_match_summary(
    top1: Float[np.ndarray, " Q"],
    matches: Int[np.ndarray, " Q"],
    duplicated: Bool[np.ndarray, " R"],
    clusters: Int[np.ndarray, " Q"] | None = None,
    seed: int = 0,
) -> Scores:
    """Mean similarity of generations by whether their *match* is a duplicated image.

    Keys `similarity_to_{duplicated,unduplicated}` with `_ci95` and `_count`.

    Args:
      top1: similarity of each generation to its match.
      matches: reference that is nearest to each generation.
      duplicated: whether a reference was duplicated in training.
    Raises:
      ValueError: if there are no values, any is not finite, or the arrays do not fit.
    Source: the bar plot of DCR's diff_retrieval.py (weights above 1).
    """
    top1 = finite_vector(top1, "similarities")
    inside = _duplicated_rows(duplicated, matches, "matches", len(top1))
    scores: Scores = {}
    for name, rows in {"duplicated": inside, "unduplicated": ~inside}.items():
        scores |= _of_rows(f"similarity_to_{name}", top1, rows, clusters, seed)
        scores[f"similarity_to_{name}_count"] = int(rows.sum())
    return scores


def prompted_image_summary(
    top1: Float[np.ndarray, " Q"],
    matches: Int[np.ndarray, " Q"],
    prompted: Int[np.ndarray, " Q"],
    to_prompted: Float[np.ndarray, " Q"],
    duplicated: Bool[np.ndarray, " R"] | None = None,
    seed: int = 0,
) -> Scores:
    """Says whether generations copy the image whose caption prompted them.

    Keys, each with `_ci95` clustered by prompted image, over all generations and, where
    `duplicated` is given, over those prompted by a duplicated image and by another:

    - `prompted_image_hits{,_duplicated,_unduplicated}`: share whose nearest training
      image is the prompted one. An equally near one counts, since an exact duplicate
      under a second id is the same image.
    - `similarity_to_prompted{,_duplicated,_unduplicated}`: mean similarity to it.
    - `prompted_{duplicated,unduplicated}_similarity_mean`: mean similarity to the
      nearest image.
    - `prompted_image_count`, `prompted_{duplicated,unduplicated}_count`: generations.

    Args:
      top1: similarity of each generation to its nearest reference.
      matches: that reference.
      prompted: reference whose caption prompted each generation.
      to_prompted: similarity of each generation to that reference.
      duplicated: whether a reference was duplicated in training.
    Raises:
      ValueError: if there are no values, any is not finite, or the arrays do not fit.
    """
    top1 = finite_vector(top1, "similarities")
    to_prompted = finite_vector(to_prompted, "similarities to the prompted image")
    matches, prompted = np.asarray(matches), np.asarray(prompted)
    for name, rows in {
        "matches": matches,
        "prompted": prompted,
        "to_prompted": to_prompted,
    }.items():
        _check_length(rows, name, len(top1))
    hits = (matches == prompted) | (to_prompted >= top1 - TIE_TOLERANCE)
    groups = {"": np.ones(len(top1), bool)}
    if duplicated is not None:
        inside = _duplicated_rows(duplicated, prompted, "prompted", len(top1))
        groups |= {"_duplicated": inside, "_unduplicated": ~inside}
    scores: Scores = {"prompted_image_count": len(top1)}
    for suffix, rows in groups.items():
        measured = {
            f"prompted_image_hits{suffix}": hits,
            f"similarity_to_prompted{suffix}": to_prompted,
        }
        if suffix:
            measured[f"prompted{suffix}_similarity_mean"] = top1
            scores[f"prompted{suffix}_count"] = int(rows.sum())
        for key, values in measured.items():
            scores |= _of_rows(key, values, rows, prompted, seed)
    return scores


def nearest_l2_ratio(distances: Float[np.ndarray, "Q k1"]) -> Float[np.ndarray, " Q"]:
    """Distance to the nearest training image, relative to that of the next ones.

    With distances d_0 <= d_1 <= ... <= d_k of one generation this is
    `d_0 / mean(d_1, ..., d_k)`, in [0, 1]. Near 0: one training image is much nearer
    than its surroundings, so it is a copy; near 1: a typical point of a dense region.
    Where all k + 1 distances are 0 the ratio is 1: no image is nearer than the next.

    Args:
      distances: L2 distances of each generation to its k + 1 nearest training images,
        ascending; k is 10 by default in reports. For unit vectors of similarity s the
        distance is sqrt(2 - 2 s).
    Raises:
      ValueError: if a row is not finite, negative, not ascending, or has no next image.
    Source: Carlini et al. 2023, Extracting Training Data from Diffusion Models: the
      distance to the nearest over alpha times the mean distance to the n nearest, alpha
      0.5, n 50. Here alpha is left out and the nearest is not among the next.
    """
    distances = np.asarray(distances, np.float64)
    if distances.ndim != 2 or len(distances) == 0 or distances.shape[1] < 2:
        raise ValueError(
            f"distances has shape {distances.shape}; it must be (generations, 2 or "
            "more): search for more neighbours"
        )
    proper = np.isfinite(distances).all(1) & (distances >= 0).all(1)
    proper &= (np.diff(distances, axis=1) >= 0).all(1)
    if not proper.all():
        raise ValueError(
            f"distances must be finite, 0 or more, and ascending in each row; row "
            f"{int(proper.argmin())} is not: pass L2 distances, nearest first"
        )
    next_ones = distances[:, 1:].mean(1)
    ones = np.ones(len(distances))
    return np.divide(distances[:, 0], next_ones, out=ones, where=next_ones > 0)


def _with_intervals(
    values: np.ndarray,
    statistics: Mapping[str, Statistic],
    clusters: np.ndarray | None,
    seed: int,
    prefix: str = "",
) -> Scores:
    """Is each statistic under its prefixed name, and its interval under `_ci95`."""
    intervals = bootstrap_ci(values, statistics, clusters, seed=seed)
    scores: Scores = {}
    for name, statistic in statistics.items():
        scores[f"{prefix}{name}"] = estimate(values, statistic)
        interval = intervals[name]
        scores[f"{prefix}{name}_ci95"] = None if interval is None else list(interval)
    return scores


def _of_rows(
    key: str,
    values: np.ndarray,
    rows: np.ndarray,
    clusters: np.ndarray | None,
    seed: int,
) -> Scores:
    """Is the mean over chosen rows, or the share of what is true or false, with its
    interval; None where no row is chosen."""
    if clusters is not None:
        clusters = np.asarray(clusters)
        _check_length(clusters, "clusters", len(values))
    if not rows.any():
        return {key: None, f"{key}_ci95": None}
    chosen = None if clusters is None else clusters[rows]
    statistic = share_above(0.5) if values.dtype == bool else mean
    return _with_intervals(values[rows], {key: statistic}, chosen, seed)


def _duplicated_rows(
    duplicated: np.ndarray, references: np.ndarray, name: str, count: int
) -> np.ndarray:
    """Looks up whether each of `references` was duplicated."""
    duplicated, references = np.asarray(duplicated, bool), np.asarray(references)
    _check_length(references, name, count)
    if references.min() < 0 or references.max() >= len(duplicated):
        raise ValueError(
            f"{name} holds {references.min()} to {references.max()}, but `duplicated` "
            f"knows references 0 to {len(duplicated) - 1}: pass one entry a reference"
        )
    return duplicated[references]


def _check_length(rows: np.ndarray, name: str, count: int) -> None:
    if rows.shape != (count,):
        raise ValueError(
            f"{name} has shape {rows.shape}, but there are {count} similarities: give "
            "one entry for each generation"
        )
