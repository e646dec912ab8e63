"""The training objective: clean latents, text and a draw in, a loss per example out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from copymit.diffusion.noise_scheduler import (
    NoiseScheduler,
    add_noise,
    training_target,
)

Predict = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(noisy_latents, timesteps, encoder_hidden_states) -> model_pred."""


class Noised(NamedTuple):
    """What the network is to be trained on.

    Attributes:
      noisy_latents: what it sees.
      scales: of each example, of its prediction.
      target: of the scaled prediction.
    """

    noisy_latents: Float[Array, "B h w c"]
    scales: Float[Array, " B"]
    target: Float[Array, "B h w c"]


Keep = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(model_pred, noisy_latents, timesteps) -> which examples count, bool (B,)."""


class Draw(NamedTuple):
    """What is drawn at random for the loss of a batch.

    Attributes:
      timesteps: uniform.
      noise: what the network is to find.
      added: what the latents are mixed with; the same unless the input is perturbed.
      noised: what is trained on in the place of the latents mixed with it; None, these.
    """

    timesteps: Int[Array, " B"]
    noise: Float[Array, "B h w c"]
    added: Float[Array, "B h w c"]
    noised: Noised | None = None


def draw_noise(
    key: jax.Array,
    shape: Sequence[int],
    num_train_timesteps: int,
    *,
    noise_offset: float = 0.0,
    input_perturbation: float = 0.0,
) -> Draw:
    """Draws timesteps and noise for latents of a shape.

    Args:
      noise_offset: deviation of a further noise that is one number for each example and
        channel, so that whole pictures become lighter or darker.
      input_perturbation: deviation of a further noise that the network sees and is not
        asked for; 0.1 in the source.
    Source: diffusers' `train_text_to_image.py`; Ning et al. 2023, algorithm 1, for the
      perturbation.
    """
    timestep_key, noise_key = jax.random.split(key)
    timesteps = jax.random.randint(timestep_key, shape[:1], 0, num_train_timesteps)
    noise = jax.random.normal(noise_key, shape)
    # Keys of their own, so that neither changes the draws of the others.
    offset_key, perturbation_key = (jax.random.fold_in(key, i) for i in (2, 3))
    if noise_offset:
        channels = (shape[0], 1, 1, shape[3])
        noise += noise_offset * jax.random.normal(offset_key, channels)
    added = noise
    if input_perturbation:
        added += input_perturbation * jax.random.normal(perturbation_key, shape)
    return Draw(timesteps, noise, added)


def denoising_loss(
    predict: Predict,
    noise_scheduler: NoiseScheduler,
    latents: Float[Array, "B h w c"],
    encoder_hidden_states: Float[Array, "B L D"],
    draw: Draw,
    *,
    min_snr_gamma: float | None = None,
    keep: Keep | None = None,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Computes the mean squared error of each example at its timestep.

    Args:
      min_snr_gamma: weights each example by `min_snr_weights`; None weights all alike.
      keep: which examples count; None counts all.
    Returns:
      Losses, 0 for examples that do not count, and 1 for those that do, else 0.
    Raises:
      ValueError: if `min_snr_gamma` is not positive.
    Source: Ho et al. 2020, equation 14; the original copying study trains with the
    same unweighted loss on the noise or the velocity.
    """
    timesteps = draw.timesteps
    if draw.noised is None:
        noisy_latents = add_noise(noise_scheduler, latents, draw.added, timesteps)
        target = training_target(noise_scheduler, latents, draw.noise, timesteps)
        model_pred = scaled = predict(noisy_latents, timesteps, encoder_hidden_states)
    else:
        noisy_latents, scales, target = draw.noised
        model_pred = predict(noisy_latents, timesteps, encoder_hidden_states)
        scaled = scales[:, None, None, None] * model_pred
    losses = jnp.mean((scaled - target) ** 2, axis=(1, 2, 3))
    if min_snr_gamma is not None:
        weights = min_snr_weights(noise_scheduler, min_snr_gamma)
        losses *= jnp.asarray(weights)[timesteps]
    if keep is None:
        return losses, jnp.ones_like(losses)
    kept = keep(model_pred, noisy_latents, timesteps).astype(losses.dtype)
    return losses * kept, kept


def min_snr_weights(
    noise_scheduler: NoiseScheduler, gamma: float
) -> Float[np.ndarray, " T"]:
    """Computes the weight of every timestep that caps its pull at a noise level.

    With the signal-to-noise ratio `snr = a / (1 - a)`, they are
    `min(snr, gamma) / snr` for `epsilon` and `min(snr, gamma) / (snr + 1)` for
    `v_prediction`: in both cases the error of x0, weighted by `min(snr, gamma)`. A
    timestep of pure noise weighs 0.

    Args:
      gamma: the ratio above which clean timesteps count no more; 5 is usual.
    Returns:
      float32 in [0, 1].
    Raises:
      ValueError: if `gamma` is not positive.
    Source: Hang et al. 2023 (Min-SNR); diffusers' `train_text_to_image.py`.
    """
    if not gamma > 0:
        raise ValueError(
            f"train.min_snr_gamma={gamma} must be above 0, usually 5, or 0 for no weights"
        )
    a = noise_scheduler.alphas_cumprod.astype(np.float64)
    # min(snr, gamma) (1 - a), which is finite at both ends.
    capped = np.minimum(a, gamma * (1 - a))
    if noise_scheduler.prediction_type == "epsilon":
        capped = capped / a
    return capped.astype(np.float32)
