"""Small pixels as an embedder: no network, so nothing that it could have learnt."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from copymit.embedding.embedder import Embedder

_SIZE_PX = 32


def make_pixels() -> Embedder:
    """Makes the embedder whose cosine is the correlation of the pixels."""
    return Embedder(
        "pixels",
        f"pixels at {_SIZE_PX} px (bilinear), mean removed per image: the cosine "
        "is the correlation of the pixels",
        lambda image: image,
        (),
        lambda _, images: centred_pixels(images),
    )


def centred_pixels(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B D"]:
    """Returns small pixels without their mean, and a flag for images of one colour."""
    shape = (len(images), _SIZE_PX, _SIZE_PX, 3)
    pixels = jax.image.resize(images.astype(jnp.float32), shape, "bilinear")
    flat = pixels.reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    # The correlation with an image of one colour is undefined. An axis of their own
    # makes such images similar to each other (1) and to no other image (0).
    blank = (jnp.abs(flat).max(axis=1, keepdims=True) < 0.5).astype(jnp.float32)
    return jnp.concatenate([flat * (1 - blank), blank], axis=1)
