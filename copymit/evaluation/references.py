"""The training images as latents, for a sampling that keeps away from them."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from ml_collections import ConfigDict

from copymit.data.dataset import Dataset
from copymit.data.pipeline import Images, load_images
from copymit.evaluation.reconstruct import encode
from copymit.mitigation.references import References, make_references
from copymit.models.assembly import DiffusionModel, ModelParams
from copymit.sharding import batch_sharding, replicated


def encode_references(
    config: ConfigDict,
    dataset: Dataset,
    model: DiffusionModel,
    params: ModelParams,
    mesh: Mesh,
) -> References:
    """Encodes every training image as it was trained on; the table is on every device.

    Where the training flips images, their mirror images are references, too.

    Of an autoencoder with a posterior, one draw of it: its deviation is small beside the
    distance of two images. A table takes `4 h w c` bytes a view on each device.
    """
    images = load_images(dataset.source, dataset.indices, config.data.resolution)
    sharding = batch_sharding(mesh)
    devices = mesh.devices.size
    size = -(-config.eval.batch_size // devices) * devices

    compiled = jax.jit(functools.partial(encode, model), out_shardings=replicated(mesh))
    parts = []
    views = 2 if config.data.random_flip else 1
    rows = views * len(dataset.indices)
    for first in range(0, rows, size):
        wanted = np.arange(first, min(first + size, rows), dtype="i4")
        numbers = np.resize(wanted, size)
        batch = np.stack([_view(images, *divmod(int(i), views)) for i in numbers])
        inputs = [
            jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
            for array in (batch, numbers)
        ]
        parts.append(np.asarray(compiled(params, *inputs))[: len(wanted)])
    table = make_references(np.concatenate(parts))
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(
            x.shape, replicated(mesh), x.__getitem__
        ),
        table,
    )


def _view(images: Images, index: int, mirrored: int) -> UInt8[np.ndarray, "H W 3"]:
    return images[index][:, ::-1] if mirrored else images[index]
