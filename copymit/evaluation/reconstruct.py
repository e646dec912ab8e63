"""Training images through the autoencoder and back: what a perfect copy would look like.

A model's images have passed its decoder, which no copy of a training image undoes. How
alike a descriptor finds a training image and its own reconstruction is therefore the most
that it can find of a copy.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from copymit.data.dataset import Dataset
from copymit.data.pipeline import Images
from copymit.evaluation.pictures import local_rows, write_png
from copymit.generator import decode, to_images
from copymit.models.assembly import DiffusionModel, ModelParams
from copymit.sharding import batch_sharding

RECONSTRUCTIONS = "reconstructions"
_MOST = 50  # the mean of so many has an error of 0.01
_AT_A_TIME = (
    4  # on each device: an encoder needs more memory for an image than a decoder
)


def reconstructed_rows(config: ConfigDict, dataset: Dataset) -> Int[np.ndarray, " K"]:
    """Draws the training images that are reconstructed, as rows of the dataset.

    They are no more than the generations, beside which they then cost little.
    """
    count = min(_MOST, config.eval.num_generations, len(dataset.indices))
    rng = np.random.default_rng(config.eval.seed)
    return rng.choice(len(dataset.indices), count, replace=False)


def missing_reconstructions(
    config: ConfigDict, dataset: Dataset, folder: epath.Path
) -> list[int]:
    """Lists the numbers, from 0, of the reconstructions that are not there yet."""
    count = len(reconstructed_rows(config, dataset))
    return [i for i in range(count) if not (folder / f"{i}.png").exists()]


def encode(
    model: DiffusionModel, params: ModelParams, images, numbers
) -> Float[jax.Array, "B h w c"]:
    """Encodes 8-bit images; of a posterior, one draw that an image's number decides."""
    moments = model.encode_images(params, images.astype(jnp.float32) / 127.5 - 1)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(numbers)
    sample = jax.vmap(lambda m, key: model.sample_latents(m[None], key)[0])
    return sample(moments, keys)


def reconstruct(
    config: ConfigDict,
    dataset: Dataset,
    numbers: Sequence[int],
    model: DiffusionModel,
    params: ModelParams,
    mesh: Mesh,
    folder: epath.Path,
) -> None:
    """Writes `folder`/NUMBER.png of each number, by all processes together."""

    @jax.jit
    def through_and_back(params, batch, numbers):
        latents = encode(model, params, batch, numbers)
        return to_images(decode(model, params, latents))

    folder.mkdir(parents=True, exist_ok=True)
    rows = reconstructed_rows(config, dataset)
    images = Images(dataset.source, dataset.indices, config.data.resolution, None)
    sharding = batch_sharding(mesh)
    size = _AT_A_TIME * mesh.devices.size
    for first in range(0, len(numbers), size):
        wanted = numbers[first : first + size]
        drawn = rows[np.resize(wanted, size)].astype(np.int32)
        batch = np.stack([images[int(i)] for i in drawn])
        inputs = [
            jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
            for array in (batch, drawn)
        ]
        with jax.set_mesh(mesh):
            made = through_and_back(params, *inputs)
        for row, image in local_rows(made):
            if row < len(wanted):
                write_png(folder / f"{wanted[row]}.png", image)
