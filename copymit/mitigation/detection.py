"""Detectors of memorised prompts: what the network does at the steps of a sampler.

Predictions, attention probabilities and their derivatives enter; one number a prompt
leaves each function. All are oriented alike: **the higher, the likelier memorised**.

Notation: `f(x, c)` is the network's prediction of either type for latents `x` and text
`c`, `c` the prompt's embedding, `0` that of the negative prompt, `d = f(x, c) - f(x, 0)`
and `||.||` the Euclidean norm over all of one example's latents. For `epsilon` `d` is
the difference of the predicted noises. For `v_prediction` that difference is
`sqrt(a) d`; the factor is left out, as the authors' code does: it is the same for all
prompts, and nothing would remain of any at zero terminal signal-to-noise ratio.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from copymit.models.attention_control import AttentionTaps

EOS_TOKEN_ID = 49_407
DETECTORS = {
    "noise_norm_first": "text-conditional noise, step 1",
    "noise_norm_mean": "text-conditional noise, all steps",
    "bright_ending_norm": "the same where the end token is bright",
    "end_token_attention": "attention to the end token, last step",
    "attention_entropy_d": "attention entropy D, last steps",
    "attention_entropy_e": "attention entropy E, step 1",
    "sharpness": "sharpness, step 1",
    "text_stability": "stability under text noise, step 1",
}
"""The detectors by name, with a title each."""


def norm(x: Float[Array, "B h w c"]) -> Float[Array, " B"]:
    """Is the Euclidean norm of each example.

    Of the difference `d` it is Wen et al.'s detector: `||f(x, c) - f(x, 0)||`, the norm
    of the difference and not the difference of norms; at the first step
    (`noise_norm_first`), or averaged over all steps (`noise_norm_mean`), and in both
    cases over the initial noises.

    Source: Wen et al. 2024 (Detecting, Explaining, and Mitigating Memorization in
      Diffusion Models), equation 2; `text_noise_norm` of their code.
    """
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


def entropy_d(
    attention: Float[Array, "S B L"], ends: Int[Array, " B"], last_steps: int = 10
) -> Float[Array, " B"]:
    """Computes Ren et al.'s D: entropy at the end, and how that of padding grew.

    With `a_t` the probabilities at step t, averaged over heads, positions and all
    layers, `H(a)` their entropy over all L tokens, and `H_end(a)` the part of the sum
    from the end token on (the end token and all padding):

        D = mean_{t in last} H(a_t) + mean_{t in last} H_end(a_t) - H_end(a_1)

    Args:
      ends: position of the end token.
      last_steps: how many steps `last` are; 10 of 50 in the paper.
    Source: Ren et al. 2024 (Unveiling and Mitigating Memorization in Text-to-image
      Diffusion Models through Cross Attention); mode D of their detect.py, whose
      reading this is: averages first, then entropy, natural logarithm.
    """
    late = attention[-last_steps:]
    whole, of_end = entropy(late).mean(0), entropy(late, ends).mean(0)
    return whole + of_end - entropy(attention[0], ends)


def end_attention(
    attention: Float[Array, "*S B L"], ends: Int[Array, " B"]
) -> Float[Array, "*S B"]:
    """Is the share of attention that the end token gets: the mean of `a_end`.

    Of the last step, averaged over heads, positions and layers, it is what is called
    `end_token_attention` here.

    Args:
      attention: or that of each position, with positions in the place of steps.
    Source: Chen et al. 2025 (Exploring Local Memorization in Diffusion Models via Bright
      Ending Attention): end-token attention of the final step is bright where an image
      is memorised. They use it as a mask, see `bright_ending_norm`; the mean is ours.
    """
    index = jnp.broadcast_to(ends, attention.shape[:-1])[..., None]
    return jnp.take_along_axis(attention, index, axis=-1)[..., 0]


def bright_ending_mask(
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


def bright_ending_norm(
    squares: Float[Array, "S B h w"], mask: Float[Array, "B h w"]
) -> Float[Array, " B"]:
    """Weighs the text-conditional noise by a mask: `mean_t ||m * d_t|| / mean(m)`.

    Args:
      squares: `d_t ** 2`, summed over channels, of every step.
      mask: `m`, see `bright_ending_mask`.
    Source: Chen et al. 2025, their local form of Wen et al.'s detector. The average of
      maps and the resize are our reading.
    """
    local = jnp.sqrt(jnp.sum(jnp.square(mask) * squares, axis=(2, 3)))
    return local.mean(0) / mask.mean((1, 2))


def sharpness(
    curvature: Float[Array, "B h w c"], sigma: Float[Array, ""]
) -> Float[Array, " B"]:
    """Computes Jeon et al.'s `||H s||`, with the score difference and its Hessian.

    `s = grad_x log p(x | c) - grad_x log p(x) = -d / sigma` is the difference of scores
    that the network implies, and `H = -J / sigma` that of the Hessians of log p, with
    `J = ∂d/∂x`; so `||H s|| = ||J d|| / sigma ** 2`, one product of Jacobian and vector
    at the first step.

    Args:
      curvature: `J d`, the directional derivative of `d` with respect to the latents,
        along `d` itself; exact, without finite differences.
      sigma: deviation of the noise in the latents.
    Source: Jeon et al. 2025 (Understanding and Mitigating Memorization in Generative
      Models via Sharpness of Probability Landscapes); their code averages this norm
      over initial noises, while the paper's is its square.
    """
    return norm(curvature) / jnp.square(sigma)


def text_stability(
    difference: Float[Array, "B h w c"], changes: Float[Array, "E B h w c"]
) -> Float[Array, " B"]:
    """Says how much larger the effect of the text is than that of noise on it.

    `||f(x, c) - f(x, 0)|| / mean_e ||f(x, c + n_e) - f(x, c)||` with normal noise `n_e`
    on the embedding: a memorised prompt leads to its image even when it is blurred. 0
    where neither has an effect.

    Args:
      changes: `f(x, c + n_e) - f(x, c)` of each draw of the noise.
    Source: ours; that copying survives noise on the embedding is Somepalli et al. 2023,
      GNI.
    """
    effect, disturbance = norm(difference), jax.vmap(norm)(changes).mean(0)
    some = disturbance > 0
    return jnp.where(some, effect / jnp.where(some, disturbance, 1), 0)


def end_positions(input_ids: Int[Array, "B L"]) -> Int[Array, " B"]:
    """Finds the end token of each row; 0 where there is none."""
    return jnp.argmax(input_ids == EOS_TOKEN_ID, axis=-1)
