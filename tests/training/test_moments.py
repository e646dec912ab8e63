"""Moments in fewer bytes: what they hold, on average and over many steps."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from copymit.training.moments import round_at_random, scale_by_small_adam

B1, B2, EPS = 0.9, 0.999, 1e-8


def adam(dtype="float32"):
    return scale_by_small_adam(optax.scale_by_adam(B1, B2, EPS), dtype)


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn], ids=str
)
def test_rounding_is_right_on_average_and_to_a_neighbour(rng, dtype):
    values = (rng.uniform(0.02, 400, 50) * rng.choice([-1, 1], 50)).astype(np.float32)
    rounded = np.stack(
        [
            np.asarray(round_at_random(jnp.asarray(values), dtype, salt), np.float32)
            for salt in range(2000)
        ]
    )
    nearest = values.astype(dtype).astype(np.float32)
    step = np.abs(values) * (2.0**-7 if dtype == ml_dtypes.bfloat16 else 2.0**-3)
    assert (np.abs(rounded - values) <= step).all()
    assert all(len(np.unique(column)) <= 2 for column in rounded.T)
    # The mean of 2,000 such choices is off by a 90th of the step at one deviation.
    assert (np.abs(rounded.mean(0) - values) < 5 * step / 90).all()
    assert (np.abs(nearest - values) > 5 * step / 90).any()


def test_numbers_that_the_dtype_has_stay():
    values = jnp.asarray([0.0, 1.0, -2.5, 448.0, 2.0**-6], jnp.float32)
    for salt in range(50):
        rounded = round_at_random(values, jnp.float8_e4m3fn, salt)
        np.testing.assert_array_equal(rounded.astype(jnp.float32), values)


def run(dtype, gradients):
    optimizer = adam(dtype)
    params = {"w": jnp.zeros(gradients.shape[1:])}

    def step(state, gradient):
        update, state = optimizer.update({"w": gradient}, state)
        return state, update["w"]

    return jax.lax.scan(step, optimizer.init(params), jnp.asarray(gradients))


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float8", 0.35)])
def test_updates_follow_those_of_float32(rng, dtype, tolerance):
    # Gradients whose size differs from row to row, and falls by four on the way.
    scale = 10.0 ** rng.uniform(-6, 0, (64, 1))
    gradients = (rng.standard_normal((600, 64, 64)) + 0.5) * scale
    gradients[300:] /= 4
    gradients = gradients.astype(np.float32)
    (state, updates), (_, expected) = run(dtype, gradients), run("float32", gradients)
    error = np.sqrt(np.mean((updates - expected)[-100:] ** 2, axis=0))
    size = np.sqrt(np.mean(np.asarray(expected)[-100:] ** 2, axis=0))
    assert np.median(error / size) < tolerance
    # No bias: over all parameters the mean update is that of float32.
    ratio = np.mean(updates[-100:]) / np.mean(expected[-100:])
    assert ratio == pytest.approx(1, abs=0.03)
    stored = {"bfloat16": jnp.bfloat16, "float8": jnp.float8_e4m3fn}[dtype]
    assert state.mu["w"].dtype == state.nu["w"].dtype == stored


def test_rounded_to_the_nearest_the_second_moment_would_stand_still():
    gradients = np.full((400, 64, 64), 1.0, np.float32)
    state, _ = run("bfloat16", gradients)
    expected = 1 - B2**400
    found = float(jnp.mean(state.nu["w"].astype(jnp.float32)))
    assert found == pytest.approx(expected, rel=0.01)
    nearest = 0.0
    for _ in range(400):
        nearest = float(ml_dtypes.bfloat16(B2 * nearest + (1 - B2)))
    assert nearest == 0.25 < 0.8 * expected


def test_a_parameter_with_a_tiny_gradient_takes_no_huge_step():
    gradients = np.full((20, 64, 64), 1.0, np.float32)
    gradients[:, :, 0] = 1e-9
    _, updates = run("float8", gradients)
    assert np.abs(updates).max() < 3.0


def test_small_parameters_keep_float32():
    optimizer = adam("float8")
    params = {"bias": jnp.zeros(320), "kernel": jnp.zeros((64, 64))}
    state = optimizer.init(params)
    assert state.mu["bias"].dtype == jnp.float32
    assert state.mu_scale["kernel"].shape == (64, 1)
    gradient = {"bias": jnp.ones(320), "kernel": jnp.zeros((64, 64))}
    updates, state = optimizer.update(gradient, state)
    expected, _ = adam().update(gradient, adam().init(params))
    np.testing.assert_array_equal(updates["bias"], expected["bias"])
    np.testing.assert_array_equal(updates["kernel"], expected["kernel"])


def test_an_unknown_dtype_is_named():
    with pytest.raises(ValueError, match=r"moments_dtype='int4' is not known: use one"):
        adam("int4")
