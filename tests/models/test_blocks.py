"""Blocks that have another formulation for another machine."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copymit.models.backend import tracing_for
from copymit.models.blocks import GEGLU
from copymit.models.functional import init_params, make_apply
from copymit.models.initializers import LECUN_NORMAL


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_the_gated_layer_of_tpus_computes_the_same_without_splitting_features(
    rng, dtype, error
):
    def make(rngs):
        return GEGLU(6, 10, dtype=jnp.dtype(dtype), rngs=rngs)

    apply, params = make_apply(make), init_params(make)
    params["proj.bias"] = jnp.asarray(rng.standard_normal((2, 10)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, 5, 6)), dtype)
    weights = jnp.asarray(rng.standard_normal((2, 5, 10)), dtype)

    def measure(machine):
        def loss(params, x):
            return jnp.sum((apply(params, x) * weights).astype(jnp.float32))

        with tracing_for(machine) if machine else contextlib.nullcontext():
            program = str(jax.make_jaxpr(jax.grad(loss))(params, x))
            return jax.value_and_grad(loss, (0, 1))(params, x), program

    (expected, split), (found, tpu) = measure(None), measure("tpu")
    # The gradient of a half of the features is padded to all of them.
    assert "[2,5,2,10]" in split
    assert "[2,5,2,10]" not in tpu
    for mine, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert mine.dtype == theirs.dtype
        mine, theirs = (x.astype(jnp.float32) for x in (mine, theirs))
        np.testing.assert_allclose(mine, theirs, atol=error)


def test_the_gated_layer_starts_as_one_linear_layer_does():
    def make(rngs):
        return GEGLU(6, 10, dtype=jnp.float32, rngs=rngs)

    kernel = init_params(make, seed=3)["proj.kernel"]
    assert kernel.shape == (6, 2, 10)
    expected = LECUN_NORMAL.draw(b"3 proj.kernel", (6, 20))
    np.testing.assert_array_equal(kernel.reshape(6, 20), expected)
