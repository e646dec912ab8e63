"""PyTorch weight files are read exactly, and hostile or damaged ones are refused."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from copymit.models.torch_files import read_torch_tensors

FORMATS = {"zip": True, "stream": False}
DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


@pytest.fixture(params=FORMATS)
def save(request, tmp_path):
    """Writes an object with torch in each of the two formats and returns the path."""

    def write(saved):
        path = tmp_path / "weights.pth"
        torch.save(saved, path, _use_new_zipfile_serialization=FORMATS[request.param])
        return path

    return write


def assert_same(array, tensor):
    assert array.shape == tuple(tensor.shape)
    assert array.dtype.name == str(tensor.dtype).removeprefix("torch.")
    # float64 holds every value of the types above exactly, at these magnitudes.
    expected = tensor.detach().double().numpy()
    np.testing.assert_array_equal(array.astype(np.float64), expected)


def test_every_dtype_is_read_exactly(save):
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 50
    # An odd number of bytes first, so that later storages of a stream are misaligned.
    saved = {"odd": torch.ones(3, dtype=torch.int8)}
    saved |= {str(dtype): values.abs().to(dtype) for dtype in DTYPES}
    arrays = read_torch_tensors(save(saved))
    assert list(arrays) == list(saved)
    for name, tensor in saved.items():
        assert_same(arrays[name], tensor)
        assert arrays[name].flags.aligned


def test_views_parameters_scalars_and_empty_tensors_are_read(save):
    base = torch.arange(24.0).reshape(4, 6)
    saved = {
        "base": base,
        "transposed": base.t(),
        "window": base[1:3, 2:5],
        "every_second": base[:, ::2],
        "expanded": base[0, :1].expand(7),
        "parameter": torch.nn.Parameter(base * 2),
        "scalar": torch.tensor(5),
        "empty": torch.zeros(0, 3),
    }
    arrays = read_torch_tensors(save(saved))
    for name, tensor in saved.items():
        assert_same(arrays[name], tensor)
    assert np.shares_memory(arrays["base"], arrays["window"])
    with pytest.raises(ValueError, match="read-only"):
        arrays["base"][0, 0] = 1


@pytest.mark.parametrize("wrap", [lambda state: state, lambda s: {"state_dict": s}])
def test_the_state_dict_of_a_module_is_read_with_its_metadata(save, wrap):
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    state = module.state_dict()
    assert state._metadata
    arrays = read_torch_tensors(save(wrap(state)))
    assert list(arrays) == list(state)
    for name, tensor in state.items():
        assert_same(arrays[name], tensor)


class Command:
    """Runs a shell command wherever it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run(save, tmp_path):
    marker = tmp_path / "executed"
    path = save({"weight": torch.ones(2), "bomb": Command(f"touch {marker}")})
    with pytest.raises(ValueError, match=r"weights\.pth asks for (posix|nt)\.system"):
        read_torch_tensors(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file would not have run anything"


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (torch.nn.Linear(2, 2), r"asks for torch\.nn\.modules\.linear\.Linear"),
        ([torch.ones(2)], "holds a list where a mapping"),
        ({"epoch": 3, "state_dict": {}}, r"entry 'epoch' \(str\) is a int"),
        ({"model": {"weight": torch.ones(2)}}, r"entry 'model' \(str\) is a dict"),
        ({3: torch.ones(2)}, r"entry '3' \(int\) is a _Tensor"),
    ],
)
def test_anything_but_named_tensors_is_refused_with_a_way_out(save, saved, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_torch_tensors(save(saved))
    assert "weights.pth" in str(caught.value)
    assert "safetensors" in str(caught.value)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named(save, share):
    path = save({"a": torch.ones(100), "b": torch.ones(300)})
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(share * len(content)))])
    with pytest.raises(ValueError, match=r"weights\.pth is truncated or not a PyTorch"):
        read_torch_tensors(path)


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        read_torch_tensors(tmp_path / "none.pth")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match=r"empty\.pth is empty"):
        read_torch_tensors(tmp_path / "empty.pth")


