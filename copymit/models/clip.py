"""CLIP: images and captions in, vectors of one space out.

Image and text are separate modules, since most uses need one of them. Attribute paths
equal the parameter names of the published checkpoints, their misspelt `pre_layrnorm`
included, so that loading weights needs a transpose and no table of renames.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from copymit.models.clip_encoder import CLIPEncoder, check_encoder, make_layer_norm
from copymit.models.initializers import normal
from copymit.models.text_encoder import TextEncoderConfig, TextTransformer
from copymit.models.vision_transformer import PatchEmbedding

Dtype = Any


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Shape of CLIP's image encoder; fields as in the published `config.json`.

    Attributes:
      image_size: height and width of the images in pixels; others are refused.
    Raises:
      ValueError: if the heads do not divide the width, the activation is unknown or the
        image is smaller than a patch.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        check_encoder(self)
        if self.image_size < self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is less than patch_size "
                f"{self.patch_size}; change one of them"
            )


@dataclass(frozen=True)
class CLIPConfig:
    """Shape of both encoders and of the space that they share."""

    vision: CLIPVisionConfig
    text: TextEncoderConfig
    projection_dim: int = 512


CLIP_VIT_B16 = CLIPConfig(
    CLIPVisionConfig(patch_size=16), TextEncoderConfig(512, 2048, 12, 8), 512
)
CLIP_VIT_L14 = CLIPConfig(
    CLIPVisionConfig(1024, 4096, 24, 16, 224, 14),
    TextEncoderConfig(768, 3072, 12, 12),
    768,
)
CLIP_VIT_L14_336 = CLIPConfig(
    CLIPVisionConfig(1024, 4096, 24, 16, 336, 14), CLIP_VIT_L14.text, 768
)
OPENCLIP_VIT_H14 = CLIPConfig(
    CLIPVisionConfig(1280, 5120, 32, 16, 224, 14, hidden_act="gelu"),
    TextEncoderConfig(1024, 4096, 24, 16, hidden_act="gelu"),
    1024,
)


class CLIPVisionModelWithProjection(nnx.Module):
    """Images -> features in the space shared with captions.

    Parameters are float32; `dtype` is that of the encoder's matrix products, while
    patches, layer norms, softmax and the projection stay in float32.

    Source: Radford et al. 2021 (CLIP); names as transformers'.
    """

    def __init__(
        self, config: CLIPConfig, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs
    ):
        self.vision_model = _VisionTransformer(config.vision, dtype=dtype, rngs=rngs)
        self.visual_projection = _make_projection(
            config.vision.hidden_size, config.projection_dim, rngs
        )

    def __call__(self, pixel_values: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Returns features that are not normalised.

        Raises:
          ValueError: if the images are not of the config's size.
        """
        return self.visual_projection(self.vision_model(pixel_values))


class CLIPTextModelWithProjection(nnx.Module):
    """Captions -> features in the space shared with images; see `CLIPTextModel`."""

    def __init__(
        self, config: CLIPConfig, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs
    ):
        self.text_model = TextTransformer(config.text, dtype=dtype, rngs=rngs)
        self.text_projection = _make_projection(
            config.text.hidden_size, config.projection_dim, rngs
        )

    def __call__(self, input_ids: Int[Array, "B L"]) -> Float[Array, "B D"]:
        """Returns features that are not normalised.

        Raises:
          ValueError: if the captions are longer than there are positions.
        """
        pooled = self.text_model(input_ids).pooler_output
        return self.text_projection(pooled)


class _VisionTransformer(nnx.Module):
    def __init__(self, config: CLIPVisionConfig, *, dtype: Dtype, rngs: nnx.Rngs):
        self.embeddings = _VisionEmbeddings(config, rngs=rngs)
        self.pre_layrnorm = make_layer_norm(config, rngs)
        self.encoder = CLIPEncoder(config, is_causal=False, dtype=dtype, rngs=rngs)
        self.post_layernorm = make_layer_norm(config, rngs)
        self.dtype = dtype

    def __call__(self, pixel_values: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        hidden_states = self.pre_layrnorm(self.embeddings(pixel_values))
        hidden_states = self.encoder(hidden_states.astype(self.dtype))
        return self.post_layernorm(hidden_states[:, 0])


class _VisionEmbeddings(nnx.Module):
    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        D = config.hidden_size
        init = normal(0.02)
        self.class_embedding = nnx.Param(init(rngs.params(), (D,)))
        self.patch_embedding = PatchEmbedding(
            config.patch_size, D, use_bias=False, rngs=rngs
        )
        positions = (config.image_size // config.patch_size) ** 2 + 1
        self.position_embedding = nnx.Embed(
            positions, D, embedding_init=init, rngs=rngs
        )
        self.image_size = config.image_size

    def __call__(self, pixel_values: Float[Array, "B H W 3"]) -> Float[Array, "B P D"]:
        if pixel_values.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(
                f"images have shape {pixel_values.shape[1:]}: this CLIP takes "
                f"{self.image_size} x {self.image_size} pixels of RGB"
            )
        patches = self.patch_embedding(pixel_values)
        first = jnp.broadcast_to(
            self.class_embedding[...], (len(patches), 1, patches.shape[-1])
        )
        tokens = jnp.concatenate([first, patches], axis=1)
        return tokens + self.position_embedding.embedding[...]


def _make_projection(in_features: int, out_features: int, rngs: nnx.Rngs) -> nnx.Linear:
    kernel_init = normal(in_features**-0.5)
    return nnx.Linear(
        in_features, out_features, use_bias=False, kernel_init=kernel_init, rngs=rngs
    )
