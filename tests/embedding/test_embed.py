"""Embeddings: a fake embedder with a known answer, and the one made of pixels."""

import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from copymit.embedding.embed import (
    Embedder,
    Embeddings,
    check_embedders,
    embed,
    load_embeddings,
    make_embedder,
    save_embeddings,
)
from copymit.embedding.image_set import ImageSet

SIZE_PX = 16


def images_of(pixels, ids=None):
    pixels = np.asarray(pixels, np.uint8)
    ids = ids or [f"image {i}" for i in range(len(pixels))]
    return ImageSet("generations", ids, lambda i: pixels[i])


def flat(values):
    """Images of one colour each."""
    ones = np.ones((len(values), SIZE_PX, SIZE_PX, 3))
    return ones * np.reshape(values, (-1, 1, 1, 1))


@pytest.fixture
def noise(rng):
    return rng.integers(64, 192, (3, SIZE_PX, SIZE_PX, 3)).astype(np.uint8)


def fake(shapes, features=lambda x: x.mean(axis=(1, 2))):
    def compute(images):
        shapes.append(images.shape)
        return jnp.asarray(features(images.astype(np.float32)))

    return Embedder("fake", "mean colour", compute)


def test_every_image_is_embedded_once_in_order_in_batches_of_one_shape():
    shapes = []
    embeddings = embed(fake(shapes), images_of(flat([7, 3, 250, 0, 41])), 2)
    assert embeddings.ids == [f"image {i}" for i in range(5)]
    expected = np.repeat([[7], [3], [250], [0], [41]], 3, axis=1)
    np.testing.assert_allclose(embeddings.features, expected, rtol=1e-6)
    assert embeddings.features.dtype == np.float32
    assert shapes == [(2, SIZE_PX, SIZE_PX, 3)] * 3


def test_a_batch_larger_than_the_set_is_filled_up():
    shapes = []
    embeddings = embed(fake(shapes), images_of(flat([7, 3])), 5)
    assert shapes == [(5, SIZE_PX, SIZE_PX, 3)]
    np.testing.assert_allclose(embeddings.features[:, 0], [7, 3])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_name_the_image(value):
    def broken(images):
        mean = images.mean(axis=(1, 2))
        return np.where(mean == 3, value, mean)

    with pytest.raises(ValueError, match="1 of the generations, first image 1"):
        embed(fake([], broken), images_of(flat([7, 3, 9])), 2)


def test_unit_vectors_have_length_one_and_nothing_stays_nothing():
    unit = Embeddings(["a", "b"], np.array([[3.0, 4.0], [0.0, 0.0]])).unit
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert unit.dtype == np.float32


def test_what_is_saved_is_loaded_without_pickles(tmp_path):
    path = epath.Path(tmp_path) / "embeddings.npz"
    embeddings = Embeddings(
        ["church/ä 1.png", "🙂"], np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)
    )
    save_embeddings(path, embeddings, "how it was made")
    loaded = load_embeddings(path)
    assert loaded.ids == embeddings.ids
    np.testing.assert_array_equal(loaded.features, embeddings.features)
    with np.load(path, allow_pickle=False) as arrays:
        assert str(arrays["protocol"]) == "how it was made"
    assert set(zipfile.ZipFile(path).namelist()) == {
        "ids.npy",
        "features.npy",
        "protocol.npy",
    }


def test_an_embedder_that_is_not_known_is_named_beside_those_that_are():
    for names in (["magic"], ["pixels", "magic"], []):
        with pytest.raises(ValueError, match="efficientnet_lite0, pixels"):
            check_embedders(names)
    with pytest.raises(ValueError, match="magic"):
        make_embedder("magic")
    check_embedders(["pixels", "efficientnet_lite0"])


def similarities(pixels):
    unit = embed(make_embedder("pixels"), images_of(pixels), len(pixels)).unit
    return unit @ unit.T


def test_pixel_similarity_is_the_correlation_of_pixels(noise):
    negative = 255 - noise[:1]
    paler = (noise[:1] // 2 + 90).astype(np.uint8)
    found = similarities(np.concatenate([noise, negative, paler]))
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-6)
    assert found[0, 3] == pytest.approx(-1, abs=1e-5)
    # Half the contrast is whole grey levels, so rounding costs a little.
    assert found[0, 4] == pytest.approx(1, abs=1e-3)
    large = noise.repeat(2, axis=1).repeat(2, axis=2)  # 32 px, the embedder's own size
    expected = np.corrcoef(large.reshape(3, -1))
    np.testing.assert_allclose(similarities(large), expected, atol=1e-5)


def test_images_of_one_colour_are_like_each_other_and_like_no_other(noise):
    found = similarities(np.concatenate([flat([0, 255, 128]), noise]))
    np.testing.assert_allclose(found[:3, :3], 1, atol=1e-6)
    np.testing.assert_allclose(found[:3, 3:], 0, atol=1e-6)
    assert np.isfinite(found).all()
