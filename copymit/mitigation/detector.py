"""Every detector of a batch of prompts, from shared forward passes, as one `jit`.

Parameters, token ids and prompt numbers enter; by name, one number a prompt leaves. The
formulas are in `detectors/`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from copymit.diffusion.sampler import advance, interleaved, separated, transitions
from copymit.diffusion.trajectory import Trajectory
from copymit.mitigation.detectors import all_detectors
from copymit.mitigation.effect import PUBLISHED_COMPONENTS, as_noise
from copymit.mitigation.observation import (
    FirstStep,
    Observation,
    attribution,
    bright_ending,
    end_positions,
    mean_attention,
    unit,
)
from copymit.models.assembly import DiffusionModel, ModelParams
from copymit.models.attention_control import AttentionTaps, keep_logits

DETECTORS = all_detectors()
"""The detectors by name, in order."""

Detect = Callable[[ModelParams, Any, Any], dict[str, Array]]
"""(params, input_ids "B L", prompt_ids "B") -> by detector (B,), and
`token_attribution` (B, L); host or device arrays."""


class DetectionOptions(NamedTuple):
    """How prompts are looked at.

    Attributes:
      seed: as of the generator: with it the first noise of prompt i is that of image i.
      guidance_scale: of the sampler whose steps are looked at.
      clip_latents: as of the sampler.
      num_seeds: initial noises a prompt, over which all detectors are averaged; the cost
        grows with it. Seeds follow each other.
      entropy_layer: of entropy E, counted in the order of the forward pass.
      entropy_steps: the last ones, of entropy D.
      text_noise: deviation of the noise on the embedding, for the stability.
      num_text_noises: draws of it.
    """

    seed: int = 0
    guidance_scale: float = 7.5
    clip_latents: float | None = None
    num_seeds: int = 1
    entropy_layer: int = 3
    entropy_steps: int = 10
    text_noise: float = 0.1
    num_text_noises: int = 2


class _Observed(NamedTuple):
    """What one forward pass, of both halves of guidance, shows.

    Attributes:
      conditional, difference: `f(x, c)` and `f(x, c) - f(x, 0)`, whatever the network
        predicts.
      taps: attention of the conditional half.
    """

    conditional: Float[Array, "B h w c"]
    difference: Float[Array, "B h w c"]
    taps: AttentionTaps


def make_detector(
    model: DiffusionModel,
    trajectory: Trajectory,
    options: DetectionOptions,
    negative_ids: Int[Array, " L"],
) -> Detect:
    """Returns the compiled detector.

    Follows the sampler once for each initial noise. The first step's prediction is
    differentiated, which gives sharpness and token attribution; further passes are only
    those under noise on the text. A prompt's numbers depend on nothing but parameters,
    its text, the seed and its own id.

    Args:
      model: its UNet's attention must have second derivatives, which `flash` has not.
      negative_ids: token ids of the prompt that guidance leads away from.
    Raises:
      ValueError: for options out of range, which are named.
    """
    _check(options)

    def detect(params, input_ids, prompt_ids):
        text = model.encode_text(params, input_ids)
        negative = model.encode_text(
            params, jnp.broadcast_to(negative_ids, input_ids.shape)
        )
        ends = end_positions(input_ids)

        def observe(latents, text, timestep) -> _Observed:
            model_pred, taps = model.predict(
                params,
                interleaved(latents, latents),
                jnp.full((2 * len(latents),), timestep),
                interleaved(negative, text),
                control=keep_logits,
            )
            unconditional, conditional = separated(model_pred, 2)
            return _Observed(
                conditional,
                conditional - unconditional,
                {layer: separated(x, 2)[1] for layer, x in taps.items()},
            )

        def from_noise(seed):
            keys = _keys_of(options.seed + seed, prompt_ids)
            noise = jax.vmap(lambda k: jax.random.normal(k, model.latent_shape))(keys)
            return _measure(
                observe,
                lambda x, t, c: model.predict(params, x, t, c),
                text,
                ends,
                keys,
                noise,
                trajectory,
                options,
            )

        measured = jax.lax.map(from_noise, jnp.arange(options.num_seeds))
        return jax.tree.map(lambda x: x.mean(0), measured)

    return jax.jit(detect)


def _check(options: DetectionOptions) -> None:
    for name, least in (
        ("num_seeds", 1),
        ("entropy_layer", 0),
        ("entropy_steps", 1),
        ("num_text_noises", 1),
    ):
        value = getattr(options, name)
        if value < least:
            raise ValueError(f"detection: {name}={value} must be at least {least}")
    if not options.text_noise > 0:
        raise ValueError(
            f"detection: text_noise={options.text_noise} must be above 0; usual is 0.1"
        )


def _keys_of(seed, prompt_ids):
    """Returns the generator's key of each image."""
    key = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(prompt_ids)


