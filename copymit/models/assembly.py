"""The networks of a run, as its config describes them, as pure functions."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from copymit.models.autoencoder import Autoencoder, BlockDCT, SpaceToDepth
from copymit.models.functional import Params, init_params, make_apply
from copymit.models.text_encoder import CLIPTextModel, TextEncoderConfig
from copymit.models.unet import UNet2DConditionModel, UNetConfig

ModelParams = dict[str, Params]
"""`{"unet": ..., "text_encoder": ...}`."""


class DiffusionModel(NamedTuple):
    """A text-to-image model without its parameters.

    Attributes:
      autoencoder: pixels to latents and back.
      latent_shape: (h, w, c).
      init: random key -> parameters; traceable.
      predict: (params, noisy_latents, timesteps, encoder_hidden_states) -> model_pred.
      encode_text: (params, input_ids) -> encoder_hidden_states.
    """

    autoencoder: Autoencoder
    latent_shape: tuple[int, int, int]
    init: Callable[[jax.Array], ModelParams]
    predict: Callable[
        [
            ModelParams,
            Float[Array, "B h w c"],
            Int[Array, " B"],
            Float[Array, "B L D"],
        ],
        Float[Array, "B h w c"],
    ]
    encode_text: Callable[[ModelParams, Int[Array, "B L"]], Float[Array, "B L D"]]


def make_model(config: ConfigDict, resolution: int, dtype: str) -> DiffusionModel:
    """Builds the networks of the `model` section for images of `resolution` pixels.

    Args:
      dtype: of the computation; parameters are float32.
    Raises:
      ValueError: for sizes that do not fit each other.
    """
    autoencoder = make_autoencoder(config.autoencoder)
    if resolution % autoencoder.downsampling:
        raise ValueError(
            f"data.resolution={resolution} must be a multiple of the autoencoder's "
            f"downsampling, {autoencoder.downsampling}"
        )
    size = resolution // autoencoder.downsampling
    text = dict(config.text_encoder)
    max_length = text.pop("max_length")
    del text["train"], text["pad_token_id"]
    text_config = TextEncoderConfig(**text, max_position_embeddings=max(77, max_length))
    unet_config = UNetConfig(
        sample_size=size,
        in_channels=autoencoder.latent_channels,
        out_channels=autoencoder.latent_channels,
        cross_attention_dim=text_config.hidden_size,
        **config.unet,
    )
    make_unet = functools.partial(
        _make_module, UNet2DConditionModel, unet_config, jnp.dtype(dtype)
    )
    make_text = functools.partial(
        _make_module, CLIPTextModel, text_config, jnp.dtype(dtype)
    )
    apply_unet, apply_text = make_apply(make_unet), make_apply(make_text)

    def init(key: jax.Array) -> ModelParams:
        unet_key, text_key = jax.random.split(key)
        return {
            "unet": init_params(make_unet, unet_key),
            "text_encoder": init_params(make_text, text_key),
        }

    def predict(params, noisy_latents, timesteps, encoder_hidden_states):
        return apply_unet(
            params["unet"], noisy_latents, timesteps, encoder_hidden_states
        )

    def encode_text(params, input_ids):
        return apply_text(params["text_encoder"], input_ids).last_hidden_state

    return DiffusionModel(
        autoencoder,
        (size, size, autoencoder.latent_channels),
        init,
        predict,
        encode_text,
    )


def make_autoencoder(config: ConfigDict) -> Autoencoder:
    """Builds the autoencoder that `config` names.

    Raises:
      ValueError: for an unknown name.
    """
    if config.name == "space_to_depth":
        return SpaceToDepth(config.patch_size, config.scale, config.shift)
    if config.name == "block_dct":
        return BlockDCT(
            config.patch_size,
            config.luminance,
            config.chrominance,
            config.scale,
            config.shift,
        )
    raise ValueError(
        f"model.autoencoder.name={config.name!r} is not known: use space_to_depth or "
        "block_dct"
    )


def _make_module(module, config, dtype, rngs):
    return module(config, dtype=dtype, rngs=rngs)
