"""ResNet and ResNeXt trunks for inference, batch normalisation folded away.

In: normalised images. Out: the feature maps of the last stage.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from copymit.models.backend import target_backend
from copymit.models.convolution import convolve
from copymit.models.initializers import HE_NORMAL

_EXPANSION = 4
_STEM_WIDTH = 64
_MERGED_CHANNELS = 16  # 4, 8, 32 and 64 are slower on CPUs
_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Which batch norm, beside it in the file, follows which convolution.
NORM_AFTER = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3", "0": "1"}
BATCH_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """A trunk of bottleneck blocks.

    Attributes:
      depths: blocks of each stage; each stage doubles the width and, but for the first,
        halves the size.
      groups: of the 3x3 convolutions; more than one makes it a ResNeXt.
      width_per_group: channels of each group in the first stage.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    groups: int = 1
    width_per_group: int = 64

    @property
    def out_channels(self) -> int:
        """Channels of the feature maps that the trunk gives."""
        return _STEM_WIDTH * _EXPANSION * 2 ** (len(self.depths) - 1)


RESNET50 = ResNetConfig()
RESNEXT101_32X4D = ResNetConfig((3, 4, 23, 3), groups=32, width_per_group=4)


class Conv(nnx.Module):
    """Convolves with a square window and half its size as padding, and adds a bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        window: int,
        stride: int = 1,
        groups: int = 1,
        *,
        rngs: nnx.Rngs,
    ):
        shape = (window, window, in_channels // groups, out_channels)
        self.kernel = nnx.Param(HE_NORMAL(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.stride = stride
        self.groups = groups

    def __call__(self, inputs: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C2"]:
        kernel, stride = self.kernel[...], self.stride
        if kernel.shape[0] == 1 and stride > 1:
            inputs, stride = inputs[:, ::stride, ::stride], 1
        return _convolve(inputs, kernel, stride, self.groups) + self.bias[...]


class Bottleneck(nnx.Module):
    """Narrows, convolves 3x3 (with the stride), widens, adds the input."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        stride: int,
        groups: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.conv1 = Conv(in_channels, width, 1, rngs=rngs)
        self.conv2 = Conv(width, width, 3, stride, groups, rngs=rngs)
        self.conv3 = Conv(width, out_channels, 1, rngs=rngs)
        # A list of one, as published: its name is `downsample.0`.
        self.downsample = nnx.List(
            [Conv(in_channels, out_channels, 1, stride, rngs=rngs)]
            if stride > 1 or in_channels != out_channels
            else []
        )

    def __call__(self, inputs: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C2"]:
        hidden = nnx.relu(self.conv1(inputs))
        hidden = self.conv3(nnx.relu(self.conv2(hidden)))
        for shortcut in self.downsample:
            inputs = shortcut(inputs)
        return nnx.relu(inputs + hidden)


class ResNet(nnx.Module):
    """The trunk, with attributes named as torchvision names its weights.

    Source: He et al., "Deep residual learning", 2015, with the stride in the 3x3
    convolution as torchvision's `resnet50` has it; Xie et al., "Aggregated residual
    transformations", 2017.
    """

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.conv1 = Conv(3, _STEM_WIDTH, 7, 2, rngs=rngs)
        channels = _STEM_WIDTH
        for stage, depth in enumerate(config.depths):
            width = config.groups * config.width_per_group * 2**stage
            blocks = []
            for index in range(depth):
                out_channels = _STEM_WIDTH * _EXPANSION * 2**stage
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(
                    Bottleneck(
                        channels, width, out_channels, stride, config.groups, rngs=rngs
                    )
                )
                channels = out_channels
            setattr(self, f"layer{stage + 1}", nnx.List(blocks))
        self.stages = len(config.depths)

    def __call__(
        self, pixel_values: Float[Array, "B H W 3"]
    ) -> Float[Array, "B h w C"]:
        """Returns maps of a 32nd of the size, rounded up, for four stages."""
        hidden = nnx.relu(self.conv1(pixel_values))
        hidden = nnx.max_pool(hidden, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage in range(self.stages):
            for block in getattr(self, f"layer{stage + 1}"):
                hidden = block(hidden)
        return hidden


def _convolve(
    inputs: Float[Array, "B h w C"],
    kernel: Float[Array, "k k c C2"],
    stride: int,
    groups: int,
) -> Float[Array, "B h2 w2 C2"]:
    strides, padding = (stride, stride), ((kernel.shape[0] // 2,) * 2,) * 2
    native = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=_LAYOUT,
    )
    if groups == 1 and stride == 1:
        return convolve(inputs, kernel, strides, padding, dimension_numbers=_LAYOUT)
    if groups == 1 or target_backend() != "cpu":
        return native(inputs, kernel, feature_group_count=groups)
    # XLA's grouped convolutions for CPUs take 2 to 9 times as long as one convolution for
    # every few groups, with zeros between them; a single one for all 32 groups has 32
    # times the products.
    parts = math.gcd(groups, max(1, inputs.shape[-1] // _MERGED_CHANNELS))
    channels = jnp.split(inputs, parts, axis=-1)
    kernels = jnp.split(_merge_groups(kernel, groups // parts), parts, axis=-1)
    convolved = [native(c, k) for c, k in zip(channels, kernels, strict=True)]
    return jnp.concatenate(convolved, axis=-1)


def _merge_groups(
    kernel: Float[Array, "k k c C"], members: int
) -> Float[Array, "k k c2 C"]:
    """Makes every `members` groups one, with zeros between them."""
    *window, c, C = kernel.shape
    split = kernel.reshape(*window, c, -1, members, c)
    merged = jnp.einsum("ijcgmo,mn->ijncgmo", split, jnp.eye(members))
    return merged.reshape(*window, members * c, C)


def pool_generalised_mean(
    features: Float[Array, "B h w C"], power: float = 3.0, epsilon: float = 1e-6
) -> Float[Array, "B C"]:
    """Averages powers of the features over positions (GeM), in float32.

    Source: Radenovic et al., "Fine-tuning CNN image retrieval", 2018, equation 3.
    """
    floored = jnp.maximum(features.astype(jnp.float32), epsilon)
    return (floored**power).mean((1, 2)) ** (1 / power)
