"""Cross-attention that can be seen and changed from outside the UNet.

A control enters `UNet2DConditionModel.__call__` (and `DiffusionModel.predict`), and then
`(prediction, taps)` leaves, with the attention probabilities of every cross-attention
layer. Without a control none of this is traced: layers attend as fast as they can.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CrossAttentionControl = Callable[
    [str, Float[Array, "B N P L"]], Float[Array, "B N P L"]
]
"""(layer, logits) -> logits: what becomes of `query key^T / sqrt(K)` before the softmax.

Called once a cross-attention layer while the forward pass is traced, so it must be a
traceable function of the logits; `layer` is a constant. Logits are float32, of N heads,
P image positions and L text tokens, and at -inf a token is not attended to at all. B is
the batch that the UNet sees: with classifier-free guidance an example has two rows, the
negative one first.

`layer` is diffusers' name of the layer, `down_blocks.0.attentions.1.transformer_blocks.
0.attn2`; the order of calls is that of the forward pass.
"""

AttentionTaps = dict[str, Float[Array, "B N P L"]]
"""Attention probabilities by layer, in the order of the forward pass; after the control.

Inside `jit`, what is not used of them is not computed for its own sake.
"""

Tap = Callable[[str, Array], Array]
"""A control that knows where it is: (name within this module, logits) -> probabilities."""


def keep_logits(layer: str, logits: Float[Array, "B N P L"]) -> Float[Array, "B N P L"]:
    """Is the control that changes nothing: for the taps alone."""
    del layer
    return logits


def within(tap: Tap | None, name: str) -> Tap | None:
    """Returns the tap for a module inside the present one."""
    if tap is None:
        return None
    return lambda inner, logits: tap(f"{name}.{inner}" if inner else name, logits)


def recorder(control: CrossAttentionControl, taps: AttentionTaps) -> Tap:
    """Returns a tap that applies a control, and leaves the probabilities in `taps`."""

    def tap(layer: str, logits: Array) -> Array:
        taps[layer] = jax.nn.softmax(control(layer, logits), axis=-1)
        return taps[layer]

    return tap


def attend_through(
    tap: Tap,
    query: Float[Array, "B P N K"],
    key: Float[Array, "B L N K"],
    value: Float[Array, "B L N K"],
) -> Float[Array, "B P N K"]:
    """Computes attention whose probabilities come from a tap; logits in float32."""
    logits = jnp.einsum(
        "bpnk,blnk->bnpl", query, key, preferred_element_type=jnp.float32
    )
    probabilities = tap("", logits * query.shape[-1] ** -0.5)
    return jnp.einsum("bnpl,blnk->bpnk", probabilities.astype(value.dtype), value)
