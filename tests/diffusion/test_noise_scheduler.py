"""Noise levels and conversions against diffusers' torch scheduler and their inverses."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from copymit.diffusion.noise_scheduler import (
    add_noise,
    compute_velocity,
    make_noise_scheduler,
    predicted_latents_and_noise,
    training_target,
)

# Ours and diffusers' names of the schedules, with the betas of DDPM and SD.
SCHEDULES = [
    ("linear", "linear", 1e-4, 0.02),
    ("scaled_linear", "scaled_linear", 0.00085, 0.012),
    ("cosine", "squaredcos_cap_v2", 0.00085, 0.012),
]
ALL_TIMESTEPS = np.array([0, 1, 250, 500, 998, 999])


@dataclasses.dataclass
class Example:
    """One latent a timestep."""

    latents: np.ndarray
    noise: np.ndarray
    timesteps: np.ndarray


@pytest.fixture
def example(rng) -> Example:
    shape = (len(ALL_TIMESTEPS), 4, 4, 3)
    latents, noise = rng.normal(size=(2, *shape)).astype(np.float32)
    return Example(latents, noise, ALL_TIMESTEPS)


@pytest.fixture(params=SCHEDULES, ids=lambda schedule: schedule[0])
def pair(request):
    """Our scheduler and diffusers' one of the same settings."""
    diffusers = pytest.importorskip("diffusers")
    ours, theirs, start, end = request.param
    reference = diffusers.DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=start,
        beta_end=end,
        beta_schedule=theirs,
    )
    return make_noise_scheduler(ours, "epsilon", 1000, start, end), reference


def test_tables_equal_those_of_diffusers(pair):
    ours, reference = pair
    assert ours.num_train_timesteps == 1000
    assert ours.alphas_cumprod.dtype == np.float32
    # diffusers multiplies 1,000 factors in float32, we do in float64.
    np.testing.assert_allclose(
        ours.alphas_cumprod, reference.alphas_cumprod.numpy(), rtol=0, atol=1e-6
    )


def test_noisy_latents_and_velocities_equal_those_of_diffusers(pair, example):
    torch = pytest.importorskip("torch")
    ours, reference = pair
    tensors = [torch.from_numpy(x) for x in dataclasses.astuple(example)]
    arguments = (example.latents, example.noise, example.timesteps)
    # Square roots of the tables above, times latents of up to 4.
    np.testing.assert_allclose(
        add_noise(ours, *arguments), reference.add_noise(*tensors).numpy(), atol=1e-5
    )
    np.testing.assert_allclose(
        compute_velocity(ours, *arguments),
        reference.get_velocity(*tensors).numpy(),
        atol=1e-5,
    )


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "cosine"])
def test_signal_only_ever_shrinks(beta_schedule):
    alphas = make_noise_scheduler(beta_schedule).alphas_cumprod
    assert (np.diff(alphas) < 0).all()
    assert 0.99 < alphas[0] < 1
    assert 0 < alphas[-1] < 0.01


@pytest.mark.parametrize("num_train_timesteps", [10, 100])
def test_other_lengths_follow_diffusers_too(num_train_timesteps):
    diffusers = pytest.importorskip("diffusers")
    for ours, theirs, start, end in SCHEDULES:
        reference = diffusers.DDPMScheduler(
            num_train_timesteps, beta_start=start, beta_end=end, beta_schedule=theirs
        )
        actual = make_noise_scheduler(ours, "epsilon", num_train_timesteps, start, end)
        np.testing.assert_allclose(
            actual.alphas_cumprod, reference.alphas_cumprod.numpy(), atol=1e-6
        )


def _scales(scheduler, timesteps):
    a = jnp.asarray(scheduler.alphas_cumprod)[timesteps][:, None, None, None]
    return jnp.sqrt(a), jnp.sqrt(1 - a)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_gives_back_latents_and_noise(prediction_type, example):
    scheduler = make_noise_scheduler("scaled_linear", prediction_type)
    arguments = (example.latents, example.noise, example.timesteps)
    noisy = add_noise(scheduler, *arguments)
    target = training_target(scheduler, *arguments)
    latents, noise = predicted_latents_and_noise(
        prediction_type, target, noisy, *_scales(scheduler, example.timesteps)
    )
    # At the last timestep of `epsilon`, rounding is divided by a signal of 0.07.
    np.testing.assert_allclose(latents, example.latents, atol=2e-5)
    np.testing.assert_allclose(noise, example.noise, atol=2e-5)


