"""Any autoencoder as pure functions: pixels in [-1, 1] to latents, and back.

Encoding goes in two steps, so that the costly one can be done once and kept: pixels to
the moments of the latents, and moments to a sample of about unit variance.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from copymit.models.autoencoder_kl import (
    AutoencoderKL,
    AutoencoderKLConfig,
    LatentMoments,
    sample_latents,
    scale_latents,
    unscale_latents,
)
from copymit.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from copymit.models.fixed_autoencoder import BlockDCT, SpaceToDepth
from copymit.models.functional import (
    Parameter,
    Params,
    describe_params,
    make_apply,
)

AUTOENCODERS = ("space_to_depth", "block_dct", "kl", "tiny")


class Autoencoder(NamedTuple):
    """An autoencoder without its parameters.

    Attributes:
      downsampling: pixels to one side of a latent position.
      latent_channels: channels of the latents.
      parameters: of the network; none for a fixed transform.
      encode: (params, pixel_values) -> moments, which may be cached.
      sample: (moments, key) -> latents of about unit variance; a transform that draws
        nothing ignores the key.
      decode: (params, latents) -> pixel_values.
    """

    downsampling: int
    latent_channels: int
    parameters: dict[str, Parameter]
    encode: Callable[[Params, Float[Array, "B H W 3"]], Float[Array, "B h w m"]]
    sample: Callable[[Float[Array, "B h w m"], jax.Array], Float[Array, "B h w c"]]
    decode: Callable[[Params, Float[Array, "B h w c"]], Float[Array, "B H W 3"]]


def make_autoencoder(config: ConfigDict, dtype: str = "float32") -> Autoencoder:
    """Builds the autoencoder that `config` (the `model.autoencoder` section) names.

    Args:
      dtype: of the computation of networks; parameters are float32.
    Raises:
      ValueError: for an unknown name or sizes that do not fit.
    """
    if config.name == "space_to_depth":
        return _fixed(SpaceToDepth(config.patch_size, config.scale, config.shift))
    if config.name == "block_dct":
        kept = (config.luminance, config.chrominance)
        return _fixed(BlockDCT(config.patch_size, *kept, config.scale, config.shift))
    if config.name == "kl":
        return _variational(AutoencoderKLConfig(**config.kl), dtype)
    if config.name == "tiny":
        return _tiny(AutoencoderTinyConfig(**config.tiny), dtype)
    raise ValueError(
        f"model.autoencoder.name={config.name!r} is not known: use one of "
        f"{', '.join(AUTOENCODERS)}"
    )


def _fixed(transform: SpaceToDepth | BlockDCT) -> Autoencoder:
    return Autoencoder(
        transform.downsampling,
        transform.latent_channels,
        parameters={},
        encode=lambda params, pixel_values: transform.encode(pixel_values),
        sample=lambda moments, key: moments,
        decode=lambda params, latents: transform.decode(latents),
    )


def _variational(config: AutoencoderKLConfig, dtype: str) -> Autoencoder:
    def make(rngs):
        return AutoencoderKL(config, dtype=jnp.dtype(dtype), rngs=rngs)

    encode = make_apply(make, "encode_moments")
    decode = make_apply(make, "decode")
    scaling = (config.scaling_factor, config.shift_factor)

    def sample(moments, key):
        latents = sample_latents(LatentMoments(*jnp.split(moments, 2, axis=-1)), key)
        return scale_latents(latents, *scaling)

    return Autoencoder(
        config.downsampling,
        config.latent_channels,
        parameters=describe_params(make),
        encode=lambda params, x: jnp.concatenate(encode(params, x), axis=-1),
        sample=sample,
        decode=lambda params, z: decode(params, unscale_latents(z, *scaling)),
    )


def _tiny(config: AutoencoderTinyConfig, dtype: str) -> Autoencoder:
    def make(rngs):
        return AutoencoderTiny(config, dtype=jnp.dtype(dtype), rngs=rngs)

    encode, decode = make_apply(make, "encode"), make_apply(make, "decode")
    scaling = (config.scaling_factor, config.shift_factor)
    return Autoencoder(
        config.downsampling,
        config.latent_channels,
        parameters=describe_params(make),
        encode=encode,
        sample=lambda moments, key: scale_latents(moments, *scaling),
        decode=lambda params, z: decode(params, unscale_latents(z, *scaling)),
    )
