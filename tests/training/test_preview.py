"""What the pictures of a training show, with a generator that paints numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from configs import tiny
from copymit.data.dataset import load_dataset
from copymit.data.tokenizer import make_tokenizer
from copymit.generator import Generated
from copymit.training import preview as preview_module
from copymit.training.preview import make_preview


@pytest.fixture
def shown(monkeypatch):
    """Token ids of what was generated."""
    rows = []

    def generate(params, input_ids, image_ids):
        rows.extend(np.asarray(input_ids).tolist())
        numbers = (np.asarray(image_ids) + 1).astype(np.uint8)
        images = jnp.broadcast_to(
            numbers.reshape(-1, 1, 1, 1), (len(numbers), 16, 16, 3)
        )
        return Generated(images, {}, jnp.ones(len(numbers), bool))

    monkeypatch.setattr(preview_module, "make_generate", lambda *_: generate)
    return rows


def make(config, tmp_path):
    dataset = load_dataset(config.data, config.seed)
    return make_preview(config, None, None, dataset, epath.Path(tmp_path)), dataset


def test_prompts_of_ones_own_are_shown_in_their_order(shown, tmp_path):
    config = tiny.get_config()
    config.train.preview_prompts = ("a red fox", "a house", "rain")
    preview, _ = make(config, tmp_path)
    grid = preview({}, 7)
    expected = make_tokenizer(8, 49407).encode(["a red fox", "a house", "rain"])
    assert shown == expected.tolist()
    assert grid[:16, : 4 * 16 : 16, 0].tolist() == [[1, 2, 3, 255]] * 16
    np.testing.assert_array_equal(
        np.array(Image.open(tmp_path / "samples" / "00000007.png")), grid
    )


def test_without_them_captions_of_duplicated_images_come_first(shown, tmp_path):
    preview, dataset = make(tiny.get_config(), tmp_path)
    preview({}, 7)
    first = np.flatnonzero(dataset.duplication.duplicated)[0]
    captions = dataset.source[int(dataset.indices[first])].captions
    assert len(shown) == len(dataset.indices)
    assert shown[0] in make_tokenizer(8, 49407).encode(list(captions)).tolist()
