"""SSCD's protocols prepare images as torchvision would, and say what they did."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

from copymit.embedding import sscd
from copymit.embedding.sscd import PROTOCOLS, make_sscd
from copymit.models.functional import trace_module
from copymit.models.resnet import ResNetConfig
from copymit.models.sscd import ARCHITECTURES, Sscd

SIZES = [(300, 401), (401, 300), (64, 64), (288, 288)]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)


def make_image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def resize_and_crop(image, short_side, size):
    """Resizes with the longer side rounded down and cuts the middle, step by step."""
    height, width = image.shape[:2]
    if height <= width:
        shape = (int(short_side * width / height), short_side)
    else:
        shape = (short_side, int(short_side * height / width))
    resized = Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR)
    left = round((resized.width - size) / 2)
    top = round((resized.height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def squash(image, size):
    return np.asarray(
        Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    )


# Protocol: weights, resizing, mean and standard deviation.
EXPECTED = {
    "sscd_dcr": ("sscd_disc_large", lambda x: resize_and_crop(x, 256, 224), HALF),
    "sscd_dcr_laion": (
        "sscd_disc_mixup",
        lambda x: resize_and_crop(x, 256, 224),
        IMAGENET,
    ),
    "sscd_288": ("sscd_disc_mixup", lambda x: resize_and_crop(x, 288, 288), IMAGENET),
    "sscd_320": ("sscd_disc_mixup", lambda x: squash(x, 320), IMAGENET),
}


class MeanColour(nnx.Module):
    """Stands for SSCD: its features are the averages of the normalised channels."""

    def __init__(self):
        self.gain = nnx.Param(jnp.ones(3))

    def __call__(self, pixel_values):
        return pixel_values.mean((1, 2)) * self.gain[...]


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """The path of a file; the network that would be loaded from it is `MeanColour`."""
    loaded = []

    def load(path, architecture):
        loaded.append((path, architecture))
        return MeanColour()

    monkeypatch.setattr(sscd, "load_sscd", load)
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")
    yield str(path)
    assert all(entry[0] == str(path) for entry in loaded)


def test_the_protocols_are_the_documented_ones():
    assert PROTOCOLS.keys() == EXPECTED.keys()
    for name, (model, _, _) in EXPECTED.items():
        assert PROTOCOLS[name].weights == model
        architecture = ARCHITECTURES[PROTOCOLS[name].architecture]
        assert model in architecture.label


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", EXPECTED)
def test_images_are_resized_as_torchvision_does(name, size, weights):
    image = make_image(*size)
    prepared = make_sscd(name, weights).prepare(image)
    assert prepared.dtype == np.uint8
    np.testing.assert_array_equal(prepared, EXPECTED[name][1](image))


@pytest.mark.parametrize("name", EXPECTED)
def test_pixels_are_normalised_on_the_device(name, weights):
    embedder = make_sscd(name, weights)
    image = make_image(300, 401)
    prepared = embedder.prepare(image)
    features = jax.jit(embedder.apply)(embedder.params, prepared[None])
    mean, std = map(torch.tensor, EXPECTED[name][2])
    scaled = torch.from_numpy(EXPECTED[name][1](image).copy()).float() / 255
    expected = ((scaled - mean) / std).mean((0, 1)).numpy()
    # float32 averages of tens of thousands of values of order 1.
    np.testing.assert_allclose(features[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", EXPECTED)
def test_images_of_different_shapes_form_a_batch(name, weights):
    prepare = make_sscd(name, weights).prepare
    assert len({prepare(make_image(*size)).shape for size in SIZES}) == 1


@pytest.mark.parametrize("name", EXPECTED)
def test_the_protocol_says_everything_that_could_change_a_number(name, weights):
    embedder = make_sscd(name, weights)
    assert embedder.name == name
    digest = hashlib.sha256(b"weights").hexdigest()[:12]
    size = "".join(c for c in name if c.isdigit()) or "224"
    statistics = "0.5" if EXPECTED[name][2] == HALF else "ImageNet"
    for part in (EXPECTED[name][0], digest, f"{size}", "bilinear", statistics):
        assert part in embedder.protocol
    # The protocol is stored with results, which must not depend on where a file lies.
    assert weights not in embedder.protocol


def test_a_file_is_loaded_into_the_network_of_its_protocol(tmp_path, monkeypatch):
    shallow = dataclasses.replace(ARCHITECTURES["resnet50"], trunk=ResNetConfig((1, 1)))
    monkeypatch.setitem(ARCHITECTURES, "resnet50", shallow)
    model = trace_module(lambda rngs: Sscd(shallow, rngs=rngs))
    state = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        *owners, leaf = (str(part) for part in path)
        owner = ".".join(owners).replace("head", "backbone.fc")
        if leaf == "kernel":
            shape = variable.shape
            state[f"{owner}.weight"] = torch.zeros(
                shape[-1:] + shape[-2:-1] + shape[:-2]
            )
        elif "fc" in owner:
            state[f"{owner}.bias"] = torch.arange(512.0)
        else:
            norm = owner.replace("conv", "bn").replace("downsample.0", "downsample.1")
            for statistic in ("weight", "bias", "running_mean", "running_var"):
                state[f"{norm}.{statistic}"] = torch.ones(variable.shape)
    torch.save(state, tmp_path / "sscd.pt")
    embedder = make_sscd("sscd_288", str(tmp_path / "sscd.pt"))
    features = jax.eval_shape(
        embedder.apply, embedder.params, jnp.zeros((2, 288, 288, 3), jnp.uint8)
    )
    assert features.shape == (2, 512)
    np.testing.assert_array_equal(embedder.params["head"]["bias"], np.arange(512.0))


@pytest.mark.parametrize("name", EXPECTED)
def test_without_a_path_the_message_says_where_weights_are_and_which_setting(name):
    model = EXPECTED[name][0]
    message = (
        rf"{name} needs .*{model}\.torchscript\.pt.*README.*eval\.weights\.{model}="
    )
    with pytest.raises(ValueError, match=message):
        make_sscd(name, "")


def test_an_unknown_protocol_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"'sscd_512' is no .*sscd_dcr, sscd_dcr_laion"
    ):
        make_sscd("sscd_512", "weights.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        make_sscd("sscd_320", str(tmp_path / "none.pt"))
