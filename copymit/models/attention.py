"""Scaled dot-product attention, formulated for the machine that runs it.

The scores of attention over many positions are far larger than what enters and leaves
it: 512 MiB for 16 x 8 heads over 1024 positions. Here is who computes them where; how is
in `attention_blocks` and `attention_kernels`. Softmax is float32 whatever the dtype.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.models import attention_blocks
from copymit.models.attention_blocks import attend_blockwise, attend_chunked
from copymit.models.attention_kernels import (
    attend_cudnn,
    attend_flash,
    fits_cudnn,
    fits_flash,
)
from copymit.models.backend import Machine, target_machine
from copymit.sharding import batch_shards

Implementation = Literal["auto", "xla", "chunked", "blockwise", "flash", "cudnn"]

# A class token before 256 patches: XLA's products on a CPU take 28 ms for 257 rows and 22
# for 256, so the few beyond a multiple of so many go alone.
_FAST_ROWS, _FEW_ROWS = 128, 8

# Below so many queries XLA's own attention accesses about as many bytes as a kernel.
_FLASH_MIN_POSITIONS = 512
_CUDNN_MIN_POSITIONS = 256


class Sizes(NamedTuple):
    """Sizes of an attention: examples, queries, keys, heads, and the width of a head."""

    B: int
    P: int
    L: int
    N: int
    K: int


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
      implementation: `xla` holds all scores, `chunked` and `blockwise` (for CPUs) a block
        of them; `flash` is the TPU's kernel, for multiples of 128 queries and keys (and
        heads, if wider), and on several devices needs `jax.set_mesh`; `cudnn` is
        NVIDIA's, for 16-bit floats. Only the first two have forward-mode derivatives,
        only the first three second ones. `auto` chooses for the machine.
    Raises:
      ValueError: for an unknown implementation, or sizes that a kernel does not take.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"attention implementation {implementation!r} is not known: use one of "
            f"{', '.join(get_args(Implementation))}"
        )
    if implementation == "auto":
        B, P, N, K = query.shape
        # The compiler cannot split the TPU's kernel among devices: that takes a mesh.
        splits = jax.device_count() == 1 or not jax.sharding.get_abstract_mesh().empty
        sizes = Sizes(B, P, key.shape[1], N, K)
        implementation = choose(
            target_machine(), sizes, query.dtype, splits=splits, shards=batch_shards()
        )
    if implementation == "blockwise":
        few = query.shape[1] % _FAST_ROWS
        if is_causal or few > _FEW_ROWS or few in (0, query.shape[1]):
            return attend_blockwise(query, key, value, is_causal)
        parts = (query[:, :few], query[:, few:])
        return jnp.concatenate([attend_blockwise(x, key, value) for x in parts], axis=1)
    formulations = {
        "chunked": attend_chunked,
        "flash": attend_flash,
        "cudnn": attend_cudnn,
    }
    if implementation in formulations:
        return formulations[implementation](query, key, value, is_causal)
    return jax.nn.dot_product_attention(query, key, value, is_causal=is_causal)


def choose(
    machine: Machine, sizes: Sizes, dtype, *, splits: bool, shards: int
) -> Implementation:
    """Chooses the formulation that is fast on a machine and fits it.

    Args:
      splits: whether a kernel that the compiler cannot split can be.
      shards: devices among which examples are divided.
    """
    B, P, L, N, K = sizes
    scores = B * N * P * L
    if machine == "cpu":
        large = scores > attention_blocks.BLOCK_SCORES
        return "blockwise" if large else "xla"
    if (
        machine == "tpu"
        and splits
        and fits_flash(P, L, K)
        and P >= _FLASH_MIN_POSITIONS
    ):
        return "flash"
    if machine == "cuda" and fits_cudnn(P, K, dtype) and P >= _CUDNN_MIN_POSITIONS:
        return "cudnn"
    return "chunked" if scores > attention_blocks.CHUNK_SCORES * shards else "xla"
