"""Bad input: one clear error each, which names the culprit and the way out, before
training starts or anything is written."""

import json
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import tiny
from copymit.checkpoint import open_checkpoints, save_checkpoint
from copymit.config import claim_workdir, read_record
from copymit.data.captions import class_caption
from copymit.data.dataset import load_dataset
from copymit.data.examples import Example
from copymit.models.assembly import make_model
from copymit.training import loop
from copymit.training.loop import train


@pytest.fixture
def config():
    """A config of four images that is in order and quick to refuse."""
    config = tiny.get_config()
    config.data.num_examples = config.train.batch_size = 4
    config.data.num_heldout = 0
    config.model.autoencoder.patch_size = 8
    config.model.unet.block_out_channels = (8,)
    config.model.unet.cross_attention = (False,)
    config.model.text_encoder.hidden_size = 8
    return config


@pytest.fixture
def without_model(monkeypatch):
    """To build a model takes the longest, and most errors come before one is used."""
    monkeypatch.setattr(loop, "make_model", lambda *_: None)


@pytest.fixture
def refuse(config, without_model, tmp_path):
    """Returns a check that training is refused and leaves nothing behind."""

    def check(message, error=ValueError):
        workdir = tmp_path / "run"
        with pytest.raises(error, match=message):
            train(config, workdir)
        assert not workdir.exists()

    return check


