"""The format: files of the safetensors library are read, and it reads ours."""

import json

import ml_dtypes
import numpy as np
import pytest
from etils import epath

from copymit.pretrained.safetensors_format import (
    read_header,
    read_tensor,
    write_tensors,
)

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def read_all(path) -> dict[str, np.ndarray]:
    path = epath.Path(path)
    with path.open("rb") as file:
        return {k: read_tensor(file, place) for k, place in read_header(path).items()}


def write_raw(path, header, data: bytes):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)
    return epath.Path(path)


@pytest.fixture
def tensors(rng):
    return {
        "weight": rng.normal(size=(3, 2, 1, 5)).astype(np.float32),
        "half": rng.normal(size=(7,)).astype(np.float16),
        "double": rng.normal(size=(2, 2)),
        "ids": np.arange(6)[None],
        "flags": np.array([True, False]),
        "scalar": np.array(3.0, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }


def test_files_of_the_library_are_read_exactly(tensors, tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    library.save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    read = read_all(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype, name
        np.testing.assert_array_equal(read[name], tensor, err_msg=name)


def test_bfloat16_of_torch_is_read_exactly(tmp_path):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    values = torch.linspace(-3, 3, 11).to(torch.bfloat16)
    library.save_file({"x": values}, tmp_path / "x.safetensors")
    read = read_all(tmp_path / "x.safetensors")["x"]
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read.astype(np.float32), values.float().numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_library_reads_what_is_written(tmp_path, rng, dtype):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    tensors = {f"t{i}": rng.normal(size=(i, 3)).astype(dtype) for i in range(4)}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        write_tensors(file, shapes, dtype, iter(tensors.values()))
    read = library.load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == getattr(torch, dtype.name)
        np.testing.assert_array_equal(
            read[name].float().numpy(), tensor.astype(np.float32)
        )
    with pytest.importorskip("safetensors").safe_open(path, "np") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_an_unannounced_shape_is_not_written(tmp_path):
    with (
        (tmp_path / "x").open("wb") as file,
        pytest.raises(
            ValueError, match=r"a is float32 \(3,\), announced float32 \(2,\)"
        ),
    ):
        write_tensors(
            file, {"a": (2,)}, np.dtype(np.float32), [np.zeros(3, np.float32)]
        )


@pytest.mark.parametrize("kept", [0, 5, 8, 60, -1])
def test_a_truncated_file_is_named(tmp_path, kept):
    path = write_raw(tmp_path / "model.safetensors", {"a": ENTRY}, bytes(8))
    content = path.read_bytes()
    path.write_bytes(content[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated .* again"):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ({"a": ENTRY | {"shape": [3]}}, "a is not at"),
        ({"a": ENTRY | {"shape": [-1, -2]}}, "shape"),
        ({"a": ENTRY | {"shape": [2.0]}}, "shape"),
        ({"a": ENTRY | {"shape": [1] * 65}}, "shape"),
        ({"a": ENTRY | {"shape": [2**40, 2**40]}}, "a is not at"),
        ({"a": ENTRY | {"dtype": "F8_E4M3"}}, "F8_E4M3"),
        ({"a": ENTRY | {"dtype": ["F32"]}}, ""),
        ({"a": ENTRY | {"data_offsets": [4, 12]}}, "a is not at"),
        ({"a": ENTRY | {"data_offsets": [-8, 0]}}, "a is not at"),
        ({"a": ENTRY | {"data_offsets": "08"}}, "a is not at"),
        ({"a": ENTRY, "b": ENTRY}, "b is not at"),
        ({"a": ENTRY | {"shape": [1], "data_offsets": [0, 4]}}, "end at"),
        ({"a": {}}, ""),
        ({"a": 1}, ""),
        ([ENTRY], ""),
        (b"{" * 100_000, ""),
        (b"\xff\xfe", ""),
    ],
)
def test_a_damaged_header_is_one_error_that_names_the_file(tmp_path, header, fault):
    path = write_raw(tmp_path / "model.safetensors", header, bytes(8))
    with pytest.raises(
        ValueError, match=r"model\.safetensors is truncated or not"
    ) as e:
        read_header(path)
    assert fault in str(e.value)


def test_a_header_longer_than_the_file_is_not_read_into_memory(tmp_path):
    path = epath.Path(tmp_path / "model.safetensors")
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="a header of 4611686018427387904 bytes"):
        read_header(path)
