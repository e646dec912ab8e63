"""The variational autoencoder of Stable Diffusion: pixels <-> moments of latents.

In: pixels in [-1, 1], channels last, or latents in the autoencoder's own units. Out:
the mean and log variance of the latents, or pixels. Diffusion runs on latents scaled to
about unit variance: `sample_latents`, then `scale_latents`; `unscale_latents`, then
`decode`. Structure and parameter names follow diffusers' `AutoencoderKL`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from copymit.models.attention import attend
from copymit.models.blocks import (
    Dtype,
    ResnetBlock2D,
    Upsample2D,
    make_conv,
    make_group_norm,
    make_linear,
)
from copymit.models.convolution import convolve
from copymit.models.initializers import LECUN_NORMAL, ZERO

_NORM_EPSILON = 1e-6
_LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True)
class AutoencoderKLConfig:
    """Sizes of the autoencoder, level by level from the finest to the coarsest.

    Fields are those of the published `config.json`; defaults are Stable Diffusion 1.x
    and 2.x.

    Attributes:
      block_out_channels: width of each level.
      layers_per_block: residual blocks a level of the encoder (the decoder has one
        more).
      scaling_factor, shift_factor: what makes latents of about unit variance and zero
        mean, see `scale_latents`.
      use_quant_conv, use_post_quant_conv: whether a 1x1 convolution follows the encoder
        and precedes the decoder.
      mid_block_add_attention: whether the coarsest level attends to all positions.
    Raises:
      ValueError: for sizes that are not positive or do not fit each other.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: Sequence[int] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self):
        if not self.block_out_channels:
            raise ValueError(
                "autoencoder: block_out_channels is empty: give the width of every "
                "level, the finest first"
            )
        for name in (
            "in_channels",
            "out_channels",
            "latent_channels",
            "layers_per_block",
            "norm_num_groups",
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"autoencoder: {name}={getattr(self, name)} must be at least 1"
                )
        for channels in self.block_out_channels:
            if channels < 1 or channels % self.norm_num_groups:
                raise ValueError(
                    f"autoencoder: norm_num_groups={self.norm_num_groups} must divide "
                    f"every entry of block_out_channels, and does not divide {channels}"
                )
        if not self.scaling_factor > 0:
            raise ValueError(
                f"autoencoder: scaling_factor={self.scaling_factor} must be positive: "
                "use 1 for latents as they are"
            )

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, in height and in width."""
        return 2 ** (len(self.block_out_channels) - 1)


class LatentMoments(NamedTuple):
    """The normal distribution of every latent, in the autoencoder's own units."""

    mean: Float[Array, "B h w c"]
    log_variance: Float[Array, "B h w c"]


class AutoencoderKL(nnx.Module):
    """Compresses images to a normal distribution of latents and decodes latents.

    Source: Rombach et al. 2022; reference implementation diffusers `AutoencoderKL`,
    equal to 1e-4 in tests/models/test_autoencoder_kl.py.
    """

    def __init__(
        self, config: AutoencoderKLConfig, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs
    ):
        self.config = config
        self.dtype = dtype
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)
        conv = functools.partial(make_conv, kernel_size=1, dtype=dtype, rngs=rngs)
        latents = config.latent_channels
        if config.use_quant_conv:
            self.quant_conv = conv(2 * latents, 2 * latents)
        if config.use_post_quant_conv:
            self.post_quant_conv = conv(latents, latents)

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, in height and in width."""
        return self.config.downsampling

    def encode_moments(self, pixel_values: Float[Array, "B H W C"]) -> LatentMoments:
        """Returns the moments of the latents, float32 and unscaled.

        Args:
          pixel_values: in [-1, 1].
        Raises:
          ValueError: height or width is not a multiple of `downsampling`.
        """
        _, H, W, _ = pixel_values.shape
        if H % self.downsampling or W % self.downsampling:
            raise ValueError(
                f"images of {H} x {W} pixels do not divide into latents: make "
                f"data.resolution a multiple of {self.downsampling}"
            )
        x = self.encoder(pixel_values.astype(self.dtype))
        if self.config.use_quant_conv:
            x = self.quant_conv(x)
        mean, log_variance = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return LatentMoments(mean, jnp.clip(log_variance, *_LOG_VARIANCE_RANGE))

    def decode(self, latents: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        """Returns pixels, float32 and about in [-1, 1], of unscaled latents."""
        x = latents.astype(self.dtype)
        if self.config.use_post_quant_conv:
            x = self.post_quant_conv(x)
        return self.decoder(x).astype(jnp.float32)


def sample_latents(moments: LatentMoments, key: jax.Array) -> Float[Array, "B h w c"]:
    """Draws unscaled latents from their distribution."""
    noise = jax.random.normal(key, moments.mean.shape, moments.mean.dtype)
    return moments.mean + jnp.exp(0.5 * moments.log_variance) * noise


def scale_latents(
    latents: Float[Array, "B h w c"], scaling_factor: float, shift_factor: float = 0.0
) -> Float[Array, "B h w c"]:
    """Turns the autoencoder's latents into those that diffusion runs on."""
    return (latents - shift_factor) * scaling_factor


def unscale_latents(
    latents: Float[Array, "B h w c"], scaling_factor: float, shift_factor: float = 0.0
) -> Float[Array, "B h w c"]:
    """Undoes `scale_latents`."""
    return latents / scaling_factor + shift_factor


