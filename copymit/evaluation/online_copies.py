"""Which share of generations are copies, while a model trains.

As the evaluation decides (decide.py), but for exact copies: how much nearer a generation
is to its nearest training image than to the next ones, against how near training images
are to each other.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from copymit.embedding.embed import is_blank, pixel_digest
from copymit.embedding.image_set import ImageSet
from copymit.embedding.store import Embeddings, EmbeddingStore
from copymit.evaluation.decide import is_repeated
from copymit.scores.conformal import NullModel, adjust, combine, fit_null, p_values
from copymit.scores.nearness import SamePicture, duplicate_threshold, measure_nearness
from copymit.scores.tiled import agrees, compare_tiles, tiled_l2
from copymit.search.exact import search_exact
from copymit.search.vectors import Vectors

logger = logging.getLogger(__name__)

CopiedShare = Callable[
    [Sequence[Float[np.ndarray, "Q D"]], UInt8[np.ndarray, "Q H W 3"]], float
]


class Embedded(NamedTuple):
    """Training images by one embedder.

    Attributes:
      store: of the references, which knows which of them have equal pixels.
      vectors: the references, of length one.
    """

    embedder: str
    store: EmbeddingStore
    references: Embeddings
    vectors: Vectors


class _Witness(NamedTuple):
    """What tells by one embedder that a generation is too near."""

    of: Embedded
    same: SamePicture
    null: NullModel


def make_copied_share(
    seen: Sequence[Embedded], images: ImageSet, settings: ConfigDict
) -> CopiedShare | None:
    """Returns what counts copies, or None where nothing can tell.

    It takes the unit features of the generations by each embedder, and themselves.

    Args:
      seen: training images by each embedder that decides.
      images: the same.
      settings: the `eval` section.
    """
    count = len(seen[0].references.ids)
    witnesses = [_witness(one, settings) for one in seen] if count > 1 else []
    if not any(witness.null.size for witness in witnesses):
        logger.warning(
            "%d training images are too few to tell how near they are to each other: "
            "copies are not counted while training",
            count,
        )
        return None

    def copied_share(
        features: Sequence[Float[np.ndarray, "Q D"]], made: UInt8[np.ndarray, "Q H W 3"]
    ) -> float:
        each: list[np.ndarray] = []
        # Those of one colour agree with any other.
        blank = [is_blank(pixel_digest(image)) for image in made]
        for own, (of, same, null) in zip(features, witnesses, strict=True):
            near = search_exact(own, of.vectors, min(settings.num_neighbors, count))
            nearness = measure_nearness(near, of.references, same)
            p = np.where(blank, np.nan, p_values(null, nearness.nearness))
            if each:  # of pixels, which must also agree tile by tile; see grades.py
                for row in np.flatnonzero(p <= settings.false_discovery_rate):
                    others = near.indices[row][nearness.others[row]].tolist()
                    found = (int(nearness.reference[row]), others)
                    p[row] = p[row] if _agree(images, made[row], *found) else 1.0
            each.append(p)
        q = adjust(combine(np.stack(each)))
        return float((q <= settings.false_discovery_rate).mean())

    return copied_share


def _agree(
    images: ImageSet,
    made: UInt8[np.ndarray, "H W 3"],
    nearest: int,
    others: Sequence[int],
) -> bool:
    def distance_to(row: int) -> float:
        return tiled_l2(made, images.read(row))

    return bool(agrees(*map(np.array, compare_tiles(distance_to, nearest, others))))


def _witness(seen: Embedded, settings: ConfigDict) -> _Witness:
    embedder, store, references, vectors = seen
    plan = store.find()
    assert plan is not None  # or there were no embeddings
    digests = [d for _, shard in store.shards(plan) for d in shard.digests]
    pictures = np.unique(np.array(digests, "S16"), return_inverse=True)[1]
    count, most = len(references.ids), settings.background_queries
    own = np.arange(count)
    if most and most < count:
        own = np.unique(np.linspace(0, count - 1, most).astype(int))
    k = min(settings.num_neighbors, count - 1)
    near = search_exact(references.unit[own], vectors, k, exclude=own)
    same = SamePicture(pictures, duplicate_threshold(embedder, near, own, pictures))
    found = measure_nearness(near, references, same, own).nearness
    usable = np.isfinite(found) & ~is_repeated(near, same, own)
    return _Witness(seen, same, fit_null(found[usable]))
