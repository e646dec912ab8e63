"""Whole trajectories against diffusers' schedulers, an oracle, and guidance's formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.sampler import sample, with_guidance
from copymit.diffusion.trajectory import SAMPLERS, Trajectory

NAMES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
}
KINDS = {
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
SPACINGS = ["leading", "linspace", "trailing"]


def make_pair(sampler, kind=None, options=None, **settings):
    """Our noise scheduler and diffusers' one of the same settings."""
    diffusers = pytest.importorskip("diffusers")
    ours = make_noise_scheduler(**settings)
    schedule = settings.pop("beta_schedule", "scaled_linear")
    reference = getattr(diffusers, kind or KINDS[sampler])(
        beta_schedule=NAMES[schedule],
        **{
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "steps_offset": ours.steps_offset,
            **({"clip_sample": False} if sampler == "ddim" and not kind else {}),
            **settings,
            **(options or {}),
        },
    )
    return ours, reference


@pytest.fixture
def noise(rng):
    return rng.normal(size=(3, 4, 4, 2)).astype(np.float32)


def _toy_predictor(latents, timesteps, xp):
    """Smooth, nonlinear, different for every timestep; the same in numpy and jax."""
    wave = xp.sin(timesteps.astype("float32") / 100)[:, None, None, None]
    return 0.8 * latents + 0.3 * xp.tanh(latents[:, ::-1]) * wave - 0.05


def _diffusers_trajectory(reference, noise, steps, **options) -> np.ndarray:
    """The loop of diffusers' pipelines."""
    import torch

    if isinstance(steps, int):
        reference.set_timesteps(steps)
    else:
        reference.set_timesteps(timesteps=steps)
    latents = torch.from_numpy(noise) * reference.init_noise_sigma
    for t in reference.timesteps:
        scaled = reference.scale_model_input(latents, t).numpy()
        timesteps = np.full(len(noise), t.numpy())
        model_pred = torch.from_numpy(_toy_predictor(scaled, timesteps, np))
        latents = reference.step(model_pred, t, latents, **options).prev_sample
    return latents.numpy()


@functools.cache
def _compiled(prediction_type, clip_latents):
    """One program for all trajectories of a length."""

    def run(numbers, noise):
        return sample(
            lambda latents, timesteps: _toy_predictor(latents, timesteps, jnp),
            Trajectory(*numbers, prediction_type),
            noise,
            clip_latents=clip_latents,
        )

    return jax.jit(run)


def _our_trajectory(sampler, noise_scheduler, noise, steps, clip_latents=None):
    *numbers, prediction_type = SAMPLERS[sampler](noise_scheduler, steps)
    return np.asarray(_compiled(prediction_type, clip_latents)(numbers, noise))


def _relative_error(actual, expected) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


# float32 rounding through all steps, and the tables' own differences of 1e-6.
TOLERANCE = 1e-4


