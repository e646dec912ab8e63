"""What the network does at the steps of a sampler, for detectors to look at.

Notation: `f(x, c)` is the noise that the network predicts for latents `x` and text `c`,
`c` the prompt's embedding, `0` that of the negative prompt, `d = f(x, c) - f(x, 0)` and
`||.||` the Euclidean norm over all of one example's latents. A network that predicts
velocity says it, too: see `effect.as_noise`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from copymit.models.attention_control import AttentionTaps

EOS_TOKEN_ID = 49_407


class FirstStep(NamedTuple):
    """What is looked at more closely at the first step.

    Attributes:
      sigma: deviation of the noise in the latents.
      difference: `d`.
      curvature: `J d` with `J = ∂d/∂x`, the directional derivative of `d` with respect to
        the latents, along `d` itself; exact, without finite differences.
      text_gradient: of `||d||` with respect to the embedding `c`.
      changes: `f(x, c + n_e) - f(x, c)` for draws of noise `n_e` on the embedding.
      taps: attention to the prompt.
    """

    sigma: Float[Array, ""]
    difference: Float[Array, "B h w c"]
    curvature: Float[Array, "B h w c"]
    text_gradient: Float[Array, "B L D"]
    changes: Float[Array, "E B h w c"]
    taps: AttentionTaps


class Observation(NamedTuple):
    """What a sampling of a batch shows; what no detector uses is not computed.

    Attributes:
      ends: position of the end token.
      first: the first step.
      squares: `d ** 2` of every step, summed over channels, and scaled so that their sum
        is as of 64x64x4 latents.
      attention: of every step, averaged over heads, positions and layers.
      bright: see `bright_ending`, of the last step.
    """

    ends: Int[Array, " B"]
    first: FirstStep
    squares: Float[Array, "S B h w"]
    attention: Float[Array, "S B L"]
    bright: Float[Array, "B h w"]


def norm(x: Float[Array, "B h w c"]) -> Float[Array, " B"]:
    """Is the Euclidean norm of each example."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))))


def unit(x: Float[Array, "B h w c"]) -> Float[Array, "B h w c"]:
    """Scales each example to norm 1, and leaves zeros zero."""
    length = norm(x).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(length > 0, x / jnp.where(length > 0, length, 1), 0)


def attribution(gradient: Float[Array, "B L D"]) -> Float[Array, "B L"]:
    """Is the significance of every token: `||grad_{c_l} ||d||  ||` at the first step.

    Args:
      gradient: of `||d||` with respect to the embedding `c`, which is the output of the
        text encoder, one vector a token.
    Source: Wen et al. 2024, section 4.2. Their code takes the gradient of one norm over
      all images of a prompt and averages over chosen steps; here it is that of every
      image's own norm, averaged over images.
    """
    return jnp.sqrt(jnp.sum(jnp.square(gradient), axis=-1))


def mean_attention(
    taps: AttentionTaps, layer: int | None = None
) -> Float[Array, "B L"]:
    """Averages probabilities over heads and positions, then over the layers.

    Args:
      layer: index of the only layer to use, in the order of the forward pass; the last
        one where there are fewer.
    """
    means = [probabilities.mean((1, 2)) for probabilities in taps.values()]
    if layer is not None:
        return means[min(layer, len(means) - 1)]
    return sum(means[1:], means[0]) / len(means)


def entropy(
    attention: Float[Array, "*S B L"], first: Int[Array, " B"] | int = 0
) -> Float[Array, "*S B"]:
    """Computes `-sum_{l >= first} a_l log a_l`, without normalising what is summed."""
    tokens = jnp.arange(attention.shape[-1])
    summed = tokens >= jnp.expand_dims(jnp.asarray(first), -1)
    return jnp.sum(jnp.where(summed, jax.scipy.special.entr(attention), 0), axis=-1)


def end_attention(
    attention: Float[Array, "*S B L"], ends: Int[Array, " B"]
) -> Float[Array, "*S B"]:
    """Is the share of attention that the end token gets: the mean of `a_end`.

    Args:
      attention: or that of each position, with positions in the place of steps.
    Source: Chen et al. 2025 (Exploring Local Memorization in Diffusion Models via Bright
      Ending Attention): end-token attention of the final step is bright where an image
      is memorised. They use it as a mask, see `bright_ending_norm`; the mean is ours.
    """
    index = jnp.broadcast_to(ends, attention.shape[:-1])[..., None]
    return jnp.take_along_axis(attention, index, axis=-1)[..., 0]


def bright_ending(
    taps: AttentionTaps, ends: Int[Array, " B"], size: tuple[int, int]
) -> Float[Array, "B h w"]:
    """Averages end-token attention over heads and the layers of finest resolution.

    Args:
      taps: of the last step; of square feature maps.
      size: of the latents, to which the map is resized by repetition.
    """
    finest = max(x.shape[2] for x in taps.values())
    maps = [x.mean(1) for x in taps.values() if x.shape[2] == finest]
    by_position = jnp.moveaxis(sum(maps[1:], maps[0]) / len(maps), 1, 0)
    bright = end_attention(by_position, ends).T
    side = round(finest**0.5)
    bright = bright.reshape(-1, side, side)
    return jax.image.resize(bright, (len(bright), *size), "nearest")


def end_positions(input_ids: Int[Array, "B L"]) -> Int[Array, " B"]:
    """Finds the end token of each row; 0 where there is none."""
    return jnp.argmax(input_ids == EOS_TOKEN_ID, axis=-1)
