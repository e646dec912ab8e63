"""Every autoencoder through one interface: moments once, latents at every visit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from copymit.models.autoencoder import AUTOENCODERS, make_autoencoder


def _config(name):
    config = common.get_config().model.autoencoder
    config.name = name
    config.patch_size = 4
    config.kl.block_out_channels = (8, 8)
    config.kl.norm_num_groups = 4
    config.kl.layers_per_block = 1
    config.kl.scaling_factor = 0.5
    config.kl.shift_factor = 0.25
    for field in ("encoder_block_out_channels", "decoder_block_out_channels"):
        config.tiny[field] = (4, 4)
    config.tiny.num_encoder_blocks = config.tiny.num_decoder_blocks = (1, 1)
    return config


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_pixels_become_latents_and_pixels_of_the_promised_shapes(name):
    autoencoder = make_autoencoder(_config(name))
    key = jax.random.key(0)

    params = {n: p.abstract() for n, p in autoencoder.parameters.items()}

    def round_trip(params, key, pixels):
        latents = autoencoder.sample(autoencoder.encode(params, pixels), key)
        return latents, autoencoder.decode(params, latents)

    pixels = jax.ShapeDtypeStruct((2, 16, 8, 3), jnp.float32)
    latents, decoded = jax.eval_shape(round_trip, params, key, pixels)
    side = autoencoder.downsampling
    assert latents.shape == (2, 16 // side, 8 // side, autoencoder.latent_channels)
    assert decoded.shape == pixels.shape


@pytest.mark.parametrize("name", sorted(set(AUTOENCODERS) - {"kl"}))
def test_an_autoencoder_that_draws_nothing_ignores_the_key(name, rng):
    autoencoder = make_autoencoder(_config(name))
    moments = jnp.asarray(rng.standard_normal((1, 2, 2, 4)), jnp.float32)
    first, second = (autoencoder.sample(moments, jax.random.key(i)) for i in (0, 1))
    np.testing.assert_array_equal(first, second)


def test_latents_of_a_vae_have_the_moments_that_the_encoder_gave_them():
    autoencoder = make_autoencoder(_config("kl"))
    mean, deviation = 3.0, 0.2
    shape = (1, 100, 100, 4)
    log_variance = jnp.full(shape, 2 * np.log(deviation))
    moments = jnp.concatenate([jnp.full(shape, mean), log_variance], axis=-1)
    latents = np.asarray(autoencoder.sample(moments, jax.random.key(0)))
    # Scaled by 0.5 after subtracting 0.25; five standard errors of 40,000 draws.
    assert latents.mean() == pytest.approx((mean - 0.25) * 0.5, abs=5 * 0.1 / 200)
    assert latents.std() == pytest.approx(deviation * 0.5, rel=5 / np.sqrt(80_000))


def test_fixed_transforms_take_their_scale_from_the_config():
    config = _config("space_to_depth")
    config.patch_size, config.scale, config.shift = 2, 1.5, 0.5
    white = make_autoencoder(config).encode({}, jnp.ones((1, 2, 2, 3)))
    np.testing.assert_array_equal(white, np.full((1, 1, 1, 12), 0.75))


def test_an_unknown_autoencoder_is_named():
    with pytest.raises(ValueError, match=r"name='vq' is not known: use one of space"):
        make_autoencoder(_config("vq"))
