"""How much nearer an image is to its nearest training image than to the next ones.

Neighbours among the training images enter; the nearest, and the logarithm of how many
times nearer it is than the next *different* pictures, leave. That is Carlini's ratio: a
dense class is near to everything, so its images are no nearer to one than to the next,
and one scale serves all classes. Duplicates within the training set would hide a copy,
since the next is then as near as the nearest: pictures that are the same count once.
"""

import math
import statistics
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from copymit.embedding.store import Embeddings, unit_rows
from copymit.search.exact import Neighbours

# Logarithms need an end: float32 knows no cosine between 1 - 6e-8 and 1.
_LEAST_DISTANCE = 1e-3
# Images that calibration lets pass by chance, expected over the whole data set.
# Under a fit whose tail is too light: at 0.05, 2,000 Flickr8k photos had 3 false pairs,
# at 0.001 none. Chosen on these photos and the emoji, so no error rate of other sets.
_EXPECTED_CHANCE = 0.001
_LEAST_SPREAD = 0.1
# Fewer images do not tell how alike different ones can be.
_MIN_CALIBRATION = 100
_BLOCK_QUERIES = 1024


class SamePicture(NamedTuple):
    """When two training images are one picture.

    Attributes:
      pictures: a number for each training image, equal for equal pixels.
      threshold: least cosine of such a pair.
    """

    pictures: Int[np.ndarray, " R"]
    threshold: float


class Nearness(NamedTuple):
    """What stands nearest to each of Q images.

    Attributes:
      reference: row of its nearest training image, which is not the image itself, nor
        the same picture in case of a training image; -1 where none was found.
      similarity: cosine to that; NaN where none was found.
      log_scale: mean logarithm of its distances to the next different pictures; NaN
        where none was found.
      nearness: of the nearest: log_scale less the logarithm of its distance.
      others: which of the neighbours the scale is of.
    """

    reference: Int[np.ndarray, " Q"]
    similarity: Float[np.ndarray, " Q"]
    log_scale: Float[np.ndarray, " Q"]
    nearness: Float[np.ndarray, " Q"]
    others: Bool[np.ndarray, "Q k"]


def measure_nearness(
    neighbours: Neighbours,
    references: Embeddings,
    same: SamePicture,
    own: Int[np.ndarray, " Q"] | None = None,
) -> Nearness:
    """Measures how much nearer the nearest is than the next ones.

    Args:
      neighbours: nearest training images of each image, without itself.
      own: rows of the images, if they are training images themselves.
    Source: Carlini et al. 2023, Extracting Training Data from Diffusion Models, section
      5.1: the distance to the nearest over the mean of those to the nearest n. Here the
      logarithm, the geometric mean, and the next ones without the nearest.
    """
    parts = []
    for start in range(0, len(neighbours.indices), _BLOCK_QUERIES):
        rows = slice(start, start + _BLOCK_QUERIES)
        block = Neighbours(neighbours.indices[rows], neighbours.similarities[rows])
        who = None if own is None else own[rows]
        parts.append(_measure_block(block, references, same, who))
    return Nearness(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def log_distances(
    similarities: Float[np.ndarray, "..."],
) -> Float[np.ndarray, "..."]:
    """Is the logarithm of the distance of unit vectors of such a cosine."""
    squares = 2 - 2 * np.asarray(similarities, np.float64)
    return np.log(np.maximum(squares, _LEAST_DISTANCE**2)) / 2


def duplicate_threshold(
    neighbours: Neighbours, own: Int[np.ndarray, " Q"], pictures: Int[np.ndarray, " R"]
) -> float:
    """Calibrates the cosine from which two training images are one picture.

    Args:
      neighbours: of the training images `own`, without themselves.
      pictures: a number for each training image, equal for equal pixels.
    Returns:
      More than 1 where too few images are there to tell: only equal pixels are equal.
    """
    differs = pictures[neighbours.indices] != pictures[own][:, None]
    known = differs.any(1)
    if known.sum() < _MIN_CALIBRATION:
        return 2.0
    first = differs.argmax(1)[known]
    return calibrate_threshold(
        neighbours.similarities[known][np.arange(len(first)), first]
    )


def calibrate_threshold(nearest: Float[np.ndarray, " N"]) -> float:
    """Finds the cosine that different images hardly ever reach.

    Logarithms of the distance (1 - cosine) to the nearest other image are taken as
    normal, with their median, and the wider of the spreads of the two middle quarters:
    families of similar images widen the lower one. Duplicates do not disturb it as long
    as less than a quarter of the images have one; beyond, the threshold becomes too
    high. It lies where chance would bring 0.001 images of the whole data set.

    Args:
      nearest: cosine of each distinct image to its nearest other.
    """
    distances = 2 * log_distances(nearest) - math.log(2)
    lower, median, upper = np.percentile(distances, [25, 50, 75])
    normal = statistics.NormalDist()
    quarter = max(upper - median, median - lower)
    spread = max(quarter / normal.inv_cdf(0.75), _LEAST_SPREAD)
    deviations = normal.inv_cdf(1 - _EXPECTED_CHANCE / len(nearest))
    return 1 - math.exp(median - deviations * spread)


def _measure_block(
    neighbours: Neighbours,
    references: Embeddings,
    same: SamePicture,
    own: np.ndarray | None,
) -> Nearness:
    indices, similarities = neighbours
    pictures = same.pictures[indices]
    usable = np.ones(indices.shape, bool)
    if own is not None:
        usable = similarities < same.threshold
        usable &= pictures != same.pictures[own][:, None]
    found, first = usable.any(1), usable.argmax(1)
    each = np.arange(len(indices))
    rows, places = np.unique(indices, return_inverse=True)
    places = places.reshape(indices.shape)
    unit = unit_rows(references.rows(rows))
    cosines = np.einsum("qd,qkd->qk", unit[places[each, first]], unit[places])
    others = usable & (cosines < same.threshold)
    others &= pictures != pictures[each, first][:, None]
    nearest = np.where(found, similarities[each, first], np.nan)
    logs = np.where(others, log_distances(similarities), np.nan)
    log_scale = np.full(len(indices), np.nan)
    some = found & others.any(1)
    log_scale[some] = np.nanmedian(logs[some], axis=1)
    return Nearness(
        np.where(found, indices[each, first], -1),
        nearest,
        log_scale,
        log_scale - log_distances(nearest),
        others,
    )
