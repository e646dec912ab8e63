"""Attention rescaling: more of the cross-attention goes to the start token.

In memorised prompts attention rests on a few trigger tokens. More weight on the start
token, which says nothing of the prompt, disperses it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from copymit.mitigation.record import Mitigation, Setting
from copymit.models.attention_control import CrossAttentionControl


def rescale_start(factor: float, prompts: Bool[Array, " B"]) -> CrossAttentionControl:
    """Multiplies the logits of the start token, in the rows that have the prompt."""

    def control(layer: str, logits: Float[Array, "B N P L"]) -> Float[Array, "B N P L"]:
        del layer
        scales = jnp.where(prompts, factor, 1.0)
        return logits.at[..., 0].multiply(scales[:, None, None])

    return control


MITIGATIONS = (
    Mitigation(
        "attention_rescaling",
        ("CAR", "c1", "miti_mem"),
        "more attention to the start token",
        (
            Setting(
                "generate.start_attention",
                0.0,
                "factor of the logits of the start token; 1 is off too",
                0,
                100,
            ),
        ),
        strength=1.25,
        published="1.25, in the half with the prompt, together with `padding_mask`",
        changed="",
        source="Ren et al. 2024, Unveiling and Mitigating Memorization in Text-to-image "
        "Diffusion Models through Cross Attention; `--c1` of renjie3/MemAttn",
        label="start attention",
        tried=(1.25, 2.0),
        attention=lambda values, input_ids, prompts: rescale_start(
            values["start_attention"], prompts
        ),
    ),
)
