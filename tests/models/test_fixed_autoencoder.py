"""Space to depth loses nothing, and refuses what it cannot divide."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from copymit.models.fixed_autoencoder import BlockDCT, SpaceToDepth


@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_decoding_undoes_encoding(patch_size, rng):
    autoencoder = SpaceToDepth(patch_size)
    pixels = jnp.asarray(rng.uniform(-1, 1, (2, 12, 6, 3)), jnp.float32)
    latents = autoencoder.encode(pixels)
    assert autoencoder.downsampling == patch_size
    assert latents.shape == (
        2,
        12 // patch_size,
        6 // patch_size,
        autoencoder.latent_channels,
    )
    np.testing.assert_array_equal(autoencoder.decode(latents), pixels)


def test_scaled_pixels_come_back_to_rounding(rng):
    autoencoder = SpaceToDepth(2, scale=1.5, shift=0.5)
    pixels = jnp.asarray(rng.uniform(-1, 1, (1, 4, 4, 3)), jnp.float32)
    latents = autoencoder.encode(pixels)
    np.testing.assert_allclose(
        np.sort(latents.ravel()), np.sort(1.5 * (pixels.ravel() - 0.5)), atol=1e-6
    )
    # Two roundings of numbers below 3; a step of 8-bit pixels is 8e-3.
    np.testing.assert_allclose(autoencoder.decode(latents), pixels, atol=1e-6)


def test_a_latent_position_is_one_square_of_pixels():
    pixels = jnp.arange(4 * 4 * 3, dtype=jnp.float32).reshape(1, 4, 4, 3)
    latents = SpaceToDepth(2).encode(pixels)
    square = pixels[0, 2:4, 0:2]
    np.testing.assert_array_equal(latents[0, 1, 0], square.ravel())


@pytest.mark.parametrize(("height", "width"), [(6, 5), (7, 6)])
def test_images_that_do_not_divide_into_patches_are_refused(height, width):
    with pytest.raises(
        ValueError, match=rf"{height} x {width} pixels .* patches of 2: make data.resol"
    ):
        SpaceToDepth(2).encode(jnp.zeros((1, height, width, 3)))


def test_block_dct_with_all_coefficients_is_lossless():
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    autoencoder = BlockDCT(4, luminance=16, chrominance=16, scale=1.25, shift=0.6)
    latents = autoencoder.encode(jnp.asarray(pixels))
    assert latents.shape == (2, 2, 3, 48)
    # float32 rounding of two products with a basis of 48.
    np.testing.assert_allclose(autoencoder.decode(latents), pixels, atol=1e-5)


def test_block_dct_takes_the_coefficients_that_scipy_computes():
    patch = np.random.default_rng(1).uniform(-1, 1, (4, 4, 3)).astype(np.float32)
    coefficients = scipy.fft.dctn(patch, norm="ortho")
    latents = BlockDCT(4, luminance=3, chrominance=1).encode(jnp.asarray(patch[None]))
    latents = latents[0, 0, 0]
    expected = [
        coefficients[0, 0, 0] * 2 / 3,
        coefficients[0, 1, 0] * 2**0.8 * 2 / 3,
        coefficients[1, 0, 0] * 2**0.8 * 2 / 3,
        coefficients[0, 0, 1],
        coefficients[0, 0, 2],
    ]
    np.testing.assert_allclose(latents, expected, rtol=1e-4, atol=1e-5)


def test_block_dct_drops_only_what_it_says():
    pixels = np.random.default_rng(2).uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
    autoencoder = BlockDCT(4, luminance=10, chrominance=3, scale=0.7, shift=0.1)
    once = autoencoder.decode(autoencoder.encode(jnp.asarray(pixels)))
    twice = autoencoder.decode(autoencoder.encode(once))
    assert float(np.abs(once - pixels).max()) > 0.1
    np.testing.assert_allclose(twice, once, atol=1e-5)


def test_block_dct_refuses_more_coefficients_than_there_are():
    with pytest.raises(ValueError, match=r"luminance=17 .* of 16: keep fewer"):
        BlockDCT(4, luminance=17, chrominance=1)
