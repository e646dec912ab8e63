"""The `config.json` of each published network <-> the configs of ours.

A published config can describe more networks than we have. Its fields become ours, or
have one value that we implement, or change nothing here; others are refused by name.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from copymit.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from copymit.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from copymit.models.functional import describe_params
from copymit.models.text_encoder import CLIPTextModel, TextEncoderConfig
from copymit.models.unet import UNet2DConditionModel, UNetConfig
from copymit.pretrained.published_fields import (
    Json,
    read_fields,
    refusal,
    refuse_others,
    same_for_all_levels,
)

NetworkConfig = (
    UNetConfig | AutoencoderKLConfig | AutoencoderTinyConfig | TextEncoderConfig
)

NETWORKS = ("unet", "vae", "text_encoder")

_MODULES: dict[type, Callable[..., nnx.Module]] = {
    UNetConfig: UNet2DConditionModel,
    AutoencoderKLConfig: AutoencoderKL,
    AutoencoderTinyConfig: AutoencoderTiny,
    TextEncoderConfig: CLIPTextModel,
}

_UNET_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "resnet_out_scale_factor": 1,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
}
_WAY_OUT = "use a model of the family of Stable Diffusion 1.x or 2.x"


def make_network(config: NetworkConfig, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
    """Makes the network of a config; `options` are its other keyword arguments."""
    return _MODULES[type(config)](config, rngs=rngs, **options)


def network_class(config: NetworkConfig) -> str:
    """Returns what diffusers and transformers call the network of this config."""
    return _MODULES[type(config)].__name__  # type: ignore[attr-defined]


def abstract_params(config: NetworkConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns names, shapes and types of a network's parameters, without shardings."""
    parameters = describe_params(lambda rngs: make_network(config, rngs))
    return {name: p.abstract() for name, p in parameters.items()}


def read_network_config(network: str, published: Json) -> NetworkConfig:
    """Translates the `config.json` of a network.

    Args:
      network: one of `NETWORKS`.
    Raises:
      ValueError: it describes another kind of network, or has a setting that ours does
        not have.
    """
    key = "model_type" if network == "text_encoder" else "_class_name"
    readers: dict[tuple[str, Any], Callable[[Json], NetworkConfig]] = {
        ("unet", "UNet2DConditionModel"): _read_unet,
        ("vae", "AutoencoderKL"): _read_autoencoder_kl,
        ("vae", "AutoencoderTiny"): _read_autoencoder_tiny,
        ("text_encoder", "clip_text_model"): read_text_encoder,
    }
    kind = published.get(key)
    known = [name for place, name in readers if place == network]
    try:
        if kind not in known:
            raise refusal(key, kind, f"only {' and '.join(known)} can be read")
        return readers[network, kind](published)
    except ValueError as error:
        raise ValueError(f"{network}/config.json: {error}; {_WAY_OUT}") from error


def published_config(config: NetworkConfig) -> dict[str, Any]:
    """Writes a config as the `config.json` that diffusers or transformers reads.

    Raises:
      ValueError: they have no such network.
    """
    if isinstance(config, UNetConfig):
        return _write_unet(config)
    fields = dataclasses.asdict(config)
    if isinstance(config, TextEncoderConfig):
        kind = {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]}
        return {**kind, **fields}
    if isinstance(config, AutoencoderTinyConfig):
        if fields.pop("use_midblock_gn"):
            raise ValueError(
                "diffusers' AutoencoderTiny has no use_midblock_gn: a model with such "
                "an autoencoder cannot be written for it"
            )
        widths = list(config.encoder_block_out_channels)
        return {
            "_class_name": "AutoencoderTiny",
            **fields,
            "block_out_channels": widths,
        }
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        **fields,
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "shift_factor": config.shift_factor or None,
    }


