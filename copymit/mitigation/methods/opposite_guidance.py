"""Opposite guidance (OG): before a transition, away from the prompt."""

from copymit.mitigation.record import Mitigation, Setting

GUIDANCE_BEFORE = Setting(
    "generate.guidance_before",
    0.0,
    "guidance scale before the transition; below 0 it leads away from the prompt",
    -100,
    100,
)

# It is a scale of the transitions, whose files have the functions.
MITIGATIONS = (
    Mitigation(
        "opposite_guidance",
        ("OG",),
        "away from the prompt before a transition",
        (GUIDANCE_BEFORE,),
        strength=-2.0,
        published="-2, with a static transition at 650",
        changed="with a dynamic transition it is `generate.dynamic_before`",
        source="Jain et al. 2025; `--guidance_scale` of SonyResearch/"
        "mitigating_memorization",
        beside=("static_transition",),
    ),
)
