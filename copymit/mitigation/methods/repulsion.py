"""Repulsion (AMG): the foreseen image is turned away from its nearest training image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.diffusion.noise_scheduler import predicted_latents_and_noise
from copymit.diffusion.sampler import Step
from copymit.mitigation.descent import per_row, row_norms
from copymit.mitigation.record import Mitigation, Setting, Values
from copymit.mitigation.references import Embed, References, flatten, similarities
from copymit.mitigation.scene import Scene

CLEAN = Setting(
    "generate.clean_threshold",
    0.4,
    "similarity above which it acts at the end of the sampling",
    -1,
)
NOISY = Setting(
    "generate.noisy_threshold",
    0.3,
    "similarity above which it acts at the beginning of the sampling",
    -1,
)

# Of `1 - s^2` in float32; what is left of it says nothing of the gradient.
_ROUNDING = 1e-6


def similarity_threshold(
    noisy: float, clean: float, noise_share: Float[Array, ""]
) -> Float[Array, ""]:
    """Falls from the clean to the noisy threshold along a parabola.

    Args:
      noise_share: timestep over number of timesteps, 0 (clean) to 1. The authors' code
        has an exponential, `exp(-5 noise_share)`, of nearly the same shape.
    """
    return noisy + (clean - noisy) * jnp.square(1 - noise_share)


def threshold_at(values: Values, scene: Scene, step: Step) -> Float[Array, ""]:
    """Computes the threshold of a step."""
    share = step.timestep / scene.num_train_timesteps
    return similarity_threshold(
        values["noisy_threshold"], values["clean_threshold"], share
    )


def foreseen_similarities(
    scene: Scene, step: Step, model_pred: Float[Array, "B h w c"]
) -> tuple[Float[Array, "B h w c"], Float[Array, " B"]]:
    """Returns the clean latents behind a prediction, and how similar they are."""
    assert scene.references is not None  # a sampling that needs them refuses
    x0, _ = predicted_latents_and_noise(
        scene.trajectory.prediction_type,
        model_pred,
        step.noisy_latents,
        step.signal,
        step.sigma,
    )
    return x0, similarities(scene.references, x0, scene.embed)


def turn_away(
    references: References,
    x0: Float[Array, "B h w c"],
    amounts: Float[Array, " B"],
    embed: Embed = flatten,
) -> Float[Array, "B h w c"]:
    """Returns the step of x0 down its similarity s to the nearest reference.

    Its length is such that s falls by `amount * (1 - s^2)` to first order, whatever the
    embedding; without one, x0 is turned and keeps its distance from the mean. A perfect
    copy has no gradient: it is repelled while it is forming, not when it is finished.
    """
    values, pull_back = jax.vjp(lambda x: similarities(references, x, embed), x0)
    (gradient,) = pull_back(jnp.ones_like(values))
    tiny = jnp.finfo(values.dtype).tiny
    squares = jnp.maximum(jnp.square(row_norms(gradient)), tiny)
    left = jnp.maximum(1 - jnp.square(values) - _ROUNDING, 0)
    lengths = amounts * left / squares
    return -per_row(lengths, x0) * gradient


def _prediction(
    values: Values, scene: Scene, step: Step, model_pred: Float[Array, "B h w c"]
) -> Float[Array, "B h w c"]:
    x0, similarity = foreseen_similarities(scene, step, model_pred)
    assert scene.references is not None
    excess = similarity - threshold_at(values, scene, step)
    amounts = values["repulsion"] * jnp.maximum(excess, 0)
    move = turn_away(scene.references, x0, amounts, scene.embed)
    # The prediction of which x0 is the estimate, by how it depends on x0.
    slope = -step.signal / step.sigma
    if scene.trajectory.prediction_type == "v_prediction":
        slope = -1 / step.sigma
    return model_pred + slope * move


MITIGATIONS = (
    Mitigation(
        "repulsion",
        ("AMG", "gd"),
        "away from the training image that the image on its way comes nearest to",
        (
            Setting(
                "generate.repulsion",
                0.0,
                "fall of the similarity, per unit that it is above the threshold",
                0,
                100,
            ),
            CLEAN,
            NOISY,
        ),
        strength=1.0,
        published="of SSCD's similarity s of the decoded estimate to the nearest of LAION: "
        "the noise moves by (s - 0.3) exp((1000 - t) / 170) times the gradient of s, where "
        "s is above 0.3 + 0.1 exp(-t / 200)",
        changed="the similarity is the cosine of latents around their mean, to the "
        "training images, mirrored ones too where the training flips; the step is as long "
        "as lowers s by a share of its excess, whatever the embedding; the threshold is a "
        "parabola with the same ends; the third guidance, away from the nearest caption, "
        "is left out",
        source="Chen et al. 2024, Towards Memorization-Free Diffusion Models; "
        "chenchen-usyd/AMG-sd",
        label="repulsion",
        tried=(1.0, 0.5),
        needs=frozenset({"training images"}),
        prediction=_prediction,
    ),
)
