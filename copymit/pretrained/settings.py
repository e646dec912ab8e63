"""A config whose model is a published one: its sizes filled in, its weights loaded."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from copymit.data.tokenizer import VOCAB_SIZE
from copymit.diffusion.scheduler_config import diffusion_settings
from copymit.models.assembly import DiffusionModel, ModelParams, abstract_params
from copymit.models.autoencoder_kl import AutoencoderKLConfig
from copymit.pretrained.components import NETWORKS, NetworkConfig, read_network_config
from copymit.pretrained.load import load_network
from copymit.pretrained.source import Source, open_source, read_json

_PAD_TOKENS = {"!": 0, "<|endoftext|>": 49_407}


def with_pretrained_settings(config: ConfigDict) -> ConfigDict:
    """Returns the config with the sizes and the noise schedule of `model.pretrained`.

    What is about training stays as it was: which networks train, rematerialisation, the
    choice of attention, and a noise schedule stretched to pure noise if asked for. A
    config without `model.pretrained` is returned as it is.

    Raises:
      FileNotFoundError, ValueError, ConnectionError: if the model cannot be opened, is
        of another kind, or its networks do not fit each other.
    """
    if not config.model.pretrained:
        return config
    unknown = sorted(set(config.model.from_scratch) - {"unet", "text_encoder"})
    if unknown:
        raise ValueError(
            f"model.from_scratch names {', '.join(unknown)}: only unet and text_encoder "
            "can start at random"
        )
    source = open_source(config.model.pretrained)
    networks = {
        name: read_network_config(name, read_json(source, f"{name}/config.json"))
        for name in NETWORKS
    }
    scheduler = diffusion_settings(read_json(source, "scheduler/scheduler_config.json"))
    scheduler["rescale_betas_zero_snr"] |= config.diffusion.rescale_betas_zero_snr
    _check_fit(source, networks)
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        config.diffusion.update(scheduler)
        _fill(config.model.unet, vars(networks["unet"]))
        text = vars(networks["text_encoder"])
        _fill(config.model.text_encoder, text)
        config.model.text_encoder.max_length = text["max_position_embeddings"]
        config.model.text_encoder.pad_token_id = _pad_token_id(source)
        kind = "kl" if isinstance(networks["vae"], AutoencoderKLConfig) else "tiny"
        config.model.autoencoder.name = kind
        _fill(config.model.autoencoder[kind], vars(networks["vae"]))
    return config


def load_networks(config: ConfigDict, model: DiffusionModel, mesh: Mesh) -> ModelParams:
    """Loads the networks of `model.pretrained` that do not start at random.

    Args:
      config: the `model` section, with the checkpoint's sizes.
    Raises:
      FileNotFoundError, ValueError, ConnectionError: if weights are missing or broken.
    """
    if not config.pretrained:
        return {}
    source = open_source(config.pretrained)
    return {
        name: load_network(source, name, abstract)
        for name, abstract in abstract_params(model, mesh).items()
        if name not in config.from_scratch
    }


def _fill(section: ConfigDict, sizes: Mapping[str, Any]) -> None:
    """Sets what the section has of the sizes; the other fields follow from others."""
    ours = {"attention_implementation", "remat"}
    section.update(
        {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in sizes.items()
            if name in section and name not in ours
        }
    )


def _check_fit(source: Source, networks: Mapping[str, NetworkConfig]) -> None:
    unet, vae, text = (vars(networks[name]) for name in NETWORKS)
    pairs = (
        ("unet in_channels", unet["in_channels"], "vae latent_channels", "vae"),
        ("unet out_channels", unet["out_channels"], "vae latent_channels", "vae"),
        (
            "unet cross_attention_dim",
            unet["cross_attention_dim"],
            "hidden_size",
            "text",
        ),
    )
    for name, value, other, kind in pairs:
        expected = vae["latent_channels"] if kind == "vae" else text["hidden_size"]
        if value != expected:
            raise ValueError(
                f"{source.name}: {name}={value} but {other}={expected}: the networks do "
                "not make a text-to-image model (inpainting and depth models have more "
                "channels); use the plain one"
            )
    if text["vocab_size"] < VOCAB_SIZE:
        raise ValueError(
            f"{source.name}: the text encoder knows {text['vocab_size']} tokens, CLIP's "
            f"tokenizer has {VOCAB_SIZE}: use a model with CLIP's vocabulary"
        )


def _pad_token_id(source: Source) -> int:
    """Reads what captions are filled up with; the end token where nothing is said."""
    for path in (
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
    ):
        if not source.has(path):
            continue
        token = read_json(source, path).get("pad_token")
        if isinstance(token, dict):
            token = token.get("content")
        if token in _PAD_TOKENS:
            return _PAD_TOKENS[token]
        if token is not None:
            raise ValueError(
                f"{source.name}: {path} has pad_token {token!r}; only "
                f"{' and '.join(map(repr, _PAD_TOKENS))} are known"
            )
    return _PAD_TOKENS["<|endoftext|>"]
