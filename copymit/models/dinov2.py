"""DINOv2: images in, features of the class token out.

Attribute paths equal the parameter names of the checkpoints on the Hugging Face hub, so
that loading weights needs a transpose and no table of renames. The token that stood for
masked patches in training is left out.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from copymit.models.attention import attend
from copymit.models.initializers import normal
from copymit.models.linear import gelu
from copymit.models.vision_transformer import PatchEmbedding, interpolate_positions

Dtype = Any


@dataclass(frozen=True)
class Dinov2Config:
    """Shape of a DINOv2; fields as in the published `config.json`.

    Attributes:
      image_size: of which there are position embeddings, in pixels; those of other
        sizes are interpolated.
      position_offset: patches added to both sides when the scale of that is computed.
        The original code has 0.1, transformers 0.
    Raises:
      ValueError: if the heads do not divide the width or the image is smaller than a
        patch.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    position_offset: float = 0.0

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}; change one of them"
            )
        if self.image_size < self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is less than patch_size "
                f"{self.patch_size}; change one of them"
            )


DINOV2_VITS14 = Dinov2Config(384, 12, 6, image_size=518)
DINOV2_VITB14 = Dinov2Config(768, 12, 12, image_size=518)
DINOV2_VITL14 = Dinov2Config(1024, 24, 16, image_size=518)