@pytest.fixture
def folder(config, tmp_path):
    """Four sound images in a folder, from which `config` trains."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        save_image(folder / f"{i}.png", rng)
        (folder / f"{i}.txt").write_text("An image")
    config.data.source = str(folder)
    config.data.num_examples = 0
    return folder


def save_image(path, rng, size=16):
    pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_captions(folder, captions):
    path = folder.parent / "captions.json"
    path.write_text(json.dumps(captions))
    return str(path)


# The data.


def test_a_missing_folder_is_named(config, refuse):
    config.data.source = "absent"
    refuse("no folder 'absent'", FileNotFoundError)


def test_a_folder_without_images_is_named(config, refuse, tmp_path):
    (tmp_path / "empty").mkdir()
    config.data.source = str(tmp_path / "empty")
    refuse("no images in .*empty")


def test_a_missing_captions_file_is_named(config, refuse, folder):
    config.data.captions = str(folder / "absent.json")
    refuse("absent.json", FileNotFoundError)


def test_captions_of_absent_images_and_images_without_captions_are_listed(
    config, refuse, folder
):
    captions = {f"{i}.png": ["a picture"] for i in range(3)} | {"9.png": ["a ghost"]}
    config.data.captions = write_captions(folder, captions)
    refuse(r"(?s)absent: '9.png'.*without captions: '3.png'")


@pytest.mark.parametrize("captions", [[""], ["a picture", "  "], []])
def test_empty_captions_are_named(captions, config, refuse, folder):
    table = {f"{i}.png": ["a picture"] for i in range(4)} | {"2.png": captions}
    config.data.captions = write_captions(folder, table)
    refuse("caption.*'2.png'")


def test_all_corrupt_images_are_listed(config, refuse, folder):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    (folder / "3.png").write_bytes(b"not an image")
    refuse("(?s)2 of 4 images cannot be used.*'1.png'.*'3.png'.*skip")


def test_corrupt_images_are_skipped_counted_and_listed_on_request(
    config, folder, caplog
):
    (folder / "1.png").write_bytes(b"not an image")
    config.data.on_corrupt = "skip"
    dataset = load_dataset(config.data, config.seed)
    assert dataset.example_ids == ["0.png", "2.png", "3.png"]
    assert [name for name, _ in dataset.skipped] == ["1.png"]
    assert "skipping 1 of 4 images" in caplog.text
    assert "'1.png' is not a readable" in caplog.text


def test_an_image_bomb_is_named_without_decoding_it(refuse, folder):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    bomb += chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (folder / "2.png").write_bytes(bomb)
    refuse("(?s)1 of 4.*'2.png' is too large")


def test_class_captions_need_classes(config, refuse, folder):
    config.data.caption_style = "class"
    refuse("caption_style='class' needs classes.*one folder per class")


def test_a_label_without_a_class_name_is_refused():
    example = Example("odd.png", b"", ("a picture",), 2)
    with pytest.raises(ValueError, match=r"odd\.png: label 2 has no class name"):
        class_caption(example, ["church", "parachute"])


def test_an_unknown_class_is_named_beside_the_known_ones(config, refuse):
    config.data.classes = ("food & drink", "weather")
    refuse("unknown classes weather; known: .*animals & nature")


def test_partial_duplication_of_images_with_one_caption_is_refused(
    config, refuse, folder
):
    config.data.duplication = "partial"
    config.data.duplicated_fraction = 0.5
    refuse("several captions per duplicated image; 2 have one: .*png.*'full'")


def test_more_images_than_there_are_is_refused(config, refuse):
    config.data.num_examples = 5000
    refuse("5000 training .* there are only 1852")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("duplication", "some", "data.duplication='some' is not known"),
        ("duplicated_fraction", 1.5, "duplicated_fraction=1.5 must lie in"),
        ("duplicated_fraction", 0.01, "less than one image"),
        ("duplication_factor", 0, "duplication_factor=0 must be at least 1"),
        ("caption_style", "poem", "caption_style='poem' is not known"),
        ("sampling", "often", "data.sampling='often' is not known"),
        ("on_corrupt", "ignore", "on_corrupt must be"),
        ("captions", "x.json", "fluent_emoji has captions"),
    ],
)
def test_a_wrong_value_of_the_data_section_is_named(
    name, value, message, config, refuse
):
    config.data[name] = value
    refuse(message)


# The training.


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("warmup_steps", 100, "warmup_steps=100 must lie between 0 and train.steps=9"),
        ("learning_rate_schedule", "sine", "'sine' is not known"),
        ("dtype", "float8", "train.dtype='float8' is not known"),
        ("steps", 0, "train.steps=0 must be at least 1"),
        ("batch_size", 0, "train.batch_size=0 must be at least 1"),
        ("log_every_steps", 0, "log_every_steps=0 must be at least 1"),
        ("checkpoint_every_steps", -1, "checkpoint_every_steps=-1 must be at least 1"),
        ("keep_checkpoints", 0, "keep_checkpoints=0 must be at least 1"),
        ("sample_every_steps", -1, "sample_every_steps=-1"),
    ],
)
def test_a_wrong_value_of_the_train_section_is_named(
    name, value, message, config, refuse
):
    config.train[name] = value
    refuse(message)


def test_a_resolution_that_does_not_divide_into_patches_is_refused(config, tmp_path):
    config.data.resolution = 20
    with pytest.raises(ValueError, match=r"resolution=20 must be a multiple of .* 8"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mesh_that_does_not_fit_the_devices_is_refused(config, refuse):
    config.mesh.fsdp = 7
    refuse(r"fsdp=7.* does not fit \d+ devices")


def test_the_sampler_of_the_sample_grid_is_checked_before_training(config, refuse):
    config.eval.sampler = "magic"
    refuse("eval.sampler='magic' is not known")


def test_a_negative_weight_of_the_loss_is_refused(config, refuse):
    config.train.min_snr_gamma = -1.0
    refuse("train.min_snr_gamma=-1.0 must be above 0, usually 5, or 0 for no weights")


def test_a_negative_limit_of_hanging_is_refused(config, refuse):
    config.train.hang_timeout_seconds = -1
    refuse("train.hang_timeout_seconds=-1 must be above 0, or 0 to wait for ever")


def test_the_working_directory_of_another_config_is_refused(
    config, without_model, tmp_path
):
    claim_workdir(tmp_path, config)
    before = (tmp_path / "config.json").read_text()
    config.data.duplication_factor = 7
    config.train.learning_rate = 0.5
    with pytest.raises(
        ValueError,
        match=r"another config: data.duplication_factor \(there 4, now 7\); "
        r"train.learning_rate .*Choose another --workdir",
    ):
        train(config, tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_settings_that_do_not_change_the_parameters_may_change(config, tmp_path):
    claim_workdir(tmp_path, config)
    config.train.log_every_steps = 7
    config.data.num_threads = 5
    config.eval.num_generations = 1
    claim_workdir(tmp_path, config)
    assert read_record(tmp_path)["config"]["eval"]["num_generations"] == 1


def test_a_record_that_is_no_json_is_named(config, without_model, tmp_path):
    (tmp_path / "config.json").write_text('{"config": ')
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        train(config, tmp_path)


def test_a_checkpoint_of_another_model_is_refused(config, tmp_path):
    model = make_model(config.model, config.data.resolution, "float32")
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.parameters)
    with open_checkpoints(tmp_path) as checkpoints:
        save_checkpoint(checkpoints, 3, {"params": params}, {"step": 3})
    config.model.unet.block_out_channels = (16,)
    with pytest.raises(
        ValueError,
        match=r"(?s)checkpoint of another model.*parameters differ: "
        r"unet\.\S+ \(config \(.*16.*\), checkpoint \(.*8.*\)\)",
    ):
        train(config, tmp_path)
