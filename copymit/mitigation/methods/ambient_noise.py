"""Ambient noise: above a noise level, a training only ever sees one noisy copy of an image.

What makes an image itself is decided while the latents are noisy, and what makes it sharp
afterwards. So at the noisy levels each image is replaced by a copy with noise of its own,
the same at every visit, of which it cannot be recovered; below them nothing changes. It
needs neither duplicates, nor captions, nor another model: what is left to someone who
fine-tunes on a few hundred different images.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.diffusion.noise_scheduler import (
    NoiseScheduler,
    add_noise,
    training_target,
)
from copymit.diffusion.objective import Draw, Noised
from copymit.mitigation.descent import per_row
from copymit.mitigation.record import Mitigation, Setting, Values


def ambient_noise(
    noise_scheduler: NoiseScheduler,
    latents: Float[Array, "B h w c"],
    draw: Draw,
    own_noise: Float[Array, "B h w c"],
    level: float,
) -> Noised:
    """Returns what is trained on.

    With `A x0 + S n` the copy of an image, `S / A = level`, the latents at a noisier level
    with the signal `s = r A` are `r (A x0 + S n) + sqrt(1 - r^2) e`. The network is to
    find x0, of which these say `E[A x0 + S n] = A b E[x0] + (r S^2 / sigma^2) xt` with
    `b = (1 - r^2) / sigma^2`, so that the copy itself is what the estimate is held to.

    Args:
      own_noise: n, normal and of the image alone.
      level: deviation of the noise over the share of the image.
    """
    timesteps = draw.timesteps
    a = jnp.asarray(noise_scheduler.alphas_cumprod)[timesteps]
    signal, sigma = (per_row(x, latents) for x in (jnp.sqrt(a), jnp.sqrt(1 - a)))
    A = (1 + level**2) ** -0.5
    S = level * A
    noisier = signal <= A
    r = jnp.minimum(signal / A, 1)
    copy = A * latents + S * own_noise
    seen = r * copy + jnp.sqrt(1 - r**2) * draw.noise
    b = (1 - r**2) / sigma**2
    if noise_scheduler.prediction_type == "epsilon":
        target = jnp.sqrt(1 - r**2) / sigma * draw.noise
    else:
        b_x0 = (copy - r * S**2 / sigma**2 * seen) / A
        target = (b * signal * seen - b_x0) / sigma
    usual = (
        add_noise(noise_scheduler, latents, draw.added, timesteps),
        training_target(noise_scheduler, latents, draw.noise, timesteps),
    )
    return Noised(
        jnp.where(noisier, seen, usual[0]),
        jnp.where(noisier, b, 1.0).reshape(-1),
        jnp.where(noisier, target, usual[1]),
    )


def _noising(
    values: Values,
    noise_scheduler: NoiseScheduler,
    latents: Float[Array, "B h w c"],
    draw: Draw,
    keys: jax.Array,
) -> Noised:
    own_noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:]))(keys)
    level = values["ambient_noise"]
    return ambient_noise(noise_scheduler, latents, draw, own_noise, level)


MITIGATIONS = (
    Mitigation(
        "ambient_noise",
        ("ambient", "ambient_highnoise_edm_lownoise"),
        "at noisy levels, training sees one noisy copy of each image alone",
        (
            Setting(
                "train.ambient_noise",
                0.0,
                "deviation of the copy's noise over the share of the image in it",
                0,
                100,
            ),
        ),
        strength=1.0,
        published="deviation 0.5, of pixels in [-1, 1] with deviation 0.5, for 300 images",
        changed="in latents, whose deviation is about 1, it is 1; a mirror image has noise "
        "of its own; weights are those of the training's own loss",
        source="Shah et al. 2025, Does Generation Require Memorization? Creative Diffusion "
        "Models using Ambient Diffusion; `AmbientHighNoise_EDMLowNoise_Loss` of "
        "kulinshah98/memorization_noisy_data",
        label="ambient noise",
        tried=(1.0, 2.0),
        noising=_noising,
    ),
)
