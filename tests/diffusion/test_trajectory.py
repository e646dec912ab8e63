"""Timesteps against diffusers', and what every trajectory must be on any schedule."""

import numpy as np
import pytest

from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.trajectory import SAMPLERS

KINDS = {
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
SPACINGS = ["leading", "linspace", "trailing"]


def make_trajectory(sampler, steps, T=1000, **settings):
    settings = {"beta_schedule": "cosine", "num_train_timesteps": T, **settings}
    return SAMPLERS[sampler](make_noise_scheduler(**settings), steps)


def test_every_sampler_is_compared_with_diffusers():
    assert KINDS.keys() == SAMPLERS.keys()


@pytest.mark.parametrize("steps_offset", [0, 1])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_timesteps_equal_those_of_diffusers(sampler, spacing, steps_offset):
    diffusers = pytest.importorskip("diffusers")
    reference = getattr(diffusers, KINDS[sampler])(
        timestep_spacing=spacing, steps_offset=steps_offset
    )
    for steps in (2, 4, 25, 30, 50, 333, 500):
        reference.set_timesteps(steps)
        actual = make_trajectory(
            sampler, steps, timestep_spacing=spacing, steps_offset=steps_offset
        ).timesteps
        fractional = (sampler, spacing) == ("euler", "linspace")
        assert actual.dtype == (np.float64 if fractional else np.int32)
        expected = reference.timesteps.numpy()
        # diffusers rounds fractions to float32.
        np.testing.assert_array_equal(actual.astype(expected.dtype), expected)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_steps_gives_a_way_down_or_is_refused(sampler, spacing):
    for T in (10, 100):
        refused = []
        for steps in range(1, T + 1):
            try:
                way = make_trajectory(sampler, steps, T, timestep_spacing=spacing)
            except ValueError:
                refused.append(steps)
                continue
            assert len(way.timesteps) == len(way.extrapolation) == steps
            assert 0 <= way.timesteps.min() <= way.timesteps.max() < T
            assert (np.diff(way.timesteps) < 0).all(), (T, steps)
            assert (np.diff(way.sigma) < 0).all(), (T, steps)
            assert (way.sigma[-1], way.signal[-1]) == (0, 1)
            np.testing.assert_allclose(way.signal**2 + way.sigma**2, 1, rtol=1e-12)
            assert np.isfinite(way.extrapolation).all()
            assert way.extrapolation[0] == way.extrapolation[-1] == 0
        # With an offset of 1, T steps lead past the top; between two ends, one step
        # has no room; between T + 1 points, not every one has a timestep of its own.
        expected = {
            ("ddim", "leading"): [T],
            ("euler", "leading"): [T],
            ("dpmsolver++", "leading"): [T - 1, T],
            ("ddim", "linspace"): [1],
            ("euler", "linspace"): [1],
            ("dpmsolver++", "linspace"): [T],
        }.get((sampler, spacing), [])
        assert refused == expected, T


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, r"num_inference_steps=0 must lie between 1 and .* 1000"),
        ({"steps": -1}, r"num_inference_steps=-1 must lie between"),
        ({"steps": 1001}, r"num_inference_steps=1001 must lie between"),
        ({"steps": 1000}, r"steps=1000 .*'leading' .*steps_offset=1.* or trailing"),
        ({"steps": 1, "timestep_spacing": "linspace"}, r"only visit timestep 0.*2 st"),
    ],
)
def test_steps_that_do_not_fit_are_refused_with_the_way_out(settings, message):
    with pytest.raises(ValueError, match=message):
        make_trajectory("ddim", **settings)


def test_trailing_timesteps_start_in_pure_noise():
    for sampler in SAMPLERS:
        trailing = make_trajectory(sampler, 7, timestep_spacing="trailing")
        assert trailing.timesteps[0] == 999
    assert make_trajectory("ddim", 7).timesteps[0] == 6 * 142 + 1
    leading = make_trajectory("dpmsolver++", 7, timestep_spacing="leading")
    assert leading.timesteps[0] == 7 * 125 + 1


