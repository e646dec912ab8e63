"""A guidance scale for every step and example of a sampling."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.diffusion.sampler import Step


class GuidanceSchedule(NamedTuple):
    """Chooses the guidance scale of every example at every step.

    Attributes:
      init: batch size -> state before the first step.
      scale: (state, step, magnitudes) -> (state, scales); `magnitudes` are the norms of
        conditional minus unconditional predicted noise of this step, one an example, and
        so are the scales: 0 is the unconditional prediction, 1 the conditional one, below
        0 leads away from the prompt.
    """

    init: Callable[[int], Any]
    scale: Callable[[Any, Step, Float[Array, " B"]], tuple[Any, Float[Array, " B"]]]


def constant_guidance(guidance_scale: float) -> GuidanceSchedule:
    """Guides by the same scale at every step, as usual."""

    def scale(state, step, magnitudes):
        del step
        return state, jnp.full_like(magnitudes, guidance_scale)

    return GuidanceSchedule(lambda _: (), scale)
