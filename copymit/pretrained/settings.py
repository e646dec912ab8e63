"""A config whose model is a published one: its sizes filled in, its weights loaded."""

import logging
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from copymit.data.tokenizer import VOCAB_SIZE
from copymit.diffusion.scheduler_config import describe_sampling, diffusion_settings
from copymit.models.assembly import DiffusionModel, ModelParams, abstract_params
from copymit.models.autoencoder_kl import AutoencoderKLConfig
from copymit.models.autoencoder_tiny import AutoencoderTinyConfig
from copymit.pretrained.autoencoder import load_autoencoder, read_autoencoder
from copymit.pretrained.load import load_network
from copymit.pretrained.pipeline import find_network, read_pipeline
from copymit.pretrained.source import open_source
from copymit.pretrained.weight_files import find_weights, shard_paths

logger = logging.getLogger(__name__)


def with_pretrained_settings(config: ConfigDict, *, weights: bool = True) -> ConfigDict:
    """Returns the config with the sizes and the noise schedule of `model.pretrained`.

    What is about training stays as it was: which networks train, rematerialisation, the
    choice of attention, and a noise schedule stretched to pure noise if asked for. With
    `model.autoencoder.pretrained` only the autoencoder's sizes are filled in, and
    without either the config is returned as it is.

    Args:
      weights: whether the networks' weights must be there, too.
    Raises:
      FileNotFoundError, ValueError, ConnectionError: if the model cannot be opened, is
        of another kind, or its networks do not fit each other.
    """
    alone = config.model.autoencoder.pretrained
    if alone and config.model.pretrained:
        raise ValueError(
            f"model.pretrained={config.model.pretrained} has an autoencoder of its own: "
            f"leave model.autoencoder.pretrained={alone} out"
        )
    if alone:
        config = config.copy_and_resolve_references()
        with config.unlocked(), config.ignore_type():
            _fill_autoencoder(config.model.autoencoder, read_autoencoder(alone))
        return config
    if not config.model.pretrained:
        return config
    unknown = sorted(set(config.model.from_scratch) - {"unet", "text_encoder"})
    if unknown:
        raise ValueError(
            f"model.from_scratch names {', '.join(unknown)}: only unet and text_encoder "
            "can start at random"
        )
    source = open_source(config.model.pretrained)
    pipeline = read_pipeline(source)
    if weights:
        # Before data are read, which may take an hour, and the networks are built.
        for network in {"unet", "vae", "text_encoder"} - set(config.model.from_scratch):
            find = find_weights(source, network, find_network(source, network))
            shard_paths(source, find)
    scheduler = diffusion_settings(pipeline.scheduler)
    if note := describe_sampling(pipeline.scheduler):
        logger.warning("%s: %s", source.name, note)
    scheduler["rescale_betas_zero_snr"] |= config.diffusion.rescale_betas_zero_snr
    text = pipeline.text_encoder
    if text.vocab_size < VOCAB_SIZE:
        raise ValueError(
            f"{source.name}: the text encoder knows {text.vocab_size} tokens, CLIP's "
            f"tokenizer has {VOCAB_SIZE}: use a model with CLIP's vocabulary"
        )
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        config.diffusion.update(scheduler)
        _fill(config.model.unet, vars(pipeline.unet))
        _fill(config.model.text_encoder, vars(text))
        config.model.text_encoder.max_length = text.max_position_embeddings
        config.model.text_encoder.pad_token_id = pipeline.pad_token_id
        _fill_autoencoder(config.model.autoencoder, pipeline.vae)
    return config


def load_networks(config: ConfigDict, model: DiffusionModel, mesh: Mesh) -> ModelParams:
    """Loads the networks that do not start at random.

    Args:
      config: the `model` section, with the checkpoint's sizes.
    Raises:
      FileNotFoundError, ValueError, ConnectionError: if weights are missing or broken.
    """
    abstract = abstract_params(model, mesh)
    if config.autoencoder.pretrained:
        name = config.autoencoder.pretrained
        return {"vae": load_autoencoder(name, abstract["vae"])}
    if not config.pretrained:
        return {}
    source = open_source(config.pretrained)
    return {
        name: load_network(source, name, parameters)
        for name, parameters in abstract.items()
        if name not in config.from_scratch
    }


def _fill_autoencoder(
    section: ConfigDict, sizes: AutoencoderKLConfig | AutoencoderTinyConfig
) -> None:
    section.name = "kl" if isinstance(sizes, AutoencoderKLConfig) else "tiny"
    _fill(section[section.name], vars(sizes))


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