# DDIM of diffusers does not step to the next timestep of `linspace`; see below.
@pytest.mark.parametrize(
    ("sampler", "spacing"),
    [(a, b) for a in SAMPLERS for b in SPACINGS if (a, b) != ("ddim", "linspace")],
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_a_whole_trajectory_equals_that_of_diffusers(
    beta_schedule, prediction_type, spacing, sampler, noise
):
    ours, reference = make_pair(
        sampler,
        beta_schedule=beta_schedule,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
    )
    expected = _diffusers_trajectory(reference, noise, 20)
    actual = _our_trajectory(sampler, ours, noise, 20)
    assert _relative_error(actual, expected) < TOLERANCE


@pytest.mark.parametrize("steps", [2, 7, 15, 30])
@pytest.mark.parametrize("sampler", ["dpmsolver++", "euler"])
def test_few_and_odd_numbers_of_steps_equal_those_of_diffusers(sampler, steps, noise):
    for spacing in SPACINGS:
        ours, reference = make_pair(sampler, timestep_spacing=spacing)
        expected = _diffusers_trajectory(reference, noise, steps)
        actual = _our_trajectory(sampler, ours, noise, steps)
        assert _relative_error(actual, expected) < TOLERANCE, spacing


@pytest.mark.parametrize("steps", [7, 30])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_steps_to_the_next_timestep_whatever_the_spacing(spacing, steps, noise):
    # The solver of order 1 is DDIM, and goes from each given timestep to the next.
    ours, reference = make_pair(
        "ddim",
        "DPMSolverMultistepScheduler",
        {"solver_order": 1},
        timestep_spacing=spacing,
    )
    timesteps = SAMPLERS["ddim"](ours, steps).timesteps.tolist()
    expected = _diffusers_trajectory(reference, noise, timesteps)
    actual = _our_trajectory("ddim", ours, noise, steps)
    assert _relative_error(actual, expected) < TOLERANCE


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "cosine"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_start_in_pure_noise_equals_that_of_diffusers(
    sampler, beta_schedule, spacing, noise
):
    if (sampler, spacing) == ("ddim", "linspace"):
        spacing = "trailing"
    ours, reference = make_pair(
        sampler,
        beta_schedule=beta_schedule,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing=spacing,
    )
    expected = _diffusers_trajectory(reference, noise, 20)
    actual = _our_trajectory(sampler, ours, noise, 20)
    # Latents of diffusers' Euler start at 4,096 and lose three digits on the way.
    assert _relative_error(actual, expected) < 1e-3


def test_the_last_noise_level_of_stable_diffusion_equals_that_of_diffusers(noise):
    ours, reference = make_pair("ddim", options={"set_alpha_to_one": False})
    expected = _diffusers_trajectory(reference, noise, 20)
    kept = ours._replace(set_alpha_to_one=False)
    assert _relative_error(_our_trajectory("ddim", kept, noise, 20), expected) < 1e-4
    assert _relative_error(_our_trajectory("ddim", ours, noise, 20), expected) > 1e-3


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_oracle_leads_back_to_its_image(
    sampler, prediction_type, beta_schedule, steps, noise
):
    scheduler = make_noise_scheduler(
        beta_schedule, prediction_type, timestep_spacing="leading"
    )
    image = np.random.default_rng(1).uniform(-1, 1, noise.shape).astype(np.float32)
    alphas = jnp.asarray(scheduler.alphas_cumprod)

    def oracle(latents, timesteps):
        a = alphas[timesteps][:, None, None, None]
        epsilon = (latents - jnp.sqrt(a) * image) / jnp.sqrt(1 - a)
        if prediction_type == "epsilon":
            return epsilon
        return jnp.sqrt(a) * epsilon - jnp.sqrt(1 - a) * image

    result = sample(oracle, SAMPLERS[sampler](scheduler, steps), noise)
    # The oracle divides by the noise scale, 0.03 at the last step, and `epsilon`
    # by the signal, 0.07 to 0.2 at the first.
    np.testing.assert_allclose(result, image, atol=5e-5)


def test_the_network_is_asked_once_per_step_and_told_which(noise):
    trajectory = SAMPLERS["euler"](make_noise_scheduler(timestep_spacing="linspace"), 4)
    seen = []

    def denoise(latents, timesteps):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), timesteps)
        return latents

    sample(denoise, trajectory, noise).block_until_ready()
    jax.effects_barrier()
    expected = np.array([999, 666, 333, 0])[:, None].repeat(len(noise), axis=1)
    np.testing.assert_array_equal(np.sort(seen, axis=0)[::-1], expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_the_others(sampler, noise):
    scheduler = make_noise_scheduler()
    before = _our_trajectory(sampler, scheduler, noise, 5)
    changed = noise.copy()
    changed[1] += 1
    after = _our_trajectory(sampler, scheduler, changed, 5)
    np.testing.assert_array_equal(before[[0, 2]], after[[0, 2]])
    assert np.abs(before[1] - after[1]).max() > 0.1


def test_clipped_estimates_equal_those_of_diffusers(noise):
    ours, reference = make_pair(
        "ddim",
        options={"clip_sample": True, "clip_sample_range": 0.4},
        prediction_type="v_prediction",
    )
    expected = _diffusers_trajectory(
        reference, noise, 20, use_clipped_model_output=True
    )
    actual = _our_trajectory("ddim", ours, noise, 20, clip_latents=0.4)
    assert _relative_error(actual, expected) < TOLERANCE


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clipping_bounds_the_result_and_a_wide_bound_changes_nothing(sampler, noise):
    scheduler = make_noise_scheduler("scaled_linear", "v_prediction")

    def clipped(bound):
        return _our_trajectory(sampler, scheduler, noise, 20, clip_latents=bound)

    assert np.abs(clipped(0.4)).max() <= 0.4
    assert np.abs(clipped(None)).max() > 0.4
    # The noise is computed again from x0, divided by a scale of 0.03 at the end.
    np.testing.assert_allclose(clipped(100.0), clipped(None), atol=1e-4)


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