def _measure(observe, predict, text, ends, keys, noise, trajectory, options):
    """Measures everything along the way from one noise a prompt."""
    steps = transitions(trajectory)
    first, rest = (
        jax.tree.map(lambda x: x[0], steps),
        jax.tree.map(lambda x: x[1:], steps),
    )
    latents = trajectory.noise_scale * noise
    observed, at_first = _look_closely(
        trajectory, observe, predict, latents, text, keys, first, options
    )
    carry = _advance(
        trajectory, options, first, observed, latents, jnp.zeros_like(latents)
    )

    def take(carry, now):
        latents, previous_x0 = carry
        observed = observe(latents, text, now.timestep)
        carry = _advance(trajectory, options, now, observed, latents, previous_x0)
        return carry, _summarise(trajectory, observed, ends, now.signal)

    start = _summarise(trajectory, observed, ends, first.signal)
    _, later = jax.lax.scan(take, carry, rest)
    squares, attention, bright = (
        jnp.concatenate([x[None], y]) for x, y in zip(start, later, strict=True)
    )
    seen = Observation(ends, at_first, squares, attention, bright[-1])
    measured = {d.name: d.measure(seen, options) for d in DETECTORS.values()}
    return measured | {"token_attribution": attribution(at_first.text_gradient)}


def _look_closely(trajectory, observe, predict, latents, text, keys, first, options):
    """Returns what the first step shows, to all and to those that differentiate it."""

    def noise_of(difference):
        return as_noise(trajectory.prediction_type, difference, first.signal)

    def difference(latents, text):
        observed = observe(latents, text, first.timestep)
        return noise_of(observed.difference), observed

    d, pull, observed = jax.vjp(difference, latents, text, has_aux=True)
    _, gradient = pull(unit(d))
    # The pullback is linear, so its own pullback pushes forward: `J d` as jax.jvp has it,
    # but from the same forward pass, and through operations with a gradient of their own.
    _, push = jax.vjp(lambda cotangent: pull(cotangent)[0], jnp.zeros_like(d))
    (curvature,) = push(d)

    def disturbed(draw):
        noise = jax.vmap(
            lambda k: jax.random.normal(jax.random.fold_in(k, draw), text.shape[1:])
        )(keys)
        timesteps = jnp.full(latents.shape[:1], first.timestep)
        blurred = predict(latents, timesteps, text + options.text_noise * noise)
        return noise_of(blurred - observed.conditional)

    # The generator draws 1 and 2 for its own noise on the text.
    draws = 3 + jnp.arange(options.num_text_noises)
    changes = jax.lax.map(disturbed, draws)
    return observed, FirstStep(
        first.sigma, d, curvature, gradient, changes, observed.taps
    )


def _summarise(trajectory, observed: _Observed, ends, signal) -> tuple[Array, ...]:
    """Is what must be remembered of every step, in less memory."""
    effect = as_noise(trajectory.prediction_type, observed.difference, signal)
    squares = jnp.sum(jnp.square(effect), axis=-1)
    return (
        squares * (PUBLISHED_COMPONENTS / effect[0].size),
        mean_attention(observed.taps),
        bright_ending(observed.taps, ends, (effect.shape[1], effect.shape[2])),
    )


def _advance(trajectory, options, now, observed: _Observed, latents, previous_x0):
    """Takes the sampler's step, with the guidance of `options`."""
    unconditional = observed.conditional - observed.difference
    model_pred = unconditional + options.guidance_scale * observed.difference
    return advance(
        trajectory.prediction_type,
        now,
        model_pred,
        latents,
        previous_x0,
        options.clip_latents,
    )
