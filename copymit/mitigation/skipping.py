"""Training without the examples that are being memorised: skipped while they show it.

Predictions with and without their captions enter, which examples count leaves.

Source: Wen et al. 2024, Detecting, Explaining, and Mitigating Memorization in Diffusion
Models, section 5.2; `--hard_threshold` of their train_text_to_image.py.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from copymit.mitigation.descent import row_norms


def keep_unremembered(
    conditional: Float[Array, "B h w c"],
    unconditional: Float[Array, "B h w c"],
    threshold: float,
) -> Bool[Array, " B"]:
    """Keeps the examples whose caption does not change the prediction by much.

    `||f(x_t, c) - f(x_t, 0)|| < threshold`, at the example's own noise and timestep; no
    gradient flows through the choice. The norm grows with the root of the latents' size,
    so a threshold holds for one resolution.
    """
    difference = jax.lax.stop_gradient(conditional - unconditional)
    return row_norms(difference) < jnp.asarray(threshold)
