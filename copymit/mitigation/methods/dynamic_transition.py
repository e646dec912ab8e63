"""Dynamic transition (DTP): guidance begins after the first minimum of its magnitude."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from copymit.mitigation.guidance import GuidanceSchedule
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


def dynamic_transition(guidance_scale: float, before: float) -> GuidanceSchedule:
    """Guides from the first local minimum of each example's own magnitude on.

    A minimum shows when the magnitude rises again: guidance begins at that step. Neither
    the first nor the last step can be a minimum, and without one there is no guidance.

    Args:
      before: guidance scale before the transition.
    """

    def init(batch_size):
        no = jnp.zeros(batch_size, bool)
        # Nothing falls below minus infinity: the first step is not a minimum.
        return Watched(jnp.full(batch_size, -jnp.inf), no, no)

    def scale(state, step, magnitudes):
        del step
        rises = state.falling & (magnitudes > state.magnitudes)
        guided = state.guided | rises
        state = Watched(magnitudes, magnitudes < state.magnitudes, guided)
        return state, jnp.where(guided, guidance_scale, before)

    return GuidanceSchedule(init, scale)


MITIGATIONS = (
    Mitigation(
        "dynamic_transition",
        ("DTP",),
        "guidance begins where its magnitude has its first minimum",
        (
            Setting(
                "generate.dynamic_transition",
                False,
                "whether guidance begins at the first minimum of its magnitude",
            ),
            Setting(
                "generate.dynamic_before",
                1.0,
                "guidance scale before the minimum; 1 is the prediction with the prompt, "
                "below 0 leads away from it",
                -100,
                100,
            ),
        ),
        strength=True,
        published="scale 1 before the first minimum, 7.5 from there on",
        changed="where the network predicts velocity, the magnitude is that of the noise; "
        "the authors' script for opposite guidance, which finds the minimum in a sampling "
        "before, is left out",
        source="Jain et al. 2025; SonyResearch/mitigating_memorization",
        label="dynamic guidance",
        tried=(True,),
        needs=frozenset({"guidance"}),
        guidance=lambda values, scale, num_steps: dynamic_transition(
            scale, values["dynamic_before"]
        ),
    ),
)
