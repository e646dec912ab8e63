"""Our side of the comparison: the Inception embedders with weights that `inputs` draws."""

import io
from pathlib import Path

import jax
import numpy as np
import torch
from PIL import Image

from copymit.embedding.embedder import Embedder
from copymit.embedding.inception import make_inception
from copymit.models.functional import describe_params
from copymit.models.inception import Inception
from copymit.models.torch_layout import to_torch_name, to_torch_shape
from copymit.scores.frechet import frechet_distance, gaussian_moments
from tests.parity import inputs

_BATCH_SIZE = 16


def save_weights(folder: Path) -> Path:
    """Writes the file that the published networks would have downloaded."""
    params = describe_params(lambda rngs: Inception(rngs=rngs))
    convolutions = {
        to_torch_name(name): to_torch_shape(name, value.shape)
        for name, value in params.items()
        if name.endswith(".conv.kernel")
    }
    tensors = inputs.inception_weights(convolutions)
    path = folder / "weights.pth"
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, path)
    return path


def make(protocol: str, weights: Path) -> Embedder:
    """Loads an embedder, its function compiled."""
    embedder = make_inception(f"inception_{protocol}", str(weights))
    return embedder._replace(apply=jax.jit(embedder.apply))


def embed(embedder: Embedder, images: list[np.ndarray] | np.ndarray) -> np.ndarray:
    """Computes the features of images of one size."""
    rows = []
    for start in range(0, len(images), _BATCH_SIZE):
        batch = np.stack(list(map(embedder.prepare, images[start:][:_BATCH_SIZE])))
        rows.append(np.asarray(embedder.apply(embedder.params, batch)))
    return np.concatenate(rows)


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    return frechet_distance(*gaussian_moments(first), *gaussian_moments(second))


def photo_fid(embedder: Embedder, count: int) -> float:
    """Is the FID between two sets of `count` photos."""
    sets = []
    for photos in inputs.read_photos(count):
        images = [
            np.asarray(Image.open(io.BytesIO(photo)).convert("RGB")) for photo in photos
        ]
        sets.append(embed(embedder, images))
    return frechet(*sets)
