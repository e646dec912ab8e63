"""Sharpness: how steep the effect of the text is, in its own direction."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.mitigation.detectors import Detector
from copymit.mitigation.observation import norm


def sharpness(
    curvature: Float[Array, "B h w c"], sigma: Float[Array, ""]
) -> Float[Array, " B"]:
    """Computes `||H s||`, with the score difference and its Hessian.

    `s = grad_x log p(x | c) - grad_x log p(x) = -d / sigma` is the difference of scores
    that the network implies, and `H = -J / sigma` that of the Hessians of log p, with
    `J = ∂d/∂x`; so `||H s|| = ||J d|| / sigma ** 2`, one product of Jacobian and vector
    at the first step.

    Args:
      curvature: `J d`.
      sigma: deviation of the noise in the latents.
    """
    return norm(curvature) / jnp.square(sigma)


DETECTORS = (
    Detector(
        "sharpness",
        "sharpness, step 1",
        "Jeon et al. 2025, Understanding and Mitigating Memorization in Generative Models "
        "via Sharpness of Probability Landscapes; their code averages this norm over "
        "initial noises, while the paper's is its square",
        6,
        lambda seen, options: sharpness(seen.first.curvature, seen.first.sigma),
    ),
)
