"""What a perfect copy would measure: training images through the autoencoder and back."""

import numpy as np
from jaxtyping import Float

from copymit.embedding.store import Embeddings, unit_rows
from copymit.scores.bootstrap import (
    Statistic,
    bootstrap_ci,
    estimate,
    mean,
    share_above,
)
from copymit.scores.similarity import Scores

_ENOUGH = 0.5  # of the reconstructions, to be taken for copies


def reconstruction_similarities(
    reconstructions: Embeddings, references: Embeddings
) -> Float[np.ndarray, " K"]:
    """Is the similarity of each reconstruction to its own original, in [-1, 1]."""
    row = {image_id: i for i, image_id in enumerate(references.ids)}
    kept = [i for i, image_id in enumerate(reconstructions.ids) if image_id in row]
    originals = np.array([row[reconstructions.ids[i]] for i in kept], np.int64)
    ours = reconstructions.unit[np.array(kept, np.int64)]
    return np.einsum("kd,kd->k", ours, unit_rows(references.rows(originals)))


def score_reconstructions(
    similarities: Float[np.ndarray, " K"],
    seed: int,
    *,
    prefix: str = "",
    copy_threshold: float | None = None,
) -> Scores:
    """Scores reconstructions, and says where copies could not be told by this embedder.

    Args:
      copy_threshold: similarity from which generations are called copies; None where
        that is not decided.
    """
    if not len(similarities):
        return {}
    name = f"{prefix}reconstruction_similarity_mean"
    share = "reconstructions_recognised"
    statistics: dict[str, Statistic] = {name: mean}
    if copy_threshold is not None:
        statistics[share] = share_above(copy_threshold)
    intervals = bootstrap_ci(similarities, statistics, seed=seed)
    scores: Scores = {}
    for key, statistic in statistics.items():
        scores[key] = estimate(similarities, statistic)
        scores[f"{key}_ci95"] = intervals[key]
    if copy_threshold is not None and scores[share] < _ENOUGH:
        scores["alarms"] = [
            f"Copies can hardly be recognised here: {100 * (1 - scores[share]):.0f} % of "
            f"{len(similarities)} training images that only went through the model's "
            f"autoencoder and back are less similar to themselves "
            f"({scores[name]:.2f} on average) than {copy_threshold:.2f}, from "
            "which a generation is called a copy. Train with a better autoencoder or at a "
            "higher data.resolution, or read what another embedder and the pixels say."
        ]
    return scores
