"""Reads tensors out of PyTorch weight files without torch and without running them.

In: a file that `torch.save` wrote, zip (torch >= 1.6) or the older stream format, or a
TorchScript archive. Out: a flat mapping from parameter name to numpy array.

A PyTorch file holds a pickle, and a pickle is a program. Here it may call nothing but
the functions named in `_WeightsUnpickler`, which only write down what they were asked
for; arrays are made afterwards, once every size has been checked against the file. The
modules of a TorchScript archive become records of their attributes; its code is not read.
"""

import io
import math
import mmap
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_STORAGE_DTYPES = {
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "BoolStorage": np.dtype(np.bool_),
    "ByteStorage": np.dtype(np.uint8),
    "CharStorage": np.dtype(np.int8),
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "IntStorage": np.dtype("<i4"),
    "LongStorage": np.dtype("<i8"),
    "ShortStorage": np.dtype("<i2"),
}
_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_VERSION = 1001
_WAY_OUT = (
    "Where the file was made, run `safetensors.torch.save_file(model.state_dict(), "
    "'weights.safetensors')` and use that file"
)
_MAX_DIMS = 64  # numpy's own limit
# What `torch.jit` wraps attributes in that are not tensors.
_SCRIPT_WRAPPERS = (
    *(f"build_{kind}list" for kind in ("bool", "double", "int", "tensor")),
    "restore_type_tag",
)
# Modules of a TorchScript archive may be shared or contain each other, so that few bytes
# stand for any number of paths.
_MAX_SCRIPT_MODULES = 100_000
_MAX_NAME_LENGTH = 500


