"""Every formulation of attention computes what jax.nn.dot_product_attention does."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from copymit.models import attention_blocks, attention_kernels
from copymit.models.attention import Sizes, attend, choose
from copymit.models.attention_kernels import attend_cudnn, attend_flash
from copymit.models.backend import target_backend, target_machine, tracing_for
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
    monkeypatch.setattr(attention_blocks, "BLOCK_SCORES", request.param)
    monkeypatch.setattr(attention_blocks, "CHUNK_SCORES", request.param)


@pytest.mark.parametrize("implementation", ["blockwise", "chunked"])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_of_scores_give_the_same_values_and_gradients(
    rng, shape, implementation, block_scores
):
    arrays = inputs(rng, shape)
    weights = jnp.asarray(rng.standard_normal(arrays[0].shape), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(function, *arrays):
        value, pull = jax.vjp(function, *arrays)
        return value, *pull(weights)

    blockwise = functools.partial(attend, implementation=implementation)
    ours, *found = value_and_gradients(blockwise, *arrays)
    value, *expected = value_and_gradients(reference, *arrays)
    # Sums of 64 terms in another order: 1e-6.
    np.testing.assert_allclose(ours, value, atol=1e-5)
    for mine, theirs in zip(found, expected, strict=True):
        assert np.abs(theirs).max() > 1e-2 or shape[1] == 1
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("implementation", ["blockwise", "chunked"])
def test_causal_blocks_see_no_later_key(rng, implementation, block_scores):
    query, key, value = inputs(rng, (2, 33, 33, 2, 8))
    blockwise = attend(query, key, value, is_causal=True, implementation=implementation)
    np.testing.assert_allclose(blockwise, reference(query, key, value, True), atol=1e-5)
    changed = attend(
        query,
        key,
        value.at[:, 20:].add(1.0),
        is_causal=True,
        implementation=implementation,
    )
    np.testing.assert_array_equal(changed[:, :20], blockwise[:, :20])
    assert np.abs(changed[:, 20:] - blockwise[:, 20:]).max() > 0.1


@pytest.mark.parametrize("implementation", ["xla", "chunked", "blockwise"])
def test_softmax_is_float32_for_bfloat16(rng, implementation):
    query, key, value = inputs(rng, (1, 16, 512, 2, 8), jnp.bfloat16)
    exact = reference(*(x.astype(jnp.float32) for x in (query, key, value)))
    found = attend(query, key, value, implementation=implementation)
    assert found.dtype == jnp.bfloat16
    # A rounding to bfloat16 is 2^-9 of a value; sums of 512 bfloat16 weights would be
    # wrong by a tenth.
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=4e-3)


@pytest.mark.parametrize("shape", [(2, 64, 64, 4, 8), (1, 37, 7, 3, 5)])
def test_chunks_have_derivatives_forward_and_of_second_order(rng, shape, monkeypatch):
    monkeypatch.setattr(attention_blocks, "CHUNK_SCORES", 2000)
    arrays, tangents = inputs(rng, shape), inputs(rng, shape)
    chunked = functools.partial(attend, implementation="chunked")

    def forward_over_reverse(function):
        def gradients(*arrays):
            return jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), (0, 1, 2))(
                *arrays
            )

        return jax.jvp(gradients, arrays, tangents)

    for differentiate in (
        lambda function: jax.jvp(function, arrays, tangents),
        forward_over_reverse,
    ):
        found, expected = (
            jax.jit(differentiate, static_argnums=0)(f) for f in (chunked, reference)
        )
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-4), found, expected
        )


def test_chunks_never_hold_all_scores(rng, monkeypatch):
    monkeypatch.setattr(attention_blocks, "CHUNK_SCORES", 2 * 4 * 16 * 64)
    arrays = inputs(rng, SHAPES[0])

    def loss(*arrays, implementation):
        return jnp.sum(attend(*arrays, implementation=implementation) ** 2)

    def program(implementation):
        of = functools.partial(loss, implementation=implementation)
        return str(jax.make_jaxpr(jax.grad(of, (0, 1, 2)))(*arrays))

    assert "64,64]" in program("xla")
    assert "64,64]" not in program("chunked")
    assert "f32[2,4,16,64]" in program("chunked")


BF16, F32 = jnp.bfloat16, jnp.float32


@pytest.mark.parametrize(
    ("machine", "sizes", "dtype", "chosen"),
    [
        ("cpu", Sizes(16, 1024, 1024, 8, 8), F32, "blockwise"),
        ("cpu", Sizes(16, 16, 16, 8, 8), F32, "xla"),
        ("tpu", Sizes(16, 1024, 1024, 8, 8), F32, "flash"),
        ("tpu", Sizes(16, 1024, 1024, 8, 160), BF16, "xla"),
        ("tpu", Sizes(16, 4096, 4096, 8, 160), BF16, "chunked"),
        ("tpu", Sizes(16, 1024, 77, 8, 8), BF16, "xla"),  # 77 do not fill tiles
        ("tpu", Sizes(16, 256, 256, 8, 8), BF16, "xla"),
        ("tpu", Sizes(64, 4096, 77, 20, 64), BF16, "chunked"),
        # SD 2.x at 512 px: its own positions, and the text's.
        ("cuda", Sizes(16, 4096, 4096, 5, 64), BF16, "cudnn"),
        ("cuda", Sizes(16, 4096, 77, 5, 64), BF16, "cudnn"),
        ("cuda", Sizes(16, 64, 64, 20, 64), BF16, "xla"),  # little to gain
        ("cuda", Sizes(16, 4096, 4096, 5, 64), F32, "chunked"),
        ("cuda", Sizes(2, 256, 256, 5, 64), F32, "xla"),
        # SD 1.x: heads of 40, 80 and 160.
        ("cuda", Sizes(16, 4096, 4096, 8, 40), BF16, "cudnn"),
        ("cuda", Sizes(16, 256, 256, 8, 160), BF16, "xla"),
        ("cuda", Sizes(64, 4096, 4096, 8, 160), BF16, "chunked"),
        ("cuda", Sizes(16, 4097, 4097, 8, 64), BF16, "chunked"),
        ("rocm", Sizes(16, 4096, 4096, 5, 64), BF16, "chunked"),
    ],
)
def test_auto_chooses_for_the_machine_and_the_size(machine, sizes, dtype, chosen):
    assert choose(machine, sizes, dtype, splits=True, shards=1) == chosen


def test_auto_counts_the_scores_of_one_device_and_knows_whether_kernels_split():
    sizes = Sizes(16, 4096, 4096, 5, 64)
    assert choose("rocm", sizes, BF16, splits=True, shards=16) == "xla"
    assert choose("tpu", sizes, BF16, splits=False, shards=16) == "xla"
    assert choose("tpu", sizes, BF16, splits=False, shards=1) == "chunked"


@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (128, 77), (64, 1)])
def test_keys_that_fill_up_cudnns_tiles_are_not_attended_to(rng, queries, keys):
    arrays = inputs(rng, (2, queries, keys, 3, 16), jnp.bfloat16)
    found = attend_cudnn(*arrays, implementation="xla")
    exact = reference(*(x.astype(jnp.float32) for x in arrays))
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=2e-2)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 64, 64, 2, 160), BF16, r"heads of 160"),
        ((1, 50, 64, 2, 64), BF16, r"50 queries"),
        ((1, 64, 64, 2, 64), F32, r"not float32"),
    ],
)
def test_what_cudnn_does_not_take_is_named(rng, shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        attend(*inputs(rng, shape, dtype), implementation="cudnn")


def test_the_tpu_kernel_gives_the_same_gradients_in_several_blocks(rng, monkeypatch):
    monkeypatch.setattr(attention_kernels, "FLASH_BLOCK", 256)
    arrays = inputs(rng, (1, 256, 512, 1, 8))

    def loss(function, *arrays):
        return jnp.sum(jnp.sin(function(*arrays)))

    with pltpu.force_tpu_interpret_mode():
        found = jax.grad(functools.partial(loss, attend_flash), (0, 1, 2))(*arrays)
    expected = jax.grad(functools.partial(loss, reference), (0, 1, 2))(*arrays)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


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
    with pytest.raises(ValueError, match=r"multiples of 128 .* not 50, 7 and 16"):
        attend(*inputs(rng, SHAPES[1]), implementation="flash")


def test_the_target_is_this_machine_unless_said_otherwise():
    assert target_backend() == "cpu"
    for backend, machine in (("tpu", "tpu"), ("gpu", "cuda"), ("cpu", "cpu")):
        with tracing_for(backend):
            assert (target_backend(), target_machine()) == (backend, machine)
    assert target_backend() == "cpu"


def test_an_unknown_implementation_is_named(rng):
    with pytest.raises(ValueError, match=r"'fast' is not known: use one of auto, xla"):
        attend(*inputs(rng, SHAPES[0]), implementation="fast")
