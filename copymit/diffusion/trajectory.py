"""Samplers as tables: a noise scheduler and a number of steps in, a trajectory out.

Every deterministic sampler here takes the same step, from latents `xt` to `xs`:

    xs = signal_s x0 + sigma_s noise + extrapolation (x0 - previous x0)

with `x0` and `noise` as the network sees them in `xt`. The samplers differ in which
noise levels they visit and in how far they extrapolate, so each is one function that
fills a `Trajectory` with float64 numbers on the host; `sampler.py` walks along it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from copymit.diffusion.noise_scheduler import (
    NoiseScheduler,
    PredictionType,
    TimestepSpacing,
)

# diffusers' stand-in for a terminal alpha of zero, where the log of the signal-to-noise
# ratio must be finite: float16's smallest number.
_TINY_ALPHA = 2.0**-24


class Trajectory(NamedTuple):
    """The way of a sampler from noise to clean latents, in S steps.

    Attributes:
      timesteps: what the network is told, strictly decreasing, so that a timestep also
        tells which step it is; int32, but float where levels between two training
        timesteps are visited.
      signal: share of x0 in the latents before each step, and after the last.
      sigma: share of the noise in them; `signal**2 + sigma**2 = 1`.
      extrapolation: weight of how the estimate of x0 moved since the step before; 0 for
        a step of first order, as the first one always is.
      noise_scale: of the standard normal noise at the start.
      prediction_type: how the network's predictions are to be read.
    """

    timesteps: Shaped[np.ndarray, " S"]
    signal: Float[np.ndarray, " S+1"]
    sigma: Float[np.ndarray, " S+1"]
    extrapolation: Float[np.ndarray, " S"]
    noise_scale: float
    prediction_type: PredictionType


MakeTrajectory = Callable[[NoiseScheduler, int], Trajectory]
"""(noise_scheduler, num_inference_steps) -> trajectory."""


def ddim_trajectory(
    noise_scheduler: NoiseScheduler, num_inference_steps: int
) -> Trajectory:
    """Makes the trajectory of deterministic DDIM.

    Raises:
      ValueError: for a number of steps that the timesteps do not allow.
    Source: Song et al. 2021, equation 12 with eta = 0; diffusers' `DDIMScheduler`. That
      one steps down by `T // S` whatever timestep comes next, here every step ends at
      the next timestep: the same where S divides T, except with `linspace`.
    """
    noise_scheduler = _spaced(noise_scheduler, "leading")
    timesteps = inference_timesteps(noise_scheduler, num_inference_steps)
    timesteps = np.round(timesteps).astype(np.int32)
    alphas = noise_scheduler.alphas_cumprod.astype(np.float64)
    final = 1.0 if noise_scheduler.set_alpha_to_one else alphas[0]
    levels = np.append(alphas[timesteps], final)
    return Trajectory(
        timesteps,
        np.sqrt(levels),
        np.sqrt(1 - levels),
        np.zeros(num_inference_steps),
        1.0,
        noise_scheduler.prediction_type,
    )


def dpmsolver_trajectory(
    noise_scheduler: NoiseScheduler, num_inference_steps: int
) -> Trajectory:
    """Makes the trajectory of DPM-Solver++(2M).

    Raises:
      ValueError: for a number of steps that the timesteps do not allow.
    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2; diffusers'
      `DPMSolverMultistepScheduler` with its defaults, whose last step is of first order.
    """
    S, noise_scheduler = num_inference_steps, _spaced(noise_scheduler, "linspace")
    if noise_scheduler.timestep_spacing == "trailing":
        timesteps = inference_timesteps(noise_scheduler, S)
    else:
        # Clean latents are a point of the grid, and nothing is left to do there.
        timesteps = inference_timesteps(noise_scheduler, S, S + 1)[:-1]
    timesteps = np.round(timesteps).astype(np.int32)
    alphas = noise_scheduler.alphas_cumprod.astype(np.float64)
    levels = np.append(np.where(alphas == 0, _TINY_ALPHA, alphas)[timesteps], 1.0)
    signal, sigma = np.sqrt(levels), np.sqrt(1 - levels)
    h = np.diff(np.log(signal[:-1] / sigma[:-1]))
    # The weight of x0 itself in a step of first order, when written in xt and x0.
    weight = signal[1:] - sigma[1:] * signal[:-1] / sigma[:-1]
    extrapolation = np.zeros(S)
    extrapolation[1:-1] = weight[1:-1] * h[1:] / h[:-1] / 2
    return Trajectory(
        timesteps, signal, sigma, extrapolation, 1.0, noise_scheduler.prediction_type
    )


def euler_trajectory(
    noise_scheduler: NoiseScheduler, num_inference_steps: int
) -> Trajectory:
    """Makes the trajectory of Euler's method on the probability flow.

    Euler's step in units of `sigma / signal` is DDIM's; what differs are noise levels
    between the training timesteps, the scale of the first noise, and the last level.

    Raises:
      ValueError: for a number of steps that the timesteps do not allow.
    Source: Karras et al. 2022, algorithm 1; diffusers' `EulerDiscreteScheduler`.
    """
    noise_scheduler = _spaced(noise_scheduler, "linspace")
    timesteps = inference_timesteps(noise_scheduler, num_inference_steps)
    alphas = noise_scheduler.alphas_cumprod.astype(np.float64)
    alphas = np.where(alphas == 0, _TINY_ALPHA, alphas)
    ratios = np.sqrt((1 - alphas) / alphas)
    ratios = np.append(np.interp(timesteps, np.arange(len(ratios)), ratios), 0.0)
    signal = 1 / np.sqrt(1 + ratios**2)
    sigma = ratios * signal
    leading = noise_scheduler.timestep_spacing == "leading"
    return Trajectory(
        timesteps,
        signal,
        sigma,
        np.zeros(num_inference_steps),
        1.0 if leading else float(sigma[0]),
        noise_scheduler.prediction_type,
    )


SAMPLERS: dict[str, MakeTrajectory] = {
    "ddim": ddim_trajectory,
    "dpmsolver++": dpmsolver_trajectory,
    "euler": euler_trajectory,
}


def _spaced(noise_scheduler: NoiseScheduler, own: TimestepSpacing) -> NoiseScheduler:
    """Fills in diffusers' spacing of a sampler where the noise scheduler has none."""
    if noise_scheduler.timestep_spacing:
        return noise_scheduler
    return noise_scheduler._replace(timestep_spacing=own)


