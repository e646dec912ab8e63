"""The transformer that both halves of CLIP consist of.

In and out: one hidden state per token or patch.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from copymit.models.attention import attend
from copymit.models.initializers import normal
from copymit.models.linear import gelu

Dtype = Any


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Approximates GELU by a sigmoid, as OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
}


class EncoderConfig(Protocol):
    """What the configs of text and vision have in common."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def layer_norm_eps(self) -> float: ...


def check_encoder(config: EncoderConfig) -> None:
    """Checks what the types do not say.

    Raises:
      ValueError: if the heads do not divide the width or the activation is unknown.
    """
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size {config.hidden_size} is not a multiple of "
            f"num_attention_heads {config.num_attention_heads}; change one of them"
        )
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act {config.hidden_act!r} is unknown; "
            f"use one of {', '.join(sorted(ACTIVATIONS))}"
        )


def make_layer_norm(config: EncoderConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Makes a layer norm of the config's width and epsilon, computed in float32."""
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        dtype=jnp.float32,
        # CLIP has features far from zero, where E[x^2] - E[x]^2 cancels.
        use_fast_variance=False,
        rngs=rngs,
    )


class CLIPEncoder(nnx.Module):
    """Pre-norm layers of attention and MLP.

    Args:
      is_causal: a position attends to itself and those before it only.
    """

    def __init__(
        self, config: EncoderConfig, *, is_causal: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        self.layers = nnx.List(
            _Layer(config, is_causal=is_causal, dtype=dtype, rngs=rngs)
            for _ in range(config.num_hidden_layers)
        )

    def __call__(self, hidden_states: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


class _Layer(nnx.Module):
    def __init__(
        self, config: EncoderConfig, *, is_causal: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        self.layer_norm1 = make_layer_norm(config, rngs)
        self.self_attn = _Attention(config, is_causal=is_causal, dtype=dtype, rngs=rngs)
        self.layer_norm2 = make_layer_norm(config, rngs)
        self.mlp = _MLP(config, dtype=dtype, rngs=rngs)

    def __call__(self, hidden_states: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        hidden_states += self.self_attn(self.layer_norm1(hidden_states))
        hidden_states += self.mlp(self.layer_norm2(hidden_states))
        return hidden_states


class _Attention(nnx.Module):
    def __init__(
        self, config: EncoderConfig, *, is_causal: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        D = config.hidden_size
        in_std = (2 * D * config.num_hidden_layers) ** -0.5
        make_in = functools.partial(_make_linear, D, D, in_std, dtype, rngs)
        self.q_proj, self.k_proj, self.v_proj = make_in(), make_in(), make_in()
        self.out_proj = _make_linear(D, D, D**-0.5, dtype, rngs)
        self.num_heads = config.num_attention_heads
        self.is_causal = is_causal

    def __call__(self, hidden_states: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        B, L, D = hidden_states.shape
        heads = (B, L, self.num_heads, D // self.num_heads)
        attended = attend(
            self.q_proj(hidden_states).reshape(heads),
            self.k_proj(hidden_states).reshape(heads),
            self.v_proj(hidden_states).reshape(heads),
            is_causal=self.is_causal,
        )
        return self.out_proj(attended.reshape(B, L, D))


class _MLP(nnx.Module):
    def __init__(self, config: EncoderConfig, *, dtype: Dtype, rngs: nnx.Rngs):
        D, hidden = config.hidden_size, config.intermediate_size
        out_std = (2 * D * config.num_hidden_layers) ** -0.5
        self.fc1 = _make_linear(D, hidden, (2 * D) ** -0.5, dtype, rngs)
        self.fc2 = _make_linear(hidden, D, out_std, dtype, rngs)
        self.activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, hidden_states: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.fc2(self.activation(self.fc1(hidden_states)))


def _make_linear(
    in_features: int, out_features: int, std: float, dtype: Dtype, rngs: nnx.Rngs
) -> nnx.Linear:
    kernel_init = normal(std)
    return nnx.Linear(
        in_features, out_features, kernel_init=kernel_init, dtype=dtype, rngs=rngs
    )
