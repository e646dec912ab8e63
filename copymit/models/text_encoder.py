"""CLIP's text encoder: token ids in, one hidden state per token out.

Attribute paths equal the parameter names of the published checkpoints
(`text_model.encoder.layers.0.self_attn.q_proj`), so that loading weights needs a
transpose and no table of renames.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from copymit.models.clip_encoder import CLIPEncoder, check_encoder, make_layer_norm
from copymit.models.initializers import normal

Dtype = Any


@dataclass(frozen=True)
class TextEncoderConfig:
    """Shape of a CLIP text encoder; fields as in the published `config.json`.

    Attributes:
      eos_token_id: whose first occurrence `pooler_output` reads; 2, as older configs
        have it, stands for the position of the largest id.
    Raises:
      ValueError: if the heads do not divide the width or the activation is unknown.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int = 49_408
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49_407

    def __post_init__(self):
        check_encoder(self)


CLIP_VIT_L14 = TextEncoderConfig(768, 3072, 12, 12)
"""Text encoder of Stable Diffusion 1.x."""

OPENCLIP_VIT_H14 = TextEncoderConfig(1024, 4096, 23, 16, hidden_act="gelu")
"""Text encoder of Stable Diffusion 2.x: 23 of 24 layers, as published there."""


class TextEncoderOutput(NamedTuple):
    """What the encoder says of each token and of the whole caption.

    Attributes:
      last_hidden_state: after the final layer norm, in the compute dtype.
      pooler_output: the same at the end token.
    """

    last_hidden_state: Float[Array, "B L D"]
    pooler_output: Float[Array, "B D"]


class CLIPTextModel(nnx.Module):
    """Causal transformer over CLIP tokens.

    Parameters are float32; `dtype` is that of matrix products and of the result, while
    embeddings, layer norms and softmax stay in float32.

    Source: Radford et al. 2021 (CLIP); names, initial scales and both pooling
      conventions as transformers' `CLIPTextModel`.
    """

    def __init__(
        self,
        config: TextEncoderConfig,
        *,
        dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.text_model = TextTransformer(config, dtype=dtype, rngs=rngs)

    def __call__(self, input_ids: Int[Array, "B L"]) -> TextEncoderOutput:
        """Encodes captions of at most `max_position_embeddings` tokens.

        Padding needs no mask: it follows the end token, and attention is causal.

        Raises:
          ValueError: if the captions are longer than there are positions.
        """
        return self.text_model(input_ids)


class TextTransformer(nnx.Module):
    """What the checkpoints call `text_model`; see `CLIPTextModel`."""

    def __init__(self, config: TextEncoderConfig, *, dtype: Dtype, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = _Embeddings(config, rngs=rngs)
        self.encoder = CLIPEncoder(config, is_causal=True, dtype=dtype, rngs=rngs)
        self.final_layer_norm = make_layer_norm(config, rngs)
        self.dtype = dtype

    def __call__(self, input_ids: Int[Array, "B L"]) -> TextEncoderOutput:
        length, limit = input_ids.shape[-1], self.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"input_ids have {length} tokens, max_position_embeddings is {limit}; "
                f"tokenize with max_length={limit} or less"
            )
        hidden_states = self.embeddings(input_ids).astype(self.dtype)
        hidden_states = self.encoder(hidden_states)
        hidden_states = self.final_layer_norm(hidden_states).astype(self.dtype)
        end = _end_positions(input_ids, self.config.eos_token_id)
        pooled = jnp.take_along_axis(hidden_states, end[:, None, None], axis=1)
        return TextEncoderOutput(hidden_states, pooled[:, 0])


def _end_positions(input_ids: Int[Array, "B L"], eos_token_id: int) -> Int[Array, " B"]:
    scores = input_ids if eos_token_id == 2 else input_ids == eos_token_id
    return jnp.argmax(scores, axis=-1)


class _Embeddings(nnx.Module):
    """Sums token and position in float32: casting rows is cheaper than the table."""

    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
        make_embed = functools.partial(
            nnx.Embed,
            features=config.hidden_size,
            embedding_init=normal(0.02),
            rngs=rngs,
        )
        self.token_embedding = make_embed(config.vocab_size)
        self.position_embedding = make_embed(config.max_position_embeddings)

    def __call__(self, input_ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        positions = jnp.arange(input_ids.shape[-1])[None]
        return self.token_embedding(input_ids) + self.position_embedding(positions)
