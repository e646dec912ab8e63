"""The forward process: how much noise a timestep means, and what the network predicts.

All functions are pure; a `NoiseScheduler` is only a table and the settings published
with it. `x0` are clean latents, `xt = sqrt(a) x0 + sqrt(1 - a) noise` noisy ones, with
`a` from `alphas_cumprod` (Ho et al. 2020, equation 4), and
`v = sqrt(a) noise - sqrt(1 - a) x0` the velocity (Salimans and Ho 2022, appendix D).
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BetaSchedule = Literal["linear", "scaled_linear", "cosine"]
PredictionType = Literal["epsilon", "v_prediction"]
TimestepSpacing = Literal["leading", "linspace", "trailing"]

MAX_TRAIN_TIMESTEPS = 100_000


class NoiseScheduler(NamedTuple):
    """The noise level of every training timestep, and how its author samples from it.

    Attributes:
      alphas_cumprod: share of signal variance left at each timestep, float32,
        decreasing from almost 1 to almost 0, or to 0 itself.
      prediction_type: whether the network predicts the noise or the velocity.
      timestep_spacing: which timesteps a sampler visits; see `trajectory.py`. "" leaves
        it to each sampler.
      steps_offset: added to every `leading` timestep.
      set_alpha_to_one: whether the last step of DDIM leads to clean latents, or to the
        noise level of timestep 0, as Stable Diffusion has it.
    """

    alphas_cumprod: Float[np.ndarray, " T"]
    prediction_type: PredictionType
    timestep_spacing: TimestepSpacing | Literal[""] = ""
    steps_offset: int = 1
    set_alpha_to_one: bool = True

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps, usually 1,000."""
        return len(self.alphas_cumprod)


def make_noise_scheduler(
    beta_schedule: BetaSchedule = "scaled_linear",
    prediction_type: PredictionType = "epsilon",
    num_train_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    rescale_betas_zero_snr: bool = False,
    timestep_spacing: TimestepSpacing | Literal[""] = "",
    steps_offset: int = 1,
    set_alpha_to_one: bool = True,
) -> NoiseScheduler:
    """Computes the table in float64 and stores it in float32.

    Args:
      beta_schedule: `linear` (DDPM), `scaled_linear` (Stable Diffusion) or `cosine`
        (Nichol and Dhariwal 2021; diffusers' `squaredcos_cap_v2`, which ignores
        `beta_start` and `beta_end`).
      rescale_betas_zero_snr: stretches the table so that the last timestep is pure noise
        (Lin et al. 2024, algorithm 1); for `v_prediction` only, since noise says nothing
        about an image of which nothing is left.
    Raises:
      ValueError: for an unknown choice, a number out of range, or `epsilon` with
        `rescale_betas_zero_snr`.
    """
    for name, value, known in (
        ("beta_schedule", beta_schedule, get_args(BetaSchedule)),
        ("prediction_type", prediction_type, get_args(PredictionType)),
        ("timestep_spacing", timestep_spacing, ("", *get_args(TimestepSpacing))),
    ):
        if value not in known:
            listed = ", ".join(choice or "''" for choice in known)
            raise ValueError(
                f"diffusion.{name}={value!r} is not known: use one of {listed}"
            )
    if not 2 <= num_train_timesteps <= MAX_TRAIN_TIMESTEPS:
        raise ValueError(
            f"diffusion.num_train_timesteps={num_train_timesteps} must lie between 2 and "
            f"{MAX_TRAIN_TIMESTEPS}; usual is 1000"
        )
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"diffusion.beta_start={beta_start} and diffusion.beta_end={beta_end} must "
            "rise within 0 and 1; Stable Diffusion has 0.00085 and 0.012"
        )
    if not 0 <= steps_offset < num_train_timesteps:
        raise ValueError(
            f"diffusion.steps_offset={steps_offset} must lie between 0 and the last "
            f"timestep, {num_train_timesteps - 1}; usual is 0 or 1"
        )
    if rescale_betas_zero_snr and prediction_type == "epsilon":
        raise ValueError(
            "diffusion.rescale_betas_zero_snr=True needs "
            "diffusion.prediction_type='v_prediction': at pure noise, which it adds, a "
            "network that predicts epsilon learns nothing and no image can be computed"
        )
    alphas_cumprod = np.cumprod(
        1 - _betas(beta_schedule, num_train_timesteps, beta_start, beta_end)
    )
    if rescale_betas_zero_snr:
        signal = np.sqrt(alphas_cumprod)
        first, last = signal[0], signal[-1]
        alphas_cumprod = ((signal - last) * first / (first - last)) ** 2
    return NoiseScheduler(
        alphas_cumprod.astype(np.float32),
        prediction_type,
        timestep_spacing,
        steps_offset,
        set_alpha_to_one,
    )


def _betas(
    beta_schedule: BetaSchedule, T: int, beta_start: float, beta_end: float
) -> np.ndarray:
    if beta_schedule == "linear":
        return np.linspace(beta_start, beta_end, T, dtype=np.float64)
    if beta_schedule == "scaled_linear":
        return np.linspace(beta_start**0.5, beta_end**0.5, T, dtype=np.float64) ** 2
    level = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - level[1:] / level[:-1], 0.999)


def _signal_and_noise_scale(
    noise_scheduler: NoiseScheduler, timesteps: Int[Array, " B"], like: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a = jnp.asarray(noise_scheduler.alphas_cumprod)[timesteps]
    a = a.reshape(-1, *(1,) * (like.ndim - 1))
    return jnp.sqrt(a), jnp.sqrt(1 - a)


def add_noise(
    noise_scheduler: NoiseScheduler,
    latents: Float[Array, "B h w c"],
    noise: Float[Array, "B h w c"],
    timesteps: Int[Array, " B"],
) -> Float[Array, "B h w c"]:
    """Samples the forward process at `timesteps` with the given noise."""
    signal, sigma = _signal_and_noise_scale(noise_scheduler, timesteps, latents)
    return signal * latents + sigma * noise


def compute_velocity(
    noise_scheduler: NoiseScheduler,
    latents: Float[Array, "B h w c"],
    noise: Float[Array, "B h w c"],
    timesteps: Int[Array, " B"],
) -> Float[Array, "B h w c"]:
    """Computes v, the target of `v_prediction`."""
    signal, sigma = _signal_and_noise_scale(noise_scheduler, timesteps, latents)
    return signal * noise - sigma * latents


def training_target(
    noise_scheduler: NoiseScheduler,
    latents: Float[Array, "B h w c"],
    noise: Float[Array, "B h w c"],
    timesteps: Int[Array, " B"],
) -> Float[Array, "B h w c"]:
    """Computes what the network should predict."""
    if noise_scheduler.prediction_type == "epsilon":
        return noise
    return compute_velocity(noise_scheduler, latents, noise, timesteps)


def predicted_latents_and_noise(
    prediction_type: PredictionType,
    model_pred: Float[Array, "B h w c"],
    noisy_latents: Float[Array, "B h w c"],
    signal: Float[Array, ""],
    sigma: Float[Array, ""],
) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]:
    """Converts a prediction of either type into estimates of x0 and of the noise.

    Args:
      signal: sqrt(a), the share of x0 in `noisy_latents`; above 0 for `epsilon`. Broadcast.
      sigma: sqrt(1 - a), that of the noise.
    """
    if prediction_type == "epsilon":
        return (noisy_latents - sigma * model_pred) / signal, model_pred
    latents = signal * noisy_latents - sigma * model_pred
    noise = sigma * noisy_latents + signal * model_pred
    return latents, noise
