"""SSCD, the copy detector: a ResNet with GeM pooling and a linear head.

In: normalised images. Out: features whose cosine tells copies. Reads the published files
of all three formats (torchvision, Classy Vision and TorchScript), and quantised ONNX.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from copymit.models.batch_norm import fold_batch_norms
from copymit.models.functional import trace_module
from copymit.models.initializers import LECUN_NORMAL
from copymit.models.onnx_files import read_onnx_weights
from copymit.models.resnet import (
    BATCH_NORM_EPSILON,
    NORM_AFTER,
    RESNET50,
    RESNEXT101_32X4D,
    ResNet,
    ResNetConfig,
    pool_generalised_mean,
)
from copymit.models.torch_files import read_torch_tensors
from copymit.models.torch_layout import load_torch_state

# Published names -> ours. Classy Vision calls a block `blocks.0.block0-2` or, in later
# versions, `blocks.0.2._module`.
_RENAMES = (
    (r"^backbone\.fc\.", "head."),
    (r"^embeddings\.1\.", "head."),
    (r"^backbone\.initial_block\._module\.0\.", "backbone.conv1."),
    (r"^backbone\.initial_block\._module\.1\.", "backbone.bn1."),
    (r"\.convolutional_block\.0\.", ".conv1."),
    (r"\.convolutional_block\.1\.", ".bn1."),
    (r"\.convolutional_block\.3\.", ".conv2."),
    (r"\.convolutional_block\.4\.", ".bn2."),
    (r"\.convolutional_block\.6\.", ".conv3."),
    (r"\.bn\.", ".bn3."),
)
_CLASSY_BLOCK = re.compile(
    r"^backbone\.blocks\.(\d+)\.(?:block\d+-)?(\d+)\.(_module\.)?"
)


@dataclasses.dataclass(frozen=True)
class SscdConfig:
    """An architecture of SSCD.

    Attributes:
      label: how messages call it.
      trunk: the network before the pooling.
      features: length of the descriptor.
    """

    label: str
    trunk: ResNetConfig
    features: int


ARCHITECTURES = {
    "resnet50": SscdConfig("SSCD's ResNet-50 (sscd_disc_mixup)", RESNET50, 512),
    "resnext101_32x4d": SscdConfig(
        "SSCD's ResNeXt-101 32x4d (sscd_disc_large)", RESNEXT101_32X4D, 1024
    ),
}


class Sscd(nnx.Module):
    """The descriptor, before it is scaled to unit length.

    Source: Pizzi et al., "A self-supervised descriptor for image copy detection", 2022;
    facebookresearch/sscd-copy-detection `sscd/models/model.py`, whose last layer is the
    scaling.
    """

    def __init__(self, config: SscdConfig, *, rngs: nnx.Rngs):
        self.backbone = ResNet(config.trunk, rngs=rngs)
        self.head = nnx.Linear(
            config.trunk.out_channels,
            config.features,
            kernel_init=LECUN_NORMAL,
            rngs=rngs,
        )

    def __call__(self, pixel_values: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Describes images that are normalised as in training."""
        return self.head(pool_generalised_mean(self.backbone(pixel_values)))


def load_sscd(path: str | Path, architecture: str) -> Sscd:
    """Loads published weights.

    Args:
      path: a `.torchvision.pt`, `.classy.pt` or `.torchscript.pt` file; or an `.onnx`
        file, whose exporter folded the batch norms.
      architecture: key of `ARCHITECTURES`.
    Raises:
      FileNotFoundError: no file at `path`.
      ValueError: the file is not readable, is of another network, or a name is missing,
        unused or misshapen.
    """
    config = ARCHITECTURES[architecture]
    quantised = Path(path).suffix == ".onnx"
    tensors = _renamed((read_onnx_weights if quantised else read_torch_tensors)(path))
    found = _recognise(tensors)
    if found != config:
        holds = found.label if found else f"{', '.join(list(tensors)[:3])} and so on"
        raise ValueError(
            f"{path} holds {holds}, but {config.label} with {config.features} features "
            "is needed: take the published file of that name"
        )
    model = trace_module(lambda rngs: Sscd(config, rngs=rngs))
    try:
        if not quantised:
            tensors = fold_batch_norms(
                tensors, NORM_AFTER, BATCH_NORM_EPSILON, "the published file"
            )
        load_torch_state(model, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return model


def _renamed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names tensors as torchvision does, but for the head."""
    renamed = {}
    for published, tensor in tensors.items():
        name = _CLASSY_BLOCK.sub(
            lambda match: f"backbone.layer{int(match[1]) + 1}.{match[2]}.", published
        )
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _recognise(tensors: Mapping[str, np.ndarray]) -> SscdConfig | None:
    """Tells the architecture by the shapes of three tensors."""

    def shape(name: str) -> tuple[int, ...]:
        return tensors[name].shape if name in tensors else ()

    for config in ARCHITECTURES.values():
        trunk = config.trunk
        width = trunk.groups * trunk.width_per_group
        if (
            shape("backbone.conv1.weight") == (64, 3, 7, 7)
            and shape("backbone.layer1.0.conv2.weight")
            == (width, trunk.width_per_group, 3, 3)
            and shape("head.weight") == (config.features, trunk.out_channels)
        ):
            return config
    return None
