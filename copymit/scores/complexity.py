"""How complex images are, and whether copies are of the simple ones.

RGB images enter; entropy, compressed size and total variation leave, and their
correlations with similarity.
"""

import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from copymit.embedding.resizing import crop_centre, resize_short_side
from copymit.scores.bootstrap import (
    Statistic,
    bootstrap_ci,
    cluster_numbers,
    estimate,
    finite_vector,
    mean,
    std,
)
from copymit.scores.similarity import Scores

# ITU-R BT.709 luma: what scikit-image's rgb2gray, and so DCR, takes for grey.
GREY_WEIGHTS = np.array([0.2125, 0.7154, 0.0721])


class Complexity(NamedTuple):
    """Complexity of each image; a higher number is a more complex image.

    Attributes:
      entropy: of the histogram of 256 grey levels, in bits, in [0, 8].
      jpeg_bytes: size as a JPEG of quality 90.
      total_variation: sum of absolute differences of neighbouring pixel values, in
        levels of 0 to 255, over rows, columns and channels.
    """

    entropy: Float[np.ndarray, " B"]
    jpeg_bytes: Float[np.ndarray, " B"]
    total_variation: Float[np.ndarray, " B"]


def crop_as_dcr(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "224 224 3"]:
    """Brings an image to the size at which DCR measures complexity."""
    return crop_centre(resize_short_side(image, 256), 224)


def measure_complexity(images: Iterable[UInt8[np.ndarray, "H W 3"]]) -> Complexity:
    """Measures images one by one, so they may come from a generator.

    Raises:
      ValueError: if there are no images, or one is not uint8 RGB.
    Source: DCR's diff_retrieval.py. It has nats, KiB and 1e-4 of this total variation,
      scales that a correlation does not see; its OpenCV takes RGB for BGR.
    """
    rows = []
    for i, image in enumerate(images):
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"image {i} has shape {image.shape} and type {image.dtype}: convert it "
                "to RGB of shape (height, width, 3) and type uint8"
            )
        rows.append((grey_entropy(image), jpeg_bytes(image), total_variation(image)))
    if not rows:
        raise ValueError("there are no images to measure: check the list of matches")
    return Complexity(*np.array(rows, np.float64).T)


def complexity_correlations(
    similarities: Float[np.ndarray, " Q"],
    images: Complexity | Iterable[UInt8[np.ndarray, "H W 3"]],
    clusters: Int[np.ndarray, " Q"] | None = None,
    seed: int = 0,
) -> Scores:
    """Correlates similarity with the complexity of the matched training image.

    Negative correlations say that simple images are copied more.

    Args:
      similarities: similarity of each generation to its match.
      images: the match of each generation (DCR: the 224 px crop), or its `Complexity`.
      clusters: which generations are not independent; None makes each its own.
      seed: of the bootstrap.
    Returns:
      `complexity_{entropy,jpeg_bytes,total_variation,entropy_jpeg}_{pearson,pvalue}`,
      where entropy_jpeg is entropy times the root of the JPEG size, and the interval of
      the correlation under `_ci95`. None where one side is constant or there are fewer
      than three pairs; of fewer than three clusters there is only the correlation. The
      p-values are those of as many pairs as there are clusters.
    Raises:
      ValueError: if there are no similarities, any is not finite, or the counts differ.
    """
    similarities = finite_vector(similarities, "similarities")
    measured = images if isinstance(images, Complexity) else measure_complexity(images)
    if len(measured.entropy) != len(similarities):
        raise ValueError(
            f"there are {len(similarities)} similarities but {len(measured.entropy)} "
            "images: pass the matched image of each generation"
        )
    measures = measured._asdict()
    measures["entropy_jpeg"] = measured.entropy * np.sqrt(measured.jpeg_bytes)
    numbers = cluster_numbers(clusters, len(similarities))
    count = int(numbers.max()) + 1
    scores: Scores = {}
    for name, values in measures.items():
        key, pearson = f"complexity_{name}", None
        scores |= {f"{key}_pearson_ci95": None, f"{key}_pvalue": None}
        if len(values) >= 3 and np.ptp(values) and np.ptp(similarities):
            rows = np.arange(len(values), dtype=np.float64)
            statistic = _pearson(values, similarities)
            pearson = float(np.clip(estimate(rows, statistic), -1, 1))
            if count >= 3:
                found = bootstrap_ci(rows, {"r": statistic}, numbers, seed=seed)
                scores[f"{key}_pearson_ci95"] = found["r"]
                scores[f"{key}_pvalue"] = _pvalue(pearson, count)
        scores[f"{key}_pearson"] = pearson
    return scores


def grey_entropy(image: UInt8[np.ndarray, "H W 3"]) -> float:
    """Shannon entropy of the grey levels, in bits."""
    grey = np.rint(image @ GREY_WEIGHTS).astype(np.uint8)
    counts = np.bincount(grey.ravel(), minlength=256)
    shares = counts[counts > 0] / grey.size
    return float(-(shares * np.log2(shares)).sum())


def jpeg_bytes(image: UInt8[np.ndarray, "H W 3"]) -> int:
    """Size of the image as a JPEG of quality 90, in bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.tell()


def total_variation(image: UInt8[np.ndarray, "H W 3"]) -> float:
    """Anisotropic total variation, in levels of 0 to 255."""
    levels = image.astype(np.int16)  # differences are integers, and so is their sum
    return float(sum(int(np.abs(np.diff(levels, axis=axis)).sum()) for axis in (0, 1)))


def _pearson(first: np.ndarray, second: np.ndarray) -> Statistic:
    """Makes the statistic of row numbers: correlation of two numbers of each row."""
    standard = [(x - x.mean()) / x.std() for x in (first, second)]

    def of_samples(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        x, y = (values[rows.astype(int)] for values in standard)
        product = mean(x * y, counts) - mean(x, counts) * mean(y, counts)
        spread = std(x, counts) * std(y, counts)
        # Of one cluster drawn again and again there may be no correlation.
        return np.divide(product, spread, out=np.zeros_like(product), where=spread > 0)

    return of_samples


def _pvalue(pearson: float, count: int) -> float:
    """Two-sided, of a correlation of so many independent pairs, by Student's t."""
    from scipy.special import stdtr

    if abs(pearson) == 1:
        return 0.0
    t = abs(pearson) * np.sqrt((count - 2) / (1 - pearson**2))
    return float(2 * stdtr(count - 2, -t))
