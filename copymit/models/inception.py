"""The Inception-v3 behind the Frechet inception distance, with the weights of 2015.

In: images of 299 pixels in -1 .. 1, and the file `pt_inception-2015-12-05-6726825d.pth`,
which pytorch-fid and torch-fidelity publish. Out: the 2,048 features of `pool_3`.
Inference only: batch normalisation is folded into the convolutions when weights load.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from copymit.models.batch_norm import fold_batch_norms
from copymit.models.convolution import convolve
from copymit.models.functional import trace_module
from copymit.models.initializers import LECUN_NORMAL
from copymit.models.torch_files import read_torch_tensors
from copymit.models.torch_layout import load_torch_state

IMAGE_SIZE_PX = 299
NUM_FEATURES = 2048
WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
_BATCH_NORM_EPSILON = 1e-3
# The classifier on top of the features is not needed, but its 1,008 classes tell the
# network of 2015 from torchvision's, whose other tensors have the same shapes.
_CLASSIFIER = {"fc.weight": (1008, NUM_FEATURES), "fc.bias": (1008,)}

Features = Float[Array, "B h w C"]


class Conv(nnx.Module):
    """Convolution and ReLU, padded to keep the size at stride 1 unless `valid`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        window: tuple[int, int],
        rngs: nnx.Rngs,
        *,
        stride: int = 1,
        valid: bool = False,
    ):
        # On CPUs, XLA convolves without padding at a third of the speed: pad and cut.
        self.crop = valid and stride == 1
        pads = [0 if valid and stride > 1 else size // 2 for size in window]
        self.conv = nnx.Conv(
            in_channels,
            out_channels,
            window,
            strides=stride,
            padding=[(pad, pad) for pad in pads],
            kernel_init=LECUN_NORMAL,
            conv_general_dilated=convolve,
            rngs=rngs,
        )

    def __call__(self, inputs: Features) -> Features:
        hidden = nnx.relu(self.conv(inputs))
        return hidden[:, 1:-1, 1:-1] if self.crop else hidden


class InceptionA(nnx.Module):
    """Mixed_5b to 5d: windows of 1, 5 and twice 3."""

    def __init__(self, channels: int, pool_features: int, rngs: nnx.Rngs):
        self.branch1x1 = Conv(channels, 64, (1, 1), rngs)
        self.branch5x5_1 = Conv(channels, 48, (1, 1), rngs)
        self.branch5x5_2 = Conv(48, 64, (5, 5), rngs)
        self.branch3x3dbl_1 = Conv(channels, 64, (1, 1), rngs)
        self.branch3x3dbl_2 = Conv(64, 96, (3, 3), rngs)
        self.branch3x3dbl_3 = Conv(96, 96, (3, 3), rngs)
        self.branch_pool = Conv(channels, pool_features, (1, 1), rngs)

    def __call__(self, inputs: Features) -> Features:
        doubled = self.branch3x3dbl_2(self.branch3x3dbl_1(inputs))
        branches = [
            self.branch1x1(inputs),
            self.branch5x5_2(self.branch5x5_1(inputs)),
            self.branch3x3dbl_3(doubled),
            self.branch_pool(_average_neighbours(inputs)),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionB(nnx.Module):
    """Mixed_6a: halves the size of Mixed_5d."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.branch3x3 = Conv(channels, 384, (3, 3), rngs, stride=2, valid=True)
        self.branch3x3dbl_1 = Conv(channels, 64, (1, 1), rngs)
        self.branch3x3dbl_2 = Conv(64, 96, (3, 3), rngs)
        self.branch3x3dbl_3 = Conv(96, 96, (3, 3), rngs, stride=2, valid=True)

    def __call__(self, inputs: Features) -> Features:
        doubled = self.branch3x3dbl_2(self.branch3x3dbl_1(inputs))
        branches = [
            self.branch3x3(inputs),
            self.branch3x3dbl_3(doubled),
            _halve_by_max(inputs),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionC(nnx.Module):
    """Mixed_6b to 6e: windows of 7 as rows and columns, once and twice."""

    def __init__(self, channels: int, width: int, rngs: nnx.Rngs):
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Conv(channels, 192, (1, 1), rngs)
        self.branch7x7_1 = Conv(channels, width, (1, 1), rngs)
        self.branch7x7_2 = Conv(width, width, row, rngs)
        self.branch7x7_3 = Conv(width, 192, column, rngs)
        self.branch7x7dbl_1 = Conv(channels, width, (1, 1), rngs)
        self.branch7x7dbl_2 = Conv(width, width, column, rngs)
        self.branch7x7dbl_3 = Conv(width, width, row, rngs)
        self.branch7x7dbl_4 = Conv(width, width, column, rngs)
        self.branch7x7dbl_5 = Conv(width, 192, row, rngs)
        self.branch_pool = Conv(channels, 192, (1, 1), rngs)

    def __call__(self, inputs: Features) -> Features:
        single = self.branch7x7_2(self.branch7x7_1(inputs))
        doubled = self.branch7x7dbl_2(self.branch7x7dbl_1(inputs))
        doubled = self.branch7x7dbl_4(self.branch7x7dbl_3(doubled))
        branches = [
            self.branch1x1(inputs),
            self.branch7x7_3(single),
            self.branch7x7dbl_5(doubled),
            self.branch_pool(_average_neighbours(inputs)),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionD(nnx.Module):
    """Mixed_7a: halves the size of Mixed_6e."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.branch3x3_1 = Conv(channels, 192, (1, 1), rngs)
        self.branch3x3_2 = Conv(192, 320, (3, 3), rngs, stride=2, valid=True)
        self.branch7x7x3_1 = Conv(channels, 192, (1, 1), rngs)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), rngs)
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), rngs)
        self.branch7x7x3_4 = Conv(192, 192, (3, 3), rngs, stride=2, valid=True)

    def __call__(self, inputs: Features) -> Features:
        long = self.branch7x7x3_2(self.branch7x7x3_1(inputs))
        branches = [
            self.branch3x3_2(self.branch3x3_1(inputs)),
            self.branch7x7x3_4(self.branch7x7x3_3(long)),
            _halve_by_max(inputs),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionE(nnx.Module):
    """Mixed_7b and 7c: windows of 3 that end in a row beside a column."""

    def __init__(
        self, channels: int, pool: Callable[[Features], Features], rngs: nnx.Rngs
    ):
        row, column = (1, 3), (3, 1)
        self.branch1x1 = Conv(channels, 320, (1, 1), rngs)
        self.branch3x3_1 = Conv(channels, 384, (1, 1), rngs)
        self.branch3x3_2a = Conv(384, 384, row, rngs)
        self.branch3x3_2b = Conv(384, 384, column, rngs)
        self.branch3x3dbl_1 = Conv(channels, 448, (1, 1), rngs)
        self.branch3x3dbl_2 = Conv(448, 384, (3, 3), rngs)
        self.branch3x3dbl_3a = Conv(384, 384, row, rngs)
        self.branch3x3dbl_3b = Conv(384, 384, column, rngs)
        self.branch_pool = Conv(channels, 192, (1, 1), rngs)
        self.pool = pool

    def __call__(self, inputs: Features) -> Features:
        single = self.branch3x3_1(inputs)
        doubled = self.branch3x3dbl_2(self.branch3x3dbl_1(inputs))
        branches = [
            self.branch1x1(inputs),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(doubled),
            self.branch3x3dbl_3b(doubled),
            self.branch_pool(self.pool(inputs)),
        ]
        return jnp.concatenate(branches, axis=-1)


class Inception(nnx.Module):
    """Inception-v3 as its graph of 2015-12-05 computes it, up to the features.

    It differs from later ones, torchvision's among them: averages leave the padding
    out, and the last block takes a maximum in place of an average.

    Source: Szegedy et al. 2015, Rethinking the Inception Architecture; Heusel et al.
    2017 measured with this graph; names as in pytorch-fid's and torch-fidelity's ports.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        window = (3, 3)
        self.Conv2d_1a_3x3 = Conv(3, 32, window, rngs, stride=2, valid=True)
        self.Conv2d_2a_3x3 = Conv(32, 32, window, rngs, valid=True)
        self.Conv2d_2b_3x3 = Conv(32, 64, window, rngs)
        self.Conv2d_3b_1x1 = Conv(64, 80, (1, 1), rngs)
        self.Conv2d_4a_3x3 = Conv(80, 192, window, rngs, valid=True)
        self.Mixed_5b = InceptionA(192, 32, rngs)
        self.Mixed_5c = InceptionA(256, 64, rngs)
        self.Mixed_5d = InceptionA(288, 64, rngs)
        self.Mixed_6a = InceptionB(288, rngs)
        self.Mixed_6b = InceptionC(768, 128, rngs)
        self.Mixed_6c = InceptionC(768, 160, rngs)
        self.Mixed_6d = InceptionC(768, 160, rngs)
        self.Mixed_6e = InceptionC(768, 192, rngs)
        self.Mixed_7a = InceptionD(768, rngs)
        self.Mixed_7b = InceptionE(1280, _average_neighbours, rngs)
        self.Mixed_7c = InceptionE(2048, _greatest_neighbour, rngs)

    def __call__(self, pixel_values: Float[Array, "B H W 3"]) -> Float[Array, "B 2048"]:
        """Returns the averaged features of images in -1 .. 1.

        Args:
          pixel_values: of 299 x 299 pixels, except in tests; at least 75.
        """
        # Accelerators would round to bfloat16 or TF32, which moves published numbers.
        with jax.default_matmul_precision("highest"):
            hidden = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixel_values))
            hidden = _halve_by_max(self.Conv2d_2b_3x3(hidden))
            hidden = _halve_by_max(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(hidden)))
            hidden = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(hidden)))
            hidden = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(hidden)))
            hidden = self.Mixed_6e(self.Mixed_6d(hidden))
            hidden = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(hidden)))
            return hidden.mean((1, 2))


def load_inception(path: str | Path) -> Inception:
    """Loads published weights.

    Args:
      path: a PyTorch file with the names of `pt_inception-2015-12-05-6726825d.pth`.
    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not readable, or a name is missing, unused or misshapen,
        as in the weights of another Inception.
    """
    tensors = dict(read_torch_tensors(path))
    model = trace_module(lambda rngs: Inception(rngs=rngs))
    try:
        _drop_classifier(tensors)
        norms = {"conv": "bn"}
        folded = fold_batch_norms(tensors, norms, _BATCH_NORM_EPSILON, WEIGHTS_FILE)
        load_torch_state(model, folded)
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}. The FID needs {WEIGHTS_FILE}, which pytorch-fid publishes"
        ) from error
    return model


def _drop_classifier(tensors: dict[str, np.ndarray]) -> None:
    for name, shape in _CLASSIFIER.items():
        found = tensors.pop(name, None)
        if found is not None and found.shape != shape:
            raise ValueError(
                f"{name} has shape {found.shape}, not {shape}: this is another "
                "Inception-v3, such as torchvision's"
            )


def _halve_by_max(inputs: Features) -> Features:
    """Takes the maximum in windows of 3 at every second position, without padding."""
    return _slide(inputs, jnp.maximum, stride=2)


def _greatest_neighbour(inputs: Features) -> Features:
    """Takes the maximum of every position and its neighbours inside the image."""
    return _slide(_pad(inputs, -jnp.inf), jnp.maximum)


def _average_neighbours(inputs: Features) -> Features:
    """Averages every position with its neighbours inside the image."""
    sums = _slide(_pad(inputs, 0.0), jnp.add)
    counts = _slide(_pad(jnp.ones_like(inputs[:1, :, :, :1]), 0.0), jnp.add)
    return sums / counts


def _pad(inputs: Features, value: float) -> Features:
    return jnp.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)


def _slide(
    inputs: Features, combine: Callable[..., Array], stride: int = 1
) -> Features:
    """Combines windows of 3 x 3, along each axis in turn.

    XLA fuses the shifted slices into one loop; on CPUs its own pooling is far slower.
    """
    for axis in (1, 2):
        stop = inputs.shape[axis] - 2
        first, second, third = (
            jax.lax.slice_in_dim(inputs, i, i + stop, stride, axis) for i in range(3)
        )
        inputs = combine(combine(first, second), third)
    return inputs
