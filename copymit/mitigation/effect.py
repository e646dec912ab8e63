"""How much a text changes a prediction, in the unit that papers state thresholds in.

They measured norms of the difference of two predicted noises, in 64x64x4 latents of
Stable Diffusion 1. A network that predicts velocity says `d_noise = signal d_v`, and a
norm grows with the root of the number of components: thresholds carry over to other
networks and sizes once both are taken out.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.diffusion.noise_scheduler import PredictionType
from copymit.mitigation.descent import per_row, row_norms

PUBLISHED_COMPONENTS = 64 * 64 * 4
# Where less of the image is in the latents, nothing of a text is left in the noise.
LEAST_SIGNAL = 1e-3


def as_noise(
    prediction_type: PredictionType,
    difference: Float[Array, "B h w c"],
    signal: Float[Array, "*B"],
) -> Float[Array, "B h w c"]:
    """Converts the difference of two predictions into that of the predicted noises.

    Args:
      signal: share of x0 in the latents, of all examples or of each; less than
        `LEAST_SIGNAL` counts as that, since at pure noise nothing would be left.
    """
    if prediction_type == "epsilon":
        return difference
    signal = jnp.maximum(jnp.asarray(signal), LEAST_SIGNAL)
    return (per_row(signal, difference) if signal.ndim else signal) * difference


def published_norms(x: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Computes the norm that each example would have with 64x64x4 components.

    So 128 times the root of the mean of squares.
    """
    components = x[0].size
    return row_norms(x) * (PUBLISHED_COMPONENTS / components) ** 0.5


def check_signal(prediction_type: PredictionType, signal: float) -> str | None:
    """Says why the first step of a sampling has no norm of noise, or None."""
    if prediction_type == "epsilon" or signal >= LEAST_SIGNAL:
        return None
    return (
        f"is a norm of noise, and the sampler begins where the image is {signal:.1g} of "
        "the latents, so that nothing can be seen in the noise: use "
        "eval.timestep_spacing='leading'"
    )
