"""Bright ending: text-conditional noise where the end token is bright at the last step.

`mean_t ||m * d_t|| / mean(m)` with the mask `m` of end-token attention.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.mitigation.detectors import Detector
from copymit.mitigation.observation import end_attention


def masked_norm(
    squares: Float[Array, "S B h w"], mask: Float[Array, "B h w"]
) -> Float[Array, " B"]:
    """Weighs the text-conditional noise by a mask.

    Args:
      squares: `d_t ** 2`, summed over channels, of every step.
    """
    local = jnp.sqrt(jnp.sum(jnp.square(mask) * squares, axis=(2, 3)))
    return local.mean(0) / mask.mean((1, 2))


DETECTORS = (
    Detector(
        "bright_ending_norm",
        "text-conditional noise, bright end token",
        "Chen et al. 2025, Exploring Local Memorization in Diffusion Models via Bright "
        "Ending Attention: their local form of Wen et al.'s detector. The average of maps "
        "and the resize are our reading",
        2,
        lambda seen, options: masked_norm(seen.squares, seen.bright),
    ),
    Detector(
        "end_token_attention",
        "attention to the end token, last step",
        "Chen et al. 2025: end-token attention of the last step is bright where an image "
        "is memorised. They use it as a mask; the mean over positions is ours",
        3,
        lambda seen, options: end_attention(seen.attention[-1], seen.ends),
    ),
)
