"""The safetensors library reads what is written."""

import ml_dtypes
import numpy as np
import pytest

from copymit.pretrained.safetensors_format import write_tensors


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
