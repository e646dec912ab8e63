"""Mitigations that change the embedding of a caption, on the device.

Text embeddings and a key enter, embeddings leave. A strength of 0 is the identity.

Source: Somepalli et al. 2023; `rand_noise_lam` and `mixup_noise_lam` of their code.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def add_gaussian_noise(
    encoder_hidden_states: Float[Array, "B L D"], key: jax.Array, strength: float
) -> Float[Array, "B L D"]:
    """Adds normal noise to every component (GN in training, GNI at inference).

    Args:
      strength: standard deviation of the noise; 0.1 in the paper.
    """
    if not strength:
        return encoder_hidden_states
    shape, dtype = encoder_hidden_states.shape, encoder_hidden_states.dtype
    return encoder_hidden_states + strength * jax.random.normal(key, shape, dtype)


def mix_embeddings(
    encoder_hidden_states: Float[Array, "B L D"], key: jax.Array, alpha: float
) -> Float[Array, "B L D"]:
    """Mixes each example's embedding with that of another one of the batch.

    `lam h + (1 - lam) h[permutation]` with one `lam ~ Beta(alpha, 1)` a batch.

    Args:
      alpha: 0 mixes nothing; the larger, the less is mixed (the mean of `lam` is
        `alpha / (alpha + 1)`), though by the formula 0 would leave only the other's.
    """
    if not alpha:
        return encoder_hidden_states
    lam_key, order_key = jax.random.split(key)
    lam = jax.random.beta(lam_key, alpha, 1.0)
    order = jax.random.permutation(order_key, encoder_hidden_states.shape[0])
    other = jnp.take(encoder_hidden_states, order, axis=0)
    return lam * encoder_hidden_states + (1 - lam) * other
