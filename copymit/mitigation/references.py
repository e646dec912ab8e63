"""Training images that a sampling keeps away from, and how similar to them it is.

A table of training images is held on the device. At every step the clean latents that
the network foresees are compared with all of them. Training images that are not in the
table do not repel.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from copymit.mitigation.descent import row_norms

Embed = Callable[[jax.Array], jax.Array]
"""(x0 "B h w c") -> features "B F"; differentiable, of any length."""


class References(NamedTuple):
    """Training images to keep away from.

    Attributes:
      vectors: unit vectors.
      center: what is subtracted from features before they are made unit vectors.
    """

    vectors: Float[Array, "R F"]
    center: Float[Array, " F"]


def flatten(x0: Float[Array, "B h w c"]) -> Float[Array, "B F"]:
    """Is the embedding of latents as they are."""
    return x0.reshape(x0.shape[0], -1)


def make_references(
    features: Float[np.ndarray, "R ..."], *, centered: bool = True
) -> References:
    """Makes the table, on the host.

    Args:
      features: latents of training images, or embeddings of them.
      centered: subtracts their mean, without which images of one kind, say on a white
        ground, are all similar; not for embeddings that are compared by cosine.
    Raises:
      ValueError: for no images, or one that equals the mean and so has no direction.
    """
    if not len(features):
        raise ValueError("repulsion needs at least one training image")
    rows = np.asarray(features, np.float32).reshape(len(features), -1)
    center = rows.mean(0) if centered and len(rows) > 1 else np.zeros_like(rows[0])
    rows = rows - center
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError(
            f"repulsion: training image {int(np.argmin(norms))} is the mean of all of "
            "them and has no direction: leave it out, or set centered=False"
        )
    return References(rows / norms, center)


def similarities(
    references: References, x0: Float[Array, "B h w c"], embed: Embed = flatten
) -> Float[Array, " B"]:
    """Computes the cosine similarity to the nearest reference; exact search."""
    features = embed(x0) - references.center
    features = features / row_norms(features)[:, None]
    # By default a TPU would multiply in bfloat16.
    vectors = jnp.asarray(references.vectors)
    return jnp.max(jnp.matmul(features, vectors.T, precision="highest"), axis=1)
