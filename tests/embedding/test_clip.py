"""CLIP embedders of images and captions, made of tiny weights that transformers saved."""

import hashlib
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from copymit.embedding import clip as clip_module
from copymit.embedding.clip import (
    CLIP_MODELS,
    embed_captions,
    make_clip,
    make_clip_captions,
)
from copymit.models.clip import CLIPConfig, CLIPVisionConfig
from copymit.models.text_encoder import TextEncoderConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = CLIPConfig(
    CLIPVisionConfig(24, 40, 2, 3, image_size=224, patch_size=56),
    TextEncoderConfig(24, 40, 2, 3),
    projection_dim=16,
)
CAPTIONS = ["a photo of a golden church", "", "Two parachutes, three dogs! " * 30]


def make_model():
    config = transformers.CLIPConfig(
        vision_config=vars(TINY.vision),
        # As the published files have it.
        text_config={**vars(TINY.text), "eos_token_id": 2, "bos_token_id": 0},
        projection_dim=TINY.projection_dim,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    make_model().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Lets the names of two models stand for tiny ones."""
    for name in ("clip_vit_b16", "openclip_vit_h14"):
        model = CLIP_MODELS[name]._replace(config=TINY)
        monkeypatch.setitem(CLIP_MODELS, name, model)


def assert_close(actual, expected):
    expected = expected.detach().numpy()
    # float32 sums in another order through two layers.
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_image_features_equal_those_of_processor_and_model(folder, rng):
    embedder = make_clip("clip_vit_b16", str(folder))
    images = [
        rng.integers(0, 256, size, np.uint8) for size in [(60, 90, 3), (80, 64, 3)]
    ]
    prepared = np.stack([embedder.prepare(image) for image in images])
    processor = transformers.CLIPImageProcessor()
    inputs = processor(
        [Image.fromarray(image) for image in images], return_tensors="pt"
    )
    expected = make_model().get_image_features(inputs.pixel_values).pooler_output
    assert_close(jax.jit(embedder.apply)(embedder.params, prepared), expected)


@pytest.mark.parametrize("name", ["clip_vit_b16", "openclip_vit_h14"])
def test_caption_features_equal_those_of_tokenizer_and_model(folder, name):
    embedder = make_clip_captions(name, str(folder))
    ids = embedder.tokenize(CAPTIONS)
    assert ids.shape == (3, 77)
    assert ids[0, -1] == {"clip_vit_b16": 49_407, "openclip_vit_h14": 0}[name]
    features = make_model().get_text_features(torch.from_numpy(ids)).pooler_output
    expected = features / features.norm(dim=-1, keepdim=True)
    # Batches of two: the last one is filled up.
    assert_close(embed_captions(embedder, CAPTIONS, batch_size=2), expected)


def test_protocols_name_weights_and_preprocessing(folder):
    weights = (folder / "model.safetensors").read_bytes()
    digest = f"{folder}, sha256 {hashlib.sha256(weights).hexdigest()[:12]};"
    images = make_clip("clip_vit_b16", str(folder)).protocol
    captions = make_clip_captions("openclip_vit_h14", str(folder)).protocol
    assert digest in images
    assert digest in captions
    assert "short side to 224 px (Pillow, bicubic), centre crop of 224 px" in images
    assert "cut to 77 tokens of CLIP's BPE, padded with 0" in captions


def test_published_weights_are_the_default(monkeypatch):
    asked = []
    monkeypatch.setattr(
        clip_module, "load_clip", lambda source, tower: asked.append((source, tower))
    )
    for name, model in CLIP_MODELS.items():
        with pytest.raises(AttributeError):  # nothing was loaded
            make_clip(name)
        assert asked.pop() == (model.hub_id, "vision")


def test_weights_of_another_size_are_refused(folder, monkeypatch):
    with pytest.raises(
        ValueError, match="is not CLIP ViT-L/14, which clip_vit_l14 needs"
    ):
        make_clip("clip_vit_l14", str(folder))
    other = replace(TINY, vision=replace(TINY.vision, hidden_act="gelu"))
    model = CLIP_MODELS["clip_vit_b16"]._replace(config=other)
    monkeypatch.setitem(CLIP_MODELS, "clip_vit_b16", model)
    with pytest.raises(ValueError, match=r"hidden_act='quick_gelu'.*hidden_act='gelu'"):
        make_clip_captions("clip_vit_b16", str(folder))


def test_an_unknown_name_is_answered_with_those_that_are_known():
    for make in (make_clip, make_clip_captions):
        with pytest.raises(
            ValueError, match="'clip' is not a CLIP: use one of clip_vit_b"
        ):
            make("clip")


def test_no_captions_are_refused(folder):
    with pytest.raises(ValueError, match="there are no captions"):
        embed_captions(make_clip_captions("clip_vit_b16", str(folder)), [])
