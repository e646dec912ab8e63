"""Skipping: examples are not trained on while they are being memorised."""

import jax
from jaxtyping import Array, Bool, Float

from copymit.mitigation.effect import published_norms
from copymit.mitigation.record import Mitigation, Setting


def keep_unremembered(
    effect: Float[Array, "B h w c"], threshold: float
) -> Bool[Array, " B"]:
    """Keeps the examples whose caption does not change the predicted noise by much.

    `||e(x_t, c) - e(x_t, 0)|| < threshold`, at the example's own noise and timestep; no
    gradient flows through the choice.
    """
    return published_norms(jax.lax.stop_gradient(effect)) < threshold


MITIGATIONS = (
    Mitigation(
        "skipping",
        ("Wen", "hard_threshold"),
        "examples are skipped whose caption changes the prediction by more than a norm",
        (
            Setting(
                "train.skip_above",
                0.0,
                "norm of the caption's effect on the predicted noise, of 64x64x4 latents",
                0,
                1e6,
            ),
        ),
        strength=2.0,
        published="2, for SD 1.4, whose latents are 64x64x4 and which predicts noise",
        changed="norms of other sizes are scaled to 64x64x4, and velocity is converted to "
        "noise, so that 2 means the same for all networks",
        source="Wen et al. 2024, Detecting, Explaining, and Mitigating Memorization in "
        "Diffusion Models, section 5.2; `--hard_threshold` of "
        "YuxinWenRick/diffusion_memorization",
        label="skipping above",
        tried=(2.0, 3.0),
        tried_small=(12.0, 8.0),  # captions of a demo run have effects of 5 to 25
        needs=frozenset({"a caption beside the empty one"}),
        keep=lambda values, effect: keep_unremembered(effect, values["skip_above"]),
    ),
)
