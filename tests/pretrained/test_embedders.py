"""CLIP and DINOv2 saved by transformers, or by their authors, are loaded or refused."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from copymit.models.clip import (
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)
from copymit.models.dinov2 import Dinov2Config, Dinov2Model
from copymit.models.functional import make_apply
from copymit.pretrained.embedders import load_clip, load_dinov2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

WEIGHTS = "model.safetensors"
MODULES = {"vision": CLIPVisionModelWithProjection, "text": CLIPTextModelWithProjection}


def spread(model):
    """Makes weights large enough for every term to matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model.eval()


def make_clip_model():
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 3, "hidden_act": "gelu"}
    config = transformers.CLIPConfig(
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        text_config={**sizes, "vocab_size": 60, "eos_token_id": 2, "bos_token_id": 0},
        projection_dim=20,
    )
    return spread(transformers.CLIPModel(config))


def make_dinov2_model(**changes):
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Dinov2Config(**sizes, image_size=42, mlp_ratio=2, **changes)
    return spread(transformers.Dinov2Model(config))


@pytest.fixture
def clip(tmp_path):
    make_clip_model().save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def dinov2(tmp_path):
    make_dinov2_model().save_pretrained(tmp_path / "dinov2")
    return tmp_path / "dinov2"


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder, edit):
    state = safetensors_torch.load_file(folder / WEIGHTS)
    edit(state)
    safetensors_torch.save_file(state, folder / WEIGHTS)


def run(loaded, module, inputs):
    apply = make_apply(lambda rngs: module(loaded.config, rngs=rngs))
    return np.asarray(jax.jit(apply)(loaded.params, inputs))


def assert_close(actual, expected):
    expected = expected.detach().numpy()
    # float32 sums in another order through two layers.
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_a_saved_clip_gives_the_features_of_the_original(clip, rng):
    model = make_clip_model()
    pixels = rng.standard_normal((2, 32, 32, 3), np.float32)
    expected = model.get_image_features(
        torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    ).pooler_output
    vision = load_clip(str(clip))
    assert_close(run(vision, MODULES["vision"], pixels), expected)
    ids = rng.integers(3, 60, (2, 77))
    expected = model.get_text_features(torch.from_numpy(ids)).pooler_output
    text = load_clip(str(clip), "text")
    assert_close(run(text, MODULES["text"], ids), expected)
    assert text.config == vision.config
    assert not text.params.keys() & vision.params.keys()


def test_a_saved_dinov2_gives_the_features_of_the_original(dinov2, rng):
    pixels = rng.standard_normal((2, 56, 42, 3), np.float32)
    expected = make_dinov2_model()(
        torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    ).pooler_output
    loaded = load_dinov2(str(dinov2))
    assert_close(run(loaded, Dinov2Model, pixels), expected)


def assert_same_params(loaded, expected):
    assert loaded.params.keys() == expected.params.keys()
    for name, value in expected.params.items():
        np.testing.assert_array_equal(loaded.params[name], value, err_msg=name)


def test_files_of_older_libraries_are_read(clip):
    expected = load_clip(str(clip))
    state = safetensors_torch.load_file(clip / WEIGHTS)
    for half, places in (("vision", 17), ("text", 77)):
        name = f"{half}_model.embeddings.position_ids"
        state[name] = torch.arange(places)[None]
    torch.save(state, clip / "pytorch_model.bin")
    (clip / WEIGHTS).unlink()
    published = json.loads((clip / "config.json").read_text())
    older = {
        f"{half}_config_dict": published[f"{half}_config"]
        for half in ("vision", "text")
    }
    # The older entry decides, even where the newer one is of another size.
    change_config(clip, **older, vision_config={"hidden_size": 8})
    loaded = load_clip(str(clip))
    assert loaded.config == expected.config
    assert_same_params(loaded, expected)


def test_shards_have_one_digest(clip):
    expected = load_clip(str(clip))
    (clip / WEIGHTS).unlink()
    make_clip_model().save_pretrained(clip, max_shard_size="30KB")
    assert len(list(clip.glob("model-*.safetensors"))) > 1
    loaded = load_clip(str(clip))
    assert_same_params(loaded, expected)
    assert loaded.weights != expected.weights
    assert load_clip(str(clip)).weights == loaded.weights


def test_the_digest_is_that_of_the_file(clip, dinov2):
    import hashlib

    for folder, loaded in ((clip, load_clip), (dinov2, load_dinov2)):
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:12]
        assert loaded(str(folder)).weights == f"{folder}, sha256 {digest}"


def to_original(state):
    """Names and joint tensors of facebookresearch/dinov2."""
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm.": "norm.",
        "encoder.layer": "blocks",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
    }
    original = {}
    for name, tensor in state.items():
        if ".attention.attention." in name:
            if ".query." in name:
                parts = [
                    state[name.replace("query", p)] for p in ("query", "key", "value")
                ]
                name = name.replace("attention.attention.query", "attn.qkv")
                name = name.replace("encoder.layer", "blocks")
                original[name] = torch.cat(parts)
            continue
        for new, before in names.items():
            name = name.replace(new, before)
        original[name] = tensor
    return original


