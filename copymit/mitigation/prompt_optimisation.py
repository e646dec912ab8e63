"""Prompt embeddings that the network is less sure of: the prompt, a little changed.

A memorised prompt shows in the first prediction already: it differs much from that
without the prompt. Descending this magnitude changes the embedding until it no longer
does, each image's own copy of it for the image's own noise.

Source: Wen et al. 2024, Detecting, Explaining, and Mitigating Memorization in Diffusion
Models, section 5.1; `aug_prompt` of their code.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from copymit.diffusion.sampler import Predict, Step
from copymit.mitigation.descent import Descended, descend, row_norms

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
