"""The networks of a run, as its config describes them, as pure functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from copymit.models.autoencoder import make_autoencoder
from copymit.models.functional import Parameter, Params, describe_params, make_apply
from copymit.models.lora import lora_parameters
from copymit.models.text_encoder import CLIPTextModel, TextEncoderConfig
from copymit.models.unet import UNet2DConditionModel, UNetConfig
from copymit.sharding import params_sharding

ModelParams = dict[str, Params]
"""By network (`unet`, `text_encoder`, `vae`), named as in a diffusers folder; an
autoencoder without parameters has no entry."""


NetworkParameters = dict[str, dict[str, Parameter]]
"""The same before there are arrays."""


class DiffusionModel(NamedTuple):
    """A text-to-image model without its parameters.

    Attributes:
      latent_shape: (h, w, c).
      parameters: of each network, in the structure of `ModelParams`.
      encode_images: (params, pixel_values) -> moments of the latents; costly, and the
        same at every visit of an image.
      sample_latents: (moments, key) -> latents.
      decode_latents: (params, latents) -> pixel_values.
      predict: (params, noisy_latents, timesteps, encoder_hidden_states) -> model_pred; with
        a fifth argument `control`, (model_pred, taps): see `attention_control`.
      encode_text: (params, input_ids) -> encoder_hidden_states.
      dtype: of the computation.
    """

    latent_shape: tuple[int, int, int]
    parameters: NetworkParameters
    encode_images: Callable[
        [ModelParams, Float[Array, "B H W 3"]], Float[Array, "B h w m"]
    ]
    sample_latents: Callable[
        [Float[Array, "B h w m"], jax.Array], Float[Array, "B h w c"]
    ]
    decode_latents: Callable[
        [ModelParams, Float[Array, "B h w c"]], Float[Array, "B H W 3"]
    ]
    predict: Callable[..., Any]
    encode_text: Callable[[ModelParams, Int[Array, "B L"]], Float[Array, "B L D"]]
    dtype: str = "float32"


def make_model(config: ConfigDict, resolution: int, dtype: str) -> DiffusionModel:
    """Builds the networks of the `model` section for images of `resolution` pixels.

    Args:
      dtype: of the computation; parameters are float32.
    Raises:
      ValueError: for sizes that do not fit each other.
    """
    autoencoder = make_autoencoder(config.autoencoder, dtype)
    if resolution % autoencoder.downsampling:
        raise ValueError(
            f"data.resolution={resolution} must be a multiple of the autoencoder's "
            f"downsampling, {autoencoder.downsampling}"
        )
    size = resolution // autoencoder.downsampling
    unet_config, text_config = text_to_latents_configs(config, resolution)
    make_unet = functools.partial(
        _make_module, UNet2DConditionModel, unet_config, jnp.dtype(dtype)
    )
    make_text = functools.partial(
        _make_module, CLIPTextModel, text_config, jnp.dtype(dtype)
    )
    apply_unet, apply_text = make_apply(make_unet), make_apply(make_text)

    parameters = {
        "unet": describe_params(make_unet),
        "text_encoder": describe_params(make_text),
    }
    if autoencoder.parameters:
        parameters["vae"] = autoencoder.parameters

    def predict(params, *inputs, **control):
        return apply_unet(params["unet"], *inputs, **control)

    def encode_text(params, input_ids):
        return apply_text(params["text_encoder"], input_ids).last_hidden_state

    def encode_images(params, pixel_values):
        return autoencoder.encode(params.get("vae", {}), pixel_values)

    def decode_latents(params, latents):
        return autoencoder.decode(params.get("vae", {}), latents)

    return DiffusionModel(
        (size, size, autoencoder.latent_channels),
        parameters,
        encode_images,
        autoencoder.sample,
        decode_latents,
        predict,
        encode_text,
        dtype,
    )


def for_inference(params: ModelParams, dtype: str) -> ModelParams:
    """Casts kernels to the dtype of the computation, once instead of at every use.

    The networks compute the same bits with them; norms and biases stay, since they are
    used in float32.
    """
    return {
        network: {
            name: value.astype(dtype) if name.endswith("kernel") else value
            for name, value in values.items()
        }
        for network, values in params.items()
    }


def abstract_params(model: DiffusionModel, mesh: Mesh) -> dict[str, dict[str, Any]]:
    """Describes all parameters of a model; see `abstract_networks`."""
    return abstract_networks(model.parameters, mesh)


def trained_and_frozen(
    model: DiffusionModel, config: ConfigDict
) -> tuple[NetworkParameters, NetworkParameters]:
    """Divides the networks into what trains and what stays as it is.

    With `train.lora_rank`, networks that would train stay, and the factors beside their
    layers train, under the same names: see `copymit.models.lora`.

    Raises:
      ValueError: if `train.lora_targets` name no layer of a network.
    """
    still = {"vae"} if config.model.text_encoder.train else {"vae", "text_encoder"}
    trained = {k: v for k, v in model.parameters.items() if k not in still}
    frozen = {k: v for k, v in model.parameters.items() if k in still}
    # Runs of an older copymit do not say.
    rank = config.train.lora_rank if "lora_rank" in config.train else 0
    if not rank:
        return trained, frozen
    targets = config.train.lora_targets
    factors = {k: lora_parameters(v, rank, targets) for k, v in trained.items()}
    for name in (k for k, v in factors.items() if not v):
        raise ValueError(
            f"train.lora_targets={', '.join(targets)} names no layer of the {name}: "
            "give ends of its layers' names, such as to_q or q_proj"
        )
    return factors, frozen | trained


def abstract_networks(
    networks: NetworkParameters, mesh: Mesh
) -> dict[str, dict[str, Any]]:
    """Describes parameters (shapes, dtypes, shardings) without making them."""
    return {
        network: {
            name: parameter.abstract(sharding[name])
            for name, parameter in parameters.items()
        }
        for network, parameters in networks.items()
        for sharding in [params_sharding(parameters, mesh)]
    }


def text_to_latents_configs(
    config: ConfigDict, resolution: int
) -> tuple[UNetConfig, TextEncoderConfig]:
    """Reads the sizes of the UNet and the text encoder from the `model` section.

    What one network must know of another is filled in from there.
    """
    autoencoder = make_autoencoder(config.autoencoder)
    text_config = text_encoder_config(config.text_encoder)
    unet_config = UNetConfig(
        sample_size=resolution // autoencoder.downsampling,
        in_channels=autoencoder.latent_channels,
        out_channels=autoencoder.latent_channels,
        cross_attention_dim=text_config.hidden_size,
        **config.unet,
    )
    return unet_config, text_config


def text_encoder_config(config: ConfigDict) -> TextEncoderConfig:
    """Reads the shape of the text encoder from the `model.text_encoder` section.

    Captions longer than CLIP's 77 tokens get positions of their own.
    """
    shape = dict(config)
    longest = max(shape.pop("max_length"), shape.pop("max_position_embeddings"))
    del shape["train"], shape["pad_token_id"]
    return TextEncoderConfig(**shape, max_position_embeddings=longest)


def _make_module(module, config, dtype, rngs):
    return module(config, dtype=dtype, rngs=rngs)
