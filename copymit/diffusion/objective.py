"""The training objective: clean latents and text in, one loss per example out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.diffusion.noise_scheduler import (
    NoiseScheduler,
    add_noise,
    training_target,
)

Predict = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(noisy_latents, timesteps, encoder_hidden_states) -> model_pred."""


def denoising_loss(
    predict: Predict,
    noise_scheduler: NoiseScheduler,
    latents: Float[Array, "B h w c"],
    encoder_hidden_states: Float[Array, "B L D"],
    key: jax.Array,
) -> Float[Array, " B"]:
    """Computes the mean squared error of each example at a uniformly drawn timestep.

    Source: Ho et al. 2020, equation 14; the original copying study trains with the
    same unweighted loss on the noise or the velocity.
    """
    timestep_key, noise_key = jax.random.split(key)
    timesteps = jax.random.randint(
        timestep_key, latents.shape[:1], 0, noise_scheduler.num_train_timesteps
    )
    noise = jax.random.normal(noise_key, latents.shape, latents.dtype)
    noisy_latents = add_noise(noise_scheduler, latents, noise, timesteps)
    target = training_target(noise_scheduler, latents, noise, timesteps)
    model_pred = predict(noisy_latents, timesteps, encoder_hidden_states)
    return jnp.mean((model_pred - target) ** 2, axis=(1, 2, 3))
