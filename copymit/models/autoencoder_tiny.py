"""The tiny autoencoder TAESD and its kin: pixels in [-1, 1] <-> latents, without noise.

In: pixels or latents, channels last. Out: latents or pixels. Structure and parameter
names follow diffusers' `AutoencoderTiny`; `taesd_state` renames the tensors of the
original files, `infer_config` reads the sizes of a network off its tensors.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from copymit.models.blocks import Dtype, make_group_norm
from copymit.models.convolution import convolve
from copymit.models.initializers import LECUN_NORMAL, ZERO

Tensor = TypeVar("Tensor")
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nnx.relu,
    "silu": nnx.silu,
    "gelu": functools.partial(nnx.gelu, approximate=False),
}
# Latents beyond this are squashed before they are decoded.
_LATENT_LIMIT = 3.0
_NORM_GROUPS = 4
_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class AutoencoderTinyConfig:
    """Sizes of the autoencoder, stage by stage in the order of computation.

    Fields are those of the published `config.json`, except `use_midblock_gn`; defaults
    are the autoencoder of Stable Diffusion 1.x and 2.x.

    Attributes:
      encoder_block_out_channels, decoder_block_out_channels: width of each stage, all
        the same, since only residual blocks without a projection are published.
      num_encoder_blocks, num_decoder_blocks: residual blocks of each stage.
      act_fn: activation inside the blocks: relu, silu or gelu.
      upsample_fn, upsampling_scaling_factor: how the decoder enlarges between stages.
      scaling_factor, shift_factor: what makes latents of about unit variance and zero
        mean; the published networks need neither.
      latent_magnitude, latent_shift: latents / (2 magnitude) + shift is within [0, 1],
        to store them as an image; not used by the network.
      use_midblock_gn: whether the blocks at the coarsest resolution see normalised
        features of the whole image, as in the autoencoder of FLUX.2 (`taef2`).
    Raises:
      ValueError: for sizes that do not fit each other or unknown functions.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_block_out_channels: Sequence[int] = (64, 64, 64, 64)
    decoder_block_out_channels: Sequence[int] = (64, 64, 64, 64)
    num_encoder_blocks: Sequence[int] = (1, 3, 3, 3)
    num_decoder_blocks: Sequence[int] = (3, 3, 3, 1)
    act_fn: str = "relu"
    upsample_fn: str = "nearest"
    upsampling_scaling_factor: int = 2
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    latent_magnitude: float = 3.0
    latent_shift: float = 0.5
    use_midblock_gn: bool = False

    def __post_init__(self):
        for part in ("encoder", "decoder"):
            widths = getattr(self, f"{part}_block_out_channels")
            blocks = getattr(self, f"num_{part}_blocks")
            if not blocks or len(widths) != len(blocks):
                raise ValueError(
                    f"autoencoder: {part}_block_out_channels has {len(widths)} stages, "
                    f"num_{part}_blocks {len(blocks)}: give one value a stage"
                )
            if len(set(widths)) > 1 or widths[0] < 1:
                raise ValueError(
                    f"autoencoder: {part}_block_out_channels={tuple(widths)}: give "
                    "every stage the same positive width"
                )
        for name in ("in_channels", "out_channels", "latent_channels"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"autoencoder: {name}={getattr(self, name)} must be at least 1"
                )
        if self.act_fn not in _ACTIVATIONS:
            raise ValueError(
                f"autoencoder: act_fn={self.act_fn!r} is not known: use "
                f"{', '.join(_ACTIVATIONS)}"
            )
        if self.upsample_fn != "nearest":
            raise ValueError(
                f"autoencoder: upsample_fn={self.upsample_fn!r} is not known: use "
                "nearest, as every published network does"
            )
        enlarged = self.upsampling_scaling_factor ** (len(self.num_decoder_blocks) - 1)
        if enlarged != self.downsampling:
            raise ValueError(
                f"autoencoder: {len(self.num_encoder_blocks)} encoder stages reduce "
                f"images {self.downsampling} times, {len(self.num_decoder_blocks)} "
                f"decoder stages enlarge latents {enlarged} times: make these equal"
            )

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, in height and in width."""
        return 2 ** (len(self.num_encoder_blocks) - 1)


class AutoencoderTiny(nnx.Module):
    """Compresses images to latents and decodes them, with few plain convolutions.

    Source: github.com/madebyollin/taesd; reference implementation diffusers
    `AutoencoderTiny`, equal to 1e-4 in tests/models/test_autoencoder_tiny.py.
    """

    def __init__(
        self,
        config: AutoencoderTinyConfig,
        *,
        dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.dtype = dtype
        self.encoder = EncoderTiny(config, dtype=dtype, rngs=rngs)
        self.decoder = DecoderTiny(config, dtype=dtype, rngs=rngs)

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, in height and in width."""
        return self.config.downsampling

    def encode(self, pixel_values: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        """Returns the latents, float32 and unscaled.

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
        zero_to_one = (pixel_values.astype(jnp.float32) + 1) / 2
        return self.encoder(zero_to_one.astype(self.dtype)).astype(jnp.float32)

    def decode(self, latents: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        """Returns pixels, float32 and about in [-1, 1], of unscaled latents."""
        scaled = latents.astype(jnp.float32) / _LATENT_LIMIT
        limited = (jnp.tanh(scaled) * _LATENT_LIMIT).astype(self.dtype)
        return self.decoder(limited).astype(jnp.float32) * 2 - 1


class EncoderTiny(nnx.Module):
    """Pixels in [0, 1] to latents: blocks, and a strided convolution between stages."""

    def __init__(self, config: AutoencoderTinyConfig, *, dtype: Dtype, rngs: nnx.Rngs):
        width = config.encoder_block_out_channels[0]
        conv = functools.partial(_make_conv, dtype=dtype, rngs=rngs)
        stages = len(config.num_encoder_blocks)
        layers: list[nnx.Module] = []
        for stage, blocks in enumerate(config.num_encoder_blocks):
            if stage == 0:
                layers.append(conv(config.in_channels, width))
            else:
                layers.append(conv(width, width, stride=2, use_bias=False))
            pool = config.use_midblock_gn and stage == stages - 1
            layers += [
                AutoencoderTinyBlock(
                    width, config.act_fn, pool=pool, dtype=dtype, rngs=rngs
                )
                for _ in range(blocks)
            ]
        layers.append(conv(width, config.latent_channels))
        self.layers = nnx.List(layers)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        return _chain(self.layers, x)


class DecoderTiny(nnx.Module):
    """Latents to pixels in [0, 1]: blocks, enlarged and convolved between stages."""

    def __init__(self, config: AutoencoderTinyConfig, *, dtype: Dtype, rngs: nnx.Rngs):
        width = config.decoder_block_out_channels[0]
        conv = functools.partial(_make_conv, dtype=dtype, rngs=rngs)
        stages = len(config.num_decoder_blocks)
        layers: list[nnx.Module] = [
            conv(config.latent_channels, width),
            Function(_ACTIVATIONS[config.act_fn]),
        ]
        for stage, blocks in enumerate(config.num_decoder_blocks):
            pool = config.use_midblock_gn and stage == 0
            layers += [
                AutoencoderTinyBlock(
                    width, config.act_fn, pool=pool, dtype=dtype, rngs=rngs
                )
                for _ in range(blocks)
            ]
            if stage < stages - 1:
                enlarge = functools.partial(
                    _repeat, times=config.upsampling_scaling_factor
                )
                layers += [Function(enlarge), conv(width, width, use_bias=False)]
        layers.append(conv(width, config.out_channels))
        self.layers = nnx.List(layers)

    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        return _chain(self.layers, x)


class AutoencoderTinyBlock(nnx.Module):
    """Three convolutions, residual; with `pool`, also group-normalised features."""

    def __init__(
        self,
        channels: int,
        act_fn: str,
        *,
        pool: bool = False,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(_make_conv, dtype=dtype, rngs=rngs)
        activation = _ACTIVATIONS[act_fn]
        self.conv = nnx.List(
            [
                conv(channels, channels),
                Function(activation),
                conv(channels, channels),
                Function(activation),
                conv(channels, channels, zero=True),
            ]
        )
        if pool:
            inner = 4 * channels
            norm = make_group_norm(
                inner, _NORM_GROUPS, _NORM_EPSILON, dtype=dtype, rngs=rngs
            )
            linear = functools.partial(conv, kernel_size=1, use_bias=False)
            self.pool = nnx.List(
                [
                    linear(channels, inner),
                    norm,
                    Function(nnx.relu),
                    linear(inner, channels, zero=True),
                ]
            )

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        if hasattr(self, "pool"):
            x = x + _chain(self.pool, x)
        return nnx.relu(_chain(self.conv, x) + x)


class Function(nnx.Module):
    """A function with a numbered place among the layers, as published names count."""

    def __init__(self, function: Callable[[Array], Array]):
        self.function = function

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.function(x)


def taesd_state(
    encoder_tensors: Mapping[str, Tensor], decoder_tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Renames the tensors of a TAESD encoder file and decoder file to ours.

    Those files number the layers (`1.conv.0.weight`); the decoder's count begins with
    the squashing of the latents, which here is no layer.

    Raises:
      ValueError: a name does not begin with a layer's number.
    """
    state = {}
    for part, offset, tensors in (
        ("encoder", 0, encoder_tensors),
        ("decoder", 1, decoder_tensors),
    ):
        for name, tensor in tensors.items():
            number, _, leaf = name.partition(".")
            if not number.isdecimal() or int(number) < offset:
                raise ValueError(
                    f"tensor {name!r} is not of a TAESD {part}, whose names begin with "
                    f"a layer's number from {offset}: give the original files "
                    "taesd_encoder and taesd_decoder, in this order"
                )
            state[f"{part}.layers.{int(number) - offset}.{leaf}"] = tensor
    return state


def infer_config(state: Mapping[str, np.ndarray]) -> AutoencoderTinyConfig:
    """Reads the sizes of a network off its published tensors, as `taesd_state` names them.

    What leaves no trace in tensors, such as the activation, has its default.

    Raises:
      ValueError: the tensors are not those of a tiny autoencoder.
    """
    encoder, decoder = (_convolutions(state, part) for part in ("encoder", "decoder"))
    encoder_blocks, decoder_blocks = map(_count_blocks, (encoder, decoder))
    return AutoencoderTinyConfig(
        in_channels=encoder[0][1].shape[1],
        out_channels=decoder[-1][1].shape[0],
        latent_channels=encoder[-1][1].shape[0],
        encoder_block_out_channels=(encoder[0][1].shape[0],) * len(encoder_blocks),
        decoder_block_out_channels=(decoder[0][1].shape[0],) * len(decoder_blocks),
        num_encoder_blocks=encoder_blocks,
        num_decoder_blocks=decoder_blocks,
        use_midblock_gn=any(".pool." in name for name in state),
    )


def _convolutions(
    state: Mapping[str, np.ndarray], part: str
) -> list[tuple[bool, np.ndarray]]:
    """Lists the layers of one half: whether each is a block, and its first weight."""
    layers = {}
    for name, tensor in state.items():
        half, _, rest = name.partition(".layers.")
        number, _, leaf = rest.partition(".")
        if half == part and number.isdecimal() and leaf in ("weight", "conv.0.weight"):
            layers[int(number)] = (leaf != "weight", tensor)
    ordered = [layers[number] for number in sorted(layers)]
    if (
        len(ordered) < 2
        or ordered[0][0]
        or ordered[-1][0]
        or any(weight.ndim != 4 for _, weight in ordered)
    ):
        raise ValueError(
            f"the tensors {part}.layers.* are not those of a tiny autoencoder, which "
            "begin and end with a convolution: check which file they come from"
        )
    return ordered


def _count_blocks(layers: Sequence[tuple[bool, np.ndarray]]) -> tuple[int, ...]:
    """Counts the blocks after each convolution but the last."""
    counts: list[int] = []
    for is_block, _ in layers:
        if is_block:
            counts[-1] += 1
        else:
            counts.append(0)
    return tuple(counts[:-1])


def _make_conv(
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    use_bias: bool = True,
    zero: bool = False,
    dtype: Dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    pad = kernel_size // 2
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel_size, kernel_size),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=ZERO if zero else LECUN_NORMAL,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


def _chain(layers: Sequence, x: Array) -> Array:
    for layer in layers:
        x = layer(x)
    return x


def _repeat(x: Array, times: int) -> Array:
    return x.repeat(times, axis=1).repeat(times, axis=2)