class Dinov2Model(nnx.Module):
    """Vision transformer with layer scale, without registers.

    Parameters are float32; `dtype` is that of the layers' matrix products, while
    patches, layer norms and softmax stay in float32.

    Source: Oquab et al. 2023 (DINOv2); names as transformers'.
    """

    def __init__(
        self, config: Dinov2Config, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs
    ):
        self.embeddings = _Embeddings(config, rngs=rngs)
        self.encoder = _Encoder(config, dtype=dtype, rngs=rngs)
        self.layernorm = _make_layer_norm(config, rngs)
        self.dtype = dtype

    def __call__(self, pixel_values: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Returns the class token after the final layer norm.

        Raises:
          ValueError: if the images are not RGB or smaller than a patch.
        """
        hidden_states = self.embeddings(pixel_values).astype(self.dtype)
        return self.layernorm(self.encoder(hidden_states))


class _Embeddings(nnx.Module):
    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        D = config.hidden_size
        init = normal(0.02)
        positions = (config.image_size // config.patch_size) ** 2 + 1
        self.cls_token = nnx.Param(init(rngs.params(), (1, 1, D)))
        self.position_embeddings = nnx.Param(init(rngs.params(), (1, positions, D)))
        self.patch_embeddings = _PatchEmbeddings(config, rngs=rngs)
        self.patch_size = config.patch_size
        self.position_offset = config.position_offset

    def __call__(self, pixel_values: Float[Array, "B H W 3"]) -> Float[Array, "B P D"]:
        _, H, W, channels = pixel_values.shape
        if channels != 3 or min(H, W) < self.patch_size:
            raise ValueError(
                f"images have shape {pixel_values.shape[1:]}: DINOv2 takes RGB of at "
                f"least {self.patch_size} x {self.patch_size} pixels"
            )
        positions = self.position_embeddings[0]
        patches = self.patch_embeddings.projection(pixel_values)
        patches += interpolate_positions(
            positions[1:],
            H // self.patch_size,
            W // self.patch_size,
            self.position_offset,
        )
        first = self.cls_token[...] + positions[0]
        first = jnp.broadcast_to(first, (len(patches), 1, patches.shape[-1]))
        return jnp.concatenate([first, patches], axis=1)


class _PatchEmbeddings(nnx.Module):
    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        self.projection = PatchEmbedding(
            config.patch_size, config.hidden_size, use_bias=True, rngs=rngs
        )


class _Encoder(nnx.Module):
    def __init__(self, config: Dinov2Config, *, dtype: Dtype, rngs: nnx.Rngs):
        self.layer = nnx.List(
            _Layer(config, dtype=dtype, rngs=rngs)
            for _ in range(config.num_hidden_layers)
        )

    def __call__(self, hidden_states: Float[Array, "B P D"]) -> Float[Array, "B D"]:
        for layer in self.layer[:-1]:
            hidden_states = layer(hidden_states, hidden_states)
        # Of the last layer only the class token leaves.
        return self.layer[-1](hidden_states[:, :1], hidden_states)[:, 0]


class _Layer(nnx.Module):
    def __init__(self, config: Dinov2Config, *, dtype: Dtype, rngs: nnx.Rngs):
        self.norm1 = _make_layer_norm(config, rngs)
        self.attention = _Attention(config, dtype=dtype, rngs=rngs)
        self.layer_scale1 = _LayerScale(config)
        self.norm2 = _make_layer_norm(config, rngs)
        self.mlp = _MLP(config, dtype=dtype, rngs=rngs)
        self.layer_scale2 = _LayerScale(config)

    def __call__(
        self, queries: Float[Array, "B Q D"], hidden_states: Float[Array, "B P D"]
    ) -> Float[Array, "B Q D"]:
        """Returns the tokens `queries`, which may be some of those they attend to."""
        attended = self.attention(self.norm1(queries), self.norm1(hidden_states))
        queries += self.layer_scale1(attended)
        queries += self.layer_scale2(self.mlp(self.norm2(queries)))
        return queries


class _LayerScale(nnx.Module):
    def __init__(self, config: Dinov2Config):
        self.lambda1 = nnx.Param(jnp.ones(config.hidden_size))

    def __call__(self, hidden_states: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        return hidden_states * self.lambda1[...].astype(hidden_states.dtype)


class _Attention(nnx.Module):
    def __init__(self, config: Dinov2Config, *, dtype: Dtype, rngs: nnx.Rngs):
        self.attention = _SelfAttention(config, dtype=dtype, rngs=rngs)
        self.output = _AttentionOutput(config, dtype=dtype, rngs=rngs)

    def __call__(
        self, queries: Float[Array, "B Q D"], hidden_states: Float[Array, "B P D"]
    ) -> Float[Array, "B Q D"]:
        return self.output.dense(self.attention(queries, hidden_states))


class _SelfAttention(nnx.Module):
    def __init__(self, config: Dinov2Config, *, dtype: Dtype, rngs: nnx.Rngs):
        D = config.hidden_size
        make = functools.partial(_make_linear, D, D, dtype, rngs)
        self.query, self.key, self.value = make(), make(), make()
        self.num_heads = config.num_attention_heads

    def __call__(
        self, queries: Float[Array, "B Q D"], hidden_states: Float[Array, "B P D"]
    ) -> Float[Array, "B Q D"]:
        def by_head(x):
            return x.reshape(*x.shape[:2], self.num_heads, -1)

        attended = attend(
            by_head(self.query(queries)),
            by_head(self.key(hidden_states)),
            by_head(self.value(hidden_states)),
        )
        return attended.reshape(queries.shape)


class _AttentionOutput(nnx.Module):
    def __init__(self, config: Dinov2Config, *, dtype: Dtype, rngs: nnx.Rngs):
        self.dense = _make_linear(config.hidden_size, config.hidden_size, dtype, rngs)


class _MLP(nnx.Module):
    def __init__(self, config: Dinov2Config, *, dtype: Dtype, rngs: nnx.Rngs):
        D = config.hidden_size
        self.fc1 = _make_linear(D, D * config.mlp_ratio, dtype, rngs)
        self.fc2 = _make_linear(D * config.mlp_ratio, D, dtype, rngs)

    def __call__(self, hidden_states: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        # XLA's matrix products on a CPU are a fifth faster on a matrix of all tokens.
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        rows = self.fc2(gelu(self.fc1(rows)))
        return rows.reshape(hidden_states.shape)


def _make_linear(
    in_features: int, out_features: int, dtype: Dtype, rngs: nnx.Rngs
) -> nnx.Linear:
    kernel_init = normal(0.02)
    return nnx.Linear(
        in_features, out_features, kernel_init=kernel_init, dtype=dtype, rngs=rngs
    )


def _make_layer_norm(config: Dinov2Config, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        dtype=jnp.float32,
        # A few features of DINOv2 are huge: E[x^2] - E[x]^2 would cancel.
        use_fast_variance=False,
        rngs=rngs,
    )
