"""The table that repels has every image as the training shows it, mirrored, too."""

import numpy as np
import pytest

from configs import tiny
from copymit.data.dataset import load_dataset
from copymit.data.pipeline import load_images
from copymit.evaluation.references import encode_references
from copymit.mitigation.references import similarities
from copymit.models.assembly import DiffusionModel
from copymit.sharding import make_mesh

UNUSED = None
# Its latents are the pixels.
MODEL = DiffusionModel(
    (16, 16, 3),
    {},
    lambda params, pixels: pixels,
    lambda moments, key: moments,
    UNUSED,
    UNUSED,
    UNUSED,
)


@pytest.mark.parametrize(("flips", "least"), [(True, 0.999), (False, -1)])
def test_a_mirrored_copy_is_repelled_where_the_training_flips(flips, least):
    config = tiny.get_config()
    config.data.random_flip = flips
    dataset = load_dataset(config.data, config.seed)
    table = encode_references(config, dataset, MODEL, {}, make_mesh())
    views = 2 if flips else 1
    assert len(table.vectors) == views * len(dataset.indices)
    images = load_images(dataset.source, dataset.indices, config.data.resolution)
    upright = np.stack([images[i] for i in range(len(dataset.indices))]) / 127.5 - 1
    upright = upright.astype(np.float32)
    assert np.asarray(similarities(table, upright)).min() > 0.999
    mirrored = np.asarray(similarities(table, upright[:, :, ::-1]))
    assert mirrored.min() > least
    assert flips or mirrored.min() < 0.99  # some image is not its own mirror image
