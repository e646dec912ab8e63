"""The mitigations of a training, put together: captions, their embeddings, examples.

What is off costs nothing, and without any of them everything is as it was.
"""

import functools
import operator
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Real

from copymit.data.captions import CaptionFunction
from copymit.diffusion.noise_scheduler import NoiseScheduler
from copymit.diffusion.objective import Draw, Noised
from copymit.mitigation.effect import as_noise
from copymit.mitigation.record import Values, Words
from copymit.mitigation.registry import active, setting_error

Perturb = Callable[[jax.Array, jax.Array], jax.Array]
"""(encoder_hidden_states, key) -> encoder_hidden_states."""

Keep = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(conditional, unconditional prediction, timesteps) -> which examples count, bool (B,)."""


Noising = Callable[[jax.Array, Draw, jax.Array], Noised]
"""(latents, draw of the step, a key of each image) -> what is trained on."""


def own_key(key: jax.Array, name: str) -> jax.Array:
    """Returns the key of one mitigation: no two draw the same numbers."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def training_caption(
    caption: CaptionFunction, values: Values, words: Words
) -> CaptionFunction:
    """Returns the caption function of a training with its mitigations.

    Args:
      values: the section `mitigation.train`.
    """
    for m in active("train", values):
        if m.caption:
            caption = m.caption(values, words)(caption)
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


def training_noise(values: Values, noise_scheduler: NoiseScheduler) -> Noising | None:
    """Returns how images of a batch are made noisy, or None for the usual way.

    Raises:
      ValueError: if two mitigations do it.
    """
    found = [m for m in active("train", values) if m.noising]
    if len(found) > 1:
        problem = f"and {found[1].switch.name} both make images noisy: use one of them"
        raise setting_error(found[0].switch, values, problem)
    rules = [
        functools.partial(m.noising, values, noise_scheduler)
        for m in found
        if m.noising
    ]
    return rules[0] if rules else None


def image_keys(images: Real[Array, "B ..."], key: jax.Array) -> jax.Array:
    """Returns a key of each image, the same at every visit: it is made of its content.

    Args:
      images: pixels or moments, as the batch has them.
    """
    rows = images.reshape(len(images), -1)
    if jnp.issubdtype(rows.dtype, jnp.floating):
        rows = jax.lax.bitcast_convert_type(rows.astype(jnp.float32), jnp.uint32)
    # Sums of integers do not depend on their order; odd weights notice a swap.
    weights = 2 * jnp.arange(rows.shape[1], dtype=jnp.uint32) + 1
    sums = jnp.sum(rows.astype(jnp.uint32) * weights, axis=1, dtype=jnp.uint32)
    return jax.vmap(lambda s: jax.random.fold_in(key, s))(sums)
