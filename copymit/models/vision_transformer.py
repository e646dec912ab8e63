"""What vision transformers share: images cut into patches, and places for them.

In: normalised images. Out: one vector per patch, and position embeddings for a grid of
patches of any size.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from copymit.models.initializers import normal

# PyTorch's constant of the cubic kernel; jax.image.resize has Keys' -0.5.
_CUBIC_A = -0.75


class PatchEmbedding(nnx.Module):
    """Maps each square of pixels to a vector: a convolution whose stride is its window.

    Computed as one matrix product; pixels beyond the last whole patch are left out, as a
    convolution does.
    """

    def __init__(self, patch_size: int, features: int, *, use_bias: bool, rngs):
        init = normal(0.02)
        shape = (patch_size, patch_size, 3, features)
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(features)) if use_bias else None

    def __call__(self, pixel_values: Float[Array, "B H W 3"]) -> Float[Array, "B P D"]:
        size, features = self.kernel.shape[0], self.kernel.shape[-1]
        B, H, W, _ = pixel_values.shape
        h, w = H // size, W // size
        patches = pixel_values[:, : h * size, : w * size]
        patches = patches.reshape(B, h, size, w, size, 3).swapaxes(2, 3)
        embedded = patches.reshape(B, h * w, -1) @ self.kernel[...].reshape(
            -1, features
        )
        return embedded if self.bias is None else embedded + self.bias[...]


def interpolate_positions(
    positions: Float[Array, "P D"], height: int, width: int, offset: float = 0.0
) -> Float[Array, "height_times_width D"]:
    """Resizes a square grid of position embeddings, bicubic and without antialiasing.

    Args:
      positions: rows of the grid one after the other.
      height: patches that the new grid has in a column; `width`, in a row.
      offset: added to both where the scale is computed, but not to the number of
        patches.
    Source: torch's `interpolate(mode="bicubic", align_corners=False)`.
    """
    side = round(len(positions) ** 0.5)
    if (height, width) == (side, side):
        return positions
    grid = positions.reshape(side, side, -1)
    down, across = (_cubic_weights(side, n, offset) for n in (height, width))
    resized = jnp.einsum("hi,wj,ijd->hwd", down, across, grid)
    return resized.reshape(height * width, -1)


def _cubic_weights(size: int, new_size: int, offset: float) -> np.ndarray:
    """Returns (new_size, size): what each old place contributes to each new one."""
    places = (np.arange(new_size) + 0.5) * size / (new_size + offset) - 0.5
    first = np.floor(places).astype(int) - 1
    weights = np.zeros((new_size, size), np.float32)
    for tap in range(4):
        old = first + tap
        # Beyond the border the border's own values are repeated.
        np.add.at(
            weights,
            (np.arange(new_size), old.clip(0, size - 1)),
            _cubic_kernel(np.abs(places - old)),
        )
    return weights


def _cubic_kernel(x: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel at distances from 0 to 2."""
    near = (_CUBIC_A + 2) * x**3 - (_CUBIC_A + 3) * x**2 + 1
    far = _CUBIC_A * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, far)