def test_ddim_ends_at_clean_latents_or_at_the_first_noise_level():
    scheduler = make_noise_scheduler()
    clean = SAMPLERS["ddim"](scheduler, 5)
    assert clean.sigma[-1] == 0
    noisy = SAMPLERS["ddim"](scheduler._replace(set_alpha_to_one=False), 5)
    assert noisy.signal[-1] ** 2 == pytest.approx(scheduler.alphas_cumprod[0])
    np.testing.assert_array_equal(noisy.sigma[:-1], clean.sigma[:-1])


def test_euler_at_whole_timesteps_is_ddim():
    # 27 steps of 37 timesteps: linspace without fractions.
    settings = {"steps": 28, "timestep_spacing": "linspace", "beta_schedule": "linear"}
    ddim = make_trajectory("ddim", **settings)
    euler = make_trajectory("euler", **settings)
    np.testing.assert_array_equal(euler.timesteps, ddim.timesteps)
    np.testing.assert_allclose(euler.signal, ddim.signal, rtol=1e-9)
    np.testing.assert_allclose(euler.sigma, ddim.sigma, rtol=1e-9)
    # diffusers starts Euler with what noise there is, DDIM with a little more.
    assert euler.noise_scale == pytest.approx(ddim.sigma[0])
    assert ddim.noise_scale == 1 != pytest.approx(ddim.sigma[0])


def test_fractional_timesteps_have_noise_levels_between_their_neighbours():
    scheduler = make_noise_scheduler("cosine", timestep_spacing="linspace")
    euler = SAMPLERS["euler"](scheduler, 50)
    assert (euler.timesteps % 1 > 0).sum() > 40
    sigmas = np.sqrt(1 - scheduler.alphas_cumprod.astype(np.float64))
    for timestep, sigma in zip(euler.timesteps, euler.sigma[:-1], strict=True):
        below, above = sigmas[int(timestep)], sigmas[int(np.ceil(timestep))]
        assert below - 1e-7 <= sigma <= above + 1e-7


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_schedule_that_ends_in_pure_noise_gives_finite_numbers(sampler):
    way = make_trajectory(
        sampler,
        10,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    for numbers in (way.signal, way.sigma, way.extrapolation):
        assert np.isfinite(numbers).all()
    # DDIM starts at pure noise, the others at diffusers' stand-in for it.
    assert way.signal[0] == (0 if sampler == "ddim" else pytest.approx(2**-12))


def test_extrapolation_makes_the_steps_of_second_order():
    """On the probability flow of an x0 that is linear in the log of signal / sigma."""

    def compute_error(steps, extrapolate):
        way = make_trajectory(
            "dpmsolver++",
            steps,
            beta_schedule="scaled_linear",
            timestep_spacing="trailing",
        )
        logs = np.log(way.signal[:-1] / way.sigma[:-1])
        end = list(way.timesteps).index(199)
        latents, previous = 1.0, 0.0
        for i, x0 in enumerate(logs[:end]):
            noise = (latents - way.signal[i] * x0) / way.sigma[i]
            latents = way.signal[i + 1] * x0 + way.sigma[i + 1] * noise
            latents += extrapolate * way.extrapolation[i] * (x0 - previous)
            previous = x0
        # The solution: latents / sigma grow by the integral of exp(log) x0.
        low, high = np.exp(logs[[0, end]]) * (logs[[0, end]] - 1)
        return abs(latents - way.sigma[end] * (1 / way.sigma[0] + high - low))

    # Half the step halves an error of first order and quarters one of second order.
    assert compute_error(50, False) / compute_error(100, False) == pytest.approx(2, 0.1)
    assert compute_error(50, True) / compute_error(100, True) == pytest.approx(4, 0.1)
    assert compute_error(50, True) < compute_error(50, False) / 20
