"""Embedding mixup: each caption's embedding is mixed with another one of the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.mitigation.record import Mitigation, Setting


def mix_embeddings(
    encoder_hidden_states: Float[Array, "B L D"], key: jax.Array, alpha: float
) -> Float[Array, "B L D"]:
    """Mixes each example's embedding with that of another one of the batch.

    `lam h + (1 - lam) h[permutation]` with one `lam ~ Beta(alpha, 1)` a batch.

    Args:
      alpha: the larger, the less is mixed: the mean of `lam` is `alpha / (alpha + 1)`.
    """
    lam_key, order_key = jax.random.split(key)
    lam = jax.random.beta(lam_key, alpha, 1.0)
    order = jax.random.permutation(order_key, encoder_hidden_states.shape[0])
    other = jnp.take(encoder_hidden_states, order, axis=0)
    return lam * encoder_hidden_states + (1 - lam) * other


MITIGATIONS = (
    Mitigation(
        "embedding_mixup",
        ("mixup_noise_lam",),
        "embeddings of a batch mixed; the smaller the strength, the more",
        (
            Setting(
                "train.embedding_mixup",
                0.0,
                "Beta(this, 1) is the share of an image's own embedding; 0 mixes nothing",
                0,
                100,
            ),
        ),
        strength=0.1,
        published="in the code alone, without a number",
        changed="",
        source="`mixup_noise_lam` of somepago/DCR",
        label="mixup",
        tried=(0.1, 1.0),
        order=1,  # the original code adds its noise before
        training_text=lambda values, hidden, key: mix_embeddings(
            hidden, key, values["embedding_mixup"]
        ),
    ),
)
