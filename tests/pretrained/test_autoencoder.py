"""A trained autoencoder alone, as diffusers and as its author publish it."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file

from configs import common
from copymit.models.assembly import abstract_params, make_model
from copymit.models.autoencoder import make_autoencoder
from copymit.models.autoencoder_tiny import AutoencoderTinyConfig
from copymit.pretrained.autoencoder import load_autoencoder, read_autoencoder
from copymit.pretrained.settings import load_networks, with_pretrained_settings
from copymit.sharding import make_mesh

SMALL = {
    "latent_channels": 6,
    "encoder_block_out_channels": (8,) * 4,
    "decoder_block_out_channels": (8,) * 4,
    "num_encoder_blocks": (1, 1, 1, 1),
    "num_decoder_blocks": (1, 1, 1, 1),
}


@pytest.fixture(scope="module")
def reference():
    """diffusers' network with values large enough for every term to matter."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.AutoencoderTiny(**SMALL)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.15)
    return network


@pytest.fixture(scope="module")
def folders(reference, tmp_path_factory):
    """The same network as diffusers writes it, and as TAESD's own files."""
    import torch

    root = tmp_path_factory.mktemp("autoencoders")
    reference.save_pretrained(root / "diffusers")
    halves = {}
    for half, offset in (("encoder", 0), ("decoder", 1)):
        tensors = {}
        for name, tensor in getattr(reference, half).state_dict().items():
            number, _, leaf = name.removeprefix("layers.").partition(".")
            tensors[f"{int(number) + offset}.{leaf}"] = tensor.clone()
        halves[half] = tensors
    for kind in ("pth", "safetensors"):
        (root / kind).mkdir()
        for half, tensors in halves.items():
            path = root / kind / f"taesd_{half}.{kind}"
            if kind == "pth":
                torch.save(tensors, path)
            else:
                save_file({k: v.numpy() for k, v in tensors.items()}, path)
    return root


def _config(name):
    config = common.get_config()
    config.model.autoencoder.pretrained = str(name)
    return config


@pytest.mark.parametrize("kind", ["diffusers", "pth", "safetensors"])
def test_pixels_go_through_it_as_through_diffusers(kind, folders, reference):
    import torch

    config = with_pretrained_settings(_config(folders / kind))
    assert config.model.autoencoder.name == "tiny"
    autoencoder = make_autoencoder(config.model.autoencoder)
    assert (autoencoder.downsampling, autoencoder.latent_channels) == (8, 6)
    model = make_model(config.model, 32, "float32")
    params = load_networks(config.model, model, make_mesh())
    assert params.keys() == {"vae"}  # the others start at random
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype("float32")

    @jax.jit
    def restore(params, pixels):
        moments = autoencoder.encode(params, pixels)
        return autoencoder.decode(params, autoencoder.sample(moments, None))

    with torch.no_grad():
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        expected = reference.decode(reference.encode(x).latents).sample
    expected = expected.permute(0, 2, 3, 1).numpy()
    # float32 sums in another order through some thirty layers.
    error = np.abs(restore(params["vae"], pixels) - expected).max()
    assert error < 1e-4 * np.abs(expected).max()


def test_of_several_in_one_folder_a_file_chooses(folders, tmp_path):
    for path in (folders / "pth").iterdir():
        for family in ("taesd", "taef1"):
            name = path.name.replace("taesd", family)
            (tmp_path / name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"several tiny .* as .*taesd_encoder\.pth"):
        read_autoencoder(str(tmp_path))
    one = read_autoencoder(str(tmp_path / "taef1_decoder.pth"))
    assert one == AutoencoderTinyConfig(**SMALL)


def test_one_of_a_family_unknown_by_name_is_read(folders, tmp_path):
    for path in (folders / "safetensors").iterdir():
        name = path.name.replace("taesd", "mine")
        (tmp_path / name).write_bytes(path.read_bytes())
    read = read_autoencoder(str(tmp_path / "mine_encoder.safetensors"))
    assert read.latent_channels == 6
    with pytest.raises(
        FileNotFoundError, match=r"no autoencoder: neither config\.json"
    ):
        read_autoencoder(str(tmp_path))


def test_a_file_that_is_no_half_is_refused(tmp_path):
    path = tmp_path / "taesd.safetensors"
    path.touch()
    with pytest.raises(ValueError, match=r"none of the two files of a tiny"):
        read_autoencoder(str(path))


def test_half_of_the_files_is_not_enough(folders, tmp_path):
    path = folders / "pth" / "taesd_encoder.pth"
    (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"holds no autoencoder"):
        read_autoencoder(str(tmp_path / path.name))


def test_swapped_files_are_named(folders, tmp_path):
    for half, other in (("encoder", "decoder"), ("decoder", "encoder")):
        source = folders / "pth" / f"taesd_{other}.pth"
        (tmp_path / f"taesd_{half}.pth").write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match=r"taesd_encoder\.pth: .* not of a TAESD"):
        read_autoencoder(str(tmp_path))


def test_weights_that_do_not_fit_the_config_are_named(folders):
    name = str(folders / "pth")
    wider = dataclasses.replace(read_autoencoder(name), latent_channels=8)
    config = _config(name)
    config.model.autoencoder.name = "tiny"
    fields = vars(wider)
    config.model.autoencoder.tiny.update(
        {k: fields[k] for k in config.model.autoencoder.tiny}
    )
    model = make_model(config.model, 32, "float32")
    abstract = abstract_params(model, make_mesh())["vae"]
    with pytest.raises(ValueError, match=r"autoencoder .*taesd_encoder\.pth"):
        load_autoencoder(name, abstract)


def test_a_model_that_has_one_of_its_own_is_not_given_another(folders):
    config = _config(folders / "pth")
    config.model.pretrained = "stable-diffusion-2-1"
    with pytest.raises(ValueError, match=r"has an autoencoder of its own: leave"):
        with_pretrained_settings(config)


def test_nothing_in_a_pickle_is_executed(tmp_path):
    import pickle

    class Hostile:
        def __reduce__(self):
            return (epath.Path(tmp_path / "owned").touch, ())

    for half in ("encoder", "decoder"):
        (tmp_path / f"taesd_{half}.pth").write_bytes(
            pickle.dumps({"0.weight": Hostile()})
        )
    with pytest.raises(ValueError, match=r"taesd_encoder\.pth"):
        read_autoencoder(str(tmp_path))
    assert not (tmp_path / "owned").exists()


def test_trained_weights_are_found_by_their_folder(shared_data):
    read = read_autoencoder(str(shared_data / "taef2"))
    assert (read.latent_channels, read.use_midblock_gn) == (32, True)
