"""Which share of generations are copies, while a model trains: by the descriptor alone.

The evaluation's decision (decide.py) without pixels: how much nearer a generation is to
its nearest training image than to the next ones, against how near training images are to
each other.
"""

import logging
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from copymit.embedding.store import Embeddings, EmbeddingStore
from copymit.evaluation.decide import is_repeated
from copymit.evaluation.search_stage import unit_vectors
from copymit.scores.conformal import adjust, fit_null, p_values
from copymit.scores.nearness import SamePicture, duplicate_threshold, measure_nearness
from copymit.search.exact import search_exact

logger = logging.getLogger(__name__)

CopiedShare = Callable[[Float[np.ndarray, "Q D"]], float]


def make_copied_share(
    embedder: str, store: EmbeddingStore, references: Embeddings, settings: ConfigDict
) -> CopiedShare | None:
    """Returns what counts copies among unit features, or None where nothing can tell.

    Args:
      store: of the references, which knows which of them have equal pixels.
      settings: the `eval` section.
    """
    plan = store.find()
    assert plan is not None  # or there were no embeddings
    digests = [d for _, shard in store.shards(plan) for d in shard.digests]
    pictures = np.unique(np.array(digests, "S16"), return_inverse=True)[1]
    count, most = len(references.ids), settings.background_queries
    own = np.arange(count)
    if most and most < count:
        own = np.unique(np.linspace(0, count - 1, most).astype(int))
    vectors = unit_vectors(references, "references")
    few = f"{count} training images are too few to tell how near they are to each other"
    if count < 2:
        logger.warning("%s: copies are not counted while training", few)
        return None
    k = min(settings.num_neighbors, count - 1)
    near = search_exact(references.unit[own], vectors, k, exclude=own)
    same = SamePicture(pictures, duplicate_threshold(embedder, near, own, pictures))
    found = measure_nearness(near, references, same, own).nearness
    null = fit_null(found[np.isfinite(found) & ~is_repeated(near, same, own)])
    if not null.size:
        logger.warning("%s: copies are not counted while training", few)
        return None

    def copied_share(features: Float[np.ndarray, "Q D"]) -> float:
        near = search_exact(features, vectors, min(settings.num_neighbors, count))
        nearness = measure_nearness(near, references, same).nearness
        q = adjust(p_values(null, nearness))
        return float((q <= settings.false_discovery_rate).mean())

    return copied_share
