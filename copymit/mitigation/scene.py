"""What a sampling goes through: network, texts and noise levels, for mitigations to use."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from copymit.diffusion.sampler import Predict, Step, first_step, with_both_texts
from copymit.diffusion.trajectory import Trajectory
from copymit.mitigation.references import Embed, References, flatten


class Text(NamedTuple):
    """What is to be painted.

    Attributes:
      input_ids: of the prompts.
      hidden_states: their embeddings.
      negative_hidden_states: embeddings of what guidance leads away from.
    """

    input_ids: Int[Array, "B L"]
    hidden_states: Float[Array, "B L D"]
    negative_hidden_states: Float[Array, "B L D"]


class Scene(NamedTuple):
    """A sampling that is about to begin.

    Attributes:
      network: whether each part of a batch has the prompt, as (False, True) for both
        halves of guidance, to the network; attention is under control already.
      trajectory: of the sampler.
      text: of the batch.
      num_train_timesteps: of the model.
      references: training images to keep away from, where they are needed.
      embed: of clean latents, what the references were made from.
    """

    network: Callable[[tuple[bool, ...]], Predict]
    trajectory: Trajectory
    text: Text
    num_train_timesteps: int
    references: References | None = None
    embed: Embed = flatten

    def first_step(self, noise: Float[Array, "B h w c"]) -> Step:
        """Returns where the sampling starts from this noise."""
        return first_step(self.trajectory, noise)

    def difference(self, noise: Float[Array, "B h w c"]) -> Float[Array, "B h w c"]:
        """Computes conditional minus unconditional prediction of the first step."""
        step = self.first_step(noise)
        predict_both = with_both_texts(
            self.network((False, True)),
            self.text.hidden_states,
            self.text.negative_hidden_states,
        )
        unconditional, conditional = predict_both(step.noisy_latents, step.timesteps)
        return conditional - unconditional

    def prediction(
        self, noise: Float[Array, "B h w c"], hidden_states: jax.Array, *, prompt: bool
    ) -> Float[Array, "B h w c"]:
        """Computes the prediction of the first step with one text.

        Args:
          prompt: whether that is the prompt, and not the negative one.
        """
        step = self.first_step(noise)
        predict = self.network((prompt,))
        return predict(step.noisy_latents, step.timesteps, hidden_states)
