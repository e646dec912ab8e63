"""Dynamic transition (DTP): guidance begins after the first minimum of its magnitude."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from copymit.mitigation.guidance import GuidanceSchedule
from copymit.mitigation.methods.opposite_guidance import GUIDANCE_BEFORE
from copymit.mitigation.record import Mitigation, Setting


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


MITIGATIONS = (
    Mitigation(
        "dynamic_transition",
        ("DTP",),
        "guidance begins where its magnitude has its first minimum",
        (
            Setting("generate.dynamic_transition", False, "whether it does"),
            GUIDANCE_BEFORE,
        ),
        strength=True,
        published="",
        changed="",
        source="Jain et al. 2025; SonyResearch/mitigating_memorization",
        label="dynamic guidance",
        tried=(True,),
        needs=frozenset({"guidance"}),
        guidance=lambda values, scale, num_steps: dynamic_transition(
            scale, values["guidance_before"], num_steps // 2
        ),
    ),
)
