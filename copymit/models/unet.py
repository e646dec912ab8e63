"""The text-conditional denoising network: noisy latents, timesteps, text -> prediction.

Structure and parameter names follow diffusers' `UNet2DConditionModel`; sizes go from a
toy to Stable Diffusion 1.x and 2.x by config alone.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import get_args

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Real

from copymit.models.attention import Implementation
from copymit.models.attention_control import (
    AttentionTaps,
    CrossAttentionControl,
    Tap,
    recorder,
    within,
)
from copymit.models.blocks import (
    Downsample2D,
    Dtype,
    ResnetBlock2D,
    TimestepEmbedding,
    Transformer2DModel,
    Upsample2D,
    make_conv,
    make_group_norm,
    timestep_embedding,
)
from copymit.models.remat import Remat, checkpoint


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of the UNet, level by level from the finest to the coarsest.

    Attributes:
      sample_size: height and width of the latents.
      in_channels, out_channels: channels of the latents.
      block_out_channels: width of each level.
      cross_attention: whether a level has transformer blocks.
      num_attention_heads: heads per level, or one number for all. Stable Diffusion's
        published configs call this `attention_head_dim`, which it is not.
      layers_per_block: residual blocks a level on the way down (one more on the way up).
      transformer_layers: transformer blocks after each residual block.
      cross_attention_dim: width of the text encoder's output.
      use_linear_projection: linear (SD 2.x) or 1x1 convolution (SD 1.x) projections.
      attention_implementation: see `copymit.models.attention.attend`.
      remat: what training computes twice to save memory, see `copymit.models.remat`.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: Sequence[int] = (320, 640, 1280, 1280)
    cross_attention: Sequence[bool] = (True, True, True, False)
    num_attention_heads: int | Sequence[int] = 8
    layers_per_block: int = 2
    transformer_layers: int = 1
    cross_attention_dim: int = 768
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_epsilon: float = 1e-5
    attention_implementation: Implementation = "auto"
    remat: Remat = "none"

    def __post_init__(self):
        levels = len(self.block_out_channels)
        if len(self.cross_attention) != levels or len(self.heads) != levels:
            raise ValueError(
                f"model.unet: block_out_channels has {levels} levels, cross_attention "
                f"{len(self.cross_attention)}, num_attention_heads {len(self.heads)}: "
                "give one value a level"
            )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"model.unet: norm_num_groups={self.norm_num_groups} must divide "
                    f"every entry of block_out_channels, and does not divide {channels}"
                )
        if self.sample_size % 2 ** (levels - 1):
            raise ValueError(
                f"model.unet: latents of {self.sample_size} x {self.sample_size} "
                f"cannot be halved {levels - 1} times: use fewer levels or a "
                f"resolution whose latents are a multiple of {2 ** (levels - 1)}"
            )
        choices = {"attention_implementation": Implementation, "remat": Remat}
        for name, known in choices.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"model.unet.{name}={getattr(self, name)!r} is not known: use one "
                    f"of {', '.join(get_args(known))}"
                )

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of every level."""
        if isinstance(self.num_attention_heads, int):
            return (self.num_attention_heads,) * len(self.block_out_channels)
        return tuple(self.num_attention_heads)


SD_1 = UNetConfig()
SD_2 = UNetConfig(
    num_attention_heads=(5, 10, 20, 20),
    cross_attention_dim=1024,
    use_linear_projection=True,
)


class Level(nnx.Module):
    """The blocks of one resolution on one side of the U, or its middle.

    Attributes are named as diffusers names them: `resnets`, `attentions`, and
    `downsamplers` or `upsamplers` where the level changes resolution.
    """

    def __init__(
        self,
        resnets: Sequence[ResnetBlock2D],
        attentions: Sequence[Transformer2DModel],
        *,
        downsampler: Downsample2D | None = None,
        upsampler: Upsample2D | None = None,
    ):
        self.resnets = nnx.List(resnets)
        if attentions:
            self.attentions = nnx.List(attentions)
        if downsampler is not None:
            self.downsamplers = nnx.List([downsampler])
        if upsampler is not None:
            self.upsamplers = nnx.List([upsampler])

    def layer(
        self, index: int, hidden_states, time_embedding, context, tap: Tap | None = None
    ):
        """Applies the residual block `index` and its transformer, if it has one."""
        hidden_states = self.resnets[index](hidden_states, time_embedding)
        if hasattr(self, "attentions") and index < len(self.attentions):
            tap = within(tap, f"attentions.{index}")
            hidden_states = self.attentions[index](hidden_states, context, tap)
        return hidden_states

    def tapped_layer(
        self,
        index: int,
        name: str,
        control: CrossAttentionControl,
        hidden_states,
        time_embedding,
        context,
    ):
        """Applies `layer` under a control, and returns its attention as well."""
        taps: AttentionTaps = {}
        tap = within(recorder(control, taps), name)
        return self.layer(index, hidden_states, time_embedding, context, tap), taps


