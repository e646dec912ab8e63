"""The loss: zero for an oracle, over uniform timesteps and normal noise, per example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import KeyReuseError
from scipy import stats

from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.objective import denoising_loss, draw_noise, min_snr_weights

B = 6


@pytest.fixture
def latents(rng):
    return jnp.asarray(rng.normal(size=(B, 4, 4, 3)), jnp.float32)


@pytest.fixture
def text(rng):
    return jnp.asarray(rng.normal(size=(B, 5, 8)), jnp.float32)


def losses_of(predict, scheduler, latents, text, key, **options):
    draw = draw_noise(key, latents.shape, scheduler.num_train_timesteps)
    return denoising_loss(predict, scheduler, latents, text, draw, **options)[0]


def _scales(scheduler, timesteps):
    a = jnp.asarray(scheduler.alphas_cumprod)[timesteps][:, None, None, None]
    return jnp.sqrt(a), jnp.sqrt(1 - a)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_network_that_knows_the_images_has_no_loss(
    prediction_type, latents, text, key
):
    scheduler = make_noise_scheduler("scaled_linear", prediction_type)

    def oracle(noisy_latents, timesteps, encoder_hidden_states):
        signal, sigma = _scales(scheduler, timesteps)
        noise = (noisy_latents - signal * latents) / sigma
        if prediction_type == "epsilon":
            return noise
        return signal * noise - sigma * latents

    losses = losses_of(oracle, scheduler, latents, text, key)
    assert losses.shape == (B,)
    # Squared rounding errors, divided by a noise scale of at least 0.03.
    np.testing.assert_allclose(losses, np.zeros(B), atol=1e-8)


def test_a_network_that_says_nothing_loses_the_variance_of_its_target(text, key):
    scheduler = make_noise_scheduler("linear", "epsilon")
    large = jnp.zeros((B, 64, 64, 3))
    losses = losses_of(lambda x, t, c: 0 * x, scheduler, large, text, key)
    # Means of 12,288 squared normal numbers: a standard error of 1.3 %.
    np.testing.assert_allclose(losses, np.ones(B), atol=0.06)


@pytest.fixture
def seen(key):
    """What the network is shown for 4,000 black images and ten timesteps."""
    scheduler = make_noise_scheduler("linear", "epsilon", 10, 0.01, 0.2)
    shown = {}

    def predict(noisy_latents, timesteps, encoder_hidden_states):
        shown.update(noisy_latents=noisy_latents, timesteps=np.asarray(timesteps))
        return noisy_latents

    losses_of(
        predict, scheduler, jnp.zeros((4000, 2, 2, 1)), jnp.zeros((4000, 1, 1)), key
    )
    _, sigma = _scales(scheduler, shown["timesteps"])
    return shown["timesteps"], np.asarray(shown["noisy_latents"] / sigma)


def test_timesteps_are_uniform(seen):
    timesteps, _ = seen
    counts = np.bincount(timesteps, minlength=10)
    assert len(counts) == 10
    assert stats.chisquare(counts).pvalue > 1e-3


def test_noise_is_standard_normal_and_independent(seen):
    timesteps, noise = seen
    flat = noise.reshape(4000, 4)
    for values in (flat.ravel(), flat[timesteps == 0].ravel()):
        assert stats.kstest(values, "norm").pvalue > 1e-3
    # Between positions of an image, and between an image and the next one.
    correlations = np.corrcoef(np.concatenate([flat[1:], flat[:-1]], axis=1).T)
    off_diagonal = correlations[np.triu_indices(8, 1)]
    assert np.abs(off_diagonal).max() < 4.5 / np.sqrt(4000)


def test_noise_is_independent_of_the_timestep(seen):
    timesteps, noise = seen
    magnitude = np.square(noise).mean(axis=(1, 2, 3))
    assert stats.spearmanr(timesteps, magnitude).pvalue > 1e-3


def test_no_key_is_used_twice(latents, text, key):
    """Neither for timesteps and noise, nor after it was split: jax keeps count.

    The two draws of one key look independent, so that no statistic would tell.
    """
    scheduler = make_noise_scheduler()
    with jax.debug_key_reuse(True):
        losses_of(lambda x, t, c: x, scheduler, latents, text, key)
        with pytest.raises(KeyReuseError):
            jax.random.normal(key, (B,))


def test_the_loss_of_an_example_does_not_depend_on_the_others(latents, text, key):
    scheduler = make_noise_scheduler("scaled_linear", "v_prediction")

    def predict(noisy_latents, timesteps, encoder_hidden_states):
        shift = encoder_hidden_states.mean(axis=(1, 2)) + timesteps / 1000
        return jnp.tanh(noisy_latents) + shift[:, None, None, None]

    before = losses_of(predict, scheduler, latents, text, key)
    after = losses_of(predict, scheduler, latents.at[1].mul(3), text.at[4].add(1), key)
    unchanged = np.array([0, 2, 3, 5])
    np.testing.assert_array_equal(before[unchanged], after[unchanged])
    assert (np.asarray(before != after)[[1, 4]]).all()


def test_another_key_gives_other_losses(latents, text):
    scheduler = make_noise_scheduler()
    one, other = (
        losses_of(lambda x, t, c: x, scheduler, latents, text, jax.random.key(i))
        for i in (0, 1)
    )
    assert (np.asarray(one) != np.asarray(other)).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_weights_are_those_of_the_paper(prediction_type):
    scheduler = make_noise_scheduler("scaled_linear", prediction_type)
    alphas = scheduler.alphas_cumprod.astype(np.float64)
    snr = alphas / (1 - alphas)
    # As in diffusers' training script.
    expected = np.minimum(snr, 5.0) / (snr + (prediction_type == "v_prediction"))
    actual = min_snr_weights(scheduler, 5.0)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6)  # rounding to float32
    assert (np.diff(snr) < 0).all()
    assert (snr > 5).any()
    assert (snr < 5).any()


def test_weights_are_finite_at_pure_noise_and_at_clean_latents():
    scheduler = make_noise_scheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    weights = min_snr_weights(scheduler, 5.0)
    assert weights[-1] == 0
    assert ((weights[:-1] > 0) & (weights[:-1] <= 1)).all()
    clean = scheduler._replace(alphas_cumprod=np.array([1, 0.5], np.float32))
    np.testing.assert_array_equal(min_snr_weights(clean, 5.0), [0, 0.5])
    # The least noise and gamma there is: nothing overflows.
    assert np.isfinite(min_snr_weights(make_noise_scheduler(), 1e-30)).all()


def test_every_example_is_weighted_by_its_own_timestep(latents, text, key):
    scheduler = make_noise_scheduler("scaled_linear", "epsilon")
    seen = []

    def predict(noisy_latents, timesteps, encoder_hidden_states):
        seen.append(np.asarray(timesteps))
        return jnp.tanh(noisy_latents)

    plain = losses_of(predict, scheduler, latents, text, key)
    weighted = losses_of(predict, scheduler, latents, text, key, min_snr_gamma=0.3)
    np.testing.assert_array_equal(seen[0], seen[1])
    weights = min_snr_weights(scheduler, 0.3)[seen[0]]
    assert len(np.unique(weights)) > 2
    np.testing.assert_allclose(weighted, plain * weights, rtol=1e-6)  # one product


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan")])
def test_a_gamma_that_is_not_positive_is_refused(gamma):
    with pytest.raises(ValueError, match=rf"min_snr_gamma={gamma} must be above 0"):
        min_snr_weights(make_noise_scheduler(), gamma)


def test_an_example_that_does_not_count_has_no_loss_and_the_others_theirs(
    latents, text, key
):
    scheduler = make_noise_scheduler("scaled_linear", "epsilon")
    seen = []

    def keep(model_pred, noisy_latents, timesteps):
        seen.append((model_pred.shape, noisy_latents.shape, timesteps.shape))
        return jnp.arange(B) % 3 == 0

    def predict(x, t, c):
        return 0.1 * x

    draw = draw_noise(key, latents.shape, scheduler.num_train_timesteps)
    every, all_kept = denoising_loss(predict, scheduler, latents, text, draw)
    some, kept = denoising_loss(predict, scheduler, latents, text, draw, keep=keep)
    assert seen == [(latents.shape, latents.shape, (B,))]
    assert kept.tolist() == [1, 0, 0, 1, 0, 0]
    assert all_kept.tolist() == [1] * B
    np.testing.assert_array_equal(some, every * kept)


def test_an_offset_of_the_noise_is_one_number_a_channel_and_is_asked_for(key):
    shape = (2000, 4, 4, 3)
    plain, shifted = (draw_noise(key, shape, 10, noise_offset=x) for x in (0.0, 0.5))
    np.testing.assert_array_equal(plain.timesteps, shifted.timesteps)
    np.testing.assert_array_equal(shifted.noise, shifted.added)
    offset = np.asarray(shifted.noise - plain.noise)
    np.testing.assert_allclose(offset, offset[:, :1, :1] + 0 * offset, atol=1e-6)
    assert stats.kstest(offset[:, 0, 0].ravel() / 0.5, "norm").pvalue > 1e-3


def test_a_perturbation_of_the_input_is_seen_and_not_asked_for(key):
    shape = (200, 4, 4, 3)
    plain = draw_noise(key, shape, 10)
    perturbed = draw_noise(key, shape, 10, input_perturbation=0.1)
    np.testing.assert_array_equal(plain.timesteps, perturbed.timesteps)
    np.testing.assert_array_equal(plain.noise, perturbed.noise)
    further = np.asarray(perturbed.added - perturbed.noise).ravel() / 0.1
    assert stats.kstest(further, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(further, np.ravel(plain.noise))[0, 1]) < 0.05
