"""Sharpness of a linear difference is known; noise is chosen and improved by it."""

import jax.numpy as jnp
import numpy as np
import pytest

from copymit.mitigation.methods import noise_optimisation
from copymit.mitigation.methods.noise_optimisation import sharpness_loss
from copymit.mitigation.methods.noise_selection import select_noise, sharpness

SHAPE = (2, 2, 1)
FACTORS = jnp.array([4.0, 1.0, 0.5, 2.0])


def difference(noise):
    """A diagonal matrix: along an axis, the sharpness is the factor of the axis."""
    return (noise.reshape(-1, 4) * FACTORS).reshape(noise.shape)


# Norms are as of 64x64x4 numbers, here of 4.
UNIT = 64


def optimise_noise(*inputs, target, **options):
    return noise_optimisation.optimise_noise(
        *inputs, target=target * UNIT, norm_weight=0.05, **options
    ).position


def loss_of(noise):
    return np.asarray(sharpness_loss(difference, noise, 0.05)) / UNIT


@pytest.fixture
def noise(rng):
    return jnp.asarray(rng.normal(size=(3, *SHAPE)), jnp.float32)


def test_sharpness_along_an_axis_is_the_factor_of_that_axis():
    axes = 3 * jnp.eye(4).reshape(4, *SHAPE)
    np.testing.assert_allclose(sharpness(difference, axes), FACTORS, rtol=1e-6)


def test_sharpness_of_a_linear_difference_is_the_norm_of_a_product(noise):
    d = np.asarray(noise).reshape(3, 4) * np.asarray(FACTORS)
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    expected = np.linalg.norm(d * np.asarray(FACTORS), axis=1)
    # A finite difference of numbers of about 10, in float32.
    np.testing.assert_allclose(sharpness(difference, noise), expected, rtol=1e-5)


def test_the_loss_is_of_the_difference_beyond_and_of_the_norm_of_the_noise(noise):
    x, factors = np.asarray(noise).reshape(3, 4), np.asarray(FACTORS)
    direction = x * factors / np.linalg.norm(x * factors, axis=1, keepdims=True)
    beyond = np.linalg.norm((x + direction) * factors, axis=1)
    expected = beyond + 0.05 * np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(loss_of(noise), expected, rtol=1e-5)


def test_no_difference_at_all_is_not_sharp(noise):
    values = sharpness(jnp.zeros_like, noise)
    assert (np.asarray(values) < 1e-18).all()  # the norm of zero, kept from its edge


def test_the_loss_falls_below_the_target_and_noise_below_it_stays(noise):
    before = loss_of(noise)
    target = float(np.sort(before)[1]) + 1e-3
    moved = optimise_noise(difference, noise, target=target, max_iterations=200)
    stays = (np.asarray(moved) == np.asarray(noise)).all(axis=(1, 2, 3))
    assert stays.tolist() == (before <= target).tolist()
    assert stays.sum() == 2
    assert (loss_of(moved) <= target).all()


def test_noise_moves_by_no_more_than_the_steps_allow(noise):
    moved = optimise_noise(difference, noise, target=1e-6, max_iterations=10)
    distance = np.abs(np.asarray(moved - noise))
    # An Adam step is about the learning rate in each component.
    assert 0.05 < distance.max() <= 10 * 0.05 * 1.05


def test_noise_does_not_depend_on_its_batch(noise):
    together = optimise_noise(difference, noise, target=2.0)
    for i in range(3):
        alone = optimise_noise(difference, noise[i : i + 1], target=2.0)
        # One program a batch size: float32 sums in another order.
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


def test_the_least_sharp_candidate_of_each_example_is_taken():
    axes = np.eye(4, dtype=np.float32).reshape(4, *SHAPE)
    candidates = jnp.asarray(
        [[axes[0], axes[2]], [axes[1], axes[3]], [axes[3], axes[0]]]
    )
    taken = select_noise(difference, candidates)
    np.testing.assert_array_equal(taken, [axes[1], axes[2]])


def test_a_single_candidate_is_taken_without_looking(noise):
    def refuse(noise):
        raise AssertionError("a forward pass")

    np.testing.assert_array_equal(select_noise(refuse, noise[None]), noise)


def test_the_least_sharp_of_many_candidates_is_less_sharp_than_the_first(rng):
    candidates = jnp.asarray(rng.normal(size=(16, 50, *SHAPE)), jnp.float32)
    chosen = sharpness(difference, select_noise(difference, candidates))
    first = sharpness(difference, candidates[0])
    assert (chosen <= first + 1e-5).all()
    # The first of 16 is the least sharp one in about 1 of 16 examples: 3 of 50.
    assert (np.asarray(chosen) < np.asarray(first)).mean() > 0.8
