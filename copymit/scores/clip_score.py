"""How well generations follow their prompts: features of pairs in, CLIP score out."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from copymit.scores.bootstrap import bootstrap_ci, estimate, mean


class ClipScore(NamedTuple):
    """Cosines of images with their captions.

    Attributes:
      mean: over all images, in [-1, 1].
      ci95: bootstrap interval of the mean; None where there is one cluster only.
      values: of each image.
    """

    mean: float
    ci95: tuple[float, float] | None
    values: Float[np.ndarray, " Q"]


def clip_score(
    image_features: Float[np.ndarray, "Q D"],
    text_features: Float[np.ndarray, "Q D"],
    clusters: Int[np.ndarray, " Q"] | None = None,
    seed: int = 0,
) -> ClipScore:
    """Averages the cosine of each image's CLIP features with those of its caption.

    This is the plain cosine, about 0.3 for images that fit, as in the paper's tables.
    torchmetrics' `CLIPScore` is 100 times the mean of max(cosine, 0), and Hessel et
    al.'s CLIPScore 2.5 times the same; where no cosine is negative, as is usual, they
    are 100 and 2.5 times ours.

    Args:
      image_features: of any length; row i belongs to caption i.
      text_features: of any length, of the same CLIP.
      clusters: which generations are not independent, for the interval; None makes each
        its own.
      seed: of the bootstrap.
    Raises:
      ValueError: if shapes differ or there are no rows, or a row is not finite or zero.
    Source: Hessel et al. 2021 (CLIPScore); Somepalli et al. 2023 report the cosine.
    """
    images, texts = np.asarray(image_features), np.asarray(text_features)
    if images.ndim != 2 or not len(images) or images.shape != texts.shape:
        raise ValueError(
            f"image_features have shape {images.shape}, text_features {texts.shape}: "
            "give one row an image, and the features of its caption by the same CLIP"
        )
    units = (_unit(images, "image_features"), _unit(texts, "text_features"))
    values = np.einsum("qd,qd->q", *units)
    interval = bootstrap_ci(values, {"mean": mean}, clusters, seed=seed)["mean"]
    return ClipScore(estimate(values, mean), interval, values)


def _unit(features: np.ndarray, name: str) -> np.ndarray:
    norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    broken = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if broken.size:
        raise ValueError(
            f"{broken.size} rows of {name} are zero, NaN or infinite, first row "
            f"{broken[0]}: embed these again or leave them out"
        )
    return features / norms
