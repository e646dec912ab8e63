"""CLIP maximum mean discrepancy: a distance of image sets for CLIP embeddings.

Unit-length embeddings of training images (references) and of generations enter, one row
an image; a number leaves. All arithmetic is float64 on the host, in blocks.
"""

import numpy as np
from jaxtyping import Float

from copymit.scores.frechet import feature_pair, kernel_blocks

# Makes it readable.
SCALE = 1000.0
# Float32 embeddings scaled to length 1 miss it by less, and an unscaled one by more.
_LENGTH_TOLERANCE = 1e-3


def clip_maximum_mean_discrepancy(
    references: Float[np.ndarray, "R D"], generations: Float[np.ndarray, "Q D"]
) -> float:
    """CMMD: 1,000 times the biased MMD^2 under `exp(-|x - y|^2 / (2 * 10^2))`.

    Published numbers use ViT-L/14 at 336 px. Never negative but for rounding, and 0 for
    equal sets. Needs no Gaussian features and hardly depends on the number of images.

    Raises:
      ValueError: if rows are not of unit length, or the features do not fit.
    Source: Jayasumana et al. 2024, Rethinking FID; google-research `cmmd/distance.py`.
    """
    references, generations = feature_pair(references, generations, least=1)
    for rows, name in ((references, "references"), (generations, "generations")):
        lengths = np.linalg.norm(rows, axis=1)
        odd = np.flatnonzero(np.abs(lengths - 1) > _LENGTH_TOLERANCE)
        if odd.size:
            raise ValueError(
                f"{odd.size} of {len(rows)} {name} are not of length 1, first row "
                f"{odd[0]} of length {lengths[odd[0]]:.4g}: give unit vectors"
            )
    within = _mean_kernel(references, references) + _mean_kernel(
        generations, generations
    )
    return SCALE * (within - 2 * _mean_kernel(references, generations))


def _mean_kernel(first: np.ndarray, second: np.ndarray) -> float:
    """Is the mean of the kernel minus 1, since the ones cancel, exactly."""
    total = sum(float(k.sum()) for _, k in kernel_blocks("gaussian", first, second))
    return total / (len(first) * len(second))
