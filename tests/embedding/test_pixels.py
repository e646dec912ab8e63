"""Small pixels as an embedder: its cosine is a correlation, which has a closed form."""

import numpy as np
import pytest

from copymit.embedding.pixels import make_pixels
from copymit.embedding.store import unit_rows

SIZE_PX = 16


@pytest.fixture
def noise(rng):
    return rng.integers(64, 192, (3, SIZE_PX, SIZE_PX, 3)).astype(np.uint8)


def flat(values):
    """Images of one colour each."""
    ones = np.ones((len(values), SIZE_PX, SIZE_PX, 3), np.uint8)
    return ones * np.reshape(values, (-1, 1, 1, 1)).astype(np.uint8)


def similarities(images):
    embedder = make_pixels("pixels")
    prepared = np.stack([embedder.prepare(image) for image in images])
    unit = unit_rows(np.asarray(embedder.apply(embedder.params, prepared)))
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
