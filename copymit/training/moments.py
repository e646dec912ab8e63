"""Adam whose moments take two bytes or one instead of four.

`bfloat16` and `float8` moments change by less than the distance of two of their numbers
in most steps. Rounded to the nearest they would never move, so they are rounded up or
down at random, right on average. `float8` holds the first moment and the root of the
second, each row (the last axis) with a scale of its own: three bits after the leading
one over 15 octaves, less over three more.

Source: Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, for scales of
  blocks and for leaving small parameters alone; `float8_e4m3fn` in place of their table.
"""

import itertools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, UInt32

MomentsDtype = Literal["float32", "bfloat16", "float8"]

# Biases and norms: what they take is nothing, and their moments matter most.
_MIN_SIZE = 4096

_LARGEST, _SMALLEST = 448.0, 2.0**-9  # that float8_e4m3fn has
_MANTISSA_BITS = {jnp.dtype(jnp.bfloat16): 7, jnp.dtype(jnp.float8_e4m3fn): 3}


class SmallMoments(NamedTuple):
    """The state of `scale_by_small_adam`.

    Attributes:
      count: steps, as optax's.
      mu, nu: the moments, as they are stored.
      mu_scale, nu_scale: what stored rows are multiplied with.
    """

    count: Array  # type: ignore[assignment]
    mu: Any
    nu: Any
    mu_scale: Any
    nu_scale: Any


def scale_by_small_adam(
    adam: optax.GradientTransformation, dtype: MomentsDtype
) -> optax.GradientTransformation:
    """Returns `optax.scale_by_adam(...)` with its moments in another dtype.

    Raises:
      ValueError: for an unknown dtype.
    """
    if dtype not in get_args(MomentsDtype):
        raise ValueError(
            f"train.moments_dtype={dtype!r} is not known: use one of "
            f"{', '.join(get_args(MomentsDtype))}"
        )
    if dtype == "float32":
        return adam
    small = jnp.bfloat16 if dtype == "bfloat16" else jnp.float8_e4m3fn

    def init(params):
        def zeros(x):
            return jnp.zeros(x.shape, small if x.size >= _MIN_SIZE else jnp.float32)

        def ones(x):
            rows = dtype == "float8" and x.size >= _MIN_SIZE
            return jnp.ones((*x.shape[:-1], 1) if rows else (), jnp.float32)

        moments, scales = jax.tree.map(zeros, params), jax.tree.map(ones, params)
        return SmallMoments(jnp.zeros((), jnp.int32), moments, moments, scales, scales)

    def update(updates, state, params=None):
        mu = jax.tree.map(_unpack, state.mu, state.mu_scale)
        root = jax.tree.map(_unpack, state.nu, state.nu_scale)
        nu = jax.tree.map(jnp.square, root) if dtype == "float8" else root
        inner = optax.ScaleByAdamState(state.count, mu, nu)
        updates, inner = adam.update(updates, inner, params)
        mu, nu = inner.mu, inner.nu
        if dtype == "float8":
            nu = jax.tree.map(jnp.sqrt, nu)
        mu, mu_scale = _pack_all(mu, state.mu, state.mu_scale, 2 * state.count)
        nu, nu_scale = _pack_all(nu, state.nu, state.nu_scale, 2 * state.count + 1)
        return updates, SmallMoments(inner.count, mu, nu, mu_scale, nu_scale)

    return optax.GradientTransformation(init, update)


def round_at_random(x: Float[Array, "..."], dtype, salt) -> Float[Array, "..."]:
    """Rounds up or down, each as likely as the other number is far.

    Args:
      salt: an integer; the same one gives the same roundings.
    Returns:
      Values of `dtype`, in the dtype if nothing overflows and in the mean if nothing is
      below its normal numbers.
    """
    bits = 23 - _MANTISSA_BITS[jnp.dtype(dtype)]
    words = jax.lax.bitcast_convert_type(x, jnp.uint32)
    words += _hash(x.shape, salt) >> (32 - bits)
    words &= jnp.uint32(0xFFFFFFFF << bits & 0xFFFFFFFF)
    return jax.lax.bitcast_convert_type(words, jnp.float32).astype(dtype)


def _unpack(stored, scale):
    return stored.astype(jnp.float32) * scale


def _pack_all(moments, stored, scales, salt):
    salts = itertools.count()
    packed = jax.tree.map(
        lambda x, old, scale: _pack(x, old.dtype, scale, salt + 0x10000 * next(salts)),
        *(moments, stored, scales),
    )
    return tuple(
        jax.tree.map(lambda _, pair, i=i: pair[i], moments, packed) for i in (0, 1)
    )


def _pack(x, dtype, scale, salt):
    if dtype == jnp.float32:
        return x, scale
    if dtype == jnp.bfloat16:
        return round_at_random(x, dtype, salt), scale
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / _LARGEST
    scale = jnp.where(scale > 0, scale, 1.0)
    relative = jnp.clip(x / scale, -_LARGEST, _LARGEST)
    # A second moment of 0 beside a first of more would be a step without bound.
    tiny = jnp.where(x == 0, 0.0, jnp.copysign(_SMALLEST, x))
    relative = jnp.where(jnp.abs(relative) < _SMALLEST, tiny, relative)
    return round_at_random(relative, dtype, salt), scale


def _hash(shape: tuple[int, ...], salt) -> UInt32[Array, "..."]:
    """Returns a word for each element that looks random, at a few operations each.

    Source: Wellons 2018, `lowbias32`.
    """

    def mix(x):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ (x >> shift)) * jnp.uint32(factor)
        return x ^ (x >> 16)

    position = jnp.uint32(0)
    for axis, size in enumerate(shape):
        position *= jnp.uint32(size)
        position += jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return mix(position ^ mix(jnp.asarray(salt).astype(jnp.uint32)))