def test_noise_and_velocity_predictions_convert_into_each_other(example):
    scheduler = make_noise_scheduler("scaled_linear")
    scales = _scales(scheduler, example.timesteps)
    noisy, prediction = example.latents, example.noise  # any two arrays will do
    # As v: estimates of x0 and noise, of which v is composed again.
    latents, noise = predicted_latents_and_noise(
        "v_prediction", prediction, noisy, *scales
    )
    back = compute_velocity(scheduler, latents, noise, example.timesteps)
    np.testing.assert_allclose(back, prediction, atol=1e-5)
    # As noise: the same estimates from the noise of these, away from pure noise.
    again, same = predicted_latents_and_noise("epsilon", noise, noisy, *scales)
    np.testing.assert_allclose(same, noise, atol=0)
    np.testing.assert_allclose(again, latents, atol=1e-4)


def test_targets_are_the_noise_or_the_velocity(example):
    arguments = (example.latents, example.noise, example.timesteps)
    epsilon = make_noise_scheduler("linear", "epsilon")
    np.testing.assert_array_equal(training_target(epsilon, *arguments), example.noise)
    velocity = make_noise_scheduler("linear", "v_prediction")
    np.testing.assert_array_equal(
        training_target(velocity, *arguments), compute_velocity(velocity, *arguments)
    )


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule[0])
def test_tables_that_end_in_pure_noise_equal_those_of_diffusers(schedule, kind):
    diffusers = pytest.importorskip("diffusers")
    ours, theirs, start, end = schedule
    reference = getattr(diffusers, kind)(
        beta_start=start,
        beta_end=end,
        beta_schedule=theirs,
        rescale_betas_zero_snr=True,
    )
    actual = make_noise_scheduler(
        ours, "v_prediction", 1000, start, end, rescale_betas_zero_snr=True
    ).alphas_cumprod
    plain = make_noise_scheduler(ours, "v_prediction", 1000, start, end).alphas_cumprod
    # diffusers multiplies in float32, before the stretch and once more after it.
    np.testing.assert_allclose(actual, reference.alphas_cumprod.numpy(), atol=1e-6)
    assert actual[-1] == 0
    assert actual[0] == plain[0]
    assert (np.diff(actual) < 0).all()


def test_pure_noise_is_handled_without_dividing_by_its_signal(example):
    scheduler = make_noise_scheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    arguments = (example.latents, example.noise, example.timesteps)
    noisy = add_noise(scheduler, *arguments)
    np.testing.assert_array_equal(noisy[-1], example.noise[-1])
    target = training_target(scheduler, *arguments)
    np.testing.assert_array_equal(target[-1], -example.latents[-1])
    latents, noise = predicted_latents_and_noise(
        "v_prediction", target, noisy, *_scales(scheduler, example.timesteps)
    )
    # float32 rounding of sums of two products.
    np.testing.assert_allclose(latents, example.latents, atol=2e-6)
    np.testing.assert_allclose(noise, example.noise, atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta_schedule": "sigmoid"}, r"diffusion.beta_schedule='sigmoid'.*cosine"),
        ({"prediction_type": "sample"}, r"diffusion.prediction_type='sample'.*epsilon"),
        ({"timestep_spacing": "odd"}, r"diffusion.timestep_spacing='odd'.*trailing"),
        ({"num_train_timesteps": 1}, r"num_train_timesteps=1 must lie between 2 and"),
        ({"num_train_timesteps": 10**9}, r"num_train_timesteps=1000000000 must lie"),
        ({"beta_start": 0.0}, r"beta_start=0.0 and .*beta_end=0.012 must rise within"),
        ({"beta_end": 1.0}, r"beta_end=1.0 must rise within 0 and 1"),
        ({"beta_start": 0.2, "beta_end": 0.1}, r"beta_start=0.2 .* must rise"),
        ({"beta_end": float("nan")}, r"beta_end=nan must rise"),
        ({"steps_offset": -1}, r"steps_offset=-1 must lie between 0 and .* 999"),
        ({"rescale_betas_zero_snr": True}, r"zero_snr=True needs .*'v_prediction'"),
    ],
)
def test_settings_that_cannot_be_are_named_with_what_can(settings, message):
    with pytest.raises(ValueError, match=message):
        make_noise_scheduler(**settings)
