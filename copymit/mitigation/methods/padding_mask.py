"""Padding mask: no cross-attention to what follows the end of the prompt."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from copymit.mitigation.record import Mitigation, Setting
from copymit.models.attention_control import CrossAttentionControl

_END_OF_TEXT = 49_407


def text_lengths(input_ids: Int[Array, "B L"]) -> Int[Array, " B"]:
    """Counts the tokens up to the first end token and with it; L without one."""
    ends = input_ids == _END_OF_TEXT
    L = input_ids.shape[1]
    return jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1) + 1, L)


def mask_padding(lengths: Int[Array, " B"]) -> CrossAttentionControl:
    """Lets nothing attend to tokens from these positions on."""

    def control(layer: str, logits: Float[Array, "B N P L"]) -> Float[Array, "B N P L"]:
        del layer
        seen = jnp.arange(logits.shape[-1]) < lengths[:, None]
        return jnp.where(seen[:, None, None], logits, -jnp.inf)

    return control


MITIGATIONS = (
    Mitigation(
        "padding_mask",
        ("cross_attn_mask",),
        "no attention to what follows the end of the prompt",
        (Setting("generate.mask_padding", False, "whether padding gets no attention"),),
        strength=True,
        published="from the prompt's end on, in both halves of guidance, together with "
        "`attention_rescaling`",
        changed="",
        source="Ren et al. 2024; `--cross_attn_mask` of renjie3/MemAttn",
        label="padding masked",
        tried=(True,),
        attention=lambda values, input_ids, prompts: mask_padding(
            text_lengths(input_ids)
        ),
    ),
)
