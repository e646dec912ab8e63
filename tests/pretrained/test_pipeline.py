"""The settings of a whole model: read, and checked against each other."""

import json

import pytest

from copymit.pretrained.pipeline import find_network, read_config, read_pipeline
from copymit.pretrained.source import open_source
from tests.pretrained.miniatures import change_json


def read(folder):
    return read_pipeline(open_source(str(folder)))


def test_another_kind_of_pipeline_is_refused(copy):
    change_json(copy / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(ValueError, match="copy is a StableDiffusionXLPipeline: only"):
        read(copy)


def test_networks_of_two_models_are_refused(copy):
    change_json(copy / "text_encoder" / "config.json", hidden_size=32)
    with pytest.raises(
        ValueError, match="cross_attention_dim=16, the text encoder hid"
    ):
        read(copy)


def test_a_model_for_inpainting_is_refused(copy):
    change_json(copy / "unet" / "config.json", in_channels=9)
    with pytest.raises(ValueError, match="in_channels=9, the vae 4 latent channels"):
        read(copy)


def test_a_refused_config_names_the_source(copy):
    change_json(copy / "unet" / "config.json", addition_embed_type="text_time")
    with pytest.raises(
        ValueError, match=r"copy: unet/config\.json: addition_embed_type"
    ):
        read(copy)


@pytest.mark.parametrize(
    "path", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
)
def test_a_missing_file_is_named(copy, path):
    (copy / path).unlink()
    with pytest.raises(FileNotFoundError, match=f"copy has no {path}"):
        read(copy)


def test_an_autoencoder_published_alone_is_found(copy):
    source = open_source(str(copy / "vae"))
    assert find_network(source, "vae") == ""
    assert read_config(source, "vae") == read(copy).vae
    assert find_network(open_source(str(copy)), "vae") == "vae/"


# As Stability AI published SD 2.1: the two files differ.
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config": "<|endoftext|>", "special_tokens_map": "!"}, 0),
        ({"tokenizer_config": "!"}, 0),
        ({"special_tokens_map": {"content": "<|endoftext|>"}}, 49_407),
        ({}, 49_407),
    ],
)
def test_the_padding_token_is_looked_up_where_transformers_does(copy, files, expected):
    for path in (copy / "tokenizer").glob("*.json"):
        path.unlink()
    for name, token in files.items():
        content = json.dumps({"pad_token": token})
        (copy / "tokenizer" / f"{name}.json").write_text(content)
    assert read(copy).pad_token_id == expected


def test_another_vocabulary_is_refused(copy):
    (copy / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ValueError, match=r"vocab\.json is not CLIP's vocabulary"):
        read(copy)


@pytest.mark.parametrize("token", ["<pad>", {"content": 3}, ["!"]])
def test_a_padding_token_outside_of_the_vocabulary_is_refused(copy, token):
    change_json(copy / "tokenizer" / "tokenizer_config.json", pad_token=token)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json has pad_token="):
        read(copy)


def test_a_token_of_textual_inversion_is_named(copy):
    path = copy / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    token = {"id": 49408, "content": "<sks-cat>", "special": False}
    content["added_tokens"].append(token)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json adds '<sks-cat>'"):
        read_pipeline(open_source(str(copy)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("added_tokens", {"<sks-cat>": 49408}, "adds '<sks-cat>'"),
        (
            "tokenizer_config",
            {"added_tokens_decoder": {"49408": {"content": "<sks-cat>"}}},
            "adds '<sks-cat>'",
        ),
        ("tokenizer", {"model": {"vocab": {"a": 0}}}, "is not CLIP's vocabulary"),
        ("tokenizer", {"model": None}, "is not CLIP's vocabulary"),
    ],
)
def test_every_file_that_decides_how_captions_are_read_is_compared(
    copy, name, content, message
):
    (copy / "tokenizer" / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{name}\.json {message}"):
        read_pipeline(open_source(str(copy)))


def test_other_merges_are_refused_and_old_ones_are_read(copy):
    path = copy / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    merges = content["model"]["merges"]
    content["model"]["merges"] = [" ".join(pair) for pair in merges]
    path.write_text(json.dumps(content))
    read_pipeline(open_source(str(copy)))
    content["model"]["merges"] = merges[1:]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has other merges"):
        read_pipeline(open_source(str(copy)))
