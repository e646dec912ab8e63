"""The forward process: how much noise a timestep means, and what the network predicts.

All functions are pure; a `NoiseScheduler` is only a table. `x0` are clean latents,
`xt = sqrt(a) x0 + sqrt(1 - a) noise` noisy ones, with `a` from `alphas_cumprod`
(Ho et al. 2020, equation 4), and `v = sqrt(a) noise - sqrt(1 - a) x0` the velocity
(Salimans and Ho 2022, appendix D).
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BetaSchedule = Literal["linear", "scaled_linear", "cosine"]
PredictionType = Literal["epsilon", "v_prediction"]


class NoiseScheduler(NamedTuple):
    """The noise level of every training timestep.

    Attributes:
      alphas_cumprod: share of signal variance left at each timestep, float32,
        decreasing from almost 1 to almost 0.
      prediction_type: whether the network predicts the noise or the velocity.
    """

    alphas_cumprod: Float[np.ndarray, " T"]
    prediction_type: PredictionType

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
) -> NoiseScheduler:
    """Computes the table in float64 and stores it in float32.

    Args:
      beta_schedule: `linear` (DDPM), `scaled_linear` (Stable Diffusion) or `cosine`
        (Nichol and Dhariwal 2021; diffusers' `squaredcos_cap_v2`, which ignores
        `beta_start` and `beta_end`).
    Raises:
      ValueError: for an unknown schedule or prediction type.
    """
    for name, value, known in (
        ("beta_schedule", beta_schedule, get_args(BetaSchedule)),
        ("prediction_type", prediction_type, get_args(PredictionType)),
    ):
        if value not in known:
            raise ValueError(
                f"diffusion.{name}={value!r} is not known: use one of {', '.join(known)}"
            )
    T = num_train_timesteps
    if beta_schedule == "linear":
        betas = np.linspace(beta_start, beta_end, T, dtype=np.float64)
    elif beta_schedule == "scaled_linear":
        betas = np.linspace(beta_start**0.5, beta_end**0.5, T, dtype=np.float64) ** 2
    else:
        level = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - level[1:] / level[:-1], 0.999)
    alphas_cumprod = np.cumprod(1 - betas).astype(np.float32)
    return NoiseScheduler(alphas_cumprod, prediction_type)


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
    noise_scheduler: NoiseScheduler,
    model_pred: Float[Array, "B h w c"],
    noisy_latents: Float[Array, "B h w c"],
    timesteps: Int[Array, " B"],
) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]:
    """Converts a prediction of either type into estimates of x0 and of the noise."""
    signal, sigma = _signal_and_noise_scale(noise_scheduler, timesteps, noisy_latents)
    if noise_scheduler.prediction_type == "epsilon":
        return (noisy_latents - sigma * model_pred) / signal, model_pred
    latents = signal * noisy_latents - sigma * model_pred
    noise = sigma * noisy_latents + signal * model_pred
    return latents, noise
