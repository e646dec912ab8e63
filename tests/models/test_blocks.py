"""Blocks that have another formulation for another machine."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copymit.models.backend import tracing_for
from copymit.models.blocks import GEGLU
from copymit.models.functional import init_params, make_apply


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_the_gated_layer_of_tpus_computes_the_same_without_splitting_features(
    rng, dtype, error
):
    def make(rngs):
        return GEGLU(6, 10, dtype=jnp.dtype(dtype), rngs=rngs)

    apply, params = make_apply(make), init_params(make)
    params["proj.bias"] = jnp.asarray(rng.standard_normal(20), jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, 5, 6)), dtype)
    weights = jnp.asarray(rng.standard_normal((2, 5, 10)), dtype)

    def measure(machine):
        def loss(params, x):
            return jnp.sum((apply(params, x) * weights).astype(jnp.float32))

        with tracing_for(machine) if machine else contextlib.nullcontext():
            program = str(jax.make_jaxpr(jax.grad(loss))(params, x))
            return jax.value_and_grad(loss, (0, 1))(params, x), program

    (expected, split), (found, tpu) = measure(None), measure("tpu")
    # The gradient of a split of features is padded to all of them.
    assert "[2,5,20]" in split
    assert "[2,5,20]" not in tpu
    for mine, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert mine.dtype == theirs.dtype
        mine, theirs = (x.astype(jnp.float32) for x in (mine, theirs))
        np.testing.assert_allclose(mine, theirs, atol=error)
