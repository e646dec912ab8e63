"""Scaled dot-product attention, formulated for the machine that runs it.

The scores of attention over many positions are far larger than what enters and leaves
it: 512 MiB for 16 x 8 heads over 1024 positions. On a CPU, `blockwise` therefore computes
them a few heads, or a few queries, at a time, so that they stay in the caches, and once
more in the backward pass; on a TPU `flash` does so in one kernel. Softmax is float32
whatever the dtype.
"""

import functools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from copymit.models.backend import target_backend

Implementation = Literal["auto", "xla", "blockwise", "flash"]

# Two float32 arrays of so many scores fit the caches of a few cores: measured best
# between 2**18 and 2**22.
BLOCK_SCORES = 2**20

# A class token before 256 patches: XLA's products on a CPU take 28 ms for 257 rows and 22
# for 256, so the few beyond a multiple of so many go alone.
_FAST_ROWS, _FEW_ROWS = 128, 8

# The TPU kernel works in tiles of so many queries and keys; below a few of them XLA's own
# attention accesses about as many bytes.
_FLASH_TILE = 128
_FLASH_MIN_POSITIONS = 512


def attend(
    query: Float[Array, "B P N K"],
    key: Float[Array, "B L N K"],
    value: Float[Array, "B L N K"],
    *,
    is_causal: bool = False,
    implementation: Implementation = "auto",
) -> Float[Array, "B P N K"]:
    """Computes softmax(query key^T / sqrt(K)) value for every head.

    Args:
      is_causal: query i attends to the keys 0 to i only.
      implementation: `xla` holds all scores; `blockwise` a block of them; `flash` is the
        TPU's kernel, for multiples of 128 queries and keys, and on several devices needs
        `jax.set_mesh`. The last two have no forward-mode derivatives. `auto` chooses for
        the machine.
    Raises:
      ValueError: for an unknown implementation, or sizes that `flash` does not take.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"attention implementation {implementation!r} is not known: use one of "
            f"{', '.join(get_args(Implementation))}"
        )
    if implementation == "auto":
        implementation = _choose(query, key)
    if implementation == "blockwise":
        few = query.shape[1] % _FAST_ROWS
        if is_causal or few > _FEW_ROWS or few in (0, query.shape[1]):
            return attend_blockwise(query, key, value, is_causal)
        parts = (query[:, :few], query[:, few:])
        return jnp.concatenate([attend_blockwise(x, key, value) for x in parts], axis=1)
    if implementation == "flash":
        return attend_flash(query, key, value, is_causal)
    return jax.nn.dot_product_attention(query, key, value, is_causal=is_causal)


def _choose(query, key) -> Implementation:
    B, P, N, _ = query.shape
    L = key.shape[1]
    backend = target_backend()
    if backend == "cpu" and B * N * P * L > BLOCK_SCORES:
        return "blockwise"
    # The compiler cannot split a kernel among devices: that takes a mesh.
    splits = jax.device_count() == 1 or not jax.sharding.get_abstract_mesh().empty
    if backend == "tpu" and splits and _fits_tiles(P, L) and P >= _FLASH_MIN_POSITIONS:
        return "flash"
    return "xla"


def _fits_tiles(P: int, L: int) -> bool:
    return P % _FLASH_TILE == 0 and L % _FLASH_TILE == 0


def attend_flash(
    query: Float[Array, "B P N K"],
    key: Float[Array, "B L N K"],
    value: Float[Array, "B L N K"],
    is_causal: bool = False,
) -> Float[Array, "B P N K"]:
    """Attends with jax's Pallas kernel for TPUs, on each device its examples and heads.

    Raises:
      ValueError: if the numbers of queries and keys are not multiples of 128.
    """
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention

    B, P, N, K = query.shape
    if not _fits_tiles(P, key.shape[1]):
        raise ValueError(
            f"attention implementation 'flash' takes multiples of {_FLASH_TILE} queries "
            f"and keys, not {P} and {key.shape[1]}: use 'auto', or a resolution whose "
            "latents have so many positions"
        )

    def kernel(*arrays):
        by_head = (x.swapaxes(1, 2) for x in arrays)
        attended = flash_attention(*by_head, causal=is_causal, sm_scale=K**-0.5)
        return attended.swapaxes(1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(query, key, value)
    batch = tuple(name for name in ("data", "fsdp") if name in mesh.shape)
    shards = math.prod(mesh.shape[name] for name in batch)
    heads = "tensor" if N % mesh.shape.get("tensor", N + 1) == 0 else None
    spec = PartitionSpec(batch if B % shards == 0 else None, None, heads)
    split = jax.shard_map(kernel, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return split(query, key, value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend_blockwise(
    query: Float[Array, "B P N K"],
    key: Float[Array, "B L N K"],
    value: Float[Array, "B L N K"],
    is_causal: bool = False,
) -> Float[Array, "B P N K"]:
    """Attends with about `BLOCK_SCORES` scores at a time, in whole rows.

    Source: Dao et al. 2022 (FlashAttention), for the backward pass.
    """
    return _forward(query, key, value, is_causal)[0]


def _forward(query, key, value, is_causal):
    B, P, N, K = query.shape
    z, p = _block_sizes(B * N, P, key.shape[1])

    def attend_rows(key, value, rows):
        query, first = rows
        scores = jnp.einsum("zpk,zlk->zpl", query, key)
        if is_causal:
            scores = jnp.where(_hidden(first, p, key.shape[1]), -jnp.inf, scores)
        largest = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(-1, keepdims=True)
        attended = jnp.einsum("zpl,zlk->zpk", weights, value) / total
        return attended, (largest + jnp.log(total))[..., 0]

    def attend_heads(heads):
        query, key, value = heads
        rows = (_split_rows(query, p), jnp.arange(0, P, p))
        attended, log_totals = jax.lax.map(
            functools.partial(attend_rows, key, value), rows
        )
        return _join_rows(attended, P), _join_rows(log_totals, P)

    heads = [_split_heads(x, z) for x in (query, key, value)]
    attended, log_totals = jax.lax.map(attend_heads, (heads[0] * K**-0.5, *heads[1:]))
    attended = _join_heads(attended, B).astype(query.dtype)
    return attended, (query, key, value, attended, log_totals)


def _backward(is_causal, residuals, gradient):
    query, key, value, attended, log_totals = residuals
    B, P, N, K = query.shape
    z, p = _block_sizes(B * N, P, key.shape[1])

    # Keys come before queries, and keys transposed from outside the loop, so that all
    # five products are in layouts for which XLA has fast ones.
    def differentiate_rows(key, key_t, value, sums, rows):
        query, gradient, log_totals, means, first = rows
        scores = jnp.einsum("zlk,zpk->zlp", key, query)
        if is_causal:
            scores = jnp.where(_hidden(first, p, key.shape[1]).T, -jnp.inf, scores)
        weights = jnp.exp(scores - log_totals[:, None])
        weight_gradients = jnp.einsum("zlk,zpk->zlp", value, gradient)
        score_gradients = weights * (weight_gradients - means[:, None])
        key_gradient = jnp.einsum("zlp,zpk->zlk", score_gradients, query)
        value_gradient = jnp.einsum("zlp,zpk->zlk", weights, gradient)
        sums = sums[0] + key_gradient, sums[1] + value_gradient
        return sums, jnp.einsum("zkl,zlp->zkp", key_t, score_gradients)

    def differentiate_heads(heads):
        key, key_t, value, *by_query = heads
        rows = (*(_split_rows(x, p) for x in by_query), jnp.arange(0, P, p))
        (key_gradient, value_gradient), query_gradients = jax.lax.scan(
            functools.partial(differentiate_rows, key, key_t, value),
            (jnp.zeros_like(key), jnp.zeros_like(value)),
            rows,
        )
        query_gradient = _join_rows(query_gradients.swapaxes(-1, -2), P)
        return query_gradient, key_gradient, value_gradient

    q, k, v, a, g = (
        _split_heads(x, z) for x in (query, key, value, attended, gradient)
    )
    # What softmax subtracts from the gradient of each row of scores.
    means = (a * g).sum(-1)
    heads = (k, k.swapaxes(-1, -2), v, q * K**-0.5, g, log_totals, means)
    q, k, v = (_join_heads(x, B) for x in jax.lax.map(differentiate_heads, heads))
    q = q * K**-0.5
    return q.astype(query.dtype), k.astype(key.dtype), v.astype(value.dtype)


attend_blockwise.defvjp(_forward, _backward)


def _block_sizes(heads: int, P: int, L: int) -> tuple[int, int]:
    """Chooses how many heads, and how many queries of each, make a block."""
    rows = max(1, min(BLOCK_SCORES // L, heads * P))
    if rows < P:
        blocks = -(-P // rows)
        return 1, -(-P // blocks)
    return max(z for z in range(1, rows // P + 1) if heads % z == 0), P


def _hidden(first, p: int, L: int):
    """Returns which keys the queries `first` to `first + p` may not see."""
    return jnp.arange(L) > (first + jnp.arange(p))[:, None]


def _split_heads(x: Float[Array, "B P N K"], z: int) -> Float[Array, "blocks z P K"]:
    P, K = x.shape[1], x.shape[3]
    return x.astype(jnp.float32).swapaxes(1, 2).reshape(-1, z, P, K)


def _join_heads(x: Float[Array, "blocks z P K"], B: int) -> Float[Array, "B P N K"]:
    return x.reshape(B, -1, *x.shape[2:]).swapaxes(1, 2)


def _split_rows(x: Float[Array, "z P *K"], p: int) -> Float[Array, "blocks z p *K"]:
    """Splits the queries, after rows of zeros that complete the last block."""
    z, P, *rest = x.shape
    x = jnp.pad(x, [(0, 0), (0, -P % p)] + [(0, 0)] * len(rest))
    return x.reshape(z, -1, p, *rest).swapaxes(0, 1)


def _join_rows(x: Float[Array, "blocks z p *K"], P: int) -> Float[Array, "z P *K"]:
    _, z, _, *rest = x.shape
    return x.swapaxes(0, 1).reshape(z, -1, *rest)[:, :P]
