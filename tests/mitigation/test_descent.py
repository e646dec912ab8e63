"""Each example descends alone, as far as it must."""

import jax.numpy as jnp
import numpy as np
import optax

from copymit.mitigation.descent import descend, row_norms


def squares(x):
    return jnp.sum(x**2, axis=1) / 2


def run(x, target, iterations, rate=0.5):
    return np.asarray(descended(x, target, iterations, rate).position)


def descended(x, target, iterations, rate=0.5):
    start = jnp.asarray(x, jnp.float32)
    return descend(
        squares, start, optax.sgd(rate), target=target, max_iterations=iterations
    )


def test_every_row_stops_at_the_first_point_below_the_target():
    # Halved at every step, the loss is quartered: 8, 2, 0.5, 0.125.
    moved = run([[4.0], [1.0], [0.5]], target=0.5, iterations=10)
    assert moved.tolist() == [[1.0], [1.0], [0.5]]


def test_steps_are_counted_row_by_row():
    # As above; the last one starts too high for five steps.
    found = descended([[4.0], [1.0], [0.5], [1000.0]], target=0.5, iterations=5)
    assert found.steps.tolist() == [2, 0, 0, 5]


def test_there_are_no_more_iterations_than_allowed():
    assert run([[16.0]], target=0.0, iterations=3).tolist() == [[2.0]]


def test_a_row_does_not_depend_on_the_others(rng):
    x = rng.normal(size=(5, 3)) * np.array([[1], [9], [0.1], [3], [0]])
    together = run(x, target=0.3, iterations=6)
    for i in range(5):
        np.testing.assert_array_equal(run(x[i : i + 1], 0.3, 6)[0], together[i])


def test_a_row_whose_loss_is_not_a_number_stays():
    moved = run([[np.nan], [4.0]], target=0.5, iterations=10)
    assert np.isnan(moved[0, 0])
    assert moved[1, 0] == 1.0


def test_the_norm_of_nothing_has_no_gradient():
    found = descend(
        row_norms, jnp.zeros((1, 3)), optax.sgd(1.0), target=-1.0, max_iterations=2
    )
    assert not np.asarray(found.position).any()
