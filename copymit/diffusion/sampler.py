"""Sampling: noise and text in, clean latents out, as one compiled loop."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from copymit.diffusion.noise_scheduler import (
    NoiseScheduler,
    predicted_latents_and_noise,
)

TimestepSpacing = Literal["leading", "trailing"]

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
"""(noisy_latents, timesteps) -> model_pred, with text and guidance already inside."""


def inference_timesteps(
    num_train_timesteps: int,
    num_inference_steps: int,
    spacing: TimestepSpacing = "leading",
    steps_offset: int = 1,
) -> Int[np.ndarray, " S"]:
    """Chooses the timesteps to visit, from noisy to clean.

    Args:
      spacing: `leading` starts at `num_train_timesteps / num_inference_steps` below the
        top (Stable Diffusion), `trailing` at the very top, which a schedule that ends in
        pure noise needs (Lin et al. 2024).
      steps_offset: added to every `leading` timestep; Stable Diffusion uses 1.
    Raises:
      ValueError: for more steps than there are timesteps, or an unknown spacing.
    Source: diffusers' `DDIMScheduler.set_timesteps`.
    """
    T, S = num_train_timesteps, num_inference_steps
    if not 1 <= S <= T:
        raise ValueError(
            f"eval.num_inference_steps={S} must lie between 1 and the model's {T} "
            "training timesteps"
        )
    if spacing == "leading":
        timesteps = (np.arange(S) * (T // S))[::-1] + steps_offset
        return np.minimum(timesteps, T - 1).astype(np.int32)
    if spacing == "trailing":
        # Rounding errors of the step would append a timestep of -1 for some S.
        return (np.round(np.arange(T, 0, -T / S)[:S]) - 1).astype(np.int32)
    raise ValueError(
        f"diffusion.timestep_spacing={spacing!r} is not known: use one of "
        f"{', '.join(get_args(TimestepSpacing))}"
    )


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


def ddim_sample(
    denoise: Denoise,
    noise_scheduler: NoiseScheduler,
    latents: Float[Array, "B h w c"],
    timesteps: Int[np.ndarray, " S"],
    *,
    clip_latents: float | None = None,
) -> Float[Array, "B h w c"]:
    """Runs the deterministic DDIM sampler from pure noise to clean latents.

    Args:
      latents: standard normal noise.
      timesteps: decreasing, from `inference_timesteps`.
      clip_latents: bound on the absolute value of every estimate of the clean latents;
        sensible where latents are pixels of a known range.
    Source: Song et al. 2021, equation 12 with eta = 0; diffusers' `DDIMScheduler` with
      `set_alpha_to_one=True`.
    """
    B = latents.shape[0]
    a = jnp.asarray(noise_scheduler.alphas_cumprod)
    # What is left after the last step is the estimate of x0 itself: a = 1.
    next_alphas = jnp.concatenate([a[timesteps[1:]], jnp.ones(1)])

    def step(latents, inputs):
        timestep, next_alpha = inputs
        t = jnp.full((B,), timestep)
        model_pred = denoise(latents, t)
        x0, noise = predicted_latents_and_noise(noise_scheduler, model_pred, latents, t)
        if clip_latents is not None:
            alpha = a[timestep]
            x0 = jnp.clip(x0, -clip_latents, clip_latents)
            noise = (latents - jnp.sqrt(alpha) * x0) / jnp.sqrt(1 - alpha)
        return jnp.sqrt(next_alpha) * x0 + jnp.sqrt(1 - next_alpha) * noise, None

    latents, _ = jax.lax.scan(step, latents, (jnp.asarray(timesteps), next_alphas))
    return latents
