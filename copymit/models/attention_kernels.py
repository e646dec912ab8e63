"""Attention by one kernel that others wrote: jax's for TPUs, cuDNN's for NVIDIA's GPUs.

Neither can be differentiated forward, or twice.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

# The TPU kernel works in tiles of so many queries and keys.
FLASH_TILE = 128

# What the kernel works on at a time, of queries and of keys. Its default is a tile, with
# which every tile of queries reads all keys anew: counted by hand 1.3 GB of memory traffic
# for 8 x 5 heads over 1024 positions, forward and backward, where these take 0.5.
FLASH_BLOCK = 512

# cuDNN takes other numbers of queries and keys, but not every version every number.
CUDNN_TILE = 64
CUDNN_MAX_WIDTH = 128  # of a head; more from Hopper on, which is not measured yet


def fits_flash(P: int, L: int, K: int) -> bool:
    """Returns whether the TPU kernel takes so many queries and keys, and such heads."""
    return P % FLASH_TILE == L % FLASH_TILE == 0 and (K < 128 or K % 128 == 0)


def fits_cudnn(P: int, K: int, dtype) -> bool:
    """Returns whether cuDNN takes so many queries, and heads of this width."""
    is_16_bit = dtype in (jnp.bfloat16, jnp.float16)
    return is_16_bit and P % CUDNN_TILE == 0 and K % 8 == 0 and K <= CUDNN_MAX_WIDTH


def attend_cudnn(
    query: Float[Array, "B P N K"],
    key: Float[Array, "B L N K"],
    value: Float[Array, "B L N K"],
    is_causal: bool = False,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B P N K"]:
    """Attends with cuDNN's fused kernel.

    Keys are filled up to a multiple of 64, and what was added is not attended to; the
    compiler splits the kernel among devices by examples and heads.

    Args:
      implementation: of `jax.nn.dot_product_attention`; tests compute the same by XLA.
    Raises:
      ValueError: for dtypes, widths or numbers of queries that it does not take.
    """
    B, P, _, K = query.shape
    L = key.shape[1]
    if not fits_cudnn(P, K, query.dtype):
        raise ValueError(
            "attention implementation 'cudnn' takes 16-bit floats, heads of at most "
            f"{CUDNN_MAX_WIDTH} in multiples of 8, and multiples of {CUDNN_TILE} queries, "
            f"not {query.dtype}, heads of {K} and {P} queries: use 'auto', or "
            "train.dtype='bfloat16'"
        )
    extra = -L % CUDNN_TILE
    if extra:
        key, value = (
            jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in (key, value)
        )
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        key_value_seq_lengths=jnp.full(B, L, jnp.int32) if extra else None,
        is_causal=is_causal,
        implementation=implementation,
    )


def attend_flash(
    query: Float[Array, "B P N K"],
    key: Float[Array, "B L N K"],
    value: Float[Array, "B L N K"],
    is_causal: bool = False,
) -> Float[Array, "B P N K"]:
    """Attends with jax's Pallas kernel for TPUs, on each device its examples and heads.

    Raises:
      ValueError: if the numbers of queries and keys are not multiples of 128, or wider
        heads than that.
    """
    from jax.experimental.pallas.ops.tpu.flash_attention import (
        BlockSizes,
        flash_attention,
    )

    B, P, N, K = query.shape
    L = key.shape[1]
    if not fits_flash(P, L, K):
        raise ValueError(
            f"attention implementation 'flash' takes multiples of {FLASH_TILE} queries "
            f"and keys (and heads, if wider), not {P}, {L} and {K}: use 'auto', or a "
            "resolution whose latents have so many positions"
        )

    queries, keys = (math.gcd(size, FLASH_BLOCK) for size in (P, L))
    blocks = BlockSizes(
        block_q=queries,
        block_k_major=keys,
        block_k=keys,
        block_b=1,
        block_q_major_dkv=queries,
        block_k_major_dkv=keys,
        block_q_dkv=queries,
        block_k_dkv=keys,
        block_q_dq=queries,
        # Its size does not change how often keys are read here, and jax 0.10 spreads a
        # number for each query over so many lanes in memory.
        block_k_major_dq=FLASH_TILE,
        block_k_dq=FLASH_TILE,
    )

    def kernel(*arrays):
        attended = flash_attention(
            *(x.swapaxes(1, 2) for x in arrays),
            causal=is_causal,
            sm_scale=K**-0.5,
            block_sizes=blocks,
        )
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
