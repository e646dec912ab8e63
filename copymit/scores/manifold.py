"""Shares of images that lie among those of the other set: quality, variety, and spread.

Features of training images (references) and of generations enter; precision, recall,
density and coverage leave, of all generations and without each group of them, as the
jackknife asks for. Each set is compared with itself once, and with the other once.
"""

import numpy as np
from jaxtyping import Bool, Float

from copymit.scores.frechet import feature_pair, squared_distances

# Of precision and recall, and of density and coverage.
NEIGHBOURS = (3, 5)


def manifold_scores(
    references: Float[np.ndarray, "R D"],
    generations: Float[np.ndarray, "Q D"],
    groups: Bool[np.ndarray, "G Q"] | None = None,
    neighbours: tuple[int, int] = NEIGHBOURS,
) -> dict[str, Float[np.ndarray, " G+1"]]:
    """Scores what lies in the balls around images; balls are closed.

    The ball of an image reaches to its k-th nearest other image of its own set.
    Precision: share of generations in the ball of a reference. Recall: share of
    references in the ball of a generation. Density: how many balls of references a
    generation lies in, divided by k. Coverage: share of references with a generation in
    their ball.

    Args:
      groups: which generations to leave out together.
      neighbours: k of precision and recall, and of density and coverage.
    Returns:
      Of each, what all generations give, and then what is left without each group. All
      in [0, 1] but density, which is at least 0.
    Raises:
      ValueError: if a set has k or fewer rows, or the features do not fit.
    Source: Kynkaanniemi et al. 2019, equations 1 and 2; Naeem et al. 2020, Reliable
      Fidelity and Diversity Metrics.
    """
    references, generations = feature_pair(references, generations, max(neighbours) + 1)
    Q, R = len(generations), len(references)
    left_out = np.zeros((1 if groups is None else 1 + len(groups), Q), bool)
    if groups is not None:
        left_out[1:] = groups
    kept = ~left_out
    near_radii, far_radii = squared_radii(references, neighbours)
    generation_radii = _radii_without(generations, neighbours[0], kept)
    precise, balls = np.zeros(Q, bool), np.zeros(Q)
    recalled, covered = np.zeros((2, len(kept)))
    for rows, squared in squared_distances(references, generations):
        precise |= (squared <= near_radii[rows, None]).any(0)
        inside = squared <= far_radii[rows, None]
        balls += inside.sum(0)
        # Counts of floats are exact, and a product of matrices.
        counts = inside.astype(np.float32) @ kept.T.astype(np.float32)
        covered += (counts > 0.5).sum(0)
        for i, radii in enumerate(generation_radii):
            recalled[i] += (squared <= radii).any(1).sum()
    counts = kept.sum(1)
    return {
        "precision": kept @ precise.astype(np.float64) / counts,
        "recall": recalled / R,
        "density": kept @ balls / counts / neighbours[1],
        "coverage": covered / R,
    }


def squared_radii(
    rows: Float[np.ndarray, "N D"], neighbours: tuple[int, ...]
) -> Float[np.ndarray, "k N"]:
    """Is the squared distance of each row to its k-th nearest other row, for each k."""
    radii = np.empty((len(neighbours), len(rows)))
    places = [k - 1 for k in neighbours]
    for block, squared in _distances_to_others(rows):
        radii[:, block] = np.partition(squared, places, axis=1)[:, places].T
    return radii


def _radii_without(
    rows: np.ndarray, k: int, kept: Bool[np.ndarray, "G Q"]
) -> Float[np.ndarray, "G Q"]:
    """The same among the rows kept; no image lies in the ball of one that is left out."""
    radii = np.empty(kept.shape)
    for block, squared in _distances_to_others(rows):
        for i, columns in enumerate(kept):
            radii[i, block] = np.partition(squared[:, columns], k - 1, axis=1)[:, k - 1]
    return np.where(kept, radii, -1.0)


def _distances_to_others(rows: np.ndarray):
    for block, squared in squared_distances(rows, rows):
        own = np.arange(block.start, block.stop)
        squared[own - block.start, own] = np.inf
        yield block, squared
