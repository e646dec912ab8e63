"""Mitigations against their authors' formulas, written in torch on diffusers' UNet.

At 32x32x4 and 64x64x4, for networks that predict noise and velocity. Thresholds are in the
papers' unit, norms of 64x64x4 noise: at 64x64x4 they are the authors' own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.sampler import transitions
from copymit.diffusion.trajectory import ddim_trajectory
from copymit.mitigation import detector
from copymit.mitigation.observation import Observation
from copymit.mitigation.registry import (
    MITIGATIONS,
    active,
    defaults,
    strengths,
    values_of,
)
from copymit.mitigation.sampling import sample_with_mitigations
from copymit.mitigation.scene import Scene, Text
from copymit.mitigation.training import kept_examples
from tests.mitigation.small_unet import SIZES, TYPES, UNET, D, L, in_torch, predict

B = 2
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
HIDDEN, NEGATIVE = np.random.default_rng(3).normal(size=(2, B, L, D)).astype("f4")
TEXT = Text(jnp.zeros((B, L), jnp.int32), jnp.asarray(HIDDEN), jnp.asarray(NEGATIVE))
# The second one is much like the negative text.
CAPTIONS = NEGATIVE + np.array([1.0, 0.5], "f4")[:, None, None] * (HIDDEN - NEGATIVE)
BOTH = pytest.mark.parametrize("prediction_type", TYPES)
EACH_SIZE = pytest.mark.parametrize("size", SIZES)


def noise_of(size):
    return np.random.default_rng(size).normal(size=(B, size, size, 4)).astype("f4")


def papers_unit(size):
    """Is the norm of 64x64x4 numbers over that of as many as the size has."""
    return 64 / size


def scheduler_of(prediction_type, steps):
    """Returns diffusers' DDIM as Stable Diffusion sets it, and ours."""
    theirs = DDIMScheduler(
        **BETAS,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    theirs.set_timesteps(steps)
    ours = make_noise_scheduler(prediction_type=prediction_type, set_alpha_to_one=False)
    return theirs, ddim_trajectory(ours, steps)


def scene_of(trajectory):
    return Scene(lambda prompts: predict, trajectory, TEXT, 1000)


def norms(x):
    return x.flatten(1).norm(dim=1)


def first_of(scheduler):
    """Returns timestep, signal and deviation of the noise of the first step."""
    t = scheduler.timesteps[0]
    a = scheduler.alphas_cumprod[t]
    return t.expand(1), a**0.5, (1 - a) ** 0.5


def check_moves(moved, expected, start):
    """Compares what Adam made, which divides gradients of float32 by their own size.

    Where one is about 0 its sign, and so the step of 0.05, is that of the rounding.
    """
    assert 0.04 < np.abs(np.asarray(expected) - start).max() < 0.2
    off = np.abs(np.asarray(moved) - np.asarray(expected))
    assert (off > 2e-4).mean() < 2e-3
    assert off.mean() < 2e-5


@BOTH
@EACH_SIZE
def test_noise_is_optimised_as_sail_s_code_does(size, prediction_type):
    scheduler, trajectory = scheduler_of(prediction_type, 50)
    t, signal, sigma = first_of(scheduler)
    weight = 0.05 if prediction_type == "epsilon" else 0.01

    def loss_of(x, i):
        def difference(x):
            texts = (torch.from_numpy(h[i : i + 1]) for h in (HIDDEN, NEGATIVE))
            conditional, unconditional = (in_torch(x, t, h) for h in texts)
            if prediction_type == "v_prediction":
                conditional, unconditional = (
                    -(signal * v - x) / sigma for v in (conditional, unconditional)
                )
            return conditional - unconditional

        d = difference(x)
        return norms(difference(x + d / norms(d))) + weight * norms(x)

    start = noise_of(size)
    losses = [loss_of(torch.from_numpy(start[i : i + 1]), i).item() for i in range(B)]
    # One example is at its target, the other one moves.
    threshold = max(losses) - 1e-3 * (max(losses) - min(losses))
    expected, steps = [], []
    for i in range(B):
        x = torch.from_numpy(start[i : i + 1].copy()).requires_grad_()
        optimizer = torch.optim.Adam([x], lr=0.05)
        taken = 0
        while taken < 3 and (loss := loss_of(x, i)).item() > threshold:
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            taken += 1
        expected.append(x.detach().numpy()[0])
        steps.append(taken)
    values = values_of(
        strengths(noise_target=threshold * papers_unit(size), noise_iterations=3)
    )
    optimise = MITIGATIONS["noise_optimisation"].noise
    moved, taken = optimise(values, scene_of(trajectory), jnp.asarray(start), None)
    assert taken.tolist() == steps
    assert sorted(steps)[0] == 0 < sorted(steps)[1]
    check_moves(moved, expected, start)


@BOTH
@EACH_SIZE
def test_prompts_are_optimised_as_wen_s_code_does_with_one_image(size, prediction_type):
    scheduler, trajectory = scheduler_of(prediction_type, 50)
    t, signal, _ = first_of(scheduler)
    latents = noise_of(size)

    def loss_of(hidden, i):
        x = torch.from_numpy(latents[i : i + 1])
        difference = in_torch(x, t, hidden) - in_torch(
            x, t, torch.from_numpy(NEGATIVE[i : i + 1])
        )
        # As the noise that the network predicts: sigma x + signal v.
        scale = signal if prediction_type == "v_prediction" else 1
        return (scale * difference).norm(p=2)

    losses = [loss_of(torch.from_numpy(HIDDEN[i : i + 1]), i).item() for i in range(B)]
    target = (min(losses) + max(losses)) / 2
    expected = []
    for i in range(B):
        hidden = torch.from_numpy(HIDDEN[i : i + 1].copy()).requires_grad_()
        optimizer = torch.optim.AdamW([hidden], lr=0.05)
        for _ in range(3):
            loss = loss_of(hidden, i)
            if loss.item() <= target:
                break
            (hidden.grad,) = torch.autograd.grad(loss, [hidden])
            hidden.grad[:, 0] = 0
            optimizer.step()
            # Their start token has no gradient but decays all the same, by 0.05 %.
            hidden.data[0, 0] = torch.from_numpy(HIDDEN[i, 0])
        expected.append(hidden.detach().numpy()[0])
    values = values_of(
        strengths(prompt_target=target * papers_unit(size), prompt_iterations=3)
    )
    moved, steps = MITIGATIONS["prompt_optimisation"].embedding(
        values, scene_of(trajectory), jnp.asarray(latents)
    )
    assert sorted(steps.tolist())[0] == 0 < sorted(steps.tolist())[1]
    check_moves(moved, expected, HIDDEN)


def test_the_published_target_of_prompts_is_over_four_images():
    # They repeat the embedding for four images, and take one norm over all of them.
    strength = MITIGATIONS["prompt_optimisation"].strength
    four = np.full((4, 64, 64, 4), strength / 128)
    assert np.linalg.norm(four) == pytest.approx(3.0)


@BOTH
@EACH_SIZE
def test_examples_are_skipped_as_wen_s_code_does(size, prediction_type):
    scheduler = DDPMScheduler(**BETAS, prediction_type=prediction_type)
    noise_scheduler = make_noise_scheduler(prediction_type=prediction_type)
    timesteps = np.array([999, 400])
    latents = torch.from_numpy(noise_of(size))
    conditional, unconditional = (
        in_torch(latents, torch.from_numpy(timesteps), torch.from_numpy(h))
        for h in (CAPTIONS, NEGATIVE)
    )
    if prediction_type == "v_prediction":
        a = scheduler.alphas_cumprod[timesteps][:, None, None, None]
        conditional, unconditional = (
            (1 - a) ** 0.5 * latents + a**0.5 * v for v in (conditional, unconditional)
        )
    effects = norms(conditional - unconditional).numpy()
    assert abs(effects[0] / effects[1] - 1) > 0.05
    threshold = effects.mean() * papers_unit(size)
    keep = kept_examples(
        values_of_training(skip_above=float(threshold)), noise_scheduler
    )
    pair = (
        predict(jnp.asarray(latents), jnp.asarray(timesteps), jnp.asarray(h))
        for h in (CAPTIONS, NEGATIVE)
    )
    kept = keep(*pair, jnp.asarray(timesteps))
    assert kept.tolist() == (effects < effects.mean()).tolist()


def values_of_training(**given):
    return defaults("train") | given


STEPS = 8


def wave(t):
    """Makes the text matter least in the middle of the sampling."""
    return abs(t / 1000 - 0.5) + 0.1


def sampled(size, trajectory, **asked):
    noise = jnp.asarray(noise_of(size))

    def network(x, t, hidden, control):
        return predict(x, t, hidden * wave(t)[:, None, None])

    return sample_with_mitigations(
        network,
        trajectory,
        TEXT,
        lambda number: noise,
        strengths(**asked),
        guidance_scale=7.5,
        num_train_timesteps=1000,
    ).latents


def sampled_in_torch(size, scheduler, scale_of):
    """Samples with the guidance scale that a function finds for each image at each step.

    Args:
      scale_of: (timestep, norms of the effect of the text on the noise so far) -> scale.
    """
    x, both = torch.from_numpy(noise_of(size)), np.concatenate([NEGATIVE, HIDDEN])
    seen, scales = [], []
    for t in scheduler.timesteps:
        hidden = torch.from_numpy(both) * wave(t)
        unconditional, conditional = in_torch(torch.cat([x, x]), t, hidden).chunk(2)
        difference = conditional - unconditional
        velocity = scheduler.config.prediction_type == "v_prediction"
        unit = scheduler.alphas_cumprod[t] ** 0.5 if velocity else 1.0
        seen.append(norms(unit * difference).tolist())
        scales.append([scale_of(t, [now[i] for now in seen]) for i in range(B)])
        scale = torch.tensor(scales[-1])[:, None, None, None]
        x = scheduler.step(unconditional + scale * difference, t, x).prev_sample
    return x.numpy(), np.array(scales)


@BOTH
@EACH_SIZE
def test_a_static_transition_guides_as_jain_s_code_does(size, prediction_type):
    scheduler, trajectory = scheduler_of(prediction_type, STEPS)
    expected, _ = sampled_in_torch(
        size, scheduler, lambda t, _: 0.0 if t > 500 else 7.5
    )
    latents = sampled(size, trajectory, guidance_transition=500)
    # float32 through 8 steps, of which 4 amplify by the guidance.
    np.testing.assert_allclose(latents, expected, rtol=1e-3, atol=1e-3)


def jain_s_scale(t, seen):
    """Is their loop: guided once the norm before was smaller than both its neighbours."""
    found, previous, before = False, -1.0, -1.0
    for now in seen:
        found |= now > previous and before > previous
        before, previous = previous, now
    return 7.5 if found else 1.0


@BOTH
@EACH_SIZE
def test_a_dynamic_transition_guides_as_jain_s_code_does(size, prediction_type):
    scheduler, trajectory = scheduler_of(prediction_type, STEPS)
    expected, scales = sampled_in_torch(size, scheduler, jain_s_scale)
    assert {1.0, 7.5} == set(scales.ravel())
    latents = sampled(size, trajectory, dynamic_transition=True)
    np.testing.assert_allclose(latents, expected, rtol=1e-3, atol=1e-3)


@BOTH
@EACH_SIZE
def test_text_conditional_noise_is_measured_as_wen_s_code_does(size, prediction_type):
    scheduler, trajectory = scheduler_of(prediction_type, STEPS)
    steps = transitions(trajectory)
    found, expected = [], []
    for i in (0, STEPS - 1):
        t, x = scheduler.timesteps[i], torch.from_numpy(noise_of(size))
        conditional, unconditional = (
            in_torch(x, t, torch.from_numpy(h)) for h in (HIDDEN, NEGATIVE)
        )
        unit = 1.0
        if prediction_type == "v_prediction":
            unit = scheduler.alphas_cumprod[t] ** 0.5  # sigma x, on both sides, is gone
        expected.append(norms(unit * (conditional - unconditional)).numpy())
        both = [
            predict(jnp.asarray(x), jnp.full(B, int(t)), jnp.asarray(h))
            for h in (HIDDEN, NEGATIVE)
        ]
        taps = {"layer": jnp.ones((B, 1, 16, L)) / L}
        observed = detector._Observed(both[0], both[0] - both[1], taps)
        ends, signal = jnp.zeros(B, jnp.int32), steps.signal[i]
        found.append(detector._summarise(trajectory, observed, ends, signal))
    squares, attention, bright = (jnp.stack(x) for x in zip(*found, strict=True))
    seen = Observation(ends, None, squares, attention, bright[-1])
    # The mean over steps, of norms as of 64x64x4 latents.
    measured = detector.DETECTORS["noise_norm_mean"].measure(seen, None)
    np.testing.assert_allclose(
        measured, papers_unit(size) * np.mean(expected, axis=0), rtol=1e-4
    )


@BOTH
@EACH_SIZE
def test_attention_is_changed_as_ren_s_code_does(size, prediction_type):
    """Their processor, in diffusers' UNet; what is predicted plays no role in it."""
    prompt = np.array([[49_406, 5, 6, 49_407, 0, 0]])
    text = np.concatenate([NEGATIVE[:1], HIDDEN[:1]])
    x = torch.from_numpy(noise_of(size)).permute(0, 3, 1, 2)[[0, 0]]
    logits = {}

    class Processor:
        def __init__(self, name):
            self.name = name

        def __call__(self, attn, states, encoder_hidden_states=None, **unused):
            context = encoder_hidden_states
            cross, context = context is not None, states if context is None else context
            q, k, v = (
                attn.head_to_batch_dim(y)
                for y in (attn.to_q(states), attn.to_k(context), attn.to_v(context))
            )
            weight = q @ k.transpose(1, 2) * attn.scale
            if cross:
                weight = weight.unflatten(0, (2, -1))
                logits[self.name] = weight.numpy().copy()
                weight[..., 4:] = float("-inf")
                weight[1::2, :, :, 0] = weight[1::2, :, :, 0] * 1.25
                weight = weight.flatten(0, 1)
            weight = weight.softmax(-1)
            logits[self.name + " after"] = weight.numpy()
            return attn.to_out[0](attn.batch_to_head_dim(weight @ v))

    usual = dict(UNET.attn_processors)
    UNET.set_attn_processor({name: Processor(name) for name in usual})
    try:
        t = torch.tensor([981 if prediction_type == "epsilon" else 401] * 2)
        UNET(x, t, torch.from_numpy(text))
    finally:
        UNET.set_attn_processor(usual)
    values = values_of(strengths(start_attention=1.25, mask_padding=True))
    rows = jnp.asarray(np.tile(prompt, (2, 1))), jnp.array([False, True])
    names = [name for name in logits if f"{name} after" in logits]
    assert names
    for name in names:
        ours = jnp.asarray(logits[name])
        for m in active("generate", values):
            ours = m.attention(values, *rows)(name, ours)
        expected = logits[f"{name} after"].reshape(ours.shape)
        np.testing.assert_allclose(jax.nn.softmax(ours, -1), expected, atol=1e-6)