class Encoder(nnx.Module):
    """Pixels to both moments of the latents, side by side in the channels."""

    def __init__(self, config: AutoencoderKLConfig, *, dtype: Dtype, rngs: nnx.Rngs):
        channels = tuple(config.block_out_channels)
        resnet = _make_resnet(config, dtype, rngs)
        conv = functools.partial(make_conv, kernel_size=3, dtype=dtype, rngs=rngs)
        self.conv_in = conv(config.in_channels, channels[0])
        down_blocks: list[Level] = []
        for i, width in enumerate(channels):
            inputs = [channels[max(i - 1, 0)]] + [width] * (config.layers_per_block - 1)
            last = i == len(channels) - 1
            down_blocks.append(
                Level(
                    [resnet(in_channels, width) for in_channels in inputs],
                    downsampler=None
                    if last
                    else AsymmetricDownsample2D(width, dtype=dtype, rngs=rngs),
                )
            )
        self.down_blocks = nnx.List(down_blocks)
        self.mid_block = MidBlock(config, dtype=dtype, rngs=rngs)
        self.conv_norm_out = make_group_norm(
            channels[-1], config.norm_num_groups, _NORM_EPSILON, dtype=dtype, rngs=rngs
        )
        self.conv_out = conv(channels[-1], 2 * config.latent_channels)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c2"]:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latents to pixels."""

    def __init__(self, config: AutoencoderKLConfig, *, dtype: Dtype, rngs: nnx.Rngs):
        channels = tuple(reversed(config.block_out_channels))
        resnet = _make_resnet(config, dtype, rngs)
        conv = functools.partial(make_conv, kernel_size=3, dtype=dtype, rngs=rngs)
        self.conv_in = conv(config.latent_channels, channels[0])
        self.mid_block = MidBlock(config, dtype=dtype, rngs=rngs)
        up_blocks: list[Level] = []
        for i, width in enumerate(channels):
            inputs = [channels[max(i - 1, 0)]] + [width] * config.layers_per_block
            last = i == len(channels) - 1
            up_blocks.append(
                Level(
                    [resnet(in_channels, width) for in_channels in inputs],
                    upsampler=None
                    if last
                    else Upsample2D(width, dtype=dtype, rngs=rngs),
                )
            )
        self.up_blocks = nnx.List(up_blocks)
        self.conv_norm_out = make_group_norm(
            channels[-1], config.norm_num_groups, _NORM_EPSILON, dtype=dtype, rngs=rngs
        )
        self.conv_out = conv(channels[-1], config.out_channels)

    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class Level(nnx.Module):
    """The residual blocks of one resolution, and the change to the next one."""

    def __init__(
        self,
        resnets: Sequence[ResnetBlock2D],
        *,
        downsampler: nnx.Module | None = None,
        upsampler: nnx.Module | None = None,
    ):
        self.resnets = nnx.List(resnets)
        if downsampler is not None:
            self.downsamplers = nnx.List([downsampler])
        if upsampler is not None:
            self.upsamplers = nnx.List([upsampler])

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 O"]:
        for resnet in self.resnets:
            x = resnet(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x)
        return x


class MidBlock(nnx.Module):
    """Two residual blocks at the coarsest resolution, with attention between them."""

    def __init__(self, config: AutoencoderKLConfig, *, dtype: Dtype, rngs: nnx.Rngs):
        channels = config.block_out_channels[-1]
        resnet = _make_resnet(config, dtype, rngs)
        self.resnets = nnx.List([resnet(channels, channels) for _ in range(2)])
        if config.mid_block_add_attention:
            self.attentions = nnx.List(
                [
                    AttentionBlock(
                        channels, config.norm_num_groups, dtype=dtype, rngs=rngs
                    )
                ]
            )

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        x = self.resnets[0](x)
        if hasattr(self, "attentions"):
            x = self.attentions[0](x)
        return self.resnets[1](x)


class AttentionBlock(nnx.Module):
    """Residual attention of one head between all positions of a feature map."""

    def __init__(self, channels: int, groups: int, *, dtype: Dtype, rngs: nnx.Rngs):
        linear = functools.partial(
            make_linear, channels, channels, dtype=dtype, rngs=rngs
        )
        self.group_norm = make_group_norm(
            channels, groups, _NORM_EPSILON, dtype=dtype, rngs=rngs
        )
        self.to_q = linear()
        self.to_k = linear()
        self.to_v = linear()
        self.to_out = nnx.List([linear(kernel_init=ZERO)])

    def __call__(self, hidden_states: Float[Array, "B h w C"]):
        B, h, w, C = hidden_states.shape
        x = self.group_norm(hidden_states).reshape(B, h * w, 1, C)
        attended = attend(self.to_q(x), self.to_k(x), self.to_v(x))
        return hidden_states + self.to_out[0](attended).reshape(B, h, w, C)


class AsymmetricDownsample2D(nnx.Module):
    """Halves height and width, with zeros added only below and on the right."""

    def __init__(self, channels: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            channels,
            channels,
            (3, 3),
            strides=(2, 2),
            padding=((0, 1), (0, 1)),
            dtype=dtype,
            kernel_init=LECUN_NORMAL,
            conv_general_dilated=convolve,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C"]:
        return self.conv(x)


def _make_resnet(
    config: AutoencoderKLConfig, dtype: Dtype, rngs: nnx.Rngs
) -> Callable[[int, int], ResnetBlock2D]:
    return functools.partial(
        ResnetBlock2D,
        time_embedding_dim=None,
        groups=config.norm_num_groups,
        epsilon=_NORM_EPSILON,
        dtype=dtype,
        rngs=rngs,
    )
