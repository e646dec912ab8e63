"""Writes safetensors files one tensor at a time, on disk or in a bucket.

The safetensors library reads (copymit/pretrained/weight_files.py). Its writers take all
tensors of a file at once and a path on disk; this one asks for each when its turn has
come, so that memory holds one tensor, and writes to whatever file it is given.

A file is the length of a header, the header (JSON: where each tensor lies, its type and
shape) and the bytes.
"""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype(np.bool_),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_tensors(
    file: IO[bytes],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    tensors: Iterable[np.ndarray],
) -> None:
    """Writes tensors of one type, asking for each when its turn has come.

    Args:
      shapes: of every tensor, in the order in which `tensors` yields them.
    """
    sizes = [math.prod(shape) * dtype.itemsize for shape in shapes.values()]
    ends = list(itertools.accumulate(sizes))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # readers insist on it
    for (name, shape), size, end in zip(shapes.items(), sizes, ends, strict=True):
        header[name] = {
            "dtype": _DTYPE_NAMES[dtype],
            "shape": shape,
            "data_offsets": [end - size, end],
        }
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)  # tensors are aligned
    file.write(len(content).to_bytes(8, "little") + content)
    for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
        if (tensor.shape, tensor.dtype) != (shape, dtype):
            raise ValueError(
                f"{name} is {tensor.dtype} {tensor.shape}, announced {dtype} {shape}"
            )
        file.write(np.ascontiguousarray(tensor).view(np.uint8).data)
