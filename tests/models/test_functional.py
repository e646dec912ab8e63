"""A module as a pure function of a flat table computes what the module computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from copymit.models.functional import (
    describe_params,
    in_slices,
    init_params,
    make_apply,
    module_params,
)
from copymit.models.initializers import LECUN_NORMAL


class Net(nnx.Module):
    """Nested, with a list and a parameter of its own."""

    def __init__(self, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, kernel_init=LECUN_NORMAL, rngs=rngs)
        self.layers = nnx.List([linear(3, 4), linear(4, 2)])
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(2))

    def __call__(self, x, *, bias=0.0):
        hidden = jax.nn.silu(self.norm(self.layers[0](x)))
        return self.layers[1](hidden) * self.scale[...] + bias

    def double(self, x):
        return 2 * self(x)


SHAPES = {
    "layers.0.kernel": (3, 4),
    "layers.0.bias": (4,),
    "layers.1.kernel": (4, 2),
    "layers.1.bias": (2,),
    "norm.scale": (4,),
    "norm.bias": (4,),
    "scale": (2,),
}


@pytest.fixture
def params():
    return init_params(Net)


def test_parameters_are_named_by_their_path(params):
    assert {name: value.shape for name, value in params.items()} == SHAPES


def test_parameters_are_a_function_of_the_seed(params):
    again, other = init_params(Net), init_params(Net, 1)
    for name in ("layers.0.kernel", "layers.1.kernel"):
        np.testing.assert_array_equal(params[name], again[name])
        assert (np.asarray(params[name]) != np.asarray(other[name])).all()


def test_a_parameter_depends_on_its_name_and_no_other_parameter(params):
    described = describe_params(Net)
    kernel = described["layers.0.kernel"]
    alone = init_params({"layers.0.kernel": kernel})
    np.testing.assert_array_equal(alone["layers.0.kernel"], params["layers.0.kernel"])
    renamed = init_params({"layers.7.kernel": kernel})
    assert (np.asarray(renamed["layers.7.kernel"]) != alone["layers.0.kernel"]).all()


def test_what_is_not_random_starts_as_nnx_starts_it(params, key):
    module = module_params(Net(nnx.Rngs(key)))
    assert module.keys() == params.keys()
    for name in params.keys() - {"layers.0.kernel", "layers.1.kernel"}:
        np.testing.assert_array_equal(params[name], module[name])


def test_a_parameter_that_starts_in_an_unknown_way_is_named():
    with pytest.raises(ValueError, match=r"^kernel starts in an unknown way"):
        init_params(lambda rngs: nnx.Linear(3, 4, rngs=rngs))


def test_shapes_are_known_without_any_computation():
    assert {name: p.shape for name, p in describe_params(Net).items()} == SHAPES


def test_the_function_equals_the_module(key, rng):
    x = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    module = Net(nnx.Rngs(key))
    params = module_params(module)
    expected = module(x, bias=0.5)
    apply = make_apply(Net)
    np.testing.assert_array_equal(apply(params, x, bias=0.5), expected)
    # Compiled, sums may be fused in another order.
    np.testing.assert_allclose(
        jax.jit(lambda p, x: apply(p, x, bias=0.5))(params, x), expected, atol=1e-6
    )


def test_another_method_can_be_called(params, rng):
    x = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    doubled = make_apply(Net, "double")(params, x)
    np.testing.assert_array_equal(doubled, 2 * make_apply(Net)(params, x))


def test_changed_parameters_change_the_result(params, rng):
    x = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    apply = make_apply(Net)
    doubled = params | {"scale": 2 * params["scale"]}
    np.testing.assert_allclose(apply(doubled, x), 2 * apply(params, x), rtol=1e-6)


def test_gradients_are_a_table_of_the_same_names(params):
    apply = make_apply(Net)
    gradients = jax.grad(lambda p: apply(p, jnp.ones((1, 3))).sum())(params)
    assert {name: value.shape for name, value in gradients.items()} == SHAPES
    assert np.abs(gradients["layers.0.kernel"]).max() > 0


def test_missing_and_unknown_parameters_are_named(params):
    apply = make_apply(Net)
    missing = {k: v for k, v in params.items() if k != "norm.bias"}
    with pytest.raises(ValueError, match=r"another model: norm\.bias$"):
        apply(missing, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"another model: layers\.2\.bias$"):
        apply(params | {"layers.2.bias": jnp.ones(2)}, jnp.ones((1, 3)))


@pytest.mark.parametrize(
    ("length", "size", "largest"), [(12, 5, 4), (7, 3, 1), (6, 9, 6)]
)
def test_slices_compute_the_same_and_divide_the_batch(rng, length, size, largest):
    batch = rng.standard_normal((length, 3)).astype(np.float32)
    seen = []

    def function(rows):
        seen.append(len(rows))
        return jnp.cumsum(rows, axis=1) * 2

    found = in_slices(function, jnp.asarray(batch), size)
    np.testing.assert_array_equal(found, jnp.cumsum(batch, axis=1) * 2)
    assert seen[-1] == largest
