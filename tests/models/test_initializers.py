"""Initial values follow the distributions of jax's initializers."""

import jax
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from copymit.models.initializers import HE_NORMAL, LECUN_NORMAL, ZERO, normal

SHAPE = (3, 3, 32, 400)  # 115,200 values in two chunks; 288 inputs
PAIRS = {
    "normal": (normal(0.02), nnx.initializers.normal(0.02)),
    "lecun": (LECUN_NORMAL, nnx.initializers.lecun_normal()),
    "he": (HE_NORMAL, nnx.initializers.he_normal()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_are_distributed_as_those_of_jax(name, key):
    ours, theirs = PAIRS[name]
    found = ours.draw(b"0", SHAPE).ravel()
    expected = np.asarray(theirs(key, SHAPE)).ravel()
    assert found.dtype == np.float32
    # Both are drawn from fixed seeds: as close as two samples of one distribution.
    assert scipy.stats.ks_2samp(found, expected).pvalue > 0.05
    assert found.std() == pytest.approx(expected.std(), rel=0.01)
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(found.size)
    assert np.abs(found).max() == pytest.approx(np.abs(expected).max(), rel=0.15)
    in_tail = np.abs(expected) > 1.9 * expected.std()
    assert (np.abs(found) > 1.9 * expected.std()).mean() == pytest.approx(
        in_tail.mean(), rel=0.05
    )


@pytest.mark.parametrize(("initializer", "gain"), [(LECUN_NORMAL, 1), (HE_NORMAL, 2)])
def test_scaled_normals_end_at_two_deviations_of_the_normal_that_was_cut(
    initializer, gain
):
    values = initializer.draw(b"0", SHAPE)
    cut = scipy.stats.truncnorm(-2, 2).std()
    assert values.var() == pytest.approx(gain / (3 * 3 * 32), rel=0.01)
    assert np.abs(values).max() <= 2 * np.sqrt(gain / (3 * 3 * 32)) / cut * (1 + 1e-6)


def test_values_are_not_correlated_along_any_axis():
    values = normal(1.0).draw(b"0", (100, 1000))
    for axis, size in enumerate(values.shape):
        means = values.mean(axis)
        assert means.std() == pytest.approx(size**-0.5, rel=0.2)


def test_other_seeds_draw_other_values():
    drawn = [normal(1.0).draw(seed, (1000,)) for seed in (b"0 a", b"0 b", b"1 a")]
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 0.15


@pytest.mark.parametrize("initializer", [normal(0.5), LECUN_NORMAL, ZERO])
def test_a_traced_module_draws_what_an_eager_one_draws(initializer, key):
    def make(key):
        rngs = nnx.Rngs(key)
        return nnx.Linear(4, 3, kernel_init=initializer, rngs=rngs).kernel[...]

    eager = make(key)
    np.testing.assert_array_equal(jax.jit(make)(key), eager)
    assert eager.shape == (4, 3)


def test_the_values_of_a_seed_are_those_of_every_other_machine_and_day():
    # Should NumPy draw otherwise one day, runs start elsewhere: say so in CHANGELOG.md.
    values = LECUN_NORMAL.draw(b"0 unet conv_in.kernel", (2, 2))
    np.testing.assert_allclose(
        values, [[-0.3624875, 0.1077236], [-0.172136, 0.1913578]], rtol=1e-6
    )
