"""Images from captions: text encoder, sampler and decoder as one compiled function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8
from ml_collections import ConfigDict

from copymit.diffusion.noise_scheduler import NoiseScheduler
from copymit.diffusion.sampler import (
    TimestepSpacing,
    ddim_sample,
    inference_timesteps,
    with_guidance,
)
from copymit.models.assembly import DiffusionModel, ModelParams

Generate = Callable[[ModelParams, Any, Any], UInt8[Array, "B H W 3"]]
"""(params, input_ids "B L", image_ids "B") -> images; host or device arrays."""


class SamplingOptions(NamedTuple):
    """How images are sampled.

    Attributes:
      seed: together with an image's id it fixes the image's initial noise.
      guidance_scale: of classifier-free guidance; 1 means none.
      clip_latents: bound on every estimate of the clean latents, or None.
    """

    seed: int
    num_inference_steps: int
    guidance_scale: float
    timestep_spacing: TimestepSpacing
    clip_latents: float | None


def sampling_options(config: ConfigDict) -> SamplingOptions:
    """Reads the options from the `eval` section.

    Raises:
      ValueError: for a sampler that is not known.
    """
    if config.sampler != "ddim":
        raise ValueError(f"eval.sampler={config.sampler!r} is not known: use ddim")
    return SamplingOptions(
        config.seed,
        config.num_inference_steps,
        config.guidance_scale,
        config.timestep_spacing,
        config.clip_latents or None,
    )


def make_generate(
    model: DiffusionModel,
    noise_scheduler: NoiseScheduler,
    options: SamplingOptions,
    negative_ids: Int[np.ndarray, " L"],
) -> Generate:
    """Returns the compiled generator.

    An image depends on the parameters, its caption, the seed and its own id, and on
    nothing else: not on the batch it is made in, nor on the number of devices.

    Args:
      negative_ids: token ids of the caption that guidance leads away from, usually the
        empty one.
    """
    timesteps = inference_timesteps(
        noise_scheduler.num_train_timesteps,
        options.num_inference_steps,
        options.timestep_spacing,
    )

    def generate(params: ModelParams, input_ids, image_ids):
        key = jax.random.key(options.seed)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(image_ids)
        noise = jax.vmap(lambda k: jax.random.normal(k, model.latent_shape))(keys)
        negative = jnp.broadcast_to(negative_ids, input_ids.shape)
        denoise = with_guidance(
            lambda *inputs: model.predict(params, *inputs),
            model.encode_text(params, input_ids),
            model.encode_text(params, negative),
            options.guidance_scale,
        )
        latents = ddim_sample(
            denoise,
            noise_scheduler,
            noise,
            timesteps,
            clip_latents=options.clip_latents,
        )
        pixel_values = model.autoencoder.decode(latents)
        return jnp.round(jnp.clip(pixel_values + 1, 0, 2) * 127.5).astype(jnp.uint8)

    return jax.jit(generate)
