"""Space to depth loses nothing, and refuses what it cannot divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copymit.models.autoencoder import SpaceToDepth


@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_decoding_undoes_encoding(patch_size, rng):
    autoencoder = SpaceToDepth(patch_size)
    pixels = jnp.asarray(rng.uniform(-1, 1, (2, 12, 6, 3)), jnp.float32)
    latents = autoencoder.encode(pixels, jax.random.key(0))
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
