"""Entropy of the attention to the tokens: a memorised prompt concentrates it, then pads."""

from jaxtyping import Array, Float, Int

from copymit.mitigation.detectors import Detector
from copymit.mitigation.observation import entropy, mean_attention

_SOURCE = (
    "Ren et al. 2024, Unveiling and Mitigating Memorization in Text-to-image Diffusion "
    "Models through Cross Attention; mode {} of detect.py in renjie3/MemAttn, whose "
    "reading this is: averages first, then entropy, natural logarithm"
)


def entropy_d(
    attention: Float[Array, "S B L"], ends: Int[Array, " B"], last_steps: int = 10
) -> Float[Array, " B"]:
    """Computes D: entropy at the end, and how that of padding grew.

    With `a_t` the probabilities at step t, averaged over heads, positions and all
    layers, `H(a)` their entropy over all L tokens, and `H_end(a)` the part of the sum
    from the end token on (the end token and all padding):

        D = mean_{t in last} H(a_t) + mean_{t in last} H_end(a_t) - H_end(a_1)

    Args:
      ends: position of the end token.
      last_steps: how many steps `last` are; 10 of 50 in the paper.
    """
    late = attention[-last_steps:]
    whole, of_end = entropy(late).mean(0), entropy(late, ends).mean(0)
    return whole + of_end - entropy(attention[0], ends)


DETECTORS = (
    Detector(
        "attention_entropy_d",
        "attention entropy D, last steps",
        _SOURCE.format("D"),
        4,
        lambda seen, options: entropy_d(
            seen.attention, seen.ends, options.entropy_steps
        ),
    ),
    Detector(
        "attention_entropy_e",
        "attention entropy E, step 1",
        _SOURCE.format("E") + "; of one layer",
        5,
        lambda seen, options: entropy(
            mean_attention(seen.first.taps, options.entropy_layer)
        ),
    ),
)
