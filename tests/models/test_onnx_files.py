"""Weights of quantised ONNX files: the numbers that ONNX means, and clear refusals."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from copymit.models.onnx_files import read_onnx_weights

WEIGHT = np.arange(-12, 12, dtype=np.int8).reshape(2, 3, 2, 2)
SCALE, ZERO = np.array([0.5, 0.25], np.float32), np.array([0, 3], np.int8)
BIAS = np.array([2**31 - 1, -7], np.int32)
BIAS_SCALE, BIAS_ZERO = np.array(0.125, np.float32), np.array(0, np.int32)
DENSE = np.array([[1.5, -2.0]], np.float32)


def write_model(path, more_nodes=(), leave_out=(), axis=(("axis", 0),)):
    """Writes a convolution, stored as integers, and a dense layer, as it is."""
    tensors = {
        "w": WEIGHT,
        "w_scale": SCALE,
        "w_zero": ZERO,
        "b": BIAS,
        "b_scale": BIAS_SCALE,
        "b_zero": BIAS_ZERO,
        "dense": DENSE,
        "dense_bias": np.zeros(1, np.float32),
    }
    node = helper.make_node
    names = [f"{kind}{part}" for kind in "wb" for part in ("", "_scale", "_zero")]
    nodes = [
        node("DequantizeLinear", names[:3], ["W"], "q1", **dict(axis)),
        node("DequantizeLinear", names[3:], ["B"], "q2"),
        node("Conv", ["x", "W", "B"], ["y"], "/trunk/block0-0/conv/0/Conv"),
        node("Relu", ["y"], ["z"], "/trunk/relu/Relu"),
        node("Gemm", ["z", "dense", "dense_bias"], ["e"], "/head/1/Gemm", transB=1),
        *more_nodes,
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(t, n)
            for n, t in tensors.items()
            if n not in leave_out
        ],
    )
    onnx.save(helper.make_model(graph), path)
    return path


def test_integers_become_what_dequantize_linear_defines(tmp_path):
    weights = read_onnx_weights(write_model(tmp_path / "w.onnx"))
    assert list(weights) == [
        "trunk.block0-0.conv.0.weight",
        "trunk.block0-0.conv.0.bias",
        "head.1.weight",
        "head.1.bias",
    ]
    kernel, bias, dense, _ = weights.values()
    np.testing.assert_array_equal(kernel[0], WEIGHT[0] * 0.5)
    np.testing.assert_array_equal(kernel[1], (WEIGHT[1] - 3.0) * 0.25)
    # In float32 the integer would be rounded before its zero and scale are used.
    np.testing.assert_array_equal(bias, (BIAS.astype(float) * 0.125).astype("f4"))
    np.testing.assert_array_equal(dense, DENSE)
    assert {array.dtype for array in weights.values()} == {np.dtype("f4")}


def test_the_axis_of_the_scales_is_the_files(tmp_path):
    path = write_model(tmp_path / "w.onnx", axis=(("axis", 2),))
    kernel = read_onnx_weights(path)["trunk.block0-0.conv.0.weight"]
    np.testing.assert_array_equal(kernel[:, :, 0], WEIGHT[:, :, 0] * 0.5)
    np.testing.assert_array_equal(kernel[:, :, 1], (WEIGHT[:, :, 1] - 3.0) * 0.25)


@pytest.mark.parametrize("missing", ["w", "w_scale", "dense_bias"])
def test_a_tensor_that_is_not_in_the_file_is_named(missing, tmp_path):
    path = write_model(tmp_path / "w.onnx", leave_out=[missing])
    with pytest.raises(ValueError, match=rf"w\.onnx .*'{missing}' is not stored"):
        read_onnx_weights(path)


def test_tensors_in_other_files_are_not_fetched(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(8))
    model = onnx.load(write_model(tmp_path / "w.onnx"))
    dense = next(t for t in model.graph.initializer if t.name == "dense")
    dense.ClearField("raw_data")
    dense.data_location = TensorProto.EXTERNAL
    dense.external_data.add(key="location", value="secret")
    (tmp_path / "w.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="'dense' is not stored"):
        read_onnx_weights(tmp_path / "w.onnx")


def test_two_layers_of_one_name_are_refused(tmp_path):
    again = helper.make_node(
        "Conv", ["x", "W", "B"], ["v"], "/trunk/block0-0/conv/0/Conv"
    )
    path = write_model(tmp_path / "w.onnx", more_nodes=[again])
    with pytest.raises(
        ValueError, match=r"two layers are called trunk\.block0-0\.conv"
    ):
        read_onnx_weights(path)


def test_a_layer_without_a_bias_is_refused(tmp_path):
    bare = helper.make_node("Conv", ["x", "W"], ["v"], "/bare/Conv")
    with pytest.raises(ValueError, match=r"w\.onnx is no quantised ONNX file"):
        read_onnx_weights(write_model(tmp_path / "w.onnx", more_nodes=[bare]))


@pytest.mark.parametrize(
    "data",
    [b"", b"not protobuf at all", b"\x08\x08" * 50],
    ids=["empty", "text", "no graph"],
)
def test_other_files_are_refused(data, tmp_path):
    (tmp_path / "w.onnx").write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.onnx is no quantised ONNX file"):
        read_onnx_weights(tmp_path / "w.onnx")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        read_onnx_weights(tmp_path / "none.onnx")


def test_a_file_that_promises_more_values_than_it_holds_is_refused(tmp_path):
    model = onnx.load(write_model(tmp_path / "w.onnx"))
    weight = next(t for t in model.graph.initializer if t.name == "w")
    weight.dims[0] = 10**12
    (tmp_path / "w.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"w\.onnx is no quantised ONNX file"):
        read_onnx_weights(tmp_path / "w.onnx")
