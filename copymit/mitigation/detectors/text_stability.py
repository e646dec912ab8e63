"""Text stability: how much larger the effect of the text is than that of noise on it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.mitigation.detectors import Detector
from copymit.mitigation.observation import norm


def text_stability(
    difference: Float[Array, "B h w c"], changes: Float[Array, "E B h w c"]
) -> Float[Array, " B"]:
    """Computes `||f(x, c) - f(x, 0)|| / mean_e ||f(x, c + n_e) - f(x, c)||`.

    With normal noise `n_e` on the embedding: a memorised prompt leads to its image even
    when it is blurred. 0 where neither has an effect.

    Args:
      changes: `f(x, c + n_e) - f(x, c)` of each draw of the noise.
    """
    effect, disturbance = norm(difference), jax.vmap(norm)(changes).mean(0)
    some = disturbance > 0
    return jnp.where(some, effect / jnp.where(some, disturbance, 1), 0)


DETECTORS = (
    Detector(
        "text_stability",
        "stability under text noise, step 1",
        "ours; that copying survives noise on the embedding is Somepalli et al. 2023, GNI",
        7,
        lambda seen, options: text_stability(seen.first.difference, seen.first.changes),
    ),
)
