"""The protocols resize as the implementations that they are named after."""

import hashlib

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from copymit.embedding import inception
from copymit.embedding.inception import (
    PROTOCOLS,
    crop_to_size,
    make_inception,
    resize_bicubic,
    resize_corner_pixel,
    resize_half_pixel,
)


def random_images(height, width, count=1):
    rng = np.random.default_rng(height)
    return rng.integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(40, 64), (299, 299), (512, 301), (1, 3)])
def test_the_half_pixel_resize_is_torchs(size):
    images = random_images(*size, count=2).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        size=(299, 299),
        mode="bilinear",
        align_corners=False,
    )
    got = resize_half_pixel(images)
    # Neighbours differ by up to 255, and a place of 512 pixels is rounded to 3e-5.
    np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1), atol=1e-2)


@pytest.mark.parametrize("size", [(5, 8), (350, 310)])
def test_the_corner_pixel_resize_is_a_naive_loop(size):
    (image,) = random_images(*size).astype(np.float32)
    height, width = size
    got = np.asarray(resize_corner_pixel(image[None]))[0]
    for i in range(0, 299, 13):
        for j in range(0, 299, 13):
            y, x = i * height / 299, j * width / 299
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            down, across = y - top, x - left
            expected = (1 - down) * (
                (1 - across) * image[top, left] + across * image[top, right]
            ) + down * (
                (1 - across) * image[bottom, left] + across * image[bottom, right]
            )
            np.testing.assert_allclose(got[i, j], expected, atol=1e-2)


def test_the_two_bilinear_resizes_differ():
    images = random_images(64, 64).astype(np.float32)
    difference = resize_half_pixel(images) - resize_corner_pixel(images)
    assert np.abs(difference).mean() > 5


def cubic(x, a=-0.5):
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


@pytest.mark.parametrize("size", [(450, 320), (100, 299)])
def test_the_bicubic_resize_averages_in_float_and_clips(size):
    (image,) = random_images(*size)

    def weights(length):
        scale = length / 299
        stretch = max(scale, 1)
        centres = (np.arange(299)[:, None] + 0.5) * scale
        rows = cubic((np.arange(length) + 0.5 - centres) / stretch)
        return rows / rows.sum(1, keepdims=True)

    rows = np.tensordot(weights(size[0]), image, 1)
    exact = np.tensordot(weights(size[1]), rows, (1, 1)).swapaxes(0, 1)
    assert exact.min() < 0
    assert exact.max() > 255
    got = resize_bicubic(image)
    assert got.dtype == np.float32
    assert np.abs(got - got.round()).max() > 0.4
    np.testing.assert_allclose(got, exact.clip(0, 255), atol=1e-3)


def test_dcr_resizes_the_short_side_and_crops_the_centre():
    (image,) = random_images(120, 200)
    whole = Image.fromarray(image).resize((498, 299), Image.Resampling.BILINEAR)
    got = crop_to_size(image)
    # (498 - 299) / 2 = 99.5 is rounded to even.
    np.testing.assert_array_equal(got, np.asarray(whole)[:, 100:399])


@pytest.mark.parametrize(
    ("protocol", "low", "high"),
    [
        ("inception_clean", -1, 127 / 128),
        ("inception_legacy_pytorch", -1, 1),
        ("inception_legacy_tensorflow", -1, 127 / 128),
        ("inception_dcr", -3, 1),
    ],
)
def test_each_protocol_has_its_own_range(protocol, low, high):
    _, prepare, normalise = PROTOCOLS[protocol]
    for level, expected in ((0, low), (255, high)):
        image = np.full((30, 40, 3), level, np.uint8)
        pixels = np.asarray(normalise(prepare(image)[None]))
        assert pixels.shape == (1, 299, 299, 3)
        np.testing.assert_allclose(pixels, expected, atol=1e-5)


@pytest.fixture
def anything_loads(monkeypatch):
    """A network that returns the mean colour, in place of the one in the file."""

    class Mean(inception.nnx.Module):
        def __call__(self, pixels):
            return pixels.mean((1, 2))

    monkeypatch.setattr(inception, "load_inception", lambda path: Mean())


def test_the_protocol_names_the_weights_by_their_digest(tmp_path, anything_loads):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    embedder = make_inception("inception_clean", str(path))
    assert embedder.name == "inception_clean"
    assert f"sha256 {hashlib.sha256(b'weights').hexdigest()[:12]} (not the pub" in (
        embedder.protocol
    )
    assert "bicubic" in embedder.protocol
    prepared = np.stack(list(map(embedder.prepare, random_images(50, 50, count=2))))
    features = jax.jit(embedder.apply)(embedder.params, prepared)
    np.testing.assert_allclose(features, (prepared.mean((1, 2)) - 128) / 128, atol=1e-5)


def test_without_a_path_the_setting_and_the_file_are_named():
    with pytest.raises(
        ValueError, match=r"eval\.weights\.inception=PATH to pt_inception-2015-12-05-"
    ):
        make_inception("inception_dcr", "")


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="'inception' is not one of inception_clean, "):
        make_inception("inception", "weights.pth")
