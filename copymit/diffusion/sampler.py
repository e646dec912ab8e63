"""Sampling: noise and text in, clean latents out, as one compiled loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real, Shaped

from copymit.diffusion.noise_scheduler import (
    PredictionType,
    predicted_latents_and_noise,
)
from copymit.diffusion.trajectory import Trajectory

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
"""(noisy_latents, timesteps) -> model_pred, with text and guidance already inside."""

Predict = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(noisy_latents, timesteps, encoder_hidden_states) -> model_pred."""


class Step(NamedTuple):
    """Where a sampler stands before one of its steps.

    Attributes:
      number: 0 for the first step.
      timestep: what the network is told.
      signal: share of x0 in the latents.
      sigma: share of the noise in them.
      noisy_latents: the latents of the batch.
    """

    number: Int[Array, ""]
    timestep: Real[Array, ""]
    signal: Float[Array, ""]
    sigma: Float[Array, ""]
    noisy_latents: Float[Array, "B h w c"]

    @property
    def timesteps(self) -> Real[Array, " B"]:
        """The timestep once for each example."""
        return jnp.full(self.noisy_latents.shape[:1], self.timestep)


StatefulDenoise = Callable[[Any, Step], tuple[Any, jax.Array]]
"""(state, step) -> (state, model_pred): may remember what it saw in earlier steps."""

Combine = Callable[[Any, Step, jax.Array, jax.Array], tuple[Any, jax.Array]]
"""(state, step, unconditional, conditional) -> (state, model_pred): a guidance rule."""


def with_guidance(
    predict: Predict,
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
    predict_both = with_both_texts(
        predict, encoder_hidden_states, negative_hidden_states
    )

    def denoise(noisy_latents, timesteps):
        unconditional, conditional = predict_both(noisy_latents, timesteps)
        return unconditional + guidance_scale * (conditional - unconditional)

    return denoise


def with_combination(
    predict: Predict,
    encoder_hidden_states: Float[Array, "B L D"],
    negative_hidden_states: Float[Array, "B L D"],
    combine: Combine,
) -> StatefulDenoise:
    """Binds the text to the network, with any rule that mixes the two predictions."""
    predict_both = with_both_texts(
        predict, encoder_hidden_states, negative_hidden_states
    )

    def denoise(state, step):
        return combine(state, step, *predict_both(step.noisy_latents, step.timesteps))

    return denoise


def with_both_texts(
    predict: Predict,
    encoder_hidden_states: Float[Array, "B L D"],
    negative_hidden_states: Float[Array, "B L D"],
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns (noisy_latents, timesteps) -> (unconditional, conditional).

    The network sees one batch of both, `interleaved`, with the negative text first.
    """
    context = interleaved(negative_hidden_states, encoder_hidden_states)

    def predict_both(noisy_latents, timesteps):
        model_pred = predict(
            interleaved(noisy_latents, noisy_latents),
            interleaved(timesteps, timesteps),
            context,
        )
        unconditional, conditional = separated(model_pred, 2)
        return unconditional, conditional

    return predict_both


def interleaved(*batches: Shaped[Array, "B ..."]) -> Shaped[Array, "nB ..."]:
    """Makes one batch in which the rows of an example follow each other.

    One batch after the other would move rows between the devices that share them.
    """
    return jnp.stack(batches, axis=1).reshape(-1, *batches[0].shape[1:])


def separated(batch: Shaped[Array, "nB ..."], n: int) -> list[Array]:
    """Takes the n batches of `interleaved` apart."""
    rows = batch.reshape(-1, n, *batch.shape[1:])
    return [rows[:, turn] for turn in range(n)]


def sample(
    denoise: Denoise,
    trajectory: Trajectory,
    noise: Float[Array, "B h w c"],
    *,
    clip_latents: float | None = None,
) -> Float[Array, "B h w c"]:
    """Follows a trajectory from pure noise to clean latents; see `sample_with_state`."""

    def stateless(state, step):
        return state, denoise(step.noisy_latents, step.timesteps)

    return sample_with_state(
        stateless, (), trajectory, noise, clip_latents=clip_latents
    )


def sample_with_state(
    denoise: StatefulDenoise,
    state: Any,
    trajectory: Trajectory,
    noise: Float[Array, "B h w c"],
    *,
    clip_latents: float | None = None,
) -> Float[Array, "B h w c"]:
    """Follows a trajectory with a network that may remember the steps before.

    Args:
      state: a pytree of arrays, what `denoise` is given at the first step.
      noise: standard normal.
      clip_latents: bound on the absolute value of every estimate of the clean latents;
        sensible where latents are pixels of a known range.
    Source: diffusers' `DDIMScheduler.step` for the clipping, with
      `use_clipped_model_output=True`.
    """

    def take(carry, now):
        number, transition = now
        state, latents, previous_x0 = carry
        timestep, signal, sigma = transition[:3]
        state, model_pred = denoise(
            state, Step(number, timestep, signal, sigma, latents)
        )
        latents, x0 = advance(
            trajectory.prediction_type,
            transition,
            model_pred,
            latents,
            previous_x0,
            clip_latents,
        )
        return (state, latents, x0), None

    steps = jnp.arange(len(trajectory.timesteps)), transitions(trajectory)
    # The first step has no estimate before it, and an extrapolation of 0.
    start = (state, trajectory.noise_scale * noise, jnp.zeros_like(noise))
    (_, latents, _), _ = jax.lax.scan(take, start, steps)
    return latents


class Transition(NamedTuple):
    """One step of a trajectory, or with a leading axis all of them.

    Attributes:
      timestep, signal, sigma: before it, see `Step`.
      next_signal, next_sigma: after it.
      extrapolation: of the change of x0 since the step before.
    """

    timestep: Real[Array, "*S"]
    signal: Float[Array, "*S"]
    sigma: Float[Array, "*S"]
    next_signal: Float[Array, "*S"]
    next_sigma: Float[Array, "*S"]
    extrapolation: Float[Array, "*S"]


def transitions(trajectory: Trajectory) -> Transition:
    """Lists the steps of a trajectory."""
    signal, sigma = jnp.asarray(trajectory.signal), jnp.asarray(trajectory.sigma)
    return Transition(
        jnp.asarray(trajectory.timesteps),
        *(signal[:-1], sigma[:-1], signal[1:], sigma[1:]),
        jnp.asarray(trajectory.extrapolation),
    )


def advance(
    prediction_type: PredictionType,
    transition: Transition,
    model_pred: Float[Array, "B h w c"],
    latents: Float[Array, "B h w c"],
    previous_x0: Float[Array, "B h w c"],
    clip_latents: float | None,
) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]:
    """Takes one step; returns the latents after it, and the estimate x0 behind it."""
    signal, sigma = transition.signal, transition.sigma
    x0, noise = predicted_latents_and_noise(
        prediction_type, model_pred, latents, signal, sigma
    )
    if clip_latents is not None:
        x0 = jnp.clip(x0, -clip_latents, clip_latents)
        noise = (latents - signal * x0) / sigma
    latents = transition.next_signal * x0 + transition.next_sigma * noise
    return latents + transition.extrapolation * (x0 - previous_x0), x0


def first_step(trajectory: Trajectory, noise: Float[Array, "B h w c"]) -> Step:
    """Returns where a trajectory starts from this noise."""
    return Step(
        jnp.asarray(0),
        jnp.asarray(trajectory.timesteps)[0],
        jnp.asarray(trajectory.signal)[0],
        jnp.asarray(trajectory.sigma)[0],
        trajectory.noise_scale * noise,
    )
