"""Mitigations on text embeddings: statistics of what they add, and the identity at 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from copymit.mitigation.methods.embedding_mixup import mix_embeddings
from copymit.mitigation.methods.gaussian_noise import add_gaussian_noise


@pytest.fixture
def hidden(rng):
    return jnp.asarray(rng.normal(size=(8, 16, 32)), jnp.float32)


@pytest.mark.parametrize("strength", [0.1, 2.0])
def test_noise_is_normal_with_the_strength_as_deviation(strength, hidden, key):
    added = np.asarray(add_gaussian_noise(hidden, key, strength) - hidden).ravel()
    # Adding to numbers of about 1 rounds the noise at 1e-7.
    assert stats.kstest(added / strength, "norm").pvalue > 1e-3
    assert added.std() == pytest.approx(strength, rel=0.05)


@pytest.mark.parametrize("function", [add_gaussian_noise, mix_embeddings])
def test_the_same_key_gives_the_same_embeddings(function, hidden, key):
    first, second = (function(hidden, key, 0.5) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = function(hidden, jax.random.key(1), 0.5)
    assert not np.array_equal(first, other)


def test_mixing_takes_one_share_and_one_other_example(hidden, key):
    mixed = np.asarray(mix_embeddings(hidden, key, 2.0))
    rows, flat = np.asarray(hidden).reshape(8, -1), mixed.reshape(8, -1)
    shares, partners = [], []
    for i, row in enumerate(flat):
        # row = lam own + (1 - lam) other: solve for lam with every other example.
        fits = [(*_residual(row, rows[i], rows[j]), j) for j in range(8) if j != i]
        residual, lam, partner = min(fits)
        assert residual < 1e-4
        if lam > 1 - 1e-6:
            partners.append(i)  # mixed with itself
        else:
            partners.append(partner)
            shares.append(lam)
    assert sorted(partners) == list(range(8))  # a permutation
    np.testing.assert_allclose(shares, shares[0], rtol=1e-4)


def _residual(row, own, other):
    difference = own - other
    lam = float((row - other) @ difference / (difference @ difference))
    return float(np.abs(row - lam * own - (1 - lam) * other).max()), lam


def test_the_shares_follow_the_beta_distribution():
    pair = jnp.asarray([[[1.0]], [[0.0]]])
    keys = jax.random.split(jax.random.key(0), 4000)
    mixed = jax.vmap(lambda k: mix_embeddings(pair, k, 0.5))(keys)[:, 0, 0, 0]
    # Half of the permutations of two leave each in its place: there the value is 1.
    shares = np.asarray(mixed)
    swapped = shares[shares < 1 - 1e-7]
    assert len(swapped) / len(shares) == pytest.approx(0.5, abs=0.04)
    assert stats.kstest(swapped, stats.beta(0.5, 1).cdf).pvalue > 1e-3
