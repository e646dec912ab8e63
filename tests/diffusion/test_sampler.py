"""DDIM against diffusers' scheduler, against an oracle, and guidance by its formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.sampler import (
    ddim_sample,
    inference_timesteps,
    with_guidance,
)

NAMES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
}


def _ddim(beta_schedule="scaled_linear", prediction_type="epsilon", **options):
    diffusers = pytest.importorskip("diffusers")
    settings = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": NAMES[beta_schedule],
        "prediction_type": prediction_type,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    return diffusers.DDIMScheduler(**settings | options)


@pytest.fixture
def noise(rng):
    return rng.normal(size=(3, 4, 4, 2)).astype(np.float32)


@pytest.mark.parametrize("num_inference_steps", [1, 4, 20, 25, 30, 50, 999])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_timesteps_equal_those_of_diffusers(num_inference_steps, spacing):
    reference = _ddim(timestep_spacing=spacing)
    reference.set_timesteps(num_inference_steps)
    actual = inference_timesteps(1000, num_inference_steps, spacing)
    np.testing.assert_array_equal(actual, reference.timesteps.numpy())


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_any_number_of_steps_falls_within_the_training_timesteps(spacing):
    for T in (10, 100, 1000):
        for steps in range(1, T + 1):
            timesteps = inference_timesteps(T, steps, spacing)
            assert len(timesteps) == steps, (T, steps)
            assert timesteps.min() >= 0, (T, steps)
            assert timesteps.max() < T, (T, steps)
            # As many steps as timesteps, shifted by one: the last comes twice.
            slack = spacing == "leading" and steps == T
            assert (np.diff(timesteps) < int(slack)).all(), (T, steps)


def test_trailing_timesteps_start_in_pure_noise():
    assert inference_timesteps(1000, 7, "trailing")[0] == 999
    assert inference_timesteps(1000, 7, "leading")[0] == 6 * 142 + 1


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_more_steps_than_timesteps_are_refused(steps):
    with pytest.raises(
        ValueError, match=rf"num_inference_steps={steps} .* 1 and .*1000"
    ):
        inference_timesteps(1000, steps)


def test_an_unknown_spacing_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'linspace' is not known.*leading, trailing"):
        inference_timesteps(1000, 10, "linspace")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 7])
def test_an_oracle_leads_back_to_its_image(
    prediction_type, beta_schedule, steps, noise
):
    scheduler = make_noise_scheduler(beta_schedule, prediction_type)
    image = np.random.default_rng(1).uniform(-1, 1, noise.shape).astype(np.float32)
    alphas = jnp.asarray(scheduler.alphas_cumprod)

    def oracle(latents, timesteps):
        a = alphas[timesteps][:, None, None, None]
        epsilon = (latents - jnp.sqrt(a) * image) / jnp.sqrt(1 - a)
        if prediction_type == "epsilon":
            return epsilon
        return jnp.sqrt(a) * epsilon - jnp.sqrt(1 - a) * image

    timesteps = inference_timesteps(1000, steps, "leading")
    result = ddim_sample(oracle, scheduler, noise, timesteps)
    # The oracle divides by the noise scale, 0.03 at the last step, and `epsilon`
    # by the signal, 0.07 to 0.2 at the first.
    np.testing.assert_allclose(result, image, atol=5e-5)


def _toy_predictor(latents, timesteps, xp):
    """Smooth, nonlinear, different for every timestep; the same in numpy and jax."""
    wave = xp.sin(timesteps.astype("float32") / 100)[:, None, None, None]
    return 0.8 * latents + 0.3 * xp.tanh(latents[:, ::-1]) * wave - 0.05


def _diffusers_trajectory(reference, noise, steps, **options) -> np.ndarray:
    import torch

    reference.set_timesteps(steps)
    latents = torch.from_numpy(noise)
    for t in reference.timesteps:
        timesteps = np.full(len(noise), int(t))
        model_pred = torch.from_numpy(_toy_predictor(latents.numpy(), timesteps, np))
        latents = reference.step(model_pred, t, latents, **options).prev_sample
    return latents.numpy()


def _relative_error(actual, expected) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_a_whole_trajectory_equals_that_of_diffusers(
    beta_schedule, prediction_type, spacing, noise
):
    reference = _ddim(beta_schedule, prediction_type, timestep_spacing=spacing)
    expected = _diffusers_trajectory(reference, noise, 20)
    actual = ddim_sample(
        lambda latents, t: _toy_predictor(latents, t, jnp),
        make_noise_scheduler(beta_schedule, prediction_type),
        noise,
        inference_timesteps(1000, 20, spacing),
    )
    # float32 rounding through twenty steps, and the tables' own differences of 1e-6.
    assert _relative_error(np.asarray(actual), expected) < 1e-4


def test_clipped_estimates_equal_those_of_diffusers(noise):
    reference = _ddim(
        prediction_type="v_prediction", clip_sample=True, clip_sample_range=0.4
    )
    expected = _diffusers_trajectory(
        reference, noise, 20, use_clipped_model_output=True
    )
    scheduler = make_noise_scheduler("scaled_linear", "v_prediction")
    timesteps = inference_timesteps(1000, 20)

    def sample(clip_latents):
        return np.asarray(
            ddim_sample(
                lambda latents, t: _toy_predictor(latents, t, jnp),
                scheduler,
                noise,
                timesteps,
                clip_latents=clip_latents,
            )
        )

    assert _relative_error(sample(0.4), expected) < 1e-4
    assert np.abs(sample(0.4)).max() <= 0.4
    assert np.abs(sample(None)).max() > 0.4
    np.testing.assert_allclose(sample(100.0), sample(None), atol=1e-4)


class TextPredictor:
    """Predicts the mean of the text, and remembers the batch sizes it was given."""

    def __init__(self):
        self.batch_sizes = []

    def __call__(self, latents, timesteps, encoder_hidden_states):
        assert len(latents) == len(timesteps) == len(encoder_hidden_states)
        self.batch_sizes.append(len(latents))
        level = encoder_hidden_states.mean(axis=(1, 2)) + timesteps
        return latents * level[:, None, None, None]


@pytest.fixture
def texts(rng):
    return jnp.asarray(rng.normal(size=(2, 3, 5, 8)), jnp.float32)


def test_guidance_leads_away_from_the_negative_text(noise, texts):
    conditional, negative = texts
    predict = TextPredictor()
    timesteps = jnp.array([3, 1, 2])
    with_text = predict(noise, timesteps, conditional)
    without = predict(noise, timesteps, negative)
    for scale in (0.0, 2.0, 7.5):
        denoise = with_guidance(predict, conditional, negative, scale)
        # float32 rounding of products of up to 30.
        np.testing.assert_allclose(
            denoise(noise, timesteps),
            without + scale * (with_text - without),
            atol=1e-5,
            rtol=1e-5,
        )


def test_guidance_at_scale_one_is_the_conditional_prediction_alone(noise, texts):
    conditional, negative = texts
    predict = TextPredictor()
    timesteps = jnp.array([3, 1, 2])
    denoise = with_guidance(predict, conditional, negative, 1.0)
    np.testing.assert_array_equal(
        denoise(noise, timesteps), predict(noise, timesteps, conditional)
    )
    assert predict.batch_sizes == [3, 3]  # the unconditional half is never computed
