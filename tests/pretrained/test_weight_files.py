"""Weights in files of every age and kind are found, opened and named as today."""

import json

import ml_dtypes
import numpy as np
import pytest
from etils import epath

from copymit.pretrained.load import load_network
from copymit.pretrained.source import open_source
from copymit.pretrained.weight_files import (
    current_name,
    find_weights,
    open_weight_file,
    open_weights,
)
from tests.pretrained.miniatures import abstract_of, make_pipeline

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


def load(folder, network, **options):
    source = open_source(str(folder))
    return load_network(source, network, abstract_of(source, network), **options)


def assert_same(loaded, expected, **tolerance):
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(loaded[name], value, err_msg=name, **tolerance)


@pytest.fixture
def expected(sd14):
    return {name: load(sd14, name) for name in ("vae", "text_encoder")}


def test_shards_are_read_through_their_index(copy, expected):
    (copy / "vae" / WEIGHTS).unlink()
    make_pipeline("1-4").vae.save_pretrained(copy / "vae", max_shard_size="300KB")
    assert len(list((copy / "vae").glob("*-of-*.safetensors"))) > 2
    assert_same(load(copy, "vae"), expected["vae"], rtol=0)


def test_half_precision_is_read_where_there_is_nothing_else(copy, expected):
    (copy / "vae" / WEIGHTS).rename(copy / "vae" / "kept")
    half = {k: v.half() for k, v in make_pipeline("1-4").vae.state_dict().items()}
    safetensors_torch.save_file(
        half, copy / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    )
    loaded = load(copy, "vae")
    assert_same(loaded, expected["vae"], rtol=2**-10, atol=1e-7)  # float16's grid
    assert loaded["encoder.conv_in.kernel"].dtype == np.float32
    (copy / "vae" / "kept").rename(copy / "vae" / WEIGHTS)
    assert_same(load(copy, "vae"), expected["vae"], rtol=0)
    kernel = load(copy, "vae", variant="fp16")["encoder.conv_in.kernel"]
    np.testing.assert_array_equal(kernel, loaded["encoder.conv_in.kernel"])


def test_pickles_are_read_where_there_is_nothing_else(copy, expected):
    pipeline = make_pipeline("1-4")
    for network, name in (
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "pytorch_model"),
    ):
        for path in (copy / network).glob("*.safetensors"):
            path.unlink()
        state = getattr(pipeline, network).state_dict()
        torch.save(state, copy / network / f"{name}.bin")
        assert_same(load(copy, network), expected[network], rtol=0)


def test_the_order_of_preference(copy):
    vae = copy / "vae"
    source = open_source(str(copy))
    names = [path.name for path in vae.glob("*.safetensors")]
    assert names == [WEIGHTS]
    stem = "diffusion_pytorch_model"
    order = [WEIGHTS, INDEX, f"{stem}.fp16.safetensors"]
    order += [f"{stem}.safetensors.index.fp16.json", f"{stem}.bin", f"{stem}.fp16.bin"]
    for name in order:
        (vae / name).touch()
    for name in order:
        assert find_weights(source, "vae", "vae/") == f"vae/{name}"
        (vae / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no weights of the vae: none of vae/d"
    ):
        find_weights(source, "vae", "vae/")


