"""When classifier-free guidance begins: a guidance scale for every step and example.

Early in sampling a memorised prompt pulls every noise towards its image (the attraction
basin); later its pull is as weak as that of other prompts. These schedules guide only
after a transition point, and before it not at all, or away from the prompt.

Source: Jain et al. 2025, Classifier-Free Guidance inside the Attraction Basin May Cause
Memorization, and its code (SonyResearch/mitigating_memorization).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from copymit.diffusion.sampler import Step


class GuidanceSchedule(NamedTuple):
    """Chooses the guidance scale of every example at every step.

    Attributes:
      init: batch size -> state before the first step.
      scale: (state, step, magnitudes) -> (state, scales); `magnitudes` are the norms of
        conditional minus unconditional prediction of this step, one an example, and so
        are the scales: 0 is the unconditional prediction, 1 the conditional one, below
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


def static_transition(
    guidance_scale: float, before: float, timestep: float
) -> GuidanceSchedule:
    """Guides once a given timestep is reached (STP).

    Args:
      before: guidance scale above that timestep; 0, or -2 for opposite guidance.
      timestep: the first (largest) one that is guided; 500 in the paper for SD 2.1 on
        LAION-10k, 650 with opposite guidance.
    """

    def scale(state, step, magnitudes):
        now = jnp.where(step.timestep <= timestep, guidance_scale, before)
        return state, jnp.full_like(magnitudes, now)

    return GuidanceSchedule(lambda _: (), scale)


class Watched(NamedTuple):
    """What the dynamic transition remembers of each example.

    Attributes:
      magnitudes: of the step before.
      falling: whether that one was smaller than the one before it.
      guided: whether the transition has happened.
    """

    magnitudes: Float[Array, " B"]
    falling: Bool[Array, " B"]
    guided: Bool[Array, " B"]


def dynamic_transition(
    guidance_scale: float, before: float, latest_step: int
) -> GuidanceSchedule:
    """Guides after the first local minimum of each example's own magnitude (DTP).

    A minimum shows when the magnitude rises again: guidance begins at the step after it.
    Neither the first nor the last step can be a minimum. The paper's code finds the
    minimum in a sampling of its own before the actual one; here it is watched for on
    the way, at no cost.

    Args:
      before: guidance scale before the transition; 0, or -2 for opposite guidance.
      latest_step: number of the step at which guidance begins without a minimum; the
        paper's code takes 5 of 50.
    """

    def init(batch_size):
        no = jnp.zeros(batch_size, bool)
        # Nothing falls below minus infinity: the first step is not a minimum.
        return Watched(jnp.full(batch_size, -jnp.inf), no, no)

    def scale(state, step, magnitudes):
        rises = state.falling & (magnitudes > state.magnitudes)
        guided = state.guided | rises | (step.number >= latest_step)
        state = Watched(magnitudes, magnitudes < state.magnitudes, guided)
        return state, jnp.where(guided, guidance_scale, before)

    return GuidanceSchedule(init, scale)
