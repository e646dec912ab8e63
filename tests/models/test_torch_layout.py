"""Weights round trip between flax modules and torch's names and layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from copymit.models.torch_layout import load_torch_state, to_torch_state


class Net(nnx.Module):
    """One of everything that published checkpoints contain, with diffusers' habits."""

    def __init__(self, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
        self.conv = nnx.Conv(3, 4, (3, 5), param_dtype=param_dtype, rngs=rngs)
        self.depthwise = nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=rngs)
        self.proj_in = nnx.Conv(4, 6, (1, 1), use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(6, rngs=rngs)
        self.norm = nnx.GroupNorm(6, num_groups=2, rngs=rngs)
        self.to_out = nnx.List(
            [nnx.Linear(6, 7, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)]
        )
        self.layers = nnx.Sequential(
            nnx.Linear(7, 8, rngs=rngs), jax.nn.silu, nnx.Linear(8, 2, rngs=rngs)
        )
        self.embed = nnx.Embed(9, 2, rngs=rngs)
        self.class_embedding = nnx.Param(jnp.arange(2.0))


TORCH_SHAPES = {
    "conv.weight": (4, 3, 3, 5),
    "conv.bias": (4,),
    "depthwise.weight": (4, 1, 3, 3),
    "depthwise.bias": (4,),
    "proj_in.weight": (6, 4, 1, 1),
    "bn.weight": (6,),
    "bn.bias": (6,),
    "bn.running_mean": (6,),
    "bn.running_var": (6,),
    "norm.weight": (6,),
    "norm.bias": (6,),
    "to_out.0.weight": (7, 6),
    "to_out.0.bias": (7,),
    "layers.0.weight": (8, 7),
    "layers.0.bias": (8,),
    "layers.2.weight": (2, 8),
    "layers.2.bias": (2,),
    "embed.weight": (9, 2),
    "class_embedding": (2,),
}


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in TORCH_SHAPES.items()
    }


@pytest.fixture
def net():
    return Net(rngs=nnx.Rngs(0))


def test_names_and_shapes_are_those_of_torch(net):
    shapes = {name: tensor.shape for name, tensor in to_torch_state(net).items()}
    assert shapes == TORCH_SHAPES


def test_what_is_loaded_comes_back_unchanged(net, tensors):
    load_torch_state(net, tensors)
    saved = to_torch_state(net)
    assert saved.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(saved[name], tensor, err_msg=name)
        assert saved[name].flags.c_contiguous, name


def test_loaded_layers_compute_what_torch_computes(net, tensors):
    torch = pytest.importorskip("torch")
    weights = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    load_torch_state(net, tensors)
    image = np.random.default_rng(1).normal(size=(2, 8, 9, 3)).astype(np.float32)
    nchw = torch.from_numpy(image).permute(0, 3, 1, 2)
    functional = torch.nn.functional
    expected = functional.conv2d(
        nchw, weights["conv.weight"], weights["conv.bias"], padding="same"
    )
    actual = net.conv(jnp.asarray(image))
    # float32 sums of 45 products in another order.
    np.testing.assert_allclose(
        np.asarray(actual).transpose(0, 3, 1, 2), expected.numpy(), atol=1e-5
    )
    features = image[0, :2, :6, 0]
    expected = functional.linear(
        torch.from_numpy(features), weights["to_out.0.weight"], weights["to_out.0.bias"]
    )
    actual = net.to_out[0](jnp.asarray(features))
    np.testing.assert_allclose(np.asarray(actual), expected.numpy(), atol=1e-5)


def test_half_precision_files_are_cast_to_the_parameters_dtype(net, tensors):
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    load_torch_state(net, half)
    kernel = net.conv.kernel[...]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(
        np.asarray(kernel), half["conv.weight"].transpose(2, 3, 1, 0)
    )


def test_parameters_keep_a_dtype_of_their_own(tensors):
    net = Net(rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    load_torch_state(net, tensors)
    assert net.conv.kernel[...].dtype == jnp.bfloat16


def test_parameters_stay_on_their_sharding(net, tensors):
    device = jax.devices()[-1]
    mesh = jax.sharding.Mesh(np.array([device]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    net.embed.embedding.set_value(jax.device_put(net.embed.embedding[...], sharding))
    load_torch_state(net, tensors)
    assert net.embed.embedding[...].sharding == sharding


def test_an_abstract_module_becomes_concrete(tensors):
    class Linear(nnx.Module):
        def __init__(self, rngs):
            self.to_out = nnx.List([nnx.Linear(6, 7, rngs=rngs)])

    abstract = nnx.eval_shape(lambda: Linear(nnx.Rngs(0)))
    own = {name: tensors[name] for name in ("to_out.0.weight", "to_out.0.bias")}
    load_torch_state(abstract, own)
    result = abstract.to_out[0](jnp.ones((1, 6)))
    # Six products summed in another order.
    expected = own["to_out.0.weight"].sum(1) + own["to_out.0.bias"]
    np.testing.assert_allclose(np.asarray(result)[0], expected, atol=1e-5)


def test_later_changes_of_the_tensors_do_not_reach_the_module(net, tensors):
    load_torch_state(net, tensors)
    before = {name: tensor.copy() for name, tensor in to_torch_state(net).items()}
    for tensor in tensors.values():
        tensor += 1
    for name, tensor in to_torch_state(net).items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)


def test_saved_arrays_are_copies_of_the_parameters(net):
    before = np.array(net.embed.embedding[...])
    to_torch_state(net)["embed.weight"][:] = 0
    np.testing.assert_array_equal(np.asarray(net.embed.embedding[...]), before)


def test_missing_unused_and_misshapen_tensors_are_all_named_and_nothing_is_loaded(
    net, tensors
):
    before = to_torch_state(net)
    del tensors["norm.bias"]
    tensors["norm.running_mean"] = np.zeros(6, np.float32)
    tensors["proj_in.weight"] = np.zeros((6, 4), np.float32)
    with pytest.raises(ValueError) as failure:
        load_torch_state(net, tensors)
    message = str(failure.value)
    assert "3 tensors do not fit Net" in message
    assert "missing norm.bias" in message
    assert "unused norm.running_mean" in message
    assert "proj_in.weight has shape (6, 4), needs (6, 4, 1, 1)" in message
    for name, tensor in to_torch_state(net).items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)


def test_many_problems_are_cut_to_ten_and_counted(net):
    with pytest.raises(ValueError, match=r"19 tensors do not fit Net.*and 9 more") as e:
        load_torch_state(net, {})
    assert str(e.value).count("missing ") == 10


def test_listed_buffers_are_ignored(net, tensors):
    tensors["bn.num_batches_tracked"] = np.array(3)
    tensors["embeddings.position_ids"] = np.arange(4)[None]
    load_torch_state(net, tensors, ignore=[r"position_ids$", r"num_batches_tracked$"])
    np.testing.assert_array_equal(
        np.asarray(net.bn.mean[...]), tensors["bn.running_mean"]
    )
    with pytest.raises(ValueError, match=r"1 tensors .*unused bn\.num_batches_tracked"):
        load_torch_state(net, tensors, ignore=[r"position_ids$"])


def test_a_parameter_cannot_be_ignored(net, tensors):
    del tensors["norm.bias"]
    with pytest.raises(ValueError, match=r"missing norm\.bias"):
        load_torch_state(net, tensors, ignore=[r"norm\.bias"])
