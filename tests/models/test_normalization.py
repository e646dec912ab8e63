"""Group norm by channel sums equals flax's and torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from copymit.models.normalization import GroupNorm


@pytest.fixture
def norm():
    norm = GroupNorm(12, 4, epsilon=1e-5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    norm.scale.set_value(jnp.linspace(0.5, 2.0, 12))
    norm.bias.set_value(jnp.linspace(-1.0, 1.0, 12))
    return norm


def torch_group_norm(x, norm):
    scale, bias = (torch.tensor(np.asarray(p)) for p in (norm.scale, norm.bias))
    channels_first = torch.tensor(np.moveaxis(x, -1, 1))
    y = torch.nn.functional.group_norm(channels_first, 4, scale, bias, 1e-5)
    return np.moveaxis(y.numpy(), 1, -1)


@pytest.mark.parametrize("shape", [(2, 5, 7, 12), (3, 12), (1, 9, 12)])
def test_values_are_torchs(norm, rng, shape):
    x = rng.standard_normal(shape).astype(np.float32) * 3 + 1
    np.testing.assert_allclose(norm(x), torch_group_norm(x, norm), atol=1e-5)


def test_gradients_are_flaxs(norm, rng):
    x = jnp.asarray(rng.standard_normal((2, 4, 4, 12)), jnp.float32)
    other = nnx.GroupNorm(12, 4, epsilon=1e-5, rngs=nnx.Rngs(0))
    other.scale.set_value(norm.scale.get_value())
    other.bias.set_value(norm.bias.get_value())
    ours, theirs = (
        jax.grad(lambda x, f=f: (f(x) ** 3).sum())(x) for f in (norm, other)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_statistics_are_float32_for_bfloat16(rng):
    norm = GroupNorm(4, 1, epsilon=1e-5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    # Ones and a small signal: bfloat16 sums of 4,096 numbers would stop at 256.
    x = 1 + rng.standard_normal((1, 32, 32, 4)).astype(np.float32)
    found = norm(jnp.asarray(x, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    found = np.asarray(found, np.float32)
    assert found.mean() == pytest.approx(0, abs=2e-3)
    assert found.std() == pytest.approx(1, abs=2e-3)
