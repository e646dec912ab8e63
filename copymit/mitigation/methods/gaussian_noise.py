"""Gaussian noise on the text embedding, in training (GN) and at inference (GNI)."""

import jax
from jaxtyping import Array, Float

from copymit.mitigation.record import Mitigation, Setting


def add_gaussian_noise(
    encoder_hidden_states: Float[Array, "B L D"], key: jax.Array, strength: float
) -> Float[Array, "B L D"]:
    """Adds normal noise to every component.

    Args:
      strength: standard deviation of the noise.
    """
    shape, dtype = encoder_hidden_states.shape, encoder_hidden_states.dtype
    return encoder_hidden_states + strength * jax.random.normal(key, shape, dtype)


MITIGATIONS = (
    Mitigation(
        "gaussian_noise",
        ("GN", "rand_noise_lam"),
        "noise on the text embedding",
        (
            Setting(
                "train.gaussian_noise",
                0.0,
                "deviation of the noise on text embeddings",
                0,
                100,
            ),
        ),
        strength=0.1,
        published="deviation 0.1",
        changed="",
        source="Somepalli et al. 2023; `rand_noise_lam` of somepago/DCR",
        label="GN",
        tried=(0.1, 0.05, 0.3),
        training_text=lambda values, hidden, key: add_gaussian_noise(
            hidden, key, values["gaussian_noise"]
        ),
    ),
    Mitigation(
        "generation_noise",
        ("GNI", "rand_noise_lam_inference"),
        "at inference: noise on the text embedding, of the prompt and of the negative one",
        (
            Setting(
                "generate.gaussian_noise",
                0.0,
                "deviation of the noise on text embeddings",
                0,
                100,
            ),
        ),
        strength=0.1,
        published="deviation 0.1, on both halves of guidance",
        changed="",
        source="Somepalli et al. 2023; `Newpipe` of somepago/DCR",
        label="GNI",
        tried=(0.1, 0.05, 0.3),
        text=lambda values, hidden, key: add_gaussian_noise(
            hidden, key, values["gaussian_noise"]
        ),
    ),
)
