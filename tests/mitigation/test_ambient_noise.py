"""Noisy copies of images: the authors' loss, and what a network can learn of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy import stats

from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.objective import Draw, denoising_loss
from copymit.mitigation.methods.ambient_noise import ambient_noise
from copymit.mitigation.registry import defaults
from copymit.mitigation.training import training_noise
from tests.mitigation.small_unet import SIZES, TYPES, D, L, in_torch, predict

LEVEL = 0.8
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Noise over signal is 0.2, 0.9 and 14.
TIMESTEPS = np.array([50, 400, 999])


def inputs(size):
    shape = (3, 3, size, size, 4)
    return np.random.default_rng(size).normal(size=shape).astype("f4")


def loss_in_torch(size, prediction_type, hidden):
    """Is their loss, of images with noise added to them and not mixed into them.

    Its weights are those of the usual loss of the noise, or of the velocity.
    """
    scheduler = DDPMScheduler(**BETAS, prediction_type=prediction_type)
    images, nature_noise, noise = (torch.from_numpy(x) for x in inputs(size))
    nature_noise = LEVEL * nature_noise
    a = scheduler.alphas_cumprod[TIMESTEPS][:, None, None, None]
    signal, deviation = a**0.5, (1 - a) ** 0.5
    sigma = deviation / signal
    nature = images + nature_noise
    high = sigma >= LEVEL
    clamped = sigma.clamp(min=LEVEL)
    diffused = nature + noise * (clamped**2 - LEVEL**2) ** 0.5
    seen = torch.where(high, diffused, images + sigma * noise)
    latents = signal * seen
    output = in_torch(latents, torch.from_numpy(TIMESTEPS), torch.from_numpy(hidden))
    if prediction_type == "epsilon":
        x0 = (latents - deviation * output) / signal
        weight = 1 / sigma**2
    else:
        x0 = signal * latents - deviation * output
        weight = 1 / deviation**2
    share = LEVEL**2 / sigma**2
    found = torch.where(high, share * seen + (1 - share) * x0, x0)
    asked = torch.where(high, nature, images)
    return (weight * (found - asked) ** 2).mean((1, 2, 3)).numpy(), high.ravel()


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_the_loss_is_that_of_the_authors_code(size, prediction_type):
    hidden = np.random.default_rng(0).normal(size=(3, L, D)).astype("f4")
    expected, high = loss_in_torch(size, prediction_type, hidden)
    assert high.tolist() == [False, True, True]
    noise_scheduler = make_noise_scheduler(prediction_type=prediction_type)
    images, own_noise, noise = map(jnp.asarray, inputs(size))
    draw = Draw(jnp.asarray(TIMESTEPS), noise, noise)
    noised = ambient_noise(noise_scheduler, images, draw, own_noise, LEVEL)
    losses, _ = denoising_loss(
        predict,
        noise_scheduler,
        images,
        jnp.asarray(hidden),
        draw._replace(noised=noised),
    )
    # float32, with estimates of x0 at a signal of 0.07.
    np.testing.assert_allclose(losses, expected, rtol=2e-4)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_without_any_level_the_loss_is_the_usual_one(prediction_type):
    noise_scheduler = make_noise_scheduler(prediction_type=prediction_type)
    images, own_noise, noise = map(jnp.asarray, inputs(8))
    draw = Draw(jnp.asarray(TIMESTEPS), noise, noise)
    hidden = jnp.zeros((3, L, D))

    def loss(noised):
        asked = draw._replace(noised=noised)
        return denoising_loss(
            lambda x, t, h: jnp.tanh(x), noise_scheduler, images, hidden, asked
        )[0]

    noised = ambient_noise(noise_scheduler, images, draw, own_noise, 0.0)
    np.testing.assert_allclose(loss(noised), loss(None), rtol=2e-5)


def test_pure_noise_is_no_obstacle_to_velocity():
    noise_scheduler = make_noise_scheduler(
        "cosine", "v_prediction", rescale_betas_zero_snr=True
    )
    images, own_noise, noise = map(jnp.asarray, inputs(8))
    draw = Draw(jnp.full(3, 999), noise, noise)
    noised = ambient_noise(noise_scheduler, images, draw, own_noise, 1.0)
    np.testing.assert_allclose(noised.noisy_latents, noise, atol=1e-5)
    np.testing.assert_allclose(noised.target, -images - own_noise, rtol=1e-4, atol=1e-4)


def test_the_noise_of_an_image_is_the_same_at_every_visit_and_no_other_s():
    noise_scheduler = make_noise_scheduler()
    values = defaults("train") | {"ambient_noise": 1.0}
    noising = training_noise(values, noise_scheduler)
    images, _, noise = map(jnp.asarray, inputs(8))
    keys = jax.random.split(jax.random.key(3), 3)

    def own_noise(timestep, rows):
        """Is what is left of a visit without the step's own noise."""
        draw = Draw(jnp.full(len(rows), timestep), 0 * noise[rows], 0 * noise[rows])
        seen = noising(images[rows], draw, keys[rows]).noisy_latents
        r = (2 * noise_scheduler.alphas_cumprod[timestep]) ** 0.5
        return np.asarray(2**0.5 * seen / r - images[rows])

    first = own_noise(700, np.arange(3))
    np.testing.assert_allclose(
        own_noise(950, np.array([2, 0])), first[[2, 0]], atol=1e-4
    )
    assert stats.kstest(first.ravel(), "norm").pvalue > 1e-3
    # Of 256 independent numbers: four deviations are 0.25.
    assert np.abs(np.corrcoef(first.reshape(3, -1)) - np.eye(3)).max() < 0.25