@pytest.fixture
def original(dinov2):
    state = to_original(safetensors_torch.load_file(dinov2 / WEIGHTS))
    assert {"blocks.1.attn.qkv.bias", "norm.weight", "pos_embed"} <= state.keys()
    path = dinov2.parent / "dinov2_tiny_pretrain.pth"
    torch.save(state, path)
    return path


def test_the_authors_own_file_is_read(original, dinov2):
    loaded, expected = load_dinov2(str(original)), load_dinov2(str(dinov2))
    assert loaded.config == replace(expected.config, position_offset=0.1)
    assert_same_params(loaded, expected)
    assert loaded.weights.startswith("dinov2_tiny_pretrain.pth, sha256 ")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.update(register_tokens=torch.ones(1, 4, 128)), "register tokens"),
        (
            lambda s: s.update({"blocks.0.mlp.w12.weight": torch.ones(2, 2)}),
            r"SwiGLU layers, as DINOv2 ViT-g/14",
        ),
        (
            lambda s: s.pop("pos_embed"),
            "it has no pos_embed of 3 axes: only checkpoints",
        ),
        (lambda s: s.pop("cls_token"), r"missing embeddings\.cls_token"),
        (lambda s: s.update(extra=torch.ones(1)), "unused extra"),
        (
            lambda s: s.update({"blocks.0.attn.qkv.bias": torch.ones(385)}),
            r"attention\.value\.bias has shape \(129,\), needs \(128,\)",
        ),
        (
            lambda s: s.update({"blocks.7.norm1.bias": torch.ones(128)}),
            r"missing encoder\.layer\.2\.|unused encoder\.layer\.7\.norm1\.bias",
        ),
    ],
)
def test_an_original_file_that_does_not_fit_is_named(original, edit, message):
    state = torch.load(original)
    edit(state)
    torch.save(state, original)
    with pytest.raises(ValueError, match=message) as caught:
        load_dinov2(str(original))
    assert "dinov2_tiny_pretrain.pth" in str(caught.value)


def test_an_original_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        load_dinov2(str(tmp_path / "absent.pth"))


def test_an_original_file_that_runs_something_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return print, ("it ran",)

    torch.save({"cls_token": Harmful()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="nothing was executed"):
        load_dinov2(str(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda s: s.pop("visual_projection.weight"),
            r"missing visual_projection\.weight",
        ),
        (
            lambda s: s.update({"vision_model.extra": torch.ones(1)}),
            r"unused vision_model\.extra",
        ),
        (lambda s: s.update({"head.weight": torch.ones(1)}), r"unused head\.weight"),
        (
            lambda s: s.update(
                {"vision_model.embeddings.class_embedding": torch.ones(5)}
            ),
            r"class_embedding has shape \(5,\), needs \(24,\)",
        ),
    ],
)
def test_a_clip_whose_weights_do_not_fit_is_named(clip, edit, message):
    change_weights(clip, edit)
    with pytest.raises(ValueError, match=message) as caught:
        load_clip(str(clip))
    assert str(clip) in str(caught.value)


def test_a_dinov2_whose_weights_do_not_fit_is_named(dinov2):
    change_weights(dinov2, lambda s: s.pop("layernorm.bias"))
    with pytest.raises(ValueError, match=r"the dinov2 of .*missing layernorm\.bias"):
        load_dinov2(str(dinov2))


def test_a_model_of_another_architecture_is_named(clip, dinov2):
    with pytest.raises(ValueError, match="model_type='dinov2': a clip model is needed"):
        load_clip(str(dinov2))
    with pytest.raises(ValueError, match="model_type='clip': a dinov2 model is needed"):
        load_dinov2(str(clip))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn=True: ViT-g/14 is not implemented"),
        ({"hidden_act": "relu"}, "hidden_act='relu': only 'gelu' is implemented"),
        ({"qkv_bias": False}, "qkv_bias=False: only True is implemented"),
        ({"num_hidden_layers": 10**5}, "num_hidden_layers=100000: must be a whole"),
        ({"hidden_size": "wide"}, "hidden_size='wide': must be a whole number"),
        ({"num_attention_heads": 3}, "hidden_size 128 is not a multiple"),
    ],
)
def test_a_dinov2_that_we_do_not_have_is_refused(dinov2, changes, message):
    change_config(dinov2, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_dinov2(str(dinov2))
    assert str(dinov2) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vision_config": {"num_channels": 1}},
            r"vision_config\.num_channels=1: only 3",
        ),
        ({"vision_config": []}, r"vision_config=\[\]: must be a JSON object"),
        ({"text_config": {"hidden_act": "relu"}}, "'relu' is unknown"),
        ({"projection_dim": -1}, "projection_dim=-1: must be a whole number"),
        ({"vision": 1, "vision_config": {"patch_size": 0}}, "patch_size=0: must be"),
    ],
)
def test_a_clip_that_we_do_not_have_is_refused(clip, changes, message):
    change_config(clip, **changes)
    with pytest.raises(ValueError, match=message):
        load_clip(str(clip))


def test_settings_of_ours_are_not_read_from_the_file(dinov2):
    change_config(dinov2, position_offset=0.5)
    assert load_dinov2(str(dinov2)).config == Dinov2Config(128, 2, 2, 2, 42)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_clip(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is not an existing folder, a hub id"):
        load_dinov2(str(tmp_path / "absent"))