class Forged:
    """A tensor with a shape of one's choice on a storage of four float32."""

    def __init__(self, offset, shape, strides):
        self.arguments = (Forged, offset, shape, strides, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class ForgingPickler(pickle.Pickler):
    size = 4

    def persistent_id(self, obj):
        if obj is Forged:
            return ("storage", torch.FloatStorage, "0", "cpu", self.size, None)
        return None


def write_stream(path, saved, size=4):
    with path.open("wb") as file:
        for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(header, file, protocol=2)
        pickler = ForgingPickler(file, protocol=2)
        pickler.size = size
        pickler.dump(saved)
        pickle.dump(["0"], file, protocol=2)
        file.write(struct.pack("<q", size) + np.arange(4, dtype="<f4").tobytes())
    return path


def test_a_forged_tensor_inside_its_storage_is_read(tmp_path):
    path = write_stream(tmp_path / "w.pth", {"x": Forged(1, (2, 2), (1, 1))})
    np.testing.assert_array_equal(read_torch_tensors(path)["x"], [[1, 2], [2, 3]])


@pytest.mark.parametrize(
    "view",
    [
        (1, (4,), (1,)),
        (0, (5,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (3, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, (-2,), (1,)),
        (0, (2.0,), (1,)),
        (2**70, (1,), (1,)),
        (0, (2**40,), (0,)),
        (0, (0, 2**70), (1, 1)),
        (0, (1,) * 65, (1,) * 65),
    ],
)
def test_a_view_beyond_its_storage_or_file_is_refused(tmp_path, view):
    path = write_stream(tmp_path / "w.pth", {"x": Forged(*view)})
    with pytest.raises(ValueError, match=r"w\.pth"):
        read_torch_tensors(path)


@pytest.mark.parametrize("size", [5, 2**40, 2**61, -4])
def test_a_storage_larger_than_its_file_is_refused(tmp_path, size):
    path = write_stream(tmp_path / "w.pth", {"x": Forged(0, (2,), (1,))}, size)
    with pytest.raises(ValueError, match=r"w\.pth is truncated or not"):
        read_torch_tensors(path)


def rewrite_zip(path, compression=zipfile.ZIP_STORED, **replaced):
    """Writes the archive anew with some of its entries replaced."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).split("/")[0]
    entries |= {f"{root}/{name}": data for name, data in replaced.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
        ({"byteorder": b"big"}, "big-endian"),
        ({"data/0": b"1234"}, "storage '0' has 4 bytes"),
        ({"other/data.pkl": b"N."}, "too many values"),
        # Asks the C unpickler for tens of gigabytes of memo before it stores a None.
        ({"data.pkl": b"Nr\xff\xff\xff\x7f."}, "holds a NoneType"),
        ({"data.pkl": b"N" * 1000}, "truncated"),
    ],
)
def test_a_zip_that_torch_would_not_write_is_refused(tmp_path, changes, message):
    path = tmp_path / "weights.pth"
    torch.save({"x": torch.arange(4.0)}, path)
    rewrite_zip(path)
    np.testing.assert_array_equal(read_torch_tensors(path)["x"], [0, 1, 2, 3])
    rewrite_zip(path, **changes)
    with pytest.raises(ValueError, match=message):
        read_torch_tensors(path)


class Shared(torch.nn.Module):
    """Attributes of every sort: a shared module, buffers, numbers, lists, text."""

    names: list[str]

    def __init__(self):
        super().__init__()
        self.trunk = torch.nn.Sequential(
            torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU()
        )
        self.again = self.trunk
        self.scale = torch.nn.Parameter(torch.rand(3, 1, 1).half())
        self.register_buffer("mean", torch.rand(6)[::2])
        self.sizes = [1, 2]
        self.names = ["a", "b"]
        self.power = 3.0
        self.label = "text"

    def forward(self, x):
        return self.again(self.trunk[0](x)[:, :2]) * self.scale * self.power


SCRIPTS = {
    "script": torch.jit.script,
    "trace": lambda module: torch.jit.trace(module, torch.zeros(1, 2, 9, 9)),
}


@pytest.mark.parametrize("compile_module", SCRIPTS.values(), ids=SCRIPTS)
def test_a_torchscript_archive_is_read_as_its_state_dict(compile_module, tmp_path):
    torch.manual_seed(0)
    module = Shared().eval()
    compile_module(module).save(str(tmp_path / "program.pt"))
    arrays = read_torch_tensors(tmp_path / "program.pt")
    state = module.state_dict()
    assert arrays.keys() == state.keys()
    for name, tensor in state.items():
        assert_same(arrays[name], tensor)


def test_a_frozen_torchscript_program_is_refused_with_a_way_out(tmp_path):
    module = torch.jit.freeze(torch.jit.script(torch.nn.Conv2d(2, 3, 3).eval()))
    module.save(str(tmp_path / "frozen.pt"))
    with pytest.raises(ValueError, match=r"frozen\.pt is a TorchScript .*safetensors"):
        read_torch_tensors(tmp_path / "frozen.pt")


def script_pickle(attributes):
    """A module of a TorchScript archive; `attributes` is the pickle of its state."""
    return b"\x80\x02c__torch__.m\nModule\n)\x81q\x01" + attributes + b"b."


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (b"}X\x01\x00\x00\x00ah\x01s", "modules inside modules without end"),
        (b"}X\x01\x00\x00\x00acos\nsystem\n(X\x02\x00\x00\x00lstRs", r"os\.system"),
        (b"}X\x01\x00\x00\x00ac__torch__\nsystem\n)Rs", r"asks for __torch__\.system"),
        (
            b"}X\x01\x00\x00\x00actorch._utils\n_rebuild_qtensor\n)Rs",
            "_rebuild_qtensor",
        ),
        (b"]", "attributes are a list"),
        (b"}K\x01K\x01s", "attributes are a dict"),
        (b"}", "TorchScript program whose modules hold no tensors"),
    ],
)
def test_a_hostile_torchscript_archive_is_refused(tmp_path, attributes, message):
    path = tmp_path / "program.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    rewrite_zip(path)
    assert read_torch_tensors(path).keys() == {"weight", "bias"}
    rewrite_zip(path, **{"data.pkl": script_pickle(attributes)})
    with pytest.raises(ValueError, match=message) as caught:
        read_torch_tensors(path)
    assert "program.pt" in str(caught.value)


def test_modules_that_branch_into_each_other_are_refused_in_time(tmp_path):
    # 60 modules, each twice inside the next: 2**60 paths in 2 kB.
    content = b"\x80\x02c__torch__.m\nM\nq\xff0"
    for i in range(60):
        inner = b"h" + bytes([i - 1]) if i else b"K\x00"
        pairs = b"".join(b"X\x01\x00\x00\x00" + name + inner for name in (b"a", b"b"))
        content += b"h\xff)\x81}(" + pairs + b"ubq" + bytes([i]) + b"0"
    path = tmp_path / "program.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    rewrite_zip(path, **{"data.pkl": content + b"h\x3b."})
    with pytest.raises(ValueError, match="modules inside modules without end"):
        read_torch_tensors(path)


@pytest.mark.parametrize("name", ["data.pkl", "data/0"])
def test_a_compressed_torchscript_archive_is_refused(tmp_path, name):
    path = tmp_path / "program.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries.items():
            compressed = entry.endswith(f"/{name}")
            kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
            archive.writestr(entry, data, kind)
    with pytest.raises(ValueError, match=f"program/{name}' is compressed"):
        read_torch_tensors(path)


def test_a_tar_of_the_first_pytorch_versions_is_refused(tmp_path):
    path = tmp_path / "old.pth"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    with pytest.raises(ValueError, match=r"old\.pth is a tar archive"):
        read_torch_tensors(path)


def test_a_file_of_another_kind_is_named(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(300))
    with pytest.raises(ValueError, match=r"picture\.png is truncated or not"):
        read_torch_tensors(path)