class UNet2DConditionModel(nnx.Module):
    """Predicts the noise (or velocity) in noisy latents, given timestep and caption.

    Source: Rombach et al. 2022; reference implementation diffusers
    `UNet2DConditionModel`, equal to 1e-4 in tests/models/test_unet.py.
    """

    def __init__(
        self, config: UNetConfig, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs
    ):
        self.config = config
        self.dtype = dtype
        channels = tuple(config.block_out_channels)
        time_dim = 4 * channels[0]
        resnet = functools.partial(
            ResnetBlock2D,
            time_embedding_dim=time_dim,
            groups=config.norm_num_groups,
            epsilon=config.norm_epsilon,
            dtype=dtype,
            rngs=rngs,
        )
        transformer = functools.partial(
            Transformer2DModel,
            context_dim=config.cross_attention_dim,
            num_layers=config.transformer_layers,
            use_linear_projection=config.use_linear_projection,
            groups=config.norm_num_groups,
            attention_implementation=config.attention_implementation,
            dtype=dtype,
            rngs=rngs,
        )
        conv = functools.partial(make_conv, dtype=dtype, rngs=rngs)

        self.conv_in = conv(config.in_channels, channels[0], 3)
        self.time_embedding = TimestepEmbedding(
            channels[0], time_dim, dtype=dtype, rngs=rngs
        )
        self.down_blocks = nnx.List(
            _make_down(config, resnet, transformer, dtype, rngs)
        )
        self.mid_block = Level(
            [resnet(channels[-1], channels[-1]) for _ in range(2)],
            [transformer(channels[-1], num_heads=config.heads[-1])],
        )
        self.up_blocks = nnx.List(_make_up(config, resnet, transformer, dtype, rngs))
        self.conv_norm_out = make_group_norm(
            channels[0],
            config.norm_num_groups,
            config.norm_epsilon,
            dtype=dtype,
            rngs=rngs,
        )
        self.conv_out = conv(channels[0], config.out_channels, 3, zero=True)

    def __call__(
        self,
        noisy_latents: Float[Array, "B h w c"],
        timesteps: Real[Array, " B"],
        encoder_hidden_states: Float[Array, "B L D"],
        control: CrossAttentionControl | None = None,
    ) -> Float[Array, "B h w c"] | tuple[Float[Array, "B h w c"], AttentionTaps]:
        """Returns the model's prediction in float32.

        Args:
          control: changes the logits of every cross-attention layer; with one, the
            attention probabilities of these layers are returned as well.
        """
        context = encoder_hidden_states.astype(self.dtype)
        sinusoids = timestep_embedding(timesteps, self.config.block_out_channels[0])
        time_embedding = self.time_embedding(sinusoids.astype(self.dtype))

        taps: AttentionTaps = {}

        def layer(name, level, index, x):
            if control is None:
                call = functools.partial(level.layer, index)
                return checkpoint(call, self.config.remat)(x, time_embedding, context)
            tapped = functools.partial(level.tapped_layer, index, name, control)
            x, found = checkpoint(tapped, self.config.remat)(x, time_embedding, context)
            taps.update(found)
            return x

        x = self.conv_in(noisy_latents.astype(self.dtype))
        skips = [x]
        for i, level in enumerate(self.down_blocks):
            for index in range(len(level.resnets)):
                x = layer(f"down_blocks.{i}", level, index, x)
                skips.append(x)
            if hasattr(level, "downsamplers"):
                x = level.downsamplers[0](x)
                skips.append(x)
        x = layer("mid_block", self.mid_block, 0, x)
        x = layer("mid_block", self.mid_block, 1, x)
        for i, level in enumerate(self.up_blocks):
            for index in range(len(level.resnets)):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = layer(f"up_blocks.{i}", level, index, x)
            if hasattr(level, "upsamplers"):
                x = level.upsamplers[0](x)
        x = self.conv_out(nnx.silu(self.conv_norm_out(x)))
        prediction = x.astype(jnp.float32)
        return prediction if control is None else (prediction, taps)


def _make_down(config: UNetConfig, resnet, transformer, dtype, rngs) -> list[Level]:
    channels = tuple(config.block_out_channels)
    levels = []
    for i, width in enumerate(channels):
        inputs = [channels[max(i - 1, 0)]] + [width] * (config.layers_per_block - 1)
        last = i == len(channels) - 1
        levels.append(
            Level(
                [resnet(in_channels, width) for in_channels in inputs],
                [transformer(width, num_heads=config.heads[i]) for _ in inputs]
                if config.cross_attention[i]
                else [],
                downsampler=None
                if last
                else Downsample2D(width, dtype=dtype, rngs=rngs),
            )
        )
    return levels


def _make_up(config: UNetConfig, resnet, transformer, dtype, rngs) -> list[Level]:
    channels = tuple(config.block_out_channels)
    levels = []
    below = channels[-1]
    for i in reversed(range(len(channels))):
        width = channels[i]
        # Skips arrive in reverse: the level's own outputs, then what entered it.
        skips = [width] * config.layers_per_block + [channels[max(i - 1, 0)]]
        inputs = [below] + [width] * config.layers_per_block
        levels.append(
            Level(
                [resnet(a + b, width) for a, b in zip(inputs, skips, strict=True)],
                [transformer(width, num_heads=config.heads[i]) for _ in skips]
                if config.cross_attention[i]
                else [],
                upsampler=Upsample2D(width, dtype=dtype, rngs=rngs) if i else None,
            )
        )
        below = width
    return levels
