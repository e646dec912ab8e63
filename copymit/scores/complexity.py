"""How complex images are, and whether copies are of the simple ones.

RGB images enter; entropy, compressed size and total variation leave, and their
correlations with similarity.
"""

import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from copymit.scores.bootstrap import finite_vector

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
) -> dict[str, float | None]:
    """Correlates similarity with the complexity of the matched training image.

    Negative correlations say that simple images are copied more.

    Args:
      similarities: similarity of each generation to its match.
      images: the match of each generation (DCR: the 224 px crop), or its `Complexity`.
    Returns:
      `complexity_{entropy,jpeg_bytes,total_variation,entropy_jpeg}_{pearson,pvalue}`,
      where entropy_jpeg is entropy times the root of the JPEG size. Both are None where
      one side is constant or there are fewer than three pairs. The p-values take
      generations for independent, which those of one prompt are not.
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
    scores: dict[str, float | None] = {}
    for name, values in measures.items():
        pearson, pvalue = _correlation(values, similarities)
        scores[f"complexity_{name}_pearson"] = pearson
        scores[f"complexity_{name}_pvalue"] = pvalue
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
    levels = image.astype(np.int64)
    return float(sum(np.abs(np.diff(levels, axis=axis)).sum() for axis in (0, 1)))


def _correlation(
    first: np.ndarray, second: np.ndarray
) -> tuple[float | None, float | None]:
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None, None
    from scipy.stats import pearsonr

    result = pearsonr(first, second)
    return float(result.statistic), float(result.pvalue)
