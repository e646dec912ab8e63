"""Initial noise that does not lie where the model remembers: chosen, or improved.

Where a prompt is memorised, the difference of the two predictions is steep: it changes
fast in its own direction (a large, sharp Hessian). Noise at which it is flat leads to
other images. The noise stays near a normal one by a penalty on its norm.

Source: Jeon et al. 2025, Understanding and Evaluating Memorization in Diffusion Models
through Sharpness (SAIL), algorithm 2; Dongjae0324/sharpness_memorization_diffusion.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from copymit.mitigation.descent import Descended, descend, per_row, row_norms

Difference = Callable[[jax.Array], jax.Array]
"""(noise "B h w c") -> conditional minus unconditional prediction of the first step."""


def sharpness(
    difference: Difference, noise: Float[Array, "B h w c"]
) -> Float[Array, " B"]:
    """Measures how much the difference changes one unit along its own direction.

    `||d(x + d(x) / ||d(x)||) - d(x)||`: a finite difference for the norm of the Jacobian
    of d times the unit vector of d, from two forward passes, whose gradient takes no
    second derivatives and no attention that has forward-mode ones. The authors' code
    leaves `d(x)` out of the outer norm, which then also measures d itself.
    """
    here = difference(noise)
    direction = here / per_row(row_norms(here), here)
    return row_norms(difference(noise + direction) - here)


def sharpness_loss(
    difference: Difference, noise: Float[Array, "B h w c"], norm_weight: float
) -> Float[Array, " B"]:
    """Adds the norm of the noise to its sharpness.

    Args:
      norm_weight: 0.05 in the authors' code for Stable Diffusion 1, 0.01 for 2.
    """
    return sharpness(difference, noise) + norm_weight * row_norms(noise)


def optimise_noise(
    difference: Difference,
    noise: Float[Array, "B h w c"],
    *,
    target: float,
    norm_weight: float = 0.05,
    learning_rate: float = 0.05,
    max_iterations: int = 10,
) -> Descended:
    """Descends the sharpness loss with Adam until it is at most `target` (SAIL).

    Args:
      target: 8.2 in the authors' code, of which 0.05 * 128 is the
        norm of 64x64x4 normal numbers.
    Returns:
      Noise; what is below the target from the start is as it was.
    """
    return descend(
        lambda x: sharpness_loss(difference, x, norm_weight),
        noise,
        optax.adam(learning_rate),
        target=target,
        max_iterations=max_iterations,
    )


def select_noise(
    difference: Difference, candidates: Float[Array, "n B h w c"]
) -> Float[Array, "B h w c"]:
    """Takes, for each example, the candidate of least sharpness; of equals the first.

    All of it stays normal noise, as good as any, which optimised noise does not.

    Args:
      candidates: alone, the only one is returned without a forward pass.
    """
    if len(candidates) == 1:
        return candidates[0]
    values = jax.lax.map(lambda noise: sharpness(difference, noise), candidates)
    best = jnp.argmin(values, axis=0)
    return jnp.take_along_axis(candidates, per_row(best, candidates[0])[None], axis=0)[
        0
    ]
