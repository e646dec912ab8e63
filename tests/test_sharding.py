"""Which axis of a parameter lies where, and what each of 8 devices then holds."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from copymit.models.functional import Parameter, describe_params
from copymit.models.text_encoder import CLIPTextModel, TextEncoderConfig
from copymit.models.unet import UNet2DConditionModel, UNetConfig
from copymit.sharding import (
    MIN_SHARDED_SIZE,
    TENSOR_RULES,
    batch_sharding,
    make_mesh,
    param_spec,
    params_sharding,
    replicated,
)

MESH = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


def _local_fraction(spec: PartitionSpec, shape: tuple[int, ...]) -> float:
    local = NamedSharding(MESH, spec).shard_shape(shape)
    return math.prod(local) / math.prod(shape)


@pytest.mark.parametrize(
    ("name", "shape", "spec", "fraction"),
    [
        # Columns of what leads into the heads and the MLP, rows of what leads out.
        (f"{BLOCK}.attn1.to_q.kernel", (320, 320), ("fsdp", "tensor"), 1 / 4),
        (f"{BLOCK}.attn2.to_k.kernel", (768, 320), ("fsdp", "tensor"), 1 / 4),
        (f"{BLOCK}.attn1.to_out.0.kernel", (320, 320), ("tensor", "fsdp"), 1 / 4),
        (
            f"{BLOCK}.ff.net.0.proj.kernel",
            (320, 2, 1280),
            ("fsdp", None, "tensor"),
            1 / 4,
        ),
        (f"{BLOCK}.ff.net.2.kernel", (1280, 320), ("tensor", "fsdp"), 1 / 4),
        (
            "text_model.encoder.layers.3.mlp.fc2.kernel",
            (3072, 768),
            ("tensor", "fsdp"),
            1 / 4,
        ),
        (
            "text_model.encoder.layers.3.self_attn.out_proj.kernel",
            (768, 768),
            ("tensor", "fsdp"),
            1 / 4,
        ),
        # No rule: the largest dimension, over fsdp alone.
        (
            "mid_block.resnets.0.conv1.kernel",
            (3, 3, 640, 320),
            (None, None, "fsdp", None),
            1 / 2,
        ),
        (
            "text_model.embeddings.token_embedding.embedding",
            (49408, 768),
            ("fsdp", None),
            1 / 2,
        ),
        # The name must end with the pattern.
        ("to_q.kernel_scale", (320, 320), ("fsdp", None), 1 / 2),
        # A dimension that does not divide stays whole, the other one is taken.
        (f"{BLOCK}.attn1.to_q.kernel", (320, 321), ("fsdp", None), 1 / 2),
        ("conv_in.kernel", (3, 3, 2047, 6), (None, None, None, "fsdp"), 1 / 2),
        ("proj_in.kernel", (321, 321), (None, None), 1),
        # Too small to be worth a gather.
        (f"{BLOCK}.attn1.to_q.kernel", (64, 64), (None, None), 1),
        ("conv_norm_out.scale", (320,), (None,), 1),
    ],
)
def test_named_kernels_lie_on_the_expected_axes(name, shape, spec, fraction):
    actual = param_spec(name, shape, MESH)
    assert actual == PartitionSpec(*spec)
    assert _local_fraction(actual, shape) == fraction


def test_the_smallest_size_that_is_sharded_is_the_documented_one():
    assert param_spec("a", (MIN_SHARDED_SIZE,), MESH) == PartitionSpec("fsdp")
    assert param_spec("a", (MIN_SHARDED_SIZE - 2,), MESH) == PartitionSpec(None)


@pytest.fixture(scope="module")
def shapes() -> dict[str, Parameter]:
    """Parameters of a UNet and a text encoder wide enough to be sharded."""
    unet = UNetConfig(
        sample_size=8,
        block_out_channels=(128, 256),
        cross_attention=(True, False),
        layers_per_block=1,
        cross_attention_dim=128,
        use_linear_projection=True,
    )
    text = TextEncoderConfig(128, 512, 1, 4)
    return describe_params(
        lambda rngs: UNet2DConditionModel(unet, rngs=rngs)
    ) | describe_params(lambda rngs: CLIPTextModel(text, rngs=rngs))


def test_every_tensor_rule_has_parameters_to_apply_to(shapes):
    specs = {name: s.spec for name, s in params_sharding(shapes, MESH).items()}
    for names in ("to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj"):
        found = [s for n, s in specs.items() if n.endswith(f"{names}.kernel")]
        assert found, names
        assert all(spec[1] == "tensor" for spec in found), names
    for names in ("to_out.0", "out_proj", "net.2", "fc2"):
        found = [s for n, s in specs.items() if n.endswith(f"{names}.kernel")]
        assert found, names
        assert all(spec[0] == "tensor" for spec in found), names
    assert len(TENSOR_RULES) == 4  # the two loops above name what they cover


def test_fsdp_leaves_each_device_its_share_of_the_parameters(shapes):
    mesh = AbstractMesh((1, 8, 1), ("data", "fsdp", "tensor"))
    total = local = 0
    for name, sharding in params_sharding(shapes, mesh).items():
        total += math.prod(shapes[name].shape)
        local += math.prod(sharding.shard_shape(shapes[name].shape))
    # Norms, biases and small kernels, 1 % of the parameters, are on every device.
    assert 1 / 8 <= local / total < 1 / 8 + 0.01


def test_data_parallel_runs_keep_every_parameter_whole(shapes):
    mesh = AbstractMesh((8, 1, 1), ("data", "fsdp", "tensor"))
    for name, sharding in params_sharding(shapes, mesh).items():
        shape = shapes[name].shape
        assert sharding.shard_shape(shape) == shape, name


def test_a_batch_is_split_over_the_devices_that_do_not_share_an_example():
    assert batch_sharding(MESH).shard_shape((16, 8, 8, 3)) == (4, 8, 8, 3)
    assert replicated(MESH).shard_shape((16, 8)) == (16, 8)


_ON_8_DEVICES = """
import json, jax, numpy as np
from copymit.sharding import make_mesh, params_sharding, batch_sharding
mesh = make_mesh(data=2, fsdp=-1, tensor=2)
shapes = {
    "attn1.to_q.kernel": (256, 128),
    "conv1.kernel": (3, 3, 64, 128),
    "conv1.bias": (128,),
}
params = {k: np.arange(np.prod(v), dtype=np.float32).reshape(v)
          for k, v in shapes.items()}
