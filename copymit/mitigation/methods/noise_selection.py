"""Noise selection: of several initial noises the one at which the model is least sharp.

Where a prompt is memorised, the difference of the two predictions is steep: it changes
fast in its own direction (a large, sharp Hessian). Noise at which it is flat leads to
other images.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.mitigation.descent import per_row, row_norms
from copymit.mitigation.record import Mitigation, Setting, Steps, Values
from copymit.mitigation.scene import Scene

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


def _noise(
    values: Values,
    scene: Scene,
    noise: Float[Array, "B h w c"],
    make_noise: Callable[[int], jax.Array],
) -> tuple[Float[Array, "B h w c"], Steps]:
    others = [make_noise(number) for number in range(1, values["noise_candidates"])]
    return select_noise(scene.difference, jnp.stack([noise, *others])), None


MITIGATIONS = (
    Mitigation(
        "noise_selection",
        (),
        "of several initial noises the one at which the model is least sharp",
        (
            Setting(
                "generate.noise_candidates",
                0,
                "initial noises tried for an image",
                0,
                1000,
            ),
        ),
        strength=8,
        published="none",
        changed="ours: all of it stays normal noise, which optimised noise does not",
        source="ours, with the sharpness of Jeon et al. 2025",
        label="noise chosen of",
        tried=(4, 16),
        order=-1,
        noise=_noise,
    ),
)
