"""What is written, under which names, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from copymit.models.autoencoder_kl import AutoencoderKLConfig
from copymit.models.text_encoder import TextEncoderConfig
from copymit.models.unet import UNetConfig
from copymit.pretrained.components import NETWORKS
from copymit.pretrained.load import load_network
from copymit.pretrained.pipeline import read_pipeline
from copymit.pretrained.save import Network, new_file, save_network, save_pipeline
from copymit.pretrained.source import open_source
from tests.pretrained.miniatures import abstract_params

UNET = UNetConfig(8, 4, 4, (32, 32), (True, False), 2, 1, 1, 16)
CONFIGS = {
    "unet": UNET,
    "vae": AutoencoderKLConfig(block_out_channels=(32,), layers_per_block=1),
    "text_encoder": TextEncoderConfig(16, 32, 1, 2, vocab_size=64),
}
SCHEDULER = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}


@pytest.fixture(scope="module")
def networks():
    rng = np.random.default_rng(0)
    return {
        name: Network(
            name,
            config,
            {
                key: jnp.asarray(rng.normal(size=value.shape), value.dtype)
                for key, value in abstract_params(config).items()
            },
        )
        for name, config in CONFIGS.items()
    }


def save(folder, networks, **options):
    save_pipeline(folder, networks.values(), SCHEDULER, pad_token_id=0, **options)


def files(folder):
    folder = epath.Path(folder)
    found = set()
    for path in folder.iterdir():
        nested = files(path) if path.is_dir() else [""]
        found |= {f"{path.name}/{name}".rstrip("/") for name in nested}
    return found


def assert_loads(folder, networks, dtype="float32"):
    source = open_source(str(folder))
    pipeline = read_pipeline(source)
    assert pipeline.prediction_type == "v_prediction"
    assert pipeline.pad_token_id == 0
    for name, network in networks.items():
        assert getattr(pipeline, name) == network.config
        loaded = load_network(source, name, abstract_params(network.config))
        for key, value in network.params.items():
            expected = value.astype(dtype).astype(np.float32)
            np.testing.assert_array_equal(loaded[key], expected, err_msg=key)


def test_a_saved_model_has_the_files_that_diffusers_expects_and_no_other(
    networks, tmp_path
):
    save(tmp_path / "new" / "model", networks)
    assert files(tmp_path / "new" / "model") == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert_loads(tmp_path / "new" / "model", networks)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_smaller_types_round_once(networks, tmp_path, dtype):
    save(tmp_path / "model", networks, dtype=dtype)
    assert_loads(tmp_path / "model", networks, dtype)


def test_a_bucket_is_written_and_read_like_a_folder(networks, bucket):
    save(bucket / "model", networks, max_shard_bytes=200_000)
    assert "unet/diffusion_pytorch_model.safetensors.index.json" in files(
        bucket / "model"
    )
    assert not [path for path in files(bucket) if path.endswith(".partial")]
    assert_loads(bucket / "model", networks)


def test_shards_have_an_index_and_none_is_above_the_limit(networks, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    save(tmp_path / "whole", networks)
    save(tmp_path / "model", networks, max_shard_bytes=6_000, variant="fp16")
    for name, stem, kind in (
        ("unet", "diffusion_pytorch_model", diffusers.UNet2DConditionModel),
        ("text_encoder", "model", transformers.CLIPTextModel),
    ):
        folder = tmp_path / "model" / name
        shards = sorted(folder.glob("*.safetensors"))
        assert shards[0].name == f"{stem}.fp16-00001-of-{len(shards):05}.safetensors"
        largest = max(value.nbytes for value in networks[name].params.values())
        header = 5_000
        assert max(p.stat().st_size for p in shards) <= max(6_000, largest) + header
        index_path = folder / f"{stem}.safetensors.index.fp16.json"
        index = json.loads(index_path.read_text())
        total = sum(value.nbytes for value in networks[name].params.values())
        assert index["metadata"] == {"total_size": total}
        state = kind.from_pretrained(folder, variant="fp16").state_dict()
        whole = kind.from_pretrained(tmp_path / "whole" / name).state_dict()
        for key, value in whole.items():
            assert torch.equal(state[key], value), key
    assert_loads(tmp_path / "model", networks)


def test_a_network_is_asked_for_when_the_one_before_is_written(networks, tmp_path):
    def one_by_one():
        for name in NETWORKS:
            yield networks[name]
            assert (tmp_path / "model" / name / "config.json").exists()
        assert not (tmp_path / "model" / "model_index.json").exists()

    save_pipeline(tmp_path / "model", one_by_one(), SCHEDULER, pad_token_id=0)
    assert (tmp_path / "model" / "model_index.json").exists()


def test_sharded_parameters_are_gathered(networks, tmp_path):
    mesh = jax.make_mesh((1,), ("fsdp",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    network = networks["unet"]
    params = {k: jax.device_put(v, sharding) for k, v in network.params.items()}
    save_network(tmp_path, network._replace(params=params))
    loaded = load_network(open_source(str(tmp_path)), "unet", abstract_params(UNET))
    for key, value in network.params.items():
        np.testing.assert_array_equal(loaded[key], value)


def test_a_file_that_was_not_finished_does_not_have_its_name(tmp_path):
    path = epath.Path(tmp_path / "a" / "x.json")
    with pytest.raises(TypeError), new_file(path) as file:
        file.write("not bytes")
    assert not path.exists()
    with new_file(path) as file:
        file.write(b"whole")
    assert files(tmp_path) == {"a/x.json"}
    assert path.read_text() == "whole"


def test_a_folder_in_use_is_not_touched(networks, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty: choose a new folder"):
        save(tmp_path, networks)
    assert files(tmp_path) == {"notes.txt"}


def test_values_beyond_float16_are_named(networks, tmp_path):
    network = networks["vae"]
    key = "decoder.conv_out.kernel"
    params = {**network.params, key: network.params[key] * 1e6}
    with pytest.raises(
        ValueError, match=rf"{key} of the vae has values beyond float16"
    ):
        save_network(tmp_path, network._replace(params=params), dtype="float16")
    assert not (tmp_path / "vae" / "config.json").exists()


def test_parameters_of_another_network_are_not_written(networks, tmp_path):
    network = networks["vae"]._replace(params=networks["unet"].params)
    with pytest.raises(ValueError, match="do not fit the vae to save: missing"):
        save_network(tmp_path, network)
    assert not files(tmp_path)


def test_a_model_without_all_networks_is_not_complete(networks, tmp_path):
    with pytest.raises(ValueError, match="networks are unet: give unet, vae, text_enc"):
        save(tmp_path / "model", {"unet": networks["unet"]})
    assert "model_index.json" not in files(tmp_path / "model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8' is not known: use float32, float16, bf"),
        ({"pad_token_id": 49_408}, "pad_token_id=49408"),
        ({"scheduler": {}}, "scheduler has no _class_name"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    networks, tmp_path, options, message
):
    arguments = {"scheduler": SCHEDULER, "pad_token_id": 0, **options}
    with pytest.raises(ValueError, match=message):
        save_pipeline(tmp_path / "model", networks.values(), **arguments)
    assert not (tmp_path / "model").exists()
