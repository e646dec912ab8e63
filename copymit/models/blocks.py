"""Building blocks shared by the image networks: channels last, names as in diffusers.

Attribute paths equal the parameter names of the published PyTorch checkpoints
(`resnets.0.conv1`, `attn1.to_out.0`, `ff.net.2`), so that loading weights needs a
transpose and no table of renames.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Real

from copymit.models.attention import Implementation, attend
from copymit.models.attention_control import Tap, attend_through, within
from copymit.models.backend import target_backend
from copymit.models.convolution import convolve, convolve_upsampled
from copymit.models.initializers import LECUN_NORMAL, ZERO
from copymit.models.linear import contract_rows, gelu
from copymit.models.normalization import GroupNorm

Dtype = Any

make_linear = functools.partial(
    nnx.Linear, kernel_init=LECUN_NORMAL, dot_general=contract_rows
)


def make_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    zero: bool = False,
    conv_general_dilated: Callable[..., Array] = convolve,
    dtype: Dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Makes a square convolution, padded on both sides as torch's `padding=k // 2`.

    Args:
      zero: start with a kernel of zeros, see `ZERO`.
      conv_general_dilated: the function that convolves.
    """
    pad = kernel_size // 2
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel_size, kernel_size),
        strides=(stride, stride),
        # XLA's "SAME" would pad a strided convolution on one side only.
        padding=((pad, pad), (pad, pad)),
        dtype=dtype,
        kernel_init=ZERO if zero else LECUN_NORMAL,
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def make_group_norm(
    channels: int, groups: int, epsilon: float, *, dtype: Dtype, rngs: nnx.Rngs
) -> GroupNorm:
    """Makes a group norm whose statistics are float32 whatever the compute dtype."""
    return GroupNorm(channels, groups, epsilon=epsilon, dtype=dtype, rngs=rngs)


