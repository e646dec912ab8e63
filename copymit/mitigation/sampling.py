"""The mitigations of a generation, put together.

A prompt is rewritten on the host; then noise, text and a network enter, clean latents
leave. With everything off it is the plain sampling, operation by operation.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from copymit.diffusion.sampler import (
    Predict,
    interleaved,
    sample,
    sample_with_state,
    with_combination,
    with_guidance,
)
from copymit.diffusion.trajectory import Trajectory
from copymit.mitigation.descent import per_row, row_norms
from copymit.mitigation.effect import as_noise
from copymit.mitigation.guidance import GuidanceSchedule, constant_guidance
from copymit.mitigation.record import Calibration, Mitigation, Values
from copymit.mitigation.references import Embed, References, flatten
from copymit.mitigation.registry import (
    Strengths,
    active,
    needed,
    setting_error,
    strengths,
    values_of,
)
from copymit.mitigation.rewriting import Decode, Rewrite, in_turn
from copymit.mitigation.scene import Scene, Text
from copymit.mitigation.training import own_key
from copymit.models.attention_control import CrossAttentionControl

ControlledPredict = Callable[
    [jax.Array, jax.Array, jax.Array, CrossAttentionControl | None], jax.Array
]
"""(noisy_latents, timesteps, encoder_hidden_states, control) -> model_pred."""


class Sampled(NamedTuple):
    """What came of a sampling.

    Attributes:
      latents: clean ones.
      steps: of each optimisation that is on, by its setting, those that each example
        took; see `Descended`.
    """

    latents: Float[Array, "B h w c"]
    steps: dict[str, Int[Array, " B"]]


def generation_rewrite(values: Values, decode: Decode) -> Rewrite:
    """Returns what happens to a prompt before it is generated from.

    Args:
      values: the section `mitigation.generate`.
      decode: token ids to text.
    """
    on = active("generate", values)
    return in_turn([m.prompt(values, decode) for m in on if m.prompt])


def changed_text(
    asked: Strengths, hidden_states: Float[Array, "B L D"], keys: jax.Array
) -> Float[Array, "B L D"]:
    """Changes embeddings, each by a key of its own, whichever batch it is in."""
    values = values_of(asked)
    for m in active("generate", values):
        if m.text:
            change, name = m.text, m.name
            hidden_states = jax.vmap(
                lambda hidden, key, change=change, name=name: change(
                    values, hidden[None], own_key(key, name)
                )[0]
            )(hidden_states, keys)
    return hidden_states


def sample_with_mitigations(
    predict: ControlledPredict,
    trajectory: Trajectory,
    text: Text,
    make_noise: Callable[[int], Float[Array, "B h w c"]],
    asked: Strengths,
    *,
    guidance_scale: float,
    num_train_timesteps: int,
    clip_latents: float | None = None,
    references: References | None = None,
    embed: Embed = flatten,
) -> Sampled:
    """Samples latents from noise.

    Args:
      make_noise: number of a candidate -> standard normal noise; 0 is that of a sampling
        without mitigations.
      embed: of clean latents, what `references` were made from.
    Raises:
      ValueError: if the mitigations repel and there are no references.
    """
    values = values_of(asked)
    on = active("generate", values)
    for m in on:
        if m.calibration and not values[m.calibration.target.name]:
            problem = "is a quantile of a model: find the target with `measure_targets`"
            raise setting_error(m.calibration.quantile, values, problem)
    for m in needed("generate", values, "training images"):
        if references is None:
            problem = (
                "keeps away from training images, of which none were given: pass "
                "`references`, or set it to 0"
            )
            raise setting_error(m.switch, values, problem)
    scene = _scene(predict, trajectory, text, num_train_timesteps, values)
    scene = scene._replace(references=references, embed=embed)
    network = scene.network
    noise, steps = make_noise(0), {}
    for m in on:
        if m.noise:
            noise, taken = m.noise(values, scene, noise, make_noise)
            if taken is not None:
                steps[m.switch.name] = taken
    for m in on:
        if m.embedding:
            hidden_states, taken = m.embedding(values, scene, noise)
            text = text._replace(hidden_states=hidden_states)
            scene = scene._replace(text=text)
            if taken is not None:
                steps[m.switch.name] = taken

    texts = text.hidden_states, text.negative_hidden_states
    both, alone = network((False, True)), network((True,))
    schedules = [
        m.guidance(values, guidance_scale, len(trajectory.timesteps))
        for m in on
        if m.guidance
    ]
    guided = guidance_scale != 1 or bool(schedules)
    if not schedules and not any(m.scales or m.prediction for m in on):
        denoise = with_guidance(both if guided else alone, *texts, guidance_scale)
        latents = sample(denoise, trajectory, noise, clip_latents=clip_latents)
        return Sampled(latents, steps)

    schedule = schedules[0] if schedules else constant_guidance(guidance_scale)
    combine = _combine(schedule, on, values, scene)
    if guided:
        denoise_on = with_combination(both, *texts, combine)
    else:

        def denoise_on(state, step):
            pred = alone(step.noisy_latents, step.timesteps, text.hidden_states)
            return combine(state, step, pred, pred)

    latents = sample_with_state(
        denoise_on,
        schedule.init(noise.shape[0]),
        trajectory,
        noise,
        clip_latents=clip_latents,
    )
    return Sampled(latents, steps)


def measure_targets(
    predict: ControlledPredict,
    trajectory: Trajectory,
    text: Text,
    noise: Float[Array, "B h w c"],
    asked: Strengths,
    *,
    num_train_timesteps: int,
) -> dict[str, Float[Array, " B"]]:
    """Measures what targets are compared with, where a quantile of it is asked for.

    Returns:
      By the setting of the target, a number for each prompt and its initial noise.
    """
    values = values_of(asked)
    scene = _scene(predict, trajectory, text, num_train_timesteps, values)
    return {
        c.target.name: c.measure(values, scene, noise) for c in asked_quantiles(asked)
    }


def asked_quantiles(asked: Strengths) -> list[Calibration]:
    """Lists the targets that are asked for as quantiles."""
    values = values_of(asked)
    found = [m.calibration for m in active("generate", values)]
    return [c for c in found if c and values[c.quantile.name]]


def calibrated(
    asked: Strengths, measured: Mapping[str, Float[np.ndarray, " Q"]]
) -> Strengths:
    """Sets every target that is asked for as a quantile.

    Args:
      measured: of prompts that are not memorised, see `measure_targets`.
    """
    values = dict(values_of(asked))
    for c in asked_quantiles(asked):
        numbers, quantile = measured[c.target.name], values[c.quantile.name]
        values[c.target.name] = float(np.quantile(numbers, quantile))
    return strengths(**values)


def _scene(
    predict: ControlledPredict,
    trajectory: Trajectory,
    text: Text,
    num_train_timesteps: int,
    values: Values,
) -> Scene:
    on = active("generate", values)

    def network(prompts: tuple[bool, ...]) -> Predict:
        return _controlled(predict, on, values, text.input_ids, prompts)

    return Scene(network, trajectory, text, num_train_timesteps)


def _controlled(
    predict: ControlledPredict,
    on: list[Mitigation],
    values: Values,
    input_ids: Int[Array, "B L"],
    prompts: tuple[bool, ...],
) -> Predict:
    """Binds the control of attention in a batch of several texts for each example.

    Args:
      prompts: whether each of those texts, which take turns, is the prompt.
    """
    makers = [m.attention for m in on if m.attention]
    if not makers:
        return lambda latents, t, hidden: predict(latents, t, hidden, None)
    B, n = input_ids.shape[0], len(prompts)
    # The negative rows are treated by the length of the prompt, too.
    rows = interleaved(*[input_ids] * n), jnp.tile(jnp.array(prompts), B)
    controls = [make(values, *rows) for make in makers]

    def control(layer: str, logits: jax.Array) -> jax.Array:
        for change in controls:
            logits = change(layer, logits)
        return logits

    return lambda latents, t, hidden: predict(latents, t, hidden, control)


def _combine(
    schedule: GuidanceSchedule, on: list[Mitigation], values: Values, scene: Scene
):
    """Returns the guidance rule of the sampler; see `with_combination`."""

    def combine(state, step, unconditional, conditional):
        difference = conditional - unconditional
        effect = as_noise(scene.trajectory.prediction_type, difference, step.signal)
        state, scales = schedule.scale(state, step, row_norms(effect))

        def guided(scales):
            return unconditional + per_row(scales, difference) * difference

        for m in on:
            if m.scales:
                scales = m.scales(values, scene, step, guided, scales)
        model_pred = guided(scales)
        for m in on:
            if m.prediction:
                model_pred = m.prediction(values, scene, step, model_pred)
        return state, model_pred

    return combine
