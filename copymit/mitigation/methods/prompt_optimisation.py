"""Prompt optimisation: the prompt's embedding moves until its effect is small.

Before sampling, the embedding is moved until it changes the first prediction no longer
than other prompts do, each image's own copy of it for the image's own noise.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from copymit.diffusion.sampler import Predict, Step
from copymit.mitigation.descent import Descended, descend, row_norms
from copymit.mitigation.record import Mitigation, Setting, Steps, Values
from copymit.mitigation.scene import Scene

# Of torch's AdamW, which the paper's code leaves at its defaults.
_WEIGHT_DECAY = 0.01


def optimise_prompts(
    predict: Predict,
    encoder_hidden_states: Float[Array, "B L D"],
    unconditional: Float[Array, "B h w c"],
    step: Step,
    *,
    target: float,
    learning_rate: float = 0.05,
    max_iterations: int = 10,
) -> Descended:
    """Descends `||predict(x, t, e) - unconditional||` from the given embeddings e.

    The embedding of the start token stays as it is. The norm is that of the network's
    own prediction over all components of an image: for `v_prediction` it is the norm of
    the noise's difference divided by `signal`, which pure noise makes 0.

    Args:
      predict: the network with the prompt.
      unconditional: its prediction without the prompt at the same step.
      step: the first one of the sampling.
      target: 3 in the paper, for 64x64x4 latents of Stable Diffusion.
      learning_rate: of AdamW; 0.05 in the paper.
    Returns:
      Embeddings in the dtype they came in; those at or below the target as they were.
    """
    dtype = encoder_hidden_states.dtype

    def magnitudes(hidden):
        conditional = predict(step.noisy_latents, step.timesteps, hidden.astype(dtype))
        return row_norms(conditional - unconditional)

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
        target=values["prompt_target"],
        learning_rate=values["prompt_learning_rate"],
        max_iterations=values["prompt_iterations"],
    )


MITIGATIONS = (
    Mitigation(
        "prompt_optimisation",
        ("PO", "optim_target_loss"),
        "the prompt's embedding is moved until its effect on the first prediction is small",
        (
            Setting(
                "generate.prompt_target",
                0.0,
                "norm of that effect to which it is moved",
                0,
                1e6,
            ),
            Setting("generate.prompt_learning_rate", 0.05, "of AdamW", 1e-6, 10),
            Setting("generate.prompt_iterations", 10, "at most", 1, 1000),
        ),
        strength=3.0,
        published="target 3, AdamW at 0.05, 10 iterations",
        changed="",
        source="Wen et al. 2024, section 5.1; `aug_prompt` of "
        "YuxinWenRick/diffusion_memorization",
        label="prompt optimised to",
        tried=(3.0, 5.0),
        tried_small=(6.0, 12.0),
        embedding=_embedding,
    ),
)