class _Refused(ValueError):
    """What the pickle asked for is not on the list."""


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int  # elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # elements, as the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a saved state dict: name to array, in the file's order and dtypes.

    Accepts a mapping from names to tensors, such a mapping as the only entry
    `state_dict` of another, or a TorchScript module, whose tensors are named by the path
    of attributes as in its state dict. The arrays are read-only; tensors that share
    memory in the file, or are laid out with other strides, do so here too.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, holds anything but tensors, or is of a kind that
        is not read (archives of torch < 0.4, frozen TorchScript, big-endian).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No PyTorch weight file at {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: download or copy it again")
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if content[257:262] == b"ustar":
        raise ValueError(f"{path} is a tar archive of PyTorch < 0.4. {_WAY_OUT}")
    try:
        if content[:4] == b"PK\x03\x04":
            saved, storages = _read_zip(path, content)
        else:
            saved, storages = _read_stream(path, content)
    except _Refused:
        raise
    # A damaged pickle may raise anything, IndexError and MemoryError included.
    except Exception as error:
        raise ValueError(
            f"{path} is truncated or not a PyTorch weight file "
            f"({type(error).__name__}: {error}): download or copy it again"
        ) from error
    arrays = {}
    for name, tensor in _named_tensors(path, saved).items():
        try:
            arrays[name] = _view(tensor, storages[tensor.storage.key], len(content))
        except ValueError as error:
            raise ValueError(f"{path}: tensor {name!r} {error}. {_WAY_OUT}") from error
    return arrays


class _Entries(dict):
    """Stands for the OrderedDict of a state dict, whose attributes are not needed."""

    def __setstate__(self, _attributes: Any) -> None:
        pass


class _ScriptModule:
    """Stands for an object of a TorchScript class: its attributes, inert."""

    attributes: Mapping[str, Any] = {}

    def __setstate__(self, attributes: Any) -> None:
        if not isinstance(attributes, dict) or not all(
            isinstance(name, str) for name in attributes
        ):
            raise ValueError(f"a module's attributes are a {type(attributes).__name__}")
        self.attributes = attributes


# The Python class, not the C one: its memo is a dictionary, so a file cannot make it
# reserve memory by asking for a huge memo index.
class _WeightsUnpickler(pickle._Unpickler):
    """Unpickles records of tensors, and refuses every global that is not listed."""

    def __init__(self, file: Any, path: Path):
        super().__init__(file, encoding="utf-8")
        self.file = file
        self.path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        # A pickle can set attributes on what it is handed, functions included: they are
        # new for every call, so that nothing outlives the file.
        def rebuild_tensor(storage, offset, shape, strides, *_unused):
            return _checked_tensor(storage, offset, shape, strides)

        def rebuild_parameter(tensor, *_unused):
            return tensor

        def unwrap(attribute, *_unused):
            return attribute

        allowed = {
            "collections.OrderedDict": _Entries,
            "torch._utils._rebuild_parameter": rebuild_parameter,
            "torch._utils._rebuild_tensor_v2": rebuild_tensor,
        }
        allowed |= {f"torch.{storage}": storage for storage in _STORAGE_DTYPES}
        allowed |= {f"torch.jit._pickle.{name}": unwrap for name in _SCRIPT_WRAPPERS}
        if module.startswith("__torch__."):
            return _ScriptModule
        if f"{module}.{name}" not in allowed:
            if not self.file.read(1):
                raise EOFError("it ends within a name")
            raise _Refused(
                f"{self.path} asks for {module}.{name}, which is not a plain tensor; "
                f"nothing was executed. {_WAY_OUT}"
            )
        return allowed[f"{module}.{name}"]

    def persistent_load(self, saved_id: Any) -> _Storage:
        kind, storage_type, key, _device, size, *view = saved_id
        if kind != "storage" or storage_type not in _STORAGE_DTYPES or any(view):
            raise _Refused(f"{self.path} holds more than plain tensors. {_WAY_OUT}")
        storage = _Storage(str(key), _STORAGE_DTYPES[storage_type], _natural(size))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {storage.key!r} is described in two ways")
        return storage


def _read_zip(path: Path, content: mmap.mmap) -> tuple[Any, dict[str, np.ndarray]]:
    """Reads `ROOT/data.pkl` and the storages `ROOT/data/KEY` of a zip file."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    (root,) = (
        name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")
    )

    def locate(name: str) -> tuple[int, int]:
        entry = entries[name]
        # torch.save never compresses: a compressed entry could be a zip bomb.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _Refused(f"{path}: entry {name!r} is compressed. {_WAY_OUT}")
        # The local header may be padded to align the data: read its own lengths.
        name_length, extra_length = struct.unpack_from(
            "<HH", content, entry.header_offset + 26
        )
        return entry.header_offset + 30 + name_length + extra_length, entry.file_size

    if f"{root}/byteorder" in entries:
        start, size = locate(f"{root}/byteorder")
        if content[start : start + size] != b"little":
            raise _Refused(f"{path} has big-endian numbers. {_WAY_OUT}")
    start, size = locate(f"{root}/data.pkl")
    unpickler = _WeightsUnpickler(io.BytesIO(content[start : start + size]), path)
    saved = unpickler.load()
    places = {}
    for key, storage in unpickler.storages.items():
        places[key], stored_bytes = locate(f"{root}/data/{key}")
        if stored_bytes != storage.size * storage.dtype.itemsize:
            raise ValueError(f"storage {key!r} has {stored_bytes} bytes: {storage}")
    return saved, _read_storages(content, unpickler.storages, places)


def _read_stream(path: Path, content: mmap.mmap) -> tuple[Any, dict[str, np.ndarray]]:
    """Reads the format before torch 1.6: five pickles in a row, then the storages."""

    def load() -> Any:
        return _WeightsUnpickler(content, path).load()

    if load() != _STREAM_MAGIC:
        raise ValueError("it does not begin with PyTorch's magic number")
    if (version := load()) != _STREAM_VERSION:
        raise ValueError(f"stream version {version}, not {_STREAM_VERSION}")
    if not load()["little_endian"]:
        raise _Refused(f"{path} has big-endian numbers. {_WAY_OUT}")
    unpickler = _WeightsUnpickler(content, path)
    saved = unpickler.load()
    keys, places = load(), {}
    position = content.tell()
    for key in keys:
        storage = unpickler.storages[key]
        (size,) = struct.unpack_from("<q", content, position)
        if size != storage.size:
            raise ValueError(f"storage {key!r} has {size} elements: {storage}")
        places[key] = position + 8
        position += 8 + size * storage.dtype.itemsize
    return saved, _read_storages(content, unpickler.storages, places)


def _read_storages(
    content: mmap.mmap, storages: Mapping[str, _Storage], places: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Maps each storage's bytes in the file as a flat array."""
    total = sum(storage.size * storage.dtype.itemsize for storage in storages.values())
    if total > len(content):
        raise ValueError(f"{total} bytes of tensors in {len(content)} bytes of file")
    arrays = {}
    for key, storage in storages.items():
        # numpy reads misaligned numbers slowly, and ml_dtypes' not everywhere.
        aligned = places[key] % storage.dtype.itemsize == 0
        array = np.frombuffer(content, storage.dtype, storage.size, places[key])
        arrays[key] = array if aligned else array.copy()
    return arrays


def _named_tensors(path: Path, saved: Any) -> dict[str, _Tensor]:
    """Returns what was saved as a flat mapping from names to tensors, if it is one."""
    if isinstance(saved, _ScriptModule):
        return _script_tensors(path, saved)
    if isinstance(saved, dict) and list(saved) == ["state_dict"]:
        saved = saved["state_dict"]
    if not isinstance(saved, dict):
        raise ValueError(
            f"{path} holds a {type(saved).__name__} where a mapping from names to "
            f"tensors is needed. {_WAY_OUT}"
        )
    for name, value in saved.items():
        if not (isinstance(name, str) and isinstance(value, _Tensor)):
            raise ValueError(
                f"{path}: entry {str(name)[:100]!r} ({type(name).__name__}) is a "
                f"{type(value).__name__}; only tensors under text names are read. "
                f"{_WAY_OUT}"
            )
    return saved


def _script_tensors(path: Path, saved: _ScriptModule) -> dict[str, _Tensor]:
    """Finds the tensors of a module and, depth first, of the modules inside it."""
    tensors, visited = {}, 0
    waiting = [("", saved)]
    while waiting:
        owner, module = waiting.pop()
        visited += 1
        if visited > _MAX_SCRIPT_MODULES or len(owner) > _MAX_NAME_LENGTH:
            raise ValueError(f"{path} has modules inside modules without end")
        inner = []
        for name, value in module.attributes.items():
            if isinstance(value, _ScriptModule):
                inner.append((f"{owner}{name}.", value))
            elif isinstance(value, _Tensor):
                tensors[owner + name] = value
        waiting.extend(reversed(inner))
    if not tensors:
        raise ValueError(
            f"{path} is a TorchScript program whose modules hold no tensors: a frozen "
            f"one keeps them in its code, which is not read. {_WAY_OUT}"
        )
    return tensors


def _checked_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    """Records a tensor whose every element lies inside its storage."""
    if not isinstance(storage, _Storage):
        raise ValueError(f"a tensor without a storage, but {type(storage).__name__}")
    shape, strides = tuple(map(_natural, shape)), tuple(map(_natural, strides))
    last = _natural(offset)
    if len(shape) != len(strides) or len(shape) > _MAX_DIMS:
        raise ValueError(f"a tensor of shape {shape} with strides {strides}")
    last += sum((dim - 1) * stride for dim, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise ValueError(f"a tensor of shape {shape} reaches beyond its {storage}")
    return _Tensor(storage, offset, shape, strides)


def _natural(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"a {type(number).__name__} where a size is needed")
    return number


def _view(tensor: _Tensor, storage: np.ndarray, file_bytes: int) -> np.ndarray:
    """Returns the tensor as a view of its (already checked) storage."""
    if 0 in tensor.shape:
        return np.empty(tensor.shape, storage.dtype)
    # Stride 0 repeats elements: a few bytes of file can stand for any amount of memory.
    if math.prod(tensor.shape) * storage.itemsize > file_bytes:
        raise ValueError(f"of shape {tensor.shape} is larger than its file")
    return np.lib.stride_tricks.as_strided(
        storage[tensor.offset :],
        tensor.shape,
        [stride * storage.itemsize for stride in tensor.strides],
        writeable=False,
    )
