"""Training images through an autoencoder whose latents are half of the pixels."""

import numpy as np
import pytest
from PIL import Image

from configs import tiny
from copymit.data.dataset import load_dataset
from copymit.data.pipeline import load_images
from copymit.evaluation.reconstruct import (
    missing_reconstructions,
    reconstruct,
    reconstructed_rows,
)
from copymit.models.assembly import DiffusionModel
from copymit.sharding import make_mesh

UNUSED = None
MODEL = DiffusionModel(
    (16, 16, 3),
    {},
    lambda params, pixels: pixels / 2,
    lambda moments, key: moments,
    lambda params, latents: 2 * latents,
    UNUSED,
    UNUSED,
)


@pytest.fixture
def config():
    config = tiny.get_config()
    config.data.num_examples = 30
    config.data.num_heldout = 0
    return config


def test_each_training_image_comes_back_under_its_number(config, tmp_path):
    config.eval.num_generations = 11  # a batch is less
    dataset = load_dataset(config.data, config.seed)
    rows = reconstructed_rows(config, dataset)
    assert len(set(rows.tolist())) == 11
    numbers = missing_reconstructions(config, dataset, tmp_path)
    reconstruct(config, dataset, numbers, MODEL, {}, make_mesh(), tmp_path)
    images = load_images(dataset.source, dataset.indices, 16)
    for number, row in enumerate(rows):
        found = np.array(Image.open(tmp_path / f"{number}.png"))
        np.testing.assert_array_equal(found, images[int(row)])
    assert len(list(tmp_path.iterdir())) == 11


def test_what_is_there_is_not_made_again(config, tmp_path):
    dataset = load_dataset(config.data, config.seed)
    for number in (0, 2):
        (tmp_path / f"{number}.png").write_bytes(b"there")
    numbers = missing_reconstructions(config, dataset, tmp_path)
    assert numbers == [1, *range(3, config.eval.num_generations)]
    reconstruct(config, dataset, numbers[:2], MODEL, {}, make_mesh(), tmp_path)
    assert (tmp_path / "2.png").read_bytes() == b"there"
    assert missing_reconstructions(config, dataset, tmp_path) == numbers[2:]


def test_there_are_no_more_than_training_images_nor_than_tell_the_mean(config):
    dataset = load_dataset(config.data, config.seed)
    config.eval.num_generations = 1_000
    assert sorted(reconstructed_rows(config, dataset)) == list(range(30))
    config.data.num_examples = 80
    assert len(reconstructed_rows(config, load_dataset(config.data, 0))) == 50
