"""Small pixels as an embedder: no network, so nothing that it could have learnt."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from copymit.embedding.embedder import Embedder

# Name -> side in pixels. The small one has a quarter of the features, for millions of
# images.
PIXEL_SIZES = {"pixels": 32, "pixels_16": 16}


def make_pixels(name: str) -> Embedder:
    """Makes the embedder whose cosine is the correlation of the pixels.

    Args:
      name: key of `PIXEL_SIZES`.
    """
    size = PIXEL_SIZES[name]
    centred = functools.partial(centred_pixels, size=size)
    return Embedder(
        name,
        f"pixels at {size} px (bilinear), mean removed per image: the cosine "
        "is the correlation of the pixels",
        lambda image: image,
        (),
        lambda _, images: centred(images),
        any_shape=False,
    )


def centred_pixels(images: UInt8[Array, "B H W 3"], size: int) -> Float[Array, "B D"]:
    """Returns small pixels without their mean, and a flag for images of one colour."""
    shape = (len(images), size, size, 3)
    pixels = jax.image.resize(images.astype(jnp.float32), shape, "bilinear")
    flat = pixels.reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    # The correlation with an image of one colour is undefined. An axis of their own
    # makes such images similar to each other (1) and to no other image (0).
    blank = (jnp.abs(flat).max(axis=1, keepdims=True) < 0.5).astype(jnp.float32)
    return jnp.concatenate([flat * (1 - blank), blank], axis=1)