placed = jax.device_put(params, params_sharding(params, mesh))
held = {k: [s.data.shape for s in v.addressable_shards] for k, v in placed.items()}
assert all((np.asarray(placed[k]) == params[k]).all() for k in params)
images = jax.device_put(np.arange(8), batch_sharding(mesh))
errors = {}
for sizes in [dict(data=3), dict(data=-1, fsdp=3), dict(data=-1, fsdp=16),
              dict(data=-1, fsdp=-1), dict(data=4), dict(data=0, fsdp=8),
              dict(data=-1, fsdp=0), dict(data=-2, fsdp=-4)]:
    try:
        make_mesh(**sizes)
        errors[json.dumps(sizes)] = None
    except ValueError as error:
        errors[json.dumps(sizes)] = str(error)
print(json.dumps({
    "mesh": dict(mesh.shape),
    "all_data": dict(make_mesh().shape),
    "held": held,
    "images": [s.data.tolist() for s in images.addressable_shards],
    "errors": errors,
}))
"""


@pytest.fixture(scope="module")
def on_8_devices(on_devices) -> dict:
    """What a process with 8 devices sees."""
    return on_devices(8, "-c", _ON_8_DEVICES)


def test_the_rest_of_the_devices_fills_the_axis_that_asks_for_it(on_8_devices):
    assert on_8_devices["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert on_8_devices["all_data"] == {"data": 8, "fsdp": 1, "tensor": 1}


def test_each_device_holds_its_part_of_real_arrays(on_8_devices):
    assert on_8_devices["held"] == {
        "attn1.to_q.kernel": [[128, 64]] * 8,
        "conv1.kernel": [[3, 3, 64, 64]] * 8,
        "conv1.bias": [[128]] * 8,
    }
    # Pairs of devices along `tensor` hold the same two images.
    assert on_8_devices["images"] == [[i, i + 1] for i in (0, 0, 2, 2, 4, 4, 6, 6)]


def test_a_mesh_that_does_not_fit_the_devices_is_refused(on_8_devices):
    for sizes, message in on_8_devices["errors"].items():
        assert message is not None, sizes
        assert "does not fit 8 devices" in message, sizes
        assert "one of them may be -1" in message, sizes


def test_a_mesh_of_one_device_works_and_its_error_names_the_sizes():
    mesh = make_mesh()
    assert mesh.devices.size == jax.device_count()
    with pytest.raises(ValueError, match=r"data=3, fsdp=5, tensor=1 does not fit"):
        make_mesh(data=3, fsdp=5)
    values = np.arange(8.0).reshape(4, 2)
    placed = jax.device_put(values, batch_sharding(mesh))
    np.testing.assert_array_equal(np.asarray(placed), values)
