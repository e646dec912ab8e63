"""Every formulation of attention computes what jax.nn.dot_product_attention does."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from copymit.models import attention
from copymit.models.attention import attend
from copymit.models.backend import target_backend, tracing_for
from copymit.sharding import make_mesh

# (B, P, L, N, K): self-attention, few keys, sizes that no block divides, one query.
SHAPES = [(2, 64, 64, 4, 8), (3, 50, 7, 2, 16), (1, 37, 53, 3, 5), (2, 1, 9, 1, 4)]


def inputs(rng, shape, dtype=np.float32):
    B, P, L, N, K = shape
    sizes = ((B, P, N, K), (B, L, N, K), (B, L, N, K))
    return [jnp.asarray(rng.standard_normal(size), dtype) for size in sizes]


def reference(query, key, value, is_causal=False):
    return jax.nn.dot_product_attention(query, key, value, is_causal=is_causal)


# From blocks of a few rows of one head to all heads at once.
@pytest.fixture(params=[64, 500, 2**20])
def block_scores(request, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_SCORES", request.param)


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_of_scores_give_the_same_values_and_gradients(rng, shape, block_scores):
    arrays = inputs(rng, shape)
    weights = jnp.asarray(rng.standard_normal(arrays[0].shape), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(function, *arrays):
        value, pull = jax.vjp(function, *arrays)
        return value, *pull(weights)

    blockwise = functools.partial(attend, implementation="blockwise")
    ours, *found = value_and_gradients(blockwise, *arrays)
    value, *expected = value_and_gradients(reference, *arrays)
    # Sums of 64 terms in another order: 1e-6.
    np.testing.assert_allclose(ours, value, atol=1e-5)
    for mine, theirs in zip(found, expected, strict=True):
        assert np.abs(theirs).max() > 1e-2 or shape[1] == 1
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_causal_blocks_see_no_later_key(rng, block_scores):
    query, key, value = inputs(rng, (2, 33, 33, 2, 8))
    blockwise = attend(query, key, value, is_causal=True, implementation="blockwise")
    np.testing.assert_allclose(blockwise, reference(query, key, value, True), atol=1e-5)
    changed = attend(
        query,
        key,
        value.at[:, 20:].add(1.0),
        is_causal=True,
        implementation="blockwise",
    )
    np.testing.assert_array_equal(changed[:, :20], blockwise[:, :20])
    assert np.abs(changed[:, 20:] - blockwise[:, 20:]).max() > 0.1


@pytest.mark.parametrize("implementation", ["xla", "blockwise"])
def test_softmax_is_float32_for_bfloat16(rng, implementation):
    query, key, value = inputs(rng, (1, 16, 512, 2, 8), jnp.bfloat16)
    exact = reference(*(x.astype(jnp.float32) for x in (query, key, value)))
    found = attend(query, key, value, implementation=implementation)
    assert found.dtype == jnp.bfloat16
    # A rounding to bfloat16 is 2^-9 of a value; sums of 512 bfloat16 weights would be
    # wrong by a tenth.
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=4e-3)


def test_auto_chooses_for_the_machine_and_the_size():
    def chosen(backend, positions, keys):
        query = jax.ShapeDtypeStruct((16, positions, 8, 8), jnp.float32)
        key = jax.ShapeDtypeStruct((16, keys, 8, 8), jnp.float32)
        with tracing_for(backend):
            return attention._choose(query, key)

    assert chosen("cpu", 1024, 1024) == "blockwise"
    assert chosen("cpu", 16, 16) == "xla"
    assert chosen("tpu", 1024, 1024) == "flash"
    assert chosen("tpu", 1024, 77) == "xla"  # text tokens do not fill tiles
    assert chosen("tpu", 256, 256) == "xla"
    assert chosen("gpu", 1024, 1024) == "xla"


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("with_mesh", [False, True])
def test_the_tpu_kernel_gives_the_same_values(rng, is_causal, with_mesh):
    arrays = inputs(
        rng, (2, 128, 256, 2, 16) if not is_causal else (2, 128, 128, 2, 16)
    )
    mesh = jax.set_mesh(make_mesh()) if with_mesh else contextlib.nullcontext()
    with mesh, pltpu.force_tpu_interpret_mode():
        found = attend(*arrays, is_causal=is_causal, implementation="flash")
    np.testing.assert_allclose(found, reference(*arrays, is_causal), atol=1e-5)


def test_sizes_that_the_tpu_kernel_does_not_take_are_named(rng):
    with pytest.raises(ValueError, match=r"multiples of 128 .* not 50 and 7"):
        attend(*inputs(rng, SHAPES[1]), implementation="flash")


def test_the_target_is_this_machine_unless_said_otherwise():
    assert target_backend() == "cpu"
    with tracing_for("tpu"):
        assert target_backend() == "tpu"
    assert target_backend() == "cpu"


def test_an_unknown_implementation_is_named(rng):
    with pytest.raises(ValueError, match=r"'fast' is not known: use one of auto, xla"):
        attend(*inputs(rng, SHAPES[0]), implementation="fast")
