"""Cross-attention that a memorised prompt cannot concentrate: rescaled, and masked.

In memorised prompts attention rests on a few trigger tokens. More weight on the start
token, which says nothing of the prompt, and none on what follows its end, disperses it.

Source: Ren et al. 2024, Unveiling and Mitigating Memorization in Text-to-image Diffusion
Models through Cross Attention; `--c1` and `--cross_attn_mask` of renjie3/MemAttn.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from copymit.models.attention_control import CrossAttentionControl

_END_OF_TEXT = 49_407


def text_lengths(input_ids: Int[Array, "B L"]) -> Int[Array, " B"]:
    """Counts the tokens up to the first end token and with it; L without one."""
    ends = input_ids == _END_OF_TEXT
    L = input_ids.shape[1]
    return jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1) + 1, L)


def rescale_attention(
    start_scales: Float[Array, " B"], lengths: Int[Array, " B"] | None
) -> CrossAttentionControl:
    """Returns the control of a batch.

    Args:
      start_scales: factor of the logits of the start token, 1.25 in the paper's code for
        prompts and 1 for the negative half of a guided batch.
      lengths: tokens from here on get no attention, in the negative half too, whose own
        text is shorter; None masks nothing.
    """

    def control(layer, logits):
        del layer
        rescaled = logits.at[..., 0].multiply(start_scales[:, None, None])
        if lengths is None:
            return rescaled
        seen = jnp.arange(logits.shape[-1]) < lengths[:, None]
        return jnp.where(seen[:, None, None], rescaled, -jnp.inf)

    return control