def _read_unet(published: Json) -> UNetConfig:
    # Published under the name of what it is not: it counts heads.
    heads = published.get("num_attention_heads") or published.get(
        "attention_head_dim", 8
    )
    size: Any = published.get("sample_size") or UNetConfig.sample_size
    square = isinstance(size, list) and len(size) == 2 and size[0] == size[1]
    ours = {
        "sample_size": size[0] if square else size,
        "num_attention_heads": heads,
        "layers_per_block": same_for_all_levels(published, "layers_per_block", 2),
        "transformer_layers": same_for_all_levels(
            published, "transformer_layers_per_block", 1
        ),
        "cross_attention_dim": same_for_all_levels(
            published, "cross_attention_dim", 1280
        ),
        "norm_epsilon": published.get("norm_eps", 1e-5),
    }
    same = {"in_channels", "out_channels", "block_out_channels", "norm_num_groups"}
    same.add("use_linear_projection")
    translated = {"attention_head_dim", "norm_eps", "transformer_layers_per_block"}
    translated |= {"down_block_types", "up_block_types"}
    refuse_others(published, ours.keys() | same | translated, _UNET_FIXED)
    ours |= {name: published[name] for name in same if name in published}
    # The type of the default decides: one number, or one a level.
    defaults = {"num_attention_heads": (8,)} if isinstance(heads, list) else {}
    return UNetConfig(
        **read_fields(UNetConfig, ours, defaults),
        cross_attention=_read_cross_attention(published),
    )


def _read_cross_attention(published: Json) -> tuple[bool, ...]:
    down = published.get(
        "down_block_types", _block_types("Down", (True,) * 3 + (False,))
    )
    up = published.get("up_block_types", _block_types("Up", (False,) + (True,) * 3))
    for name, kinds in (("down_block_types", down), ("up_block_types", up)):
        known = _block_types(
            "Down" if name == "down_block_types" else "Up", (True, False)
        )
        if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
            raise refusal(name, kinds, f"only {' and '.join(known)} are implemented")
    flags = tuple(kind.startswith("CrossAttn") for kind in down)
    if _block_types("Up", flags[::-1]) != up:
        raise refusal("up_block_types", up, f"must mirror down_block_types={down}")
    return flags


def _block_types(side: str, cross_attention: Sequence[bool]) -> list[str]:
    return [f"{'CrossAttn' * cross}{side}Block2D" for cross in cross_attention]


def _write_unet(config: UNetConfig) -> dict[str, Any]:
    flags = tuple(config.cross_attention)
    heads = config.num_attention_heads
    return {
        "_class_name": "UNet2DConditionModel",
        **_UNET_FIXED,
        "sample_size": config.sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": config.block_out_channels,
        "down_block_types": _block_types("Down", flags),
        "up_block_types": _block_types("Up", flags[::-1]),
        "attention_head_dim": heads,
        "layers_per_block": config.layers_per_block,
        "transformer_layers_per_block": config.transformer_layers,
        "cross_attention_dim": config.cross_attention_dim,
        "use_linear_projection": config.use_linear_projection,
        "norm_num_groups": config.norm_num_groups,
        "norm_eps": config.norm_epsilon,
    }


def _read_autoencoder_kl(published: Json) -> AutoencoderKLConfig:
    ours = {**published, "shift_factor": published.get("shift_factor") or 0.0}
    fields = read_fields(AutoencoderKLConfig, ours, {"layers_per_block": 1})
    config = AutoencoderKLConfig(**fields)
    levels = len(config.block_out_channels)
    fixed = {
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    refuse_others(published, fields, fixed)
    return config


def _read_autoencoder_tiny(published: Json) -> AutoencoderTinyConfig:
    fields = read_fields(AutoencoderTinyConfig, published, {})
    # The width is stated for each half, and once more for both.
    refuse_others(published, {*fields, "block_out_channels"}, {})
    return AutoencoderTinyConfig(**fields)


def read_text_encoder(published: Json) -> TextEncoderConfig:
    """Translates the `config.json` of a CLIP text encoder, or that part of CLIP's.

    Raises:
      ValueError: it is of another kind of encoder, or a value is beyond reason.
    """
    # The rest of the file are settings of generation, training and the library.
    kinds = published.get("architectures") or ["CLIPTextModel"]
    if kinds != ["CLIPTextModel"]:
        raise refusal("architectures", kinds, "only CLIPTextModel can be read")
    defaults = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
    }
    return TextEncoderConfig(**read_fields(TextEncoderConfig, published, defaults))
