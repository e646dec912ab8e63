"""DINOv2 embedders, made of tiny weights that transformers saved."""

import hashlib

import jax
import numpy as np
import pytest
from PIL import Image

from copymit.embedding import dinov2 as dinov2_module
from copymit.embedding.dinov2 import DINOV2_MODELS, make_dinov2
from copymit.models.dinov2 import Dinov2Config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NAME = "dinov2_vits14"
TINY = Dinov2Config(24, 2, 3, 2, image_size=518)


def make_model():
    fields = {k: v for k, v in vars(TINY).items() if k != "position_offset"}
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dinov2")
    make_model().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Lets the name of one model stand for a tiny one."""
    model = DINOV2_MODELS[NAME]._replace(config=TINY)
    monkeypatch.setitem(DINOV2_MODELS, NAME, model)


def test_features_equal_those_of_processor_and_model(folder, rng):
    embedder = make_dinov2(NAME, str(folder))
    images = [
        rng.integers(0, 256, size, np.uint8) for size in [(60, 90, 3), (80, 64, 3)]
    ]
    prepared = np.stack([embedder.prepare(image) for image in images])
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 256},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    inputs = processor(
        [Image.fromarray(image) for image in images], return_tensors="pt"
    )
    expected = make_model()(inputs.pixel_values).pooler_output.detach().numpy()
    found = jax.jit(embedder.apply)(embedder.params, prepared)
    # float32 sums in another order through two layers.
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_the_protocol_names_weights_and_preprocessing(folder):
    weights = (folder / "model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()[:12]
    protocol = make_dinov2(NAME, str(folder)).protocol
    assert protocol.startswith("DINOv2 ViT-S/14 without registers, weights ")
    assert f"{folder}, sha256 {digest}; short side to 256 px (Pillow, bicub" in protocol
    assert "(bicubic, not antialiased, offset 0)" in protocol


def test_published_weights_are_the_default(monkeypatch):
    asked = []
    monkeypatch.setattr(dinov2_module, "load_dinov2", asked.append)
    for name, model in DINOV2_MODELS.items():
        with pytest.raises(TypeError):  # nothing was loaded
            make_dinov2(name)
        assert asked.pop() == model.hub_id


def test_weights_of_another_size_are_refused(folder):
    with pytest.raises(
        ValueError, match="is not DINOv2 ViT-B/14, which dinov2_vitb14 n"
    ):
        make_dinov2("dinov2_vitb14", str(folder))


def test_an_unknown_name_is_answered_with_those_that_are_known():
    with pytest.raises(
        ValueError, match="'dino' is not a DINOv2: use one of dinov2_vits"
    ):
        make_dinov2("dino")
