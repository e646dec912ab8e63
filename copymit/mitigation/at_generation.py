"""The mitigations of a sampling: their strengths checked, and put together.

Noise, text and a network enter, clean latents leave. With everything off it is the plain
sampling, operation by operation. Prompts are rewritten and text gets its noise before.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from copymit.diffusion.sampler import (
    Combine,
    Predict,
    first_step,
    sample,
    sample_with_state,
    with_both_texts,
    with_combination,
    with_guidance,
)
from copymit.diffusion.trajectory import Trajectory
from copymit.mitigation.attention_rescaling import rescale_attention, text_lengths
from copymit.mitigation.descent import per_row, row_norms
from copymit.mitigation.guidance import (
    GuidanceSchedule,
    constant_guidance,
    dynamic_transition,
    static_transition,
)
from copymit.mitigation.initial_noise import optimise_noise, select_noise
from copymit.mitigation.prompt_optimisation import optimise_prompts
from copymit.mitigation.repulsion import (
    Embed,
    References,
    Repulsion,
    flatten,
    repel,
)
from copymit.models.attention_control import CrossAttentionControl

ControlledPredict = Callable[
    [jax.Array, jax.Array, jax.Array, CrossAttentionControl | None], jax.Array
]
"""(noisy_latents, timesteps, encoder_hidden_states, control) -> model_pred."""


class GenerationMitigations(NamedTuple):
    """What is done against copying while an image is made; 0 and False are off.

    Attributes:
      guidance_transition: timestep at which guidance begins (STP).
      dynamic_transition: guidance begins after the first minimum of its magnitude (DTP),
        half-way at the latest.
      guidance_before: guidance scale before either transition; negative: opposite.
      prompt_target: norm of the first prediction's difference, to which the embedding of
        the prompt is optimised.
      prompt_learning_rate: of that.
      prompt_iterations: of that, at most.
      start_attention: factor of the attention logits of the start token; 1 is off too.
      mask_padding: no attention to what follows the end of the prompt.
      noise_candidates: initial noises of which the least sharp one is taken.
      noise_target: sharpness loss to which the initial noise is optimised (SAIL).
      noise_norm_weight: of the norm in that loss.
      noise_learning_rate: of that.
      noise_iterations: of that, at most.
      repulsion: strength of the turn away from the nearest training image (AMG).
      despecification: guidance scale taken off for each unit of similarity to it.
      clean_threshold: similarity above which both act, at the end of the sampling.
      noisy_threshold: and at its beginning.
    """

    guidance_transition: int = 0
    dynamic_transition: bool = False
    guidance_before: float = 0.0
    prompt_target: float = 0.0
    prompt_learning_rate: float = 0.05
    prompt_iterations: int = 10
    start_attention: float = 0.0
    mask_padding: bool = False
    noise_candidates: int = 0
    noise_target: float = 0.0
    noise_norm_weight: float = 0.05
    noise_learning_rate: float = 0.05
    noise_iterations: int = 10
    repulsion: float = 0.0
    despecification: float = 0.0
    clean_threshold: float = 0.4
    noisy_threshold: float = 0.3

    @property
    def schedules_guidance(self) -> bool:
        """Whether the guidance scale changes on the way."""
        return bool(self.guidance_transition or self.dynamic_transition)

    @property
    def repels(self) -> bool:
        """Whether training images are looked at while sampling."""
        return bool(self.repulsion or self.despecification)


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


class Sampled(NamedTuple):
    """What came of a sampling.

    Attributes:
      latents: clean ones.
      steps: of `prompt_target` and `noise_target`, where they are on, the steps that each
        example's optimisation took; see `Descended`.
    """

    latents: Float[Array, "B h w c"]
    steps: dict[str, Int[Array, " B"]]


_LIMITS = {
    "guidance_transition": (0, 1e6),
    "guidance_before": (-100, 100),
    "prompt_target": (0, 1e6),
    "prompt_learning_rate": (1e-6, 10),
    "prompt_iterations": (1, 1000),
    "start_attention": (0, 100),
    "noise_candidates": (0, 1000),
    "noise_target": (0, 1e6),
    "noise_norm_weight": (0, 100),
    "noise_learning_rate": (1e-6, 10),
    "noise_iterations": (1, 1000),
    "repulsion": (0, 100),
    "despecification": (0, 1000),
    "clean_threshold": (-1, 1),
    "noisy_threshold": (-1, 1),
}

# What changes nothing unless one of these is on.
_BELONGS_TO = {
    "guidance_before": ("guidance_transition", "dynamic_transition"),
    "prompt_learning_rate": ("prompt_target",),
    "prompt_iterations": ("prompt_target",),
    "noise_norm_weight": ("noise_target",),
    "noise_learning_rate": ("noise_target",),
    "noise_iterations": ("noise_target",),
    "clean_threshold": ("repulsion", "despecification"),
    "noisy_threshold": ("repulsion", "despecification"),
}

_SWITCHES = (
    "guidance_transition",
    "prompt_target",
    "start_attention",
    "noise_candidates",
    "noise_target",
    "repulsion",
    "despecification",
)


def check_mitigations(
    mitigations: GenerationMitigations, num_train_timesteps: int, guidance_scale: float
) -> None:
    """Refuses strengths out of range, and settings that contradict each other or would
    change nothing.

    Raises:
      ValueError: names the setting and the way out.
    """
    m = mitigations
    for name, (least, most) in _LIMITS.items():
        value = getattr(m, name)
        if not least <= value <= most:  # not a number is not either
            off = ", 0 for none" if name in _SWITCHES else ""
            raise _error(name, value, f"must lie between {least:g} and {most:g}{off}")
    if m.guidance_transition >= num_train_timesteps:
        raise _error(
            "guidance_transition",
            m.guidance_transition,
            f"is above every timestep of the model: use one below {num_train_timesteps}",
        )
    if m.guidance_transition and m.dynamic_transition:
        raise _error(
            "guidance_transition",
            m.guidance_transition,
            "and dynamic_transition=True both say when guidance begins: use one of them",
        )
    for name, switches in _BELONGS_TO.items():
        value = getattr(m, name)
        if value != GenerationMitigations._field_defaults[name] and not any(
            getattr(m, switch) for switch in switches
        ):
            raise _error(
                name, value, f"changes nothing alone: add {' or '.join(switches)}"
            )
    if m.despecification and max(guidance_scale, m.guidance_before) <= 1:
        raise _error(
            "despecification",
            m.despecification,
            f"takes guidance off down to a scale of 1, and eval.guidance_scale="
            f"{guidance_scale} leaves nothing to take: use repulsion, or a scale above 1",
        )


def check_transition(
    mitigations: GenerationMitigations, trajectory: Trajectory
) -> None:
    """Refuses a transition before the first or after the last step of a sampling.

    Raises:
      ValueError: names the timesteps that are visited.
    """
    first, last = trajectory.timesteps[0], trajectory.timesteps[-1]
    transition = mitigations.guidance_transition
    if transition and not last <= transition < first:
        begins = "at once" if transition >= first else "never"
        raise _error(
            "guidance_transition",
            transition,
            f"is not between the timesteps of the sampler, {first:g} to {last:g}, so "
            f"guidance would begin {begins}: use one of these, or 0 for no transition",
        )


def _error(name: str, value, problem: str) -> ValueError:
    return ValueError(f"mitigation.generate.{name}={value} {problem}")


def sample_with_mitigations(
    predict: ControlledPredict,
    trajectory: Trajectory,
    text: Text,
    make_noise: Callable[[int], Float[Array, "B h w c"]],
    mitigations: GenerationMitigations,
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
    m = mitigations
    control = functools.partial(_controlled, predict, text.input_ids, m)
    both = control((1.0, m.start_attention))
    alone = control((m.start_attention,))

    noise, steps = _initial_noise(m, both, trajectory, text, make_noise)
    if m.prompt_target:
        step = first_step(trajectory, noise)
        hidden_states, steps["prompt_target"] = optimise_prompts(
            alone,
            text.hidden_states,
            control((1.0,))(
                step.noisy_latents, step.timesteps, text.negative_hidden_states
            ),
            step,
            target=m.prompt_target,
            learning_rate=m.prompt_learning_rate,
            max_iterations=m.prompt_iterations,
        )
        text = text._replace(hidden_states=hidden_states)

    texts = text.hidden_states, text.negative_hidden_states
    guided = guidance_scale != 1 or m.schedules_guidance
    if not m.schedules_guidance and not m.repels:
        denoise = with_guidance(both if guided else alone, *texts, guidance_scale)
        latents = sample(denoise, trajectory, noise, clip_latents=clip_latents)
        return Sampled(latents, steps)

    if m.repels and references is None:
        name = "repulsion" if m.repulsion else "despecification"
        raise _error(
            name,
            getattr(m, name),
            "keeps away from training images, of which none were given: pass "
            "`references`, or set it to 0",
        )
    schedule = _schedule(m, guidance_scale, len(trajectory.timesteps))
    combine = _combine(schedule, m, references, trajectory, num_train_timesteps, embed)
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


def _controlled(
    predict: ControlledPredict,
    input_ids: Int[Array, "B L"],
    mitigations: GenerationMitigations,
    start_scales: tuple[float, ...],
) -> Predict:
    """Binds the control of a batch of several texts for each example.

    Args:
      start_scales: one for each of those texts, in their order; 0 is 1.
    """
    if mitigations.start_attention in (0, 1) and not mitigations.mask_padding:
        return lambda latents, t, hidden: predict(latents, t, hidden, None)
    B, n = input_ids.shape[0], len(start_scales)
    lengths = jnp.tile(text_lengths(input_ids), n)
    attention = rescale_attention(
        jnp.repeat(jnp.array([scale or 1.0 for scale in start_scales]), B),
        lengths if mitigations.mask_padding else None,
    )
    return lambda latents, t, hidden: predict(latents, t, hidden, attention)


def _initial_noise(
    m: GenerationMitigations,
    predict: Predict,
    trajectory: Trajectory,
    text: Text,
    make_noise: Callable[[int], jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the noise, and the steps that its optimisation took, if it is on."""
    predict_both = with_both_texts(
        predict, text.hidden_states, text.negative_hidden_states
    )

    def difference(noise):
        step = first_step(trajectory, noise)
        unconditional, conditional = predict_both(step.noisy_latents, step.timesteps)
        return conditional - unconditional

    candidates = [make_noise(number) for number in range(max(m.noise_candidates, 1))]
    noise = select_noise(difference, jnp.stack(candidates))
    if not m.noise_target:
        return noise, {}
    noise, steps = optimise_noise(
        difference,
        noise,
        target=m.noise_target,
        norm_weight=m.noise_norm_weight,
        learning_rate=m.noise_learning_rate,
        max_iterations=m.noise_iterations,
    )
    return noise, {"noise_target": steps}


def _schedule(
    m: GenerationMitigations, guidance_scale: float, num_steps: int
) -> GuidanceSchedule:
    if m.dynamic_transition:
        return dynamic_transition(guidance_scale, m.guidance_before, num_steps // 2)
    if m.guidance_transition:
        return static_transition(
            guidance_scale, m.guidance_before, m.guidance_transition
        )
    return constant_guidance(guidance_scale)


def _combine(
    schedule: GuidanceSchedule,
    m: GenerationMitigations,
    references: References | None,
    trajectory: Trajectory,
    num_train_timesteps: int,
    embed: Embed,
) -> Combine:
    repulsion = Repulsion(
        m.repulsion, m.despecification, m.clean_threshold, m.noisy_threshold
    )

    def combine(state, step, unconditional, conditional):
        difference = conditional - unconditional
        state, scales = schedule.scale(state, step, row_norms(difference))

        def guided(scales):
            return unconditional + per_row(scales, difference) * difference

        if not m.repels or references is None:
            return state, guided(scales)
        return state, repel(
            repulsion,
            references,
            step,
            guided,
            scales,
            prediction_type=trajectory.prediction_type,
            num_train_timesteps=num_train_timesteps,
            embed=embed,
        )

    return combine
