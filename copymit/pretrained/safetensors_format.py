"""The safetensors format, one tensor at a time: files in, arrays out, and back.

A file is the length of a header, the header (JSON: where each tensor lies, its type and
shape) and the bytes. Reading by position rather than through a memory map, as the
safetensors library does, keeps one tensor in memory and not the file, and does so in a
bucket too.
"""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

_DTYPES = {
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
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_MAX_DIMS = 64  # numpy's own limit


class TensorPlace(NamedTuple):
    """Where a tensor lies in its file; `start` in bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: epath.Path) -> dict[str, TensorPlace]:
    """Reads what a file holds, in the order of its bytes.

    Raises:
      ValueError: the file is truncated, damaged or of another format.
    """
    file_size = path.stat().length
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, file_size - 8):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        return _places(header, start=8 + length, end=file_size)
    # What a damaged header lacks may show as any of these.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}): download or "
            "copy it again"
        ) from error


def read_tensor(file: IO[bytes], place: TensorPlace) -> np.ndarray:
    """Reads one tensor of an open file; the array is read-only."""
    file.seek(place.start)
    content = file.read(place.size)
    if len(content) != place.size:
        raise ValueError(
            f"{getattr(file, 'name', file)} ends within a tensor: it was changed while "
            "it was being read"
        )
    return np.frombuffer(content, place.dtype).reshape(place.shape)


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


def _places(header: Any, start: int, end: int) -> dict[str, TensorPlace]:
    """Checks that the tensors cover the file from `start` to `end`, each byte once."""
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    ordered = sorted(entries.items(), key=lambda item: tuple(item[1]["data_offsets"]))
    places = {}
    position = start
    for name, entry in ordered:
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name} has the type {str(entry['dtype'])[:20]!r}")
        shape = tuple(entry["shape"])
        if len(shape) > _MAX_DIMS or any(type(d) is not int or d < 0 for d in shape):
            raise ValueError(f"{name} has a shape that cannot be")
        place = TensorPlace(_DTYPES[entry["dtype"]], shape, position)
        offsets = [position - start, position - start + place.size]
        if entry["data_offsets"] != offsets:
            raise ValueError(f"{name} is not at {offsets}")
        places[name] = place
        position += place.size
    if position != end:
        raise ValueError(f"{end} bytes, tensors that end at {position}")
    return places