def inference_timesteps(
    noise_scheduler: NoiseScheduler,
    num_inference_steps: int,
    num_points: int | None = None,
) -> Shaped[np.ndarray, " P"]:
    """Chooses the timesteps to visit, from noisy to clean, by the scheduler's spacing.

    `leading` are multiples of `T // P` plus an offset (Stable Diffusion), which stay
    below the top; `linspace` divides the whole range evenly, with fractions; `trailing`
    counts down from the very top, which a schedule that ends in pure noise needs (Lin et
    al. 2024).

    Args:
      num_points: P, the number of timesteps; by default that of the steps.
    Returns:
      Timesteps in [0, T), strictly decreasing even when rounded; int32, but float64 for
      `linspace`.
    Raises:
      ValueError: for more steps than there are timesteps, or fewer than the spacing can
        do with.
    Source: diffusers' `set_timesteps`, which returns timesteps outside the range, twice
      the same, or none above 0 where this refuses.
    """
    T, S = noise_scheduler.num_train_timesteps, num_inference_steps
    P = num_points or S
    spacing, offset = noise_scheduler.timestep_spacing, noise_scheduler.steps_offset
    if not 1 <= S <= T:
        raise ValueError(
            f"eval.num_inference_steps={S} must lie between 1 and the model's {T} "
            "training timesteps"
        )
    timesteps: np.ndarray
    if spacing == "leading":
        timesteps = (np.arange(P) * (T // P))[::-1].astype(np.int32) + np.int32(offset)
    elif spacing == "linspace":
        timesteps = np.linspace(0, T - 1, P)[::-1]
        if P == 1:
            raise ValueError(
                f"eval.num_inference_steps={S} with timestep_spacing='linspace' would "
                "only visit timestep 0, where no noise is: use at least 2 steps, or "
                "trailing"
            )
    else:
        # Rounding errors of the step would append a timestep of -1 for some S.
        timesteps = (np.round(np.arange(T, 0, -T / S)[:S]) - 1).astype(np.int32)
    if timesteps[0] >= T or (np.diff(np.round(timesteps)) >= 0).any():
        raise ValueError(
            f"eval.num_inference_steps={S} with timestep_spacing={spacing!r} and "
            f"diffusion.steps_offset={offset} does not fit {T} training timesteps: they "
            "would be left, or one visited twice. Use fewer steps, or trailing"
        )
    return timesteps
