"""Prompt optimisation: the prompt's embedding moves until its effect is small.

Before sampling, the embedding is moved until it changes the first prediction no longer
than other prompts do, each image's own copy of it for the image's own noise.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from copymit.diffusion.noise_scheduler import PredictionType
from copymit.diffusion.sampler import Predict, Step
from copymit.mitigation.descent import Descended, descend
from copymit.mitigation.effect import as_noise, check_signal, published_norms
from copymit.mitigation.record import (
    Calibration,
    Circumstances,
    Mitigation,
    Setting,
    Steps,
    Values,
)
from copymit.mitigation.scene import Scene

# Of torch's AdamW, which the paper's code leaves at its defaults.
_WEIGHT_DECAY = 0.01


def optimise_prompts(
    predict: Predict,
    encoder_hidden_states: Float[Array, "B L D"],
    unconditional: Float[Array, "B h w c"],
    step: Step,
    prediction_type: PredictionType,
    *,
    target: float,
    learning_rate: float = 0.05,
    max_iterations: int = 10,
) -> Descended:
    """Descends the norm of a prompt's effect on the noise, from the given embedding.

    The embedding of the start token stays as it is.

    Args:
      predict: the network with the prompt.
      unconditional: its prediction without the prompt at the same step.
      step: the first one of the sampling.
      target: see `published_norms`.
      learning_rate: of AdamW.
    Returns:
      Embeddings in the dtype they came in; those at or below the target as they were.
    """
    dtype = encoder_hidden_states.dtype

    def magnitudes(hidden):
        conditional = predict(step.noisy_latents, step.timesteps, hidden.astype(dtype))
        difference = conditional - unconditional
        return published_norms(as_noise(prediction_type, difference, step.signal))

    optimised = descend(
        magnitudes,
        encoder_hidden_states.astype(jnp.float32),
        optax.chain(
            optax.adamw(learning_rate, weight_decay=_WEIGHT_DECAY),
            # The start token would at least decay.
            optax.stateless(lambda updates, _: updates.at[:, 0].set(0)),
        ),
        target=target,
        max_iterations=max_iterations,
    )
    return optimised._replace(position=optimised.position.astype(dtype))


def _embedding(
    values: Values, scene: Scene, noise: Float[Array, "B h w c"]
) -> tuple[Float[Array, "B L D"], Steps]:
    negative = scene.text.negative_hidden_states
    return optimise_prompts(
        scene.network((True,)),
        scene.text.hidden_states,
        scene.prediction(noise, negative, prompt=False),
        scene.first_step(noise),
        scene.trajectory.prediction_type,
        target=values["prompt_target"],
        learning_rate=values["prompt_learning_rate"],
        max_iterations=values["prompt_iterations"],
    )


def _norms(
    values: Values, scene: Scene, noise: Float[Array, "B h w c"]
) -> Float[Array, " B"]:
    del values
    signal = scene.first_step(noise).signal
    prediction_type = scene.trajectory.prediction_type
    return published_norms(as_noise(prediction_type, scene.difference(noise), signal))


def _check(values: Values, circumstances: Circumstances) -> str | None:
    # A quantile is one in any unit.
    if circumstances.trajectory is None or values["prompt_quantile"]:
        return None
    first = float(circumstances.trajectory.signal[0])
    return check_signal(circumstances.prediction_type, first)


TARGET = Setting(
    "generate.prompt_target",
    0.0,
    "norm of the prompt's effect to which it is moved, in noise of 64x64x4 latents",
    0,
    1e6,
)
QUANTILE = Setting(
    "generate.prompt_quantile",
    0.0,
    "in place of a target: that quantile of the norms of prompts that are not memorised",
)

MITIGATIONS = (
    Mitigation(
        "prompt_optimisation",
        ("PO", "optim_target_loss"),
        "the prompt's embedding is moved until its effect on the first prediction is small",
        (
            TARGET,
            QUANTILE,
            Setting(
                "generate.prompt_learning_rate",
                0.05,
                "learning rate of AdamW, for the prompt's embedding",
                1e-6,
                10,
            ),
            Setting(
                "generate.prompt_iterations",
                10,
                "iterations on the embedding, at most",
                1,
                1000,
            ),
        ),
        strength=1.5,
        published="target 3, over four images that share one embedding; AdamW at 0.05, 10 "
        "iterations",
        changed="each image has an embedding of its own, so the target is that of one "
        "image, 3 / 2; the start token does not decay; sizes and velocity as in `skipping`",
        source="Wen et al. 2024, section 5.1; `aug_prompt` of "
        "YuxinWenRick/diffusion_memorization",
        label="prompt optimised to",
        tried=(1.5, 2.5),
        tried_small=("q0.9", "q0.5"),
        calibration=Calibration(QUANTILE, TARGET, _norms),
        check=_check,
        embedding=_embedding,
    ),
)