def timestep_embedding(
    timesteps: Real[Array, " B"],
    dim: int,
    *,
    flip_sin_to_cos: bool = True,
    freq_shift: float = 0.0,
    max_period: float = 10_000.0,
) -> Float[Array, "B {dim}"]:
    """Computes the sinusoidal embedding of diffusion timesteps, in float32.

    Source: Ho et al. 2020 (DDPM); argument names as diffusers' `Timesteps`.
    """
    half = dim // 2
    exponent = -jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32)
    frequencies = jnp.exp(exponent / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    embedding = jnp.concatenate([cos, sin] if flip_sin_to_cos else [sin, cos], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


class TimestepEmbedding(nnx.Module):
    """Two linear layers that lift the sinusoidal embedding to the UNet's width."""

    def __init__(self, in_dim: int, dim: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.linear_1 = make_linear(in_dim, dim, dtype=dtype, rngs=rngs)
        self.linear_2 = make_linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, embedding: Float[Array, "B D"]) -> Float[Array, "B E"]:
        return self.linear_2(nnx.silu(self.linear_1(embedding)))


class ResnetBlock2D(nnx.Module):
    """Norm, SiLU, convolution twice, with the timestep added between.

    A VAE's residual blocks have no timestep: `time_embedding_dim=None`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_embedding_dim: int | None,
        *,
        groups: int,
        epsilon: float,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(make_conv, dtype=dtype, rngs=rngs)
        norm = functools.partial(
            make_group_norm, groups=groups, epsilon=epsilon, dtype=dtype, rngs=rngs
        )
        self.norm1 = norm(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3)
        if time_embedding_dim is not None:
            self.time_emb_proj = make_linear(
                time_embedding_dim, out_channels, dtype=dtype, rngs=rngs
            )
        self.norm2 = norm(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3, zero=True)
        if in_channels != out_channels:
            self.conv_shortcut = conv(in_channels, out_channels, 1)

    def __call__(
        self,
        hidden_states: Float[Array, "B h w C"],
        time_embedding: Float[Array, "B E"] | None = None,
    ) -> Float[Array, "B h w O"]:
        residual = hidden_states
        hidden_states = self.conv1(nnx.silu(self.norm1(hidden_states)))
        if time_embedding is not None:
            shift = self.time_emb_proj(nnx.silu(time_embedding))
            hidden_states = hidden_states + shift[:, None, None, :]
        hidden_states = self.conv2(nnx.silu(self.norm2(hidden_states)))
        if hasattr(self, "conv_shortcut"):
            residual = self.conv_shortcut(residual)
        return residual + hidden_states


class Attention(nnx.Module):
    """Multi-head attention of image positions over themselves or over text tokens."""

    def __init__(
        self,
        channels: int,
        context_dim: int,
        num_heads: int,
        *,
        implementation: Implementation = "auto",
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        if channels % num_heads:
            raise ValueError(
                f"attention over {channels} channels cannot have {num_heads} heads: "
                "num_attention_heads must divide block_out_channels at every level"
            )
        project = functools.partial(make_linear, use_bias=False, dtype=dtype, rngs=rngs)
        self.num_heads = num_heads
        self.implementation = implementation
        self.to_q = project(channels, channels)
        self.to_k = project(context_dim, channels)
        self.to_v = project(context_dim, channels)
        self.to_out = nnx.List(
            [make_linear(channels, channels, kernel_init=ZERO, dtype=dtype, rngs=rngs)]
        )

    def __call__(
        self,
        hidden_states: Float[Array, "B P C"],
        context: Float[Array, "B L D"],
        tap: Tap | None = None,
    ) -> Float[Array, "B P C"]:
        def heads(x):
            return x.reshape(*x.shape[:2], self.num_heads, -1)

        attention = (
            functools.partial(attend, implementation=self.implementation)
            if tap is None
            else functools.partial(attend_through, tap)
        )
        attended = attention(
            heads(self.to_q(hidden_states)),
            heads(self.to_k(context)),
            heads(self.to_v(context)),
        )
        return self.to_out[0](attended.reshape(hidden_states.shape))


class GEGLU(nnx.Module):
    """Linear layer gated by the exact (erf) GELU of its second half."""

    def __init__(self, in_dim: int, out_dim: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.proj = LinearInHalves(in_dim, out_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B P C"]) -> Float[Array, "B P D"]:
        hidden, gate = self.proj(x)
        return hidden * gelu(gate)


class LinearInHalves(nnx.Module):
    """Linear layer whose outputs are two arrays.

    The halves have an axis of their own in its kernel, so that devices that divide the
    outputs (`mesh.tensor`) hold the same part of both. Published kernels have one after
    the other, which is the same order of numbers.
    """

    def __init__(self, in_dim: int, out_dim: int, *, dtype: Dtype, rngs: nnx.Rngs):
        init = dataclasses.replace(LECUN_NORMAL, output_axes=2)
        self.dtype = dtype
        self.kernel = nnx.Param(init(rngs.params(), (in_dim, 2, out_dim)))
        self.bias = nnx.Param(jnp.zeros((2, out_dim)))

    def __call__(self, x: Float[Array, "B P C"]) -> list[Array]:
        arrays = (x, self.kernel, self.bias)
        x, kernel, bias = (jnp.asarray(array, self.dtype) for array in arrays)
        if target_backend() == "tpu":
            # The gradient of one product would be put together of halves in memory.
            # docs/benchmarks.md has what two save; CPUs would copy the weights.
            return [x @ kernel[:, half] + bias[half] for half in (0, 1)]
        both = contract_rows(x, kernel) + bias
        return [both[..., half, :] for half in (0, 1)]


class FeedForward(nnx.Module):
    """The transformer block's MLP, four times as wide inside."""

    def __init__(self, channels: int, *, dtype: Dtype, rngs: nnx.Rngs):
        inner = 4 * channels
        # Published index 1 is a dropout without parameters, of rate 0 in every model.
        self.net = nnx.List(
            [
                GEGLU(channels, inner, dtype=dtype, rngs=rngs),
                nnx.Dropout(0.0),
                make_linear(inner, channels, kernel_init=ZERO, dtype=dtype, rngs=rngs),
            ]
        )

    def __call__(self, x: Float[Array, "B P C"]) -> Float[Array, "B P C"]:
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention to the caption, and an MLP, each residual."""

    def __init__(
        self,
        channels: int,
        context_dim: int,
        num_heads: int,
        *,
        attention_implementation: Implementation = "auto",
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        norm = functools.partial(
            nnx.LayerNorm, channels, epsilon=1e-5, dtype=dtype, rngs=rngs
        )
        attention = functools.partial(
            Attention,
            num_heads=num_heads,
            implementation=attention_implementation,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm1 = norm()
        self.attn1 = attention(channels, channels)
        self.norm2 = norm()
        self.attn2 = attention(channels, context_dim)
        self.norm3 = norm()
        self.ff = FeedForward(channels, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B P C"],
        context: Float[Array, "B L D"],
        tap: Tap | None = None,
    ) -> Float[Array, "B P C"]:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context, within(tap, "attn2"))
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the positions of a feature map.

    SD 1.x projects in and out with 1x1 convolutions, SD 2.x with linear layers; only
    the shape of the stored weights differs.
    """

    def __init__(
        self,
        channels: int,
        context_dim: int,
        num_heads: int,
        *,
        num_layers: int,
        use_linear_projection: bool,
        groups: int,
        attention_implementation: Implementation = "auto",
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        def projection(zero: bool = False):
            if use_linear_projection:
                init = ZERO if zero else LECUN_NORMAL
                return make_linear(
                    channels, channels, kernel_init=init, dtype=dtype, rngs=rngs
                )
            return make_conv(channels, channels, 1, zero=zero, dtype=dtype, rngs=rngs)

        self.norm = make_group_norm(channels, groups, 1e-6, dtype=dtype, rngs=rngs)
        self.proj_in = projection()
        self.transformer_blocks = nnx.List(
            [
                BasicTransformerBlock(
                    channels,
                    context_dim,
                    num_heads,
                    attention_implementation=attention_implementation,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(num_layers)
            ]
        )
        self.proj_out = projection(zero=True)

    def __call__(
        self,
        hidden_states: Float[Array, "B h w C"],
        context: Float[Array, "B L D"],
        tap: Tap | None = None,
    ) -> Float[Array, "B h w C"]:
        B, h, w, C = hidden_states.shape
        x = self.proj_in(self.norm(hidden_states)).reshape(B, h * w, C)
        for i, block in enumerate(self.transformer_blocks):
            x = block(x, context, within(tap, f"transformer_blocks.{i}"))
        return hidden_states + self.proj_out(x.reshape(B, h, w, C))


class Downsample2D(nnx.Module):
    """Halves height and width with a strided convolution."""

    def __init__(self, channels: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.conv = make_conv(channels, channels, 3, stride=2, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C"]:
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Doubles height and width by repetition, then convolves."""

    def __init__(self, channels: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.conv = make_conv(
            channels,
            channels,
            3,
            conv_general_dilated=convolve_upsampled,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C"]:
        return self.conv(x)
