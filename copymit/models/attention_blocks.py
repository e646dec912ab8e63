"""Attention a block of scores after the other, so that they never exist all at once.

Two formulations. `attend_blockwise` is for CPUs: blocks that fit the caches, and a
backward pass by hand. `attend_chunked` is for everything else that no kernel takes: large
blocks of queries, of every head and example, which devices share as they share these; its
derivatives are those that jax finds, forward, backward and of any order.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.sharding import batch_shards

# Two float32 arrays of so many scores fit a core's caches: 2**17 to 2**19 are as fast,
# and 2**20 takes a third longer for the gradient of narrow heads.
BLOCK_SCORES = 2**18

# On each device; a GiB in float32.
CHUNK_SCORES = 2**28


def attend_chunked(
    query: Float[Array, "B P N K"],
    key: Float[Array, "B L N K"],
    value: Float[Array, "B L N K"],
    is_causal: bool = False,
) -> Float[Array, "B P N K"]:
    """Attends with at most `CHUNK_SCORES` scores at a time on a device.

    They are computed once more for the gradient.
    Source: Rabe and Staats 2021, without their blocks of keys.
    """
    B, P, N, K = query.shape
    L = key.shape[1]
    rows = max(1, CHUNK_SCORES * batch_shards() // (B * N * L))
    chunks = -(-P // rows)
    p = -(-P // chunks)

    @jax.checkpoint
    def attend_rows(query, first):
        scores = jnp.einsum(
            "bpnk,blnk->bnpl", query, key, preferred_element_type=jnp.float32
        )
        scores *= K**-0.5
        if is_causal:
            scores = jnp.where(_hidden(first, p, L), -jnp.inf, scores)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("bnpl,blnk->bpnk", weights, value)

    padded = jnp.pad(query, ((0, 0), (0, -P % p), (0, 0), (0, 0)))
    blocks = padded.reshape(B, chunks, p, N, K).swapaxes(0, 1)
    firsts = jnp.arange(0, P, p)
    attended = jax.lax.map(lambda rows: attend_rows(*rows), (blocks, firsts))
    return attended.swapaxes(0, 1).reshape(B, -1, N, K)[:, :P]


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
