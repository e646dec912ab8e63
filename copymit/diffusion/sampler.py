"""Sampling: noise and text in, clean latents out, as one compiled loop."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.diffusion.noise_scheduler import predicted_latents_and_noise
from copymit.diffusion.trajectory import Trajectory

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
"""(noisy_latents, timesteps) -> model_pred, with text and guidance already inside."""


def with_guidance(
    predict: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    encoder_hidden_states: Float[Array, "B L D"],
    negative_hidden_states: Float[Array, "B L D"],
    guidance_scale: float,
) -> Denoise:
    """Binds the text to the network, with classifier-free guidance.

    Args:
      guidance_scale: static; 1 means none, and then the unconditional half of the
        batch is not computed at all.
    Source: Ho and Salimans 2022, in Stable Diffusion's scaling.
    """
    if guidance_scale == 1.0:
        return lambda latents, t: predict(latents, t, encoder_hidden_states)
    context = jnp.concatenate([negative_hidden_states, encoder_hidden_states])

    def denoise(noisy_latents, timesteps):
        model_pred = predict(
            jnp.concatenate([noisy_latents] * 2),
            jnp.concatenate([timesteps] * 2),
            context,
        )
        unconditional, conditional = jnp.split(model_pred, 2)
        return unconditional + guidance_scale * (conditional - unconditional)

    return denoise


def sample(
    denoise: Denoise,
    trajectory: Trajectory,
    noise: Float[Array, "B h w c"],
    *,
    clip_latents: float | None = None,
) -> Float[Array, "B h w c"]:
    """Follows a trajectory from pure noise to clean latents.

    Args:
      noise: standard normal.
      clip_latents: bound on the absolute value of every estimate of the clean latents;
        sensible where latents are pixels of a known range.
    Source: diffusers' `DDIMScheduler.step` for the clipping, with
      `use_clipped_model_output=True`.
    """
    B = noise.shape[0]

    def step(carry, now):
        latents, previous_x0 = carry
        timestep, signal, sigma, next_signal, next_sigma, extrapolation = now
        model_pred = denoise(latents, jnp.full((B,), timestep))
        x0, noise = predicted_latents_and_noise(
            trajectory.prediction_type, model_pred, latents, signal, sigma
        )
        if clip_latents is not None:
            x0 = jnp.clip(x0, -clip_latents, clip_latents)
            noise = (latents - signal * x0) / sigma
        latents = next_signal * x0 + next_sigma * noise
        return (latents + extrapolation * (x0 - previous_x0), x0), None

    signal, sigma = jnp.asarray(trajectory.signal), jnp.asarray(trajectory.sigma)
    steps = (
        jnp.asarray(trajectory.timesteps),
        *(signal[:-1], sigma[:-1], signal[1:], sigma[1:]),
        jnp.asarray(trajectory.extrapolation),
    )
    # The first step has no estimate before it, and an extrapolation of 0.
    start = (trajectory.noise_scale * noise, jnp.zeros_like(noise))
    (latents, _), _ = jax.lax.scan(step, start, steps)
    return latents
