"""Reads weights out of quantised ONNX files; nothing of their graph is run.

In: a file whose weights are stored as integers with a `DequantizeLinear` node each, as
ONNX Runtime's static quantisation writes them. Out: float32 weights and biases by the
names that modules had in PyTorch.
"""

from pathlib import Path
from typing import Any

import numpy as np

_MAX_FILE_BYTES = 2**28
_LAYERS = ("Conv", "Gemm")
# Of DequantizeLinear, where a file does not say.
_DEFAULT_AXIS = 1


def read_onnx_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Reads weight and bias of every convolution and dense layer, dequantised.

    Nodes are named by the exporter of PyTorch, as in `/trunk/0/Conv`: the tensors are
    `trunk.0.weight` (out, in, *window) and `trunk.0.bias` (out).

    Raises:
      FileNotFoundError: no file at `path`.
      ImportError: the package onnx is not installed.
      ValueError: the file is no such ONNX file; says why.
    """
    # Of the extra `sscd`; it adds 0.1 s to the imports.
    import onnx
    from google.protobuf.message import DecodeError

    if Path(path).stat().st_size > _MAX_FILE_BYTES:
        raise ValueError(f"{path} has more than {_MAX_FILE_BYTES} bytes")
    try:
        # Names of further files are never followed.
        graph = onnx.load_model(path, load_external_data=False).graph
        stored = {tensor.name: tensor for tensor in graph.initializer}
        scaled = {
            node.output[0]: node
            for node in graph.node
            if node.op_type == "DequantizeLinear"
        }
        weights: dict[str, np.ndarray] = {}
        for node in graph.node:
            if node.op_type not in _LAYERS:
                continue
            owner = node.name.strip("/").rpartition("/")[0].replace("/", ".")
            for leaf, name in zip(("weight", "bias"), node.input[1:], strict=True):
                if f"{owner}.{leaf}" in weights:
                    raise ValueError(f"two layers are called {owner}")
                weights[f"{owner}.{leaf}"] = (
                    _dequantise(scaled[name], stored)
                    if name in scaled
                    else _values(name, stored)
                )
        if not weights:
            raise ValueError("it has no layers")
    except (DecodeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is no quantised ONNX file: {error}") from error
    return weights


def _dequantise(node: Any, stored: dict[str, Any]) -> np.ndarray:
    """Computes `(integers - zero) * scale`, with a scale for each output channel or one."""
    integers, scale, *rest = (_values(name, stored) for name in node.input)
    zero = rest[0] if rest else np.zeros_like(scale)
    axis = next((a.i for a in node.attribute if a.name == "axis"), _DEFAULT_AXIS)
    if scale.ndim:
        shape = [1] * integers.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    # Integers of 32 bits minus their zero are exact in float64 alone.
    return ((integers.astype(np.float64) - zero) * scale).astype(np.float32)


def _values(name: str, stored: dict[str, Any]) -> np.ndarray:
    from onnx import TensorProto, numpy_helper

    tensor = stored.get(name)
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
        raise ValueError(f"{name!r} is not stored in it")
    return numpy_helper.to_array(tensor)
