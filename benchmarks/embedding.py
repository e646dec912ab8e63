"""Embedders against the same networks in eager torch: a batch of images at a time.

Each side runs in a process of its own, so that neither holds the other's threads:

    python -m benchmarks.embedding SIDE CASE [BATCH]    prints the seconds of one batch

Weights are random and float32; images are prepared beforehand. `run` measures on CPUs;
`benchmarks.gpu` on a GPU, to which images go and from which features come in the time.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.timing import ON_CPU, Row, best_of

BATCH_SIZE = 16
REPEATS = 3


class Case(NamedTuple):
    """One network.

    Attributes:
      size: height and width of the images in pixels.
      copymit, torch: images -> a function that embeds them once.
      package: which has the network in torch.
    """

    size: int
    copymit: Callable[[np.ndarray], Callable]
    torch: Callable[[np.ndarray], Callable]
    package: str = "torch"


def run() -> list[Row]:
    """Times both sides in turn, each in a new process."""
    rows = []
    for name, case in CASES.items():
        if importlib.util.find_spec(case.package) is None:
            print(f"{name} needs {case.package}, which is not here", file=sys.stderr)
            continue
        seconds = [_measure(side, name) for side in ("copymit", "torch")]
        label = f"{name}, {BATCH_SIZE}x{case.size}x{case.size}"
        rows.append(Row(label, seconds[0], "torch, eager", seconds[1]))
    return rows


def _measure(side: str, name: str) -> float:
    command = [sys.executable, "-m", "benchmarks.embedding", side, name]
    environment = os.environ | ON_CPU
    done = subprocess.run(
        command, check=True, env=environment, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout.split()[-1])


def _sscd(architecture: str) -> Callable[[np.ndarray], Callable]:
    def make(images: np.ndarray) -> Callable:
        from copymit.models.sscd import ARCHITECTURES, Sscd

        return _apply(Sscd, ARCHITECTURES[architecture], images)

    return make


def _torch_sscd(architecture: str) -> Callable[[np.ndarray], Callable]:
    def make(images: np.ndarray) -> Callable:
        import torch

        from copymit.models.sscd import ARCHITECTURES

        config = ARCHITECTURES[architecture]
        model = torch.nn.Sequential(
            _torch_resnet(config.trunk),
            torch.nn.Flatten(2),
            torch.nn.LPPool1d(3, (images.shape[1] // 32) ** 2),
            torch.nn.Flatten(),
            torch.nn.Linear(config.trunk.out_channels, config.features),
        )
        return _embed_in_torch(model, images)

    return make


def _torch_resnet(config):
    """Returns the trunk as torchvision builds it."""
    import torch

    def conv(inputs, outputs, window, stride=1, groups=1, activate=True):
        padding = window // 2
        layers = [
            torch.nn.Conv2d(
                inputs, outputs, window, stride, padding, groups=groups, bias=False
            ),
            torch.nn.BatchNorm2d(outputs),
        ]
        return torch.nn.Sequential(*layers, *[torch.nn.ReLU(inplace=True)] * activate)

    class Block(torch.nn.Module):
        def __init__(self, inputs, width, outputs, stride):
            super().__init__()
            self.inner = torch.nn.Sequential(
                conv(inputs, width, 1),
                conv(width, width, 3, stride, config.groups),
                conv(width, outputs, 1, activate=False),
            )
            self.outer = torch.nn.Identity()
            if stride > 1 or inputs != outputs:
                self.outer = conv(inputs, outputs, 1, stride, activate=False)

        def forward(self, x):
            return torch.nn.functional.relu(self.inner(x).add_(self.outer(x)))

    layers = [conv(3, 64, 7, 2), torch.nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(config.depths):
        width = config.groups * config.width_per_group * 2**stage
        for index in range(depth):
            stride = 2 if stage and not index else 1
            layers.append(Block(channels, width, 256 * 2**stage, stride))
            channels = 256 * 2**stage
    return torch.nn.Sequential(*layers)


def _clip(images: np.ndarray) -> Callable:
    from copymit.models.clip import CLIP_VIT_B16, CLIPVisionModelWithProjection

    return _apply(CLIPVisionModelWithProjection, CLIP_VIT_B16, images)


def _dinov2(images: np.ndarray) -> Callable:
    from copymit.models.dinov2 import DINOV2_VITS14, Dinov2Model

    return _apply(Dinov2Model, DINOV2_VITS14, images)


def _inception(images: np.ndarray) -> Callable:
    from copymit.models.inception import Inception

    return _apply(lambda _, rngs: Inception(rngs=rngs), None, images)


def _efficientnet(images: np.ndarray) -> Callable:
    from copymit.models.efficientnet import EfficientNetLite0

    return _apply(lambda _, rngs: EfficientNetLite0(rngs=rngs), None, images)


def _apply(module: Callable, config: object, images: np.ndarray) -> Callable:
    """Embeds as the embed stage does, a few images of the batch at a time."""
    from flax import nnx

    from copymit.embedding.embed import embed_arrays
    from copymit.embedding.embedder import Embedder

    graphdef, params = nnx.split(module(config, rngs=nnx.Rngs(0)))
    embedder = Embedder(
        "network",
        "random weights",
        lambda image: image,
        params,
        lambda params, x: nnx.merge(graphdef, params)(x),
    )
    return lambda: embed_arrays(embedder, images, len(images))


def _torch_efficientnet(images: np.ndarray) -> Callable:
    """The network as the authors of its weights build it, batch norms not folded."""
    import torch

    from copymit.models.efficientnet import STAGES

    class Conv(torch.nn.Sequential):
        def __init__(self, inputs, outputs, window, stride=1, groups=1, activate=True):
            padding = window // 2
            super().__init__(
                torch.nn.Conv2d(
                    *(inputs, outputs, window, stride, padding),
                    groups=groups,
                    bias=False,
                ),
                torch.nn.BatchNorm2d(outputs),
                *[torch.nn.ReLU6(inplace=True)] * activate,
            )

    class Residual(torch.nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    layers, channels = [Conv(3, 32, 3, 2)], 32
    for repeats, window, first, expansion, outputs in STAGES:
        for stride in [first] + [1] * (repeats - 1):
            width = channels * expansion
            block = [
                *[Conv(channels, width, 1)] * (expansion > 1),
                Conv(width, width, window, stride, width),
                Conv(width, outputs, 1, activate=False),
            ]
            residual = stride == 1 and channels == outputs
            layers.append((Residual if residual else torch.nn.Sequential)(*block))
            channels = outputs
    layers += [Conv(channels, 1280, 1), torch.nn.AdaptiveAvgPool2d(1)]
    return _embed_in_torch(torch.nn.Sequential(*layers), images)


def _torch_clip(images: np.ndarray) -> Callable:
    import transformers

    config = transformers.CLIPVisionConfig(patch_size=16, projection_dim=512)
    return _embed_in_torch(transformers.CLIPVisionModelWithProjection(config), images)


def _torch_dinov2(images: np.ndarray) -> Callable:
    import transformers

    sizes = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518}
    config = transformers.Dinov2Config(**sizes)
    return _embed_in_torch(transformers.Dinov2Model(config), images)


def _torch_inception(images: np.ndarray) -> Callable:
    """torchvision's takes as long as the FID's older one; its classifier is nothing."""
    import torchvision

    model = torchvision.models.inception_v3(
        weights=None, init_weights=False, aux_logits=False
    )
    return _embed_in_torch(model, images)


def _embed_in_torch(model, images: np.ndarray) -> Callable:
    import torch

    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    layout = torch.channels_last if on_gpu else torch.contiguous_format
    if on_gpu:  # As jax multiplies float32 there, but for Inception's.
        torch.set_float32_matmul_precision("high")
    model = model.to(device, memory_format=layout).eval()
    pixel_values = torch.tensor(images).permute(0, 3, 1, 2)
    pixel_values = pixel_values.contiguous(memory_format=layout)

    @torch.inference_mode()
    def embed():
        found = model(pixel_values.to(device))
        getattr(found, "pooler_output", found).cpu()

    return embed


CASES = {
    "EfficientNet-Lite0": Case(224, _efficientnet, _torch_efficientnet),
    "SSCD ResNet-50": Case(288, _sscd("resnet50"), _torch_sscd("resnet50")),
    "SSCD ResNeXt-101 32x4d": Case(
        224, _sscd("resnext101_32x4d"), _torch_sscd("resnext101_32x4d")
    ),
    "CLIP ViT-B/16": Case(224, _clip, _torch_clip, "transformers"),
    "DINOv2 ViT-S/14": Case(224, _dinov2, _torch_dinov2, "transformers"),
    "Inception-v3": Case(299, _inception, _torch_inception, "torchvision"),
}


if __name__ == "__main__":
    side, name, *batch = sys.argv[1:]
    case = CASES[name]
    shape = (int(batch[0]) if batch else BATCH_SIZE, case.size, case.size, 3)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    print(best_of(getattr(case, side)(images), REPEATS))
