"""Despecification (AMG): less guidance where the image comes near a training image."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.diffusion.sampler import Step
from copymit.mitigation.methods.repulsion import (
    CLEAN,
    NOISY,
    foreseen_similarities,
    threshold_at,
)
from copymit.mitigation.record import Circumstances, Guided, Mitigation, Setting, Values
from copymit.mitigation.scene import Scene


def _scales(
    values: Values, scene: Scene, step: Step, guided: Guided, scales: Float[Array, " B"]
) -> Float[Array, " B"]:
    """Takes guidance off in proportion to the similarity, never below a scale of 1."""
    _, similarity = foreseen_similarities(scene, step, guided(scales))
    taken = jnp.minimum(values["despecification"] * similarity, scales - 1)
    near = similarity > threshold_at(values, scene, step)
    return scales - jnp.where(near, jnp.maximum(taken, 0), 0)


def _check(values: Values, circumstances: Circumstances) -> str | None:
    scale = circumstances.guidance_scale
    if max(scale, values["guidance_before"], values["dynamic_before"]) > 1:
        return None
    return (
        f"takes guidance off down to a scale of 1, and eval.guidance_scale={scale} "
        "leaves nothing to take: use repulsion, or a scale above 1"
    )


MITIGATIONS = (
    Mitigation(
        "despecification",
        ("gs",),
        "less guidance where the image comes near a training image",
        (
            Setting(
                "generate.despecification",
                0.0,
                "guidance scale taken off for each unit of similarity, never below 1",
                0,
                1000,
            ),
            CLEAN,
            NOISY,
        ),
        strength=13.0,
        published="13 s, at most 6.5 of a scale of 7.5; the code takes it off wherever s "
        "is above 0, the paper above the threshold",
        changed="above the threshold, as in the paper, and down to 1 whatever the scale; s "
        "as in `repulsion`",
        source="Chen et al. 2024; `g2_scale` of chenchen-usyd/AMG-sd",
        label="despecification",
        tried=(13.0, 5.0),
        needs=frozenset({"guidance", "training images"}),
        order=1,
        check=_check,
        scales=_scales,
    ),
)
