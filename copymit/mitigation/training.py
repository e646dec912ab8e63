"""The mitigations of a training, put together: captions, their embeddings, examples.

What is off costs nothing, and without any of them everything is as it was.
"""

import functools
import operator
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from copymit.data.captions import CaptionFunction
from copymit.diffusion.noise_scheduler import NoiseScheduler
from copymit.mitigation.effect import as_noise
from copymit.mitigation.record import Values
from copymit.mitigation.registry import active
from copymit.mitigation.rewriting import Decode

Perturb = Callable[[jax.Array, jax.Array], jax.Array]
"""(encoder_hidden_states, key) -> encoder_hidden_states."""

Keep = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(conditional, unconditional prediction, timesteps) -> which examples count, bool (B,)."""


def own_key(key: jax.Array, name: str) -> jax.Array:
    """Returns the key of one mitigation: no two draw the same numbers."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def training_caption(
    caption: CaptionFunction, values: Values, decode: Decode
) -> CaptionFunction:
    """Returns the caption function of a training with its mitigations.

    Args:
      values: the section `mitigation.train`.
      decode: token ids to text.
    """
    for m in active("train", values):
        if m.caption:
            caption = m.caption(values, decode)(caption)
    return caption


def training_text(values: Values) -> Perturb:
    """Returns what a training does to text embeddings."""
    changes = [(m.name, m.training_text) for m in active("train", values)]

    def perturb(hidden: jax.Array, key: jax.Array) -> jax.Array:
        for name, change in changes:
            if change:
                hidden = change(values, hidden, own_key(key, name))
        return hidden

    return perturb


def kept_examples(values: Values, noise_scheduler: NoiseScheduler) -> Keep | None:
    """Returns which examples are trained on, or None for all."""
    rules = [m.keep for m in active("train", values) if m.keep]
    if not rules:
        return None

    def keep(conditional, unconditional, timesteps) -> jax.Array:
        signal = jnp.sqrt(jnp.asarray(noise_scheduler.alphas_cumprod)[timesteps])
        difference = jax.lax.stop_gradient(conditional - unconditional)
        effect = as_noise(noise_scheduler.prediction_type, difference, signal)
        return functools.reduce(operator.and_, (rule(values, effect) for rule in rules))

    return keep
