"""Guidance begins when it should, example by example, with every sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.sampler import Step, sample_with_state, with_combination
from copymit.diffusion.trajectory import SAMPLERS
from copymit.mitigation.descent import per_row, row_norms
from copymit.mitigation.guidance import constant_guidance
from copymit.mitigation.methods.dynamic_transition import dynamic_transition
from copymit.mitigation.methods.static_transition import static_transition

SCALE, BEFORE = 7.5, -2.0


def scales_of(schedule, magnitudes, timesteps=None) -> np.ndarray:
    """Runs a schedule over magnitudes "S B" and returns its scales, as many."""
    S, B = magnitudes.shape
    timesteps = np.arange(S)[::-1] if timesteps is None else timesteps
    state, scales = schedule.init(B), []
    for i in range(S):
        step = Step(jnp.array(i), jnp.array(timesteps[i]), 0.5, 0.5, jnp.zeros((B, 1)))
        state, now = schedule.scale(state, step, jnp.asarray(magnitudes[i]))
        scales.append(np.asarray(now))
    return np.stack(scales)


def expected_start(curve) -> int:
    """Is the step after the first inner local minimum, by looking at the whole curve."""
    for i in range(1, len(curve) - 1):
        if curve[i - 1] > curve[i] < curve[i + 1]:
            return i + 1
    return len(curve)


def test_constant_guidance_is_the_same_at_every_step():
    scales = scales_of(constant_guidance(SCALE), np.ones((3, 2), np.float32))
    assert (scales == SCALE).all()


def test_a_static_transition_starts_at_its_timestep_and_not_above():
    timesteps = np.array([900, 651, 650, 649, 0])
    schedule = static_transition(SCALE, BEFORE, 650)
    scales = scales_of(schedule, np.ones((5, 1), np.float32), timesteps)
    assert scales[:, 0].tolist() == [BEFORE, BEFORE, SCALE, SCALE, SCALE]


@pytest.mark.parametrize(
    ("curve", "start"),
    [
        ([5, 4, 3, 4, 5, 6], 3),  # the minimum is step 2
        ([1, 4, 3, 2, 5, 6], 4),  # a rise at first is not a minimum
        ([5, 3, 4, 2, 3, 1], 2),  # only the first minimum counts
        ([6, 5, 4, 3, 2, 1], 6),  # none
        ([3, 3, 3, 3, 3, 3], 6),  # nor is a plateau
    ],
)
def test_a_dynamic_transition_starts_after_the_first_minimum(curve, start):
    magnitudes = np.array(curve, np.float32)[:, None]
    scales = scales_of(dynamic_transition(SCALE, BEFORE), magnitudes)[:, 0]
    assert scales.tolist() == [BEFORE] * start + [SCALE] * (6 - start)


def test_random_curves_start_where_the_whole_curve_says(rng):
    magnitudes = rng.random((12, 40)).astype(np.float32)
    scales = scales_of(dynamic_transition(SCALE, BEFORE), magnitudes)
    starts = (scales == BEFORE).sum(0)
    assert starts.tolist() == [expected_start(curve) for curve in magnitudes.T]
    assert len(set(starts.tolist())) > 3  # each example has a transition of its own


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_walks_with_the_scales_of_its_examples(
    sampler, prediction_type, rng
):
    S, B = 8, 3
    scheduler = make_noise_scheduler(prediction_type=prediction_type)
    trajectory = SAMPLERS[sampler](scheduler, S)
    curves = jnp.asarray(
        [[8, 7, 6, 7, 8, 7, 6, 5], [8, 9, 8, 7, 6, 7, 8, 9], [9, 8, 7, 6, 5, 4, 3, 2]],
        jnp.float32,
    ).T
    expected = np.where(np.arange(S)[:, None] >= [3, 5, 8], SCALE, BEFORE)
    noise = jnp.asarray(rng.normal(size=(B, 2, 2, 1)), jnp.float32)
    table = jnp.asarray(trajectory.timesteps)

    def predict(latents, timesteps, hidden):
        """Its difference has the magnitude of the curve: 2 components of 4 squares."""
        curve = jnp.take_along_axis(
            jnp.repeat(curves, 2, axis=1),
            jnp.argmax(table[:, None] == timesteps, axis=0)[None],
            axis=0,
        )[0]
        return 0.1 * latents + per_row(hidden[:, 0, 0] * curve / 2, latents)

    texts = jnp.ones((B, 1, 1)), jnp.zeros((B, 1, 1))

    def walk(schedule):
        def combine(state, step, unconditional, conditional):
            difference = conditional - unconditional
            state, scales = schedule(state, step, row_norms(difference))
            return state, unconditional + per_row(scales, difference) * difference

        return combine

    schedule = dynamic_transition(SCALE, BEFORE)
    told = jnp.asarray(expected, jnp.float32)
    results = [
        np.asarray(
            jax.jit(
                lambda noise, combine=combine, state=state: sample_with_state(
                    with_combination(predict, *texts, combine), state, trajectory, noise
                )
            )(noise)
        )
        for combine, state in (
            (walk(schedule.scale), schedule.init(B)),
            (walk(lambda state, step, _: (state, told[step.number])), ()),
        )
    ]
    # Two programs of the same numbers: only the order of float32 sums differs.
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-4)
    assert np.abs(results[0]).max() > 0.1
