"""Static transition (STP): guidance begins at a given timestep.

Early in sampling a memorised prompt pulls every noise towards its image (the attraction
basin); later its pull is as weak as that of other prompts.
"""

import jax.numpy as jnp

from copymit.mitigation.guidance import GuidanceSchedule
from copymit.mitigation.methods.opposite_guidance import GUIDANCE_BEFORE
from copymit.mitigation.record import Circumstances, Mitigation, Setting, Values


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


def _check(values: Values, circumstances: Circumstances) -> str | None:
    transition, T = values["guidance_transition"], circumstances.num_train_timesteps
    if transition >= T:
        return f"is above every timestep of the model: use one below {T}"
    if values["dynamic_transition"]:
        return (
            "and dynamic_transition=True both say when guidance begins: use one of them"
        )
    if circumstances.trajectory is None:
        return None
    timesteps = circumstances.trajectory.timesteps
    first, last = timesteps[0], timesteps[-1]
    if last <= transition < first:
        return None
    begins = "at once" if transition >= first else "never"
    return (
        f"is not between the timesteps of the sampler, {first:g} to {last:g}, so "
        f"guidance would begin {begins}: use one of these, or 0 for no transition"
    )


MITIGATIONS = (
    Mitigation(
        "static_transition",
        ("STP",),
        "guidance begins at a timestep; before it there is none",
        (
            Setting(
                "generate.guidance_transition",
                0,
                "timestep at and below which guidance acts",
                0,
                1e6,
            ),
            GUIDANCE_BEFORE,
        ),
        strength=500,
        published="500 for SD 2.1 on LAION-10k, 600 or 700 on Imagenette; scale 0 before",
        changed="the authors go on from the transition in a grid of 200 steps, four times "
        "as fine; here the steps stay the sampler's",
        source="Jain et al. 2025, Classifier-Free Guidance inside the Attraction Basin "
        "May Cause Memorization; SonyResearch/mitigating_memorization",
        label="guidance from",
        tried=(500, 800),
        needs=frozenset({"guidance"}),
        check=_check,
        guidance=lambda values, scale, num_steps: static_transition(
            scale, values["guidance_before"], values["guidance_transition"]
        ),
    ),
)