@pytest.mark.parametrize("convolutions", [False, True])
def test_old_names_of_the_vaes_attention_are_understood(copy, expected, convolutions):
    old = {}
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name, tensor in make_pipeline("1-4").vae.state_dict().items():
        for new, before in names.items():
            if f".{new}." in name:
                name = name.replace(new, before)
                if convolutions and name.endswith("weight"):
                    tensor = tensor[:, :, None, None]
        old[name] = tensor
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in old
    safetensors_torch.save_file(old, copy / "vae" / WEIGHTS)
    assert_same(load(copy, "vae"), expected["vae"], rtol=0)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_the_text_encoders_buffer_and_prefix_make_no_difference(copy, expected, prefix):
    state = {
        prefix + name.removeprefix("text_model."): tensor
        for name, tensor in make_pipeline("1-4").text_encoder.state_dict().items()
    }
    state[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    safetensors_torch.save_file(state, copy / "text_encoder" / "model.safetensors")
    assert_same(load(copy, "text_encoder"), expected["text_encoder"], rtol=0)


def test_names_of_today_stay():
    name = "encoder.mid_block.attentions.0.to_q.weight"
    assert current_name("vae", name) == name
    name = "down_blocks.0.attentions.0.query.weight"
    assert current_name("unet", name) == name


def test_two_names_of_one_tensor_are_refused(copy):
    state = make_pipeline("1-4").vae.state_dict()
    part = "encoder.mid_block.attentions.0"
    state[f"{part}.query.weight"] = state[f"{part}.to_q.weight"].clone()
    safetensors_torch.save_file(state, copy / "vae" / WEIGHTS)
    with pytest.raises(ValueError, match=r"has a second encoder\.mid_block\..*to_q"):
        load(copy, "vae")


@pytest.mark.parametrize(
    "file",
    [
        "../text_encoder/model.safetensors",
        "/etc/passwd",
        "..\\x.safetensors",
        "sub/x.safetensors",
        "x.safetensors\n",
        "x.txt",
        7,
    ],
)
def test_an_index_cannot_point_outside_of_its_folder(copy, file):
    (copy / "vae" / WEIGHTS).unlink()
    index = {"weight_map": {"encoder.conv_in.weight": file}}
    (copy / "vae" / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="which is not a weight file beside it"):
        load(copy, "vae")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": []}', "[" * 99_999]
)
def test_a_damaged_index_is_named(copy, content):
    (copy / "vae" / WEIGHTS).unlink()
    (copy / "vae" / INDEX).write_text(content)
    with pytest.raises(ValueError, match=r"safetensors\.index\.json"):
        load(copy, "vae")


def test_a_shard_that_is_not_there_is_named(copy):
    (copy / "vae" / WEIGHTS).unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (copy / "vae" / INDEX).write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"no vae/model-00001-of-00002\.safe"):
        load(copy, "vae")


def test_an_index_that_disagrees_with_its_shards_is_refused(copy):
    (copy / "vae" / WEIGHTS).rename(copy / "vae" / "a.safetensors")
    names = list(make_pipeline("1-4").vae.state_dict())
    index = {"weight_map": dict.fromkeys(["more", *names[1:]], "a.safetensors")}
    (copy / "vae" / INDEX).write_text(json.dumps(index))
    with (
        pytest.raises(ValueError, match=rf"disagree on {names[0]}, more: download"),
        open_weights(open_source(str(copy)), "vae", "vae/"),
    ):
        pass


def test_tensors_of_every_type_are_read_exactly_in_the_order_of_their_bytes(tmp_path):
    tensors = {
        "ids": torch.arange(6)[None],
        "half": torch.linspace(-3, 3, 7).half(),
        "brain": torch.linspace(-3, 3, 11).to(torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3.0),
        "flags": torch.tensor([True, False]),
    }
    path = epath.Path(tmp_path / "x.safetensors")
    safetensors_torch.save_file(tensors, path)
    with open_weight_file(path) as stored:
        read = {name: tensor.read() for name, tensor in stored.items()}
        assert {n: (t.shape, t.dtype) for n, t in stored.items()} == {
            n: (array.shape, array.dtype) for n, array in read.items()
        }
    assert next(iter(read)) == "ids"  # the widest type comes first in the file
    assert read.keys() == tensors.keys()
    assert read["brain"].dtype == ml_dtypes.bfloat16
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name].astype(float), tensor.double().numpy())


@pytest.mark.parametrize("kept", [0, 5, 8, 60, -1])
def test_a_truncated_file_is_named(tmp_path, kept):
    path = epath.Path(tmp_path / "model.safetensors")
    safetensors_torch.save_file({"a": torch.zeros(3)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    assert_refused(path, "truncated or not a safetensors file .* again")


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        (
            {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]},
            r"8 bits .F8",
        ),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, "header"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "header"),
        ({}, "header"),
    ],
)
def test_a_header_that_lies_is_one_error_that_names_the_file(tmp_path, header, fault):
    path = epath.Path(tmp_path / "model.safetensors")
    content = json.dumps({"a": header}).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(8))
    assert_refused(path, fault)


def assert_refused(path, fault):
    with (
        pytest.raises(ValueError, match=rf"model\.safetensors .*{fault}"),
        open_weight_file(path),
    ):
        pass
