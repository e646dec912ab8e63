"""Skipping: examples are not trained on while they are being memorised."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from copymit.mitigation.descent import row_norms
from copymit.mitigation.record import Mitigation, Setting


def keep_unremembered(
    conditional: Float[Array, "B h w c"],
    unconditional: Float[Array, "B h w c"],
    threshold: float,
) -> Bool[Array, " B"]:
    """Keeps the examples whose caption does not change the prediction by much.

    `||f(x_t, c) - f(x_t, 0)|| < threshold`, at the example's own noise and timestep; no
    gradient flows through the choice. The norm grows with the root of the latents' size,
    so a threshold holds for one resolution.
    """
    difference = jax.lax.stop_gradient(conditional - unconditional)
    return row_norms(difference) < jnp.asarray(threshold)


MITIGATIONS = (
    Mitigation(
        "skipping",
        ("Wen", "hard_threshold"),
        "examples are skipped whose caption changes the prediction by more than a norm",
        (
            Setting(
                "train.skip_above",
                0.0,
                "norm of the caption's effect on the prediction",
                0,
                1e6,
            ),
        ),
        strength=2.0,
        published="2 for 64x64x4 latents and predicted noise",
        changed="",
        source="Wen et al. 2024, Detecting, Explaining, and Mitigating Memorization in "
        "Diffusion Models, section 5.2; `--hard_threshold` of "
        "YuxinWenRick/diffusion_memorization",
        label="skipping above",
        tried=(2.0, 3.0),
        tried_small=(12.0, 20.0),
        needs=frozenset({"a caption beside the empty one"}),
        keep=lambda values, conditional, unconditional: keep_unremembered(
            conditional, unconditional, values["skip_above"]
        ),
    ),
)
