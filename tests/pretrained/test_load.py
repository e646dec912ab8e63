"""Strictness, types and shardings of what is loaded; faults found before anything is."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from copymit.pretrained import load as load_module
from copymit.pretrained.load import load_network
from copymit.pretrained.settings import with_pretrained_settings
from copymit.pretrained.source import open_source
from tests.pretrained.miniatures import abstract_of, make_pipeline

safetensors_torch = pytest.importorskip("safetensors.torch")

WEIGHTS = "diffusion_pytorch_model.safetensors"
NAME = "decoder.conv_out.weight"


def damage(folder, change):
    state = dict(make_pipeline("1-4").vae.state_dict())
    change(state)
    safetensors_torch.save_file(state, folder / "vae" / WEIGHTS)


def drop(state):
    del state[NAME]


def add(state):
    state["decoder.conv_out.gate"] = state["decoder.conv_out.bias"].clone()


def misshape(state):
    state[NAME] = state[NAME][:, :, :1].contiguous()


def round_off(state):
    state[NAME] = state[NAME].int()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, rf"1 tensors do not fit the vae of .*copy: missing {NAME}\."),
        (add, r"unused decoder\.conv_out\.gate"),
        (
            misshape,
            r"conv_out\.weight has shape \(3, 32, 1, 3\), needs \(3, 32, 3, 3\)",
        ),
        (round_off, rf"{NAME} of the vae of .*copy is int32, not floating point"),
    ],
)
def test_a_fault_is_named_before_anything_is_loaded(copy, monkeypatch, change, message):
    damage(copy, change)
    monkeypatch.setattr(load_module, "_place", None)  # whatever would be loaded fails
    source = open_source(str(copy))
    with pytest.raises(ValueError, match=message):
        load_network(source, "vae", abstract_of(source, "vae"))


def test_weights_of_another_network_do_not_fit(copy):
    (copy / "vae" / WEIGHTS).write_bytes((copy / "unet" / WEIGHTS).read_bytes())
    source = open_source(str(copy))
    with pytest.raises(
        ValueError, match=r"do not fit the vae .*missing .* and \d+ more"
    ):
        load_network(source, "vae", abstract_of(source, "vae"))


def test_a_truncated_file_is_named(copy):
    path = copy / "vae" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    source = open_source(str(copy))
    with pytest.raises(ValueError, match=rf"vae/{WEIGHTS} is truncated"):
        load_network(source, "vae", abstract_of(source, "vae"))


def test_parameters_have_the_types_and_order_that_were_asked_for(sd14):
    source = open_source(str(sd14))
    abstract = abstract_of(source, "text_encoder")
    half = {
        name: jax.ShapeDtypeStruct(value.shape, jnp.bfloat16)
        for name, value in reversed(abstract.items())
    }
    exact = load_network(source, "text_encoder", abstract)
    loaded = load_network(source, "text_encoder", half)
    assert list(loaded) == list(half)
    for name, value in loaded.items():
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(value, exact[name].astype(jnp.bfloat16))


def test_loaded_parameters_are_not_memory_of_the_file(copy):
    """A pickle is mapped: changing it must not change parameters."""
    torch = pytest.importorskip("torch")
    (copy / "vae" / WEIGHTS).unlink()
    path = copy / "vae" / "diffusion_pytorch_model.bin"
    torch.save(make_pipeline("1-4").vae.state_dict(), path)
    source = open_source(str(copy))
    loaded = load_network(source, "vae", abstract_of(source, "vae"))
    before = {name: np.array(value) for name, value in loaded.items()}
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    for name, value in loaded.items():
        np.testing.assert_array_equal(value, before[name])


SHARDED = """
    import sys, jax, numpy as np
    from copymit.pretrained.components import abstract_params
    from copymit.pretrained.load import load_network
    from copymit.pretrained.pipeline import read_config
    from copymit.pretrained.source import open_source
    from copymit.sharding import make_mesh, params_sharding

    mesh = make_mesh(data=1, fsdp=2, tensor=2)
    source = open_source(sys.argv[1])
    for network in ("unet", "text_encoder"):
        plain = abstract_params(read_config(source, network))
        shardings = params_sharding(plain, mesh)
        sharded = {
            name: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=shardings[name])
            for name, v in plain.items()
        }
        expected = load_network(source, network, plain)
        loaded = load_network(source, network, sharded)
        split = 0
        for name, value in loaded.items():
            assert value.sharding == shardings[name], name
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
            split += value.addressable_shards[0].data.size < value.size
        print(network, "split", split > 0)
"""


def test_parameters_are_born_on_their_shardings(sd14):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED), str(sd14)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout == "unet split True\ntext_encoder split True\n", result.stderr


def test_missing_weights_of_a_base_model_are_named_before_data_are_read(copy):
    config = common.get_config()
    config.model.pretrained = str(copy)
    assert with_pretrained_settings(config).model.unet.block_out_channels == (32, 64)
    for file in (copy / "unet").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="has no weights of the unet"):
        with_pretrained_settings(config)
    config.model.from_scratch = ("unet",)
    with_pretrained_settings(config)
