"""Repulsion of a sampling from the training image that it comes nearest to.

A table of training images is held on the device. At every step the clean latents that
the network foresees are compared with all of them; where they are too similar, the
guidance is lowered (a specific prompt is what leads there) and the foreseen latents are
turned away from the nearest one. Training images that are not in the table do not repel.

Source: Chen et al. 2024, Towards Memorization-Free Diffusion Models (AMG);
chenchen-usyd/AMG-sd. Their third guidance, away from the nearest image's caption, is
left out, and so are gradients through the network, as in their code.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from copymit.diffusion.noise_scheduler import (
    PredictionType,
    predicted_latents_and_noise,
)
from copymit.diffusion.sampler import Step
from copymit.mitigation.descent import per_row, row_norms

# Of `1 - s^2` in float32; what is left of it says nothing of the gradient.
_ROUNDING = 1e-6

Embed = Callable[[jax.Array], jax.Array]
"""(x0 "B h w c") -> features "B F"; differentiable, of any length."""


class References(NamedTuple):
    """Training images to keep away from.

    Attributes:
      vectors: unit vectors.
      center: what is subtracted from features before they are made unit vectors.
    """

    vectors: Float[Array, "R F"]
    center: Float[Array, " F"]


class Repulsion(NamedTuple):
    """How strongly, and from which similarity on.

    Attributes:
      strength: of the turn away: the step is `strength` times the similarity's excess.
      despecification: guidance scale taken off for each unit of similarity, never below
        a scale of 1; 13 in the authors' code.
      clean_threshold: similarity above which both act at the end of the sampling; 0.4
        there, for SSCD.
      noisy_threshold: at its beginning; 0.3 there.
    """

    strength: float
    despecification: float
    clean_threshold: float
    noisy_threshold: float


def flatten(x0: Float[Array, "B h w c"]) -> Float[Array, "B F"]:
    """Is the embedding of latents as they are."""
    return x0.reshape(x0.shape[0], -1)


def make_references(
    features: Float[np.ndarray, "R ..."], *, centered: bool = True
) -> References:
    """Makes the table, on the host.

    Args:
      features: latents of training images, or embeddings of them.
      centered: subtracts their mean, without which images of one kind, say on a white
        ground, are all similar; not for embeddings that are compared by cosine.
    Raises:
      ValueError: for no images, or one that equals the mean and so has no direction.
    """
    if not len(features):
        raise ValueError("repulsion needs at least one training image")
    rows = np.asarray(features, np.float32).reshape(len(features), -1)
    center = rows.mean(0) if centered and len(rows) > 1 else np.zeros_like(rows[0])
    rows = rows - center
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError(
            f"repulsion: training image {int(np.argmin(norms))} is the mean of all of "
            "them and has no direction: leave it out, or set centered=False"
        )
    return References(rows / norms, center)


def similarities(
    references: References, x0: Float[Array, "B h w c"], embed: Embed = flatten
) -> Float[Array, " B"]:
    """Computes the cosine similarity to the nearest reference; exact search."""
    features = embed(x0) - references.center
    features = features / row_norms(features)[:, None]
    # By default a TPU would multiply in bfloat16.
    vectors = jnp.asarray(references.vectors)
    return jnp.max(jnp.matmul(features, vectors.T, precision="highest"), axis=1)


def similarity_threshold(repulsion: Repulsion, noise_share: Float[Array, ""]):
    """Falls from the clean to the noisy threshold along a parabola.

    Args:
      noise_share: timestep over number of timesteps, 0 (clean) to 1. The authors' code
        has an exponential, `exp(-5 noise_share)`, of nearly the same shape.
    """
    noisy, clean = repulsion.noisy_threshold, repulsion.clean_threshold
    return noisy + (clean - noisy) * jnp.square(1 - noise_share)


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


def repel(
    repulsion: Repulsion,
    references: References,
    step: Step,
    guided: Callable[[Float[Array, " B"]], Float[Array, "B h w c"]],
    scales: Float[Array, " B"],
    *,
    prediction_type: PredictionType,
    num_train_timesteps: int,
    embed: Embed = flatten,
) -> Float[Array, "B h w c"]:
    """Predicts with as much guidance as is safe, away from the nearest reference.

    Args:
      guided: guidance scales to the network's prediction.
      scales: the guidance scales that are wanted.
    Returns:
      The prediction; `guided(scales)` itself where x0 is not too similar.
    """
    threshold = similarity_threshold(repulsion, step.timestep / num_train_timesteps)

    def foreseen(model_pred):
        x0, _ = predicted_latents_and_noise(
            prediction_type, model_pred, step.noisy_latents, step.signal, step.sigma
        )
        return x0

    model_pred = guided(scales)
    if repulsion.despecification:
        values = similarities(references, foreseen(model_pred), embed)
        taken = jnp.minimum(repulsion.despecification * values, scales - 1)
        taken = jnp.where(values > threshold, jnp.maximum(taken, 0), 0)
        model_pred = guided(scales - taken)
    if repulsion.strength:
        x0 = foreseen(model_pred)
        excess = similarities(references, x0, embed) - threshold
        amounts = repulsion.strength * jnp.maximum(excess, 0)
        move = turn_away(references, x0, amounts, embed)
        # The prediction of which x0 is the estimate, by how it depends on x0.
        slope = -step.signal / step.sigma
        if prediction_type == "v_prediction":
            slope = -1 / step.sigma
        model_pred = model_pred + slope * move
    return model_pred
