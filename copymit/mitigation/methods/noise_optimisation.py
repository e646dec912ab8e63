"""Noise optimisation (SAIL): initial noise moves to where the model is not sharp.

Where a prompt is memorised, the effect of the text is steep: it changes fast in its own
direction. The noise stays near a normal one by a penalty on its norm.
"""

import functools
from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Float

from copymit.diffusion.noise_scheduler import PredictionType
from copymit.mitigation.descent import Descended, descend, per_row, row_norms
from copymit.mitigation.effect import (
    PUBLISHED_COMPONENTS,
    check_signal,
    published_norms,
)
from copymit.mitigation.record import (
    Calibration,
    Circumstances,
    Mitigation,
    Setting,
    Steps,
    Values,
)
from copymit.mitigation.scene import Scene

# Of the norm of the noise, in the authors' code.
_NORM_WEIGHTS: dict[PredictionType, float] = {"epsilon": 0.05, "v_prediction": 0.01}


def sharpness_loss(
    effect: Callable[[jax.Array], jax.Array],
    noise: Float[Array, "B h w c"],
    norm_weight: float,
) -> Float[Array, " B"]:
    """Computes `||d(x + d(x) / ||d(x)||)|| + norm_weight ||x||`.

    The step along the effect d of the text makes it grow where it is steep, so the loss
    is of d itself and of its growth.

    Args:
      effect: d, noise to the effect of the text at the first step.
    """
    here = effect(noise)
    beyond = effect(noise + here / per_row(row_norms(here), here))
    return published_norms(beyond) + norm_weight * published_norms(noise)


def optimise_noise(
    effect: Callable[[jax.Array], jax.Array],
    noise: Float[Array, "B h w c"],
    *,
    target: float,
    norm_weight: float,
    learning_rate: float = 0.05,
    max_iterations: int = 10,
) -> Descended:
    """Descends the sharpness loss with Adam until it is at most `target`.

    Returns:
      Noise; what is below the target from the start is as it was.
    """
    return descend(
        lambda x: sharpness_loss(effect, x, norm_weight),
        noise,
        optax.adam(learning_rate),
        target=target,
        max_iterations=max_iterations,
    )


def _norm_weight(values: Values, prediction_type: PredictionType) -> float:
    given = values["noise_norm_weight"]
    return given if given >= 0 else _NORM_WEIGHTS[prediction_type]


def _effect(scene: Scene, noise: Float[Array, "B h w c"]) -> Float[Array, "B h w c"]:
    """Is, as in the authors' code, of the noise for SD 1 and of the score for SD 2."""
    difference = scene.difference(noise)
    if scene.trajectory.prediction_type == "epsilon":
        return difference
    first = scene.first_step(noise)
    return -first.signal / first.sigma * difference


def _losses(
    values: Values, scene: Scene, noise: Float[Array, "B h w c"]
) -> Float[Array, " B"]:
    weight = _norm_weight(values, scene.trajectory.prediction_type)
    return sharpness_loss(functools.partial(_effect, scene), noise, weight)


def _noise(
    values: Values,
    scene: Scene,
    noise: Float[Array, "B h w c"],
    make_noise: Callable[[int], jax.Array],
) -> tuple[Float[Array, "B h w c"], Steps]:
    del make_noise
    return optimise_noise(
        functools.partial(_effect, scene),
        noise,
        target=values["noise_target"],
        norm_weight=_norm_weight(values, scene.trajectory.prediction_type),
        learning_rate=values["noise_learning_rate"],
        max_iterations=values["noise_iterations"],
    )


def _check(values: Values, circumstances: Circumstances) -> str | None:
    weight = _norm_weight(values, circumstances.prediction_type)
    usual = weight * PUBLISHED_COMPONENTS**0.5
    if 0 < values["noise_target"] <= usual:
        return (
            f"is not above {usual:g}, which {weight:g} times the norm of the noise alone "
            "is: no noise would be near a normal one any more. Use a larger one"
        )
    if circumstances.trajectory is None:
        return None
    first = float(circumstances.trajectory.signal[0])
    return check_signal(circumstances.prediction_type, first)


TARGET = Setting(
    "generate.noise_target",
    0.0,
    "loss to which the initial noise is moved, in norms of 64x64x4 noise",
    0,
    1e6,
)
QUANTILE = Setting(
    "generate.noise_quantile",
    0.0,
    "in place of a target: that quantile of the losses of prompts that are not memorised",
)

MITIGATIONS = (
    Mitigation(
        "noise_optimisation",
        ("SAIL",),
        "the initial noise is moved to where the model is not sharp",
        (
            TARGET,
            QUANTILE,
            Setting(
                "generate.noise_norm_weight",
                -1.0,
                "weight of the noise's norm in the loss; below 0 the authors': 0.05, 0.01 "
                "where the network predicts velocity",
                -1,
                100,
            ),
            Setting(
                "generate.noise_learning_rate",
                0.05,
                "learning rate of Adam, for the noise",
                1e-6,
                10,
            ),
            Setting(
                "generate.noise_iterations",
                10,
                "iterations on the noise, at most",
                1,
                1000,
            ),
        ),
        strength=8.2,
        published="loss 8.2, of which the norm is 0.05 * 128, and 0.01 of the norm for SD "
        "2; Adam at 0.05, 10 iterations of 8 noises, of which the first below the loss are "
        "taken",
        changed="each image's own noise is moved, and stays where it came to after 10 "
        "iterations; sizes as in `skipping`",
        source="Jeon et al. 2025, Understanding and Mitigating Memorization in Generative "
        "Models via Sharpness of Probability Landscapes, algorithm 2; "
        "Dongjae0324/sharpness_memorization_diffusion",
        label="noise optimised to",
        tried=(8.2, 7.0),
        tried_small=(),  # its sampler begins at pure noise, which is refused
        calibration=Calibration(QUANTILE, TARGET, _losses),
        check=_check,
        noise=_noise,
    ),
)
