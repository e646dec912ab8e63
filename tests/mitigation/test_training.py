"""What training composes: keys of images, and one way of making them noisy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.objective import Draw, Noised, denoising_loss
from copymit.mitigation.registry import MITIGATIONS, defaults
from copymit.mitigation.training import image_keys, training_noise

KEY = jax.random.key(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_image_has_the_same_key_at_every_visit_and_no_other_has_it(dtype, rng):
    images = rng.integers(0, 255, (5, 4, 4, 3)).astype(dtype)
    images[4] = images[0][:, ::-1]  # the mirror image is another one
    keys = jax.random.key_data(image_keys(jnp.asarray(images), KEY)).tolist()
    assert len({tuple(key) for key in keys}) == 5
    order = np.array([3, 0])
    again = jax.random.key_data(image_keys(jnp.asarray(images[order]), KEY)).tolist()
    assert again == [keys[3], keys[0]]
    other = image_keys(jnp.asarray(images), jax.random.key(1))
    assert jax.random.key_data(other).tolist() != keys


def test_without_a_mitigation_noise_is_as_usual():
    assert training_noise(defaults("train"), make_noise_scheduler()) is None


def test_what_is_trained_on_is_what_the_noising_says():
    latents = jnp.ones((2, 2, 2, 1))
    noised = Noised(latents + 1, jnp.array([2.0, 0.5]), 3 * latents)
    draw = Draw(jnp.array([7, 8]), latents, latents, noised)
    losses, _ = denoising_loss(
        lambda x, t, h: x,
        make_noise_scheduler(),
        latents,
        jnp.zeros((2, 1, 1)),
        draw,
    )
    # The network sees 2 and says 2, which is scaled to 4 and to 1; 3 is asked for.
    np.testing.assert_allclose(losses, [1.0, 4.0])


def test_two_ways_of_making_images_noisy_are_refused(monkeypatch):
    for name in ("gaussian_noise", "embedding_mixup"):
        changed = MITIGATIONS[name]._replace(noising=lambda *_: None)
        monkeypatch.setitem(MITIGATIONS, name, changed)
    values = defaults("train") | {"gaussian_noise": 1.0, "embedding_mixup": 1.0}
    with pytest.raises(ValueError, match="both make images noisy: use one of them"):
        training_noise(values, make_noise_scheduler())
