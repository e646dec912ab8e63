"""Two-dimensional convolution, formulated for the machine that runs it.

XLA's CPU back end computes the gradient of a 3x3 convolution with respect to its
kernel at about half the speed of a matrix product, so there small feature maps are
unfolded into patches and multiplied instead. Accelerators convolve natively.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Above this many positions the unfolded patches no longer fit the caches and XLA's own
# convolution wins again (benchmarks/convolution.py).
MAX_UNFOLDED_POSITIONS = 64


def convolve(
    inputs: Float[Array, "B h w C"],
    kernel: Float[Array, "kh kw C O"],
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    **options,
) -> Float[Array, "B h2 w2 O"]:
    """Convolves as `jax.lax.conv_general_dilated` does, in NHWC and HWIO.

    Takes the place of that function in `nnx.Conv(conv_general_dilated=...)`.
    """
    if kernel.shape[:2] == (1, 1) and strides == (1, 1):
        return inputs @ kernel[0, 0]
    if jax.default_backend() == "cpu" and _unfolds(inputs, strides, options):
        return _convolve_unfolded(inputs, kernel, strides, padding)
    return jax.lax.conv_general_dilated(inputs, kernel, strides, padding, **options)


def _unfolds(inputs, strides, options) -> bool:
    plain = options.get("feature_group_count", 1) == 1 and all(
        set(options.get(name) or (1,)) == {1}
        for name in ("lhs_dilation", "rhs_dilation")
    )
    positions = inputs.shape[1] * inputs.shape[2] // (strides[0] * strides[1])
    return plain and positions <= MAX_UNFOLDED_POSITIONS


def _convolve_unfolded(inputs, kernel, strides, padding):
    kh, kw, C, out_channels = kernel.shape
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    height = (padded.shape[1] - kh) // strides[0] + 1
    width = (padded.shape[2] - kw) // strides[1] + 1
    shifted = [
        padded[
            :,
            i : i + (height - 1) * strides[0] + 1 : strides[0],
            j : j + (width - 1) * strides[1] + 1 : strides[1],
        ]
        for i in range(kh)
        for j in range(kw)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(kh * kw * C, out_channels)
