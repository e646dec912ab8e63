"""Products with weights and the exact GELU against jax's own and torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from copymit.models.backend import tracing_for
from copymit.models.blocks import make_conv, make_linear
from copymit.models.linear import contract_rows, gelu


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 5, 3), (2, 4, 5, 3), (0, 5, 3)])
def test_values_and_gradients_are_those_of_a_product_over_the_last_axis(shape, rng):
    inputs = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 4)), jnp.float32)
    weights = jnp.asarray(rng.standard_normal((*shape[:-1], 4)), jnp.float32)
    found, pull = jax.vjp(contract_rows, inputs, kernel)
    expected, pull_expected = jax.vjp(jnp.matmul, inputs, kernel)
    assert found.shape == expected.shape
    for ours, theirs in zip(
        (found, *pull(weights)), (expected, *pull_expected(weights)), strict=True
    ):
        # float32 sums of up to 40 products in another order.
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def _ranks(layer, machine: str) -> set[int]:
    """Lists how many axes the operands have of the products that a layer traces."""
    inputs = jnp.ones((2, 4, 5, 3))
    with tracing_for(machine):
        equations = jax.make_jaxpr(lambda x: layer(x))(inputs).eqns
    return {
        operand.aval.ndim
        for equation in equations
        if equation.primitive is jax.lax.dot_general_p
        for operand in equation.invars
    }


@pytest.mark.parametrize("kind", ["linear", "1x1 convolution"])
def test_a_cpu_multiplies_matrices_and_accelerators_keep_the_axes(kind):
    options = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    layer = (
        make_linear(3, 4, **options)
        if kind == "linear"
        else make_conv(3, 4, 1, **options)
    )
    assert _ranks(layer, "cpu") == {2}
    assert _ranks(layer, "gpu") == {2, 4}


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_kernels_may_have_several_axes_of_outputs(machine, rng):
    inputs = jnp.asarray(rng.standard_normal((2, 5, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 2, 4)), jnp.float32)
    with tracing_for(machine):
        found = contract_rows(inputs, kernel)
    np.testing.assert_allclose(found, jnp.tensordot(inputs, kernel, 1), atol=1e-5)


def test_other_contractions_are_refused():
    with pytest.raises(ValueError, match="are not those of a linear layer"):
        contract_rows(jnp.ones((3, 3)), jnp.ones((3, 3)), (((0,), (0,)), ((), ())))


def test_gelu_is_torchs_and_so_is_its_gradient():
    x = np.linspace(-9, 9, 1001, dtype=np.float32)
    there = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.gelu(there)
    expected.sum().backward()
    value, pull = jax.vjp(gelu, jnp.asarray(x))
    np.testing.assert_allclose(value, expected.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(
        pull(jnp.ones_like(value))[0], there.grad.numpy(), atol=1e-6
    )


def test_gelu_in_16_bits_keeps_what_is_left_for_negative_numbers():
    x = jnp.asarray([-2.0, -3.0], jnp.bfloat16)
    found = gelu(x)
    assert found.dtype == jnp.bfloat16
    # -0.0455 and -0.00405; the second would be nearly half too large by 1 + erf(x).
    exact = torch.nn.functional.gelu(torch.tensor([-2.0, -3.0]))
    np.testing.assert_allclose(np.asarray(found, np.float32), exact, rtol=0.03)
