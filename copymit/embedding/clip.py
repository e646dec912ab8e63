"""CLIP as an embedder of images and of captions, in one space.

In: the name of a CLIP and published weights. Out: embedders under the preprocessing of
the published processors, or under that of the ancestor of this project.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from copymit.data.tokenizer import VOCAB_SIZE, Tokenizer, make_tokenizer
from copymit.embedding.embedder import Embedder
from copymit.embedding.preprocessing import CropPreset
from copymit.embedding.resizing import Resample
from copymit.models.clip import (
    CLIP_VIT_B16,
    CLIP_VIT_L14,
    CLIP_VIT_L14_336,
    OPENCLIP_VIT_H14,
    CLIPConfig,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)
from copymit.models.functional import make_apply
from copymit.pretrained.embedders import LoadedClip, Tower, load_clip

_END_OF_TEXT = 49_407
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class Clip(NamedTuple):
    """A published CLIP.

    Attributes:
      title: for protocols.
      weights: name of the setting that takes their place.
      hub_id: of the published weights.
      config: what weights must be of.
      preset: preprocessing of images.
      pad_token_id: what captions are filled up with; changes no number.
    """

    title: str
    weights: str
    hub_id: str
    config: CLIPConfig
    preset: CropPreset
    pad_token_id: int = _END_OF_TEXT


class CaptionEmbedder(NamedTuple):
    """A way to describe a caption by a vector in the space of an `Embedder` of images.

    Attributes:
      name: key of the embedder in configs and results.
      protocol: tokenization and weights in words.
      tokenize: captions -> token ids; runs on the host.
      params: a pytree of arrays.
      apply: (params, token ids) -> features of unit length; traceable.
    """

    name: str
    protocol: str
    tokenize: Callable[[Sequence[str]], Int32[np.ndarray, "B L"]]
    params: Any
    apply: Callable[[Any, Int[Array, "B L"]], Float[Array, "B D"]]


def _published(size: int) -> CropPreset:
    return CropPreset(size, size, Resample.BICUBIC, _OPENAI_MEAN, _OPENAI_STD)


CLIP_MODELS = {
    "clip_vit_b16": Clip(
        "CLIP ViT-B/16",
        "clip_vit_b16",
        "openai/clip-vit-base-patch16",
        CLIP_VIT_B16,
        _published(224),
    ),
    "clip_vit_l14": Clip(
        "CLIP ViT-L/14",
        "clip_vit_l14",
        "openai/clip-vit-large-patch14",
        CLIP_VIT_L14,
        _published(224),
    ),
    "clip_vit_l14_336": Clip(
        "CLIP ViT-L/14 at 336 px",
        "clip_vit_l14_336",
        "openai/clip-vit-large-patch14-336",
        CLIP_VIT_L14_336,
        _published(336),
    ),
    "openclip_vit_h14": Clip(
        "OpenCLIP ViT-H/14",
        "openclip_vit_h14",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        OPENCLIP_VIT_H14,
        _published(224),
        pad_token_id=0,
    ),
    # Source: somepago/DCR, which gives CLIP the transform of its other networks.
    "clip_vit_b16_dcr": Clip(
        "CLIP ViT-B/16",
        "clip_vit_b16",
        "openai/clip-vit-base-patch16",
        CLIP_VIT_B16,
        CropPreset(256, 224, Resample.BILINEAR, (0.5,) * 3, (0.5,) * 3),
    ),
}


def make_clip(name: str, weights: str = "") -> Embedder:
    """Loads the image encoder of a CLIP.

    Args:
      name: key of `CLIP_MODELS`.
      weights: folder, `gs://` folder or hub id in transformers' layout; "" is the
        published one.
    Raises:
      FileNotFoundError, ValueError, ConnectionError: the name is not known, or the
        weights cannot be opened or are of another model.
    """
    clip, loaded = _load(name, weights, "vision")
    config = loaded.config
    network = make_apply(lambda rngs: CLIPVisionModelWithProjection(config, rngs=rngs))

    def apply(params, images):
        return network(params, clip.preset.normalise(images))

    protocol = (
        f"{clip.title} (transformers' layout), weights {loaded.weights}; "
        f"{clip.preset.text}; float32; class token after the visual projection"
    )
    return Embedder(name, protocol, clip.preset.prepare, loaded.params, apply)


def make_clip_captions(name: str, weights: str = "") -> CaptionEmbedder:
    """Loads the text encoder of a CLIP; see `make_clip`."""
    clip, loaded = _load(name, weights, "text")
    config = loaded.config
    if config.text.vocab_size < VOCAB_SIZE:
        raise ValueError(
            f"{name}: the text encoder knows {config.text.vocab_size} tokens, CLIP's "
            f"tokenizer has {VOCAB_SIZE}: use a model with CLIP's vocabulary"
        )
    network = make_apply(lambda rngs: CLIPTextModelWithProjection(config, rngs=rngs))
    length = config.text.max_position_embeddings
    tokenizer: Tokenizer = make_tokenizer(length, clip.pad_token_id)

    def apply(params, input_ids):
        features = network(params, input_ids)
        norms = jnp.linalg.norm(features, axis=-1, keepdims=True)
        return features / jnp.maximum(norms, 1e-12)

    protocol = (
        f"{clip.title} (transformers' layout), weights {loaded.weights}; captions cut "
        f"to {length} tokens of CLIP's BPE, padded with {clip.pad_token_id}; float32; "
        "end-of-text token after the text projection, unit length"
    )
    return CaptionEmbedder(name, protocol, tokenizer.encode, loaded.params, apply)


def embed_captions(
    embedder: CaptionEmbedder, captions: Sequence[str], batch_size: int = 64
) -> Float[np.ndarray, "Q D"]:
    """Computes the unit features of captions, in batches of one shape.

    Raises:
      ValueError: if there are no captions.
    """
    if not captions:
        raise ValueError("there are no captions: give at least one")
    apply = jax.jit(embedder.apply)
    rows = []
    for start in range(0, len(captions), batch_size):
        batch = embedder.tokenize(captions[start : start + batch_size])
        padded = np.resize(batch, (batch_size, batch.shape[1]))
        rows.append(np.asarray(apply(embedder.params, padded))[: len(batch)])
    return np.concatenate(rows)


def _load(name: str, weights: str, tower: Tower) -> tuple[Clip, LoadedClip]:
    if name not in CLIP_MODELS:
        raise ValueError(f"{name!r} is not a CLIP: use one of {', '.join(CLIP_MODELS)}")
    clip = CLIP_MODELS[name]
    loaded = load_clip(weights or clip.hub_id, tower)
    if _essence(loaded.config) != _essence(clip.config):
        raise ValueError(
            f"{weights or clip.hub_id} is not {clip.title}, which {name} needs: it is "
            f"{loaded.config}, not {clip.config}. Give other weights or another name"
        )
    return clip, loaded


def _essence(config: CLIPConfig) -> CLIPConfig:
    """Leaves out how the end token is told, which has changed over the years."""
    return replace(config, text=replace(config.text, eos_token_id=_END_OF_TEXT))
