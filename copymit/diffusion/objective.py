"""The training objective: clean latents and text in, one loss per example out."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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


Noising = Callable[[jax.Array, jax.Array, jax.Array], Noised]
"""(latents, noise, timesteps) -> what is trained on in the place of the usual."""

Keep = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(model_pred, noisy_latents, timesteps) -> which examples count, bool (B,)."""


def denoising_loss(
    predict: Predict,
    noise_scheduler: NoiseScheduler,
    latents: Float[Array, "B h w c"],
    encoder_hidden_states: Float[Array, "B L D"],
    key: jax.Array,
    *,
    min_snr_gamma: float | None = None,
    keep: Keep | None = None,
    noising: Noising | None = None,
) -> Float[Array, " B"]:
    """Computes the mean squared error of each example at a uniformly drawn timestep.

    Args:
      keep: examples that do not count have loss 0, and the others more, so that the mean
        of the batch is that of those that count; None counts all.
      noising: None adds the noise to the latents and asks for it, or for the velocity.
      min_snr_gamma: weights each example by `min_snr_weights`; None weights all alike.
    Raises:
      ValueError: if `min_snr_gamma` is not positive.
    Source: Ho et al. 2020, equation 14; the original copying study trains with the
    same unweighted loss on the noise or the velocity.
    """
    timestep_key, noise_key = jax.random.split(key)
    timesteps = jax.random.randint(
        timestep_key, latents.shape[:1], 0, noise_scheduler.num_train_timesteps
    )
    noise = jax.random.normal(noise_key, latents.shape, latents.dtype)
    if noising is None:
        noisy_latents = add_noise(noise_scheduler, latents, noise, timesteps)
        target = training_target(noise_scheduler, latents, noise, timesteps)
        model_pred = scaled = predict(noisy_latents, timesteps, encoder_hidden_states)
    else:
        noisy_latents, scales, target = noising(latents, noise, timesteps)
        model_pred = predict(noisy_latents, timesteps, encoder_hidden_states)
        scaled = scales[:, None, None, None] * model_pred
    losses = jnp.mean((scaled - target) ** 2, axis=(1, 2, 3))
    if min_snr_gamma is not None:
        weights = min_snr_weights(noise_scheduler, min_snr_gamma)
        losses *= jnp.asarray(weights)[timesteps]
    if keep is not None:
        kept = keep(model_pred, noisy_latents, timesteps)
        losses *= kept / jnp.maximum(jnp.mean(kept), 1 / len(kept))
    return losses


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
