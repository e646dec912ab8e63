"""SSCD under the protocols of its authors and of the papers that measure copying.

In: images. Out: the copy detector's features, with a protocol that says how they came
about.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import UInt8

from copymit.embedding.embedder import Embedder
from copymit.embedding.resizing import crop_centre, resize_short_side, resize_to
from copymit.models.sscd import load_sscd
from copymit.pretrained.weight_files import hash_weights

_PROJECT = "github.com/facebookresearch/sscd-copy-detection"


class _Statistics(NamedTuple):
    """Mean and standard deviation of the channels of images in [0, 1]."""

    text: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class SscdProtocol(NamedTuple):
    """How images reach which weights.

    Attributes:
      weights: name of the published model, and of the setting that takes its path.
      architecture: of these weights, as `copymit.models.sscd` calls it.
      resizing: in words.
      prepare: what does it.
      statistics: what pixels are normalised with.
    """

    weights: str
    architecture: str
    resizing: str
    prepare: Callable[[UInt8[np.ndarray, "H W 3"]], UInt8[np.ndarray, "h w 3"]]
    statistics: _Statistics


def _crop_resized(
    image: UInt8[np.ndarray, "H W 3"], short_side: int, size: int
) -> UInt8[np.ndarray, "size size 3"]:
    return crop_centre(resize_short_side(image, short_side), size)


_HALF = _Statistics("mean 0.5, std 0.5", (0.5,) * 3, (0.5,) * 3)
_IMAGENET = _Statistics(
    "ImageNet mean and std", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)
_LARGE = ("sscd_disc_large", "resnext101_32x4d")
_MIXUP = ("sscd_disc_mixup", "resnet50")
_CROP_224 = (
    "short side to 256 px (bilinear), centre crop of 224 px",
    functools.partial(_crop_resized, short_side=256, size=224),
)
PROTOCOLS = {
    # Source: somepago/DCR, diff_retrieval.py with --arch resnet50_disc, and
    # embedding_search/utils.py, with which it searches LAION.
    "sscd_dcr": SscdProtocol(*_LARGE, *_CROP_224, _HALF),
    "sscd_dcr_laion": SscdProtocol(*_MIXUP, *_CROP_224, _IMAGENET),
    # Source: the two recommendations of SSCD's README. The first takes the whole image,
    # one at a time; the square lets images of different shapes form a batch.
    "sscd_288": SscdProtocol(
        *_MIXUP,
        "short side to 288 px (bilinear), centre crop to a square",
        functools.partial(_crop_resized, short_side=288, size=288),
        _IMAGENET,
    ),
    "sscd_320": SscdProtocol(
        *_MIXUP,
        "squashed to 320 x 320 px (bilinear)",
        functools.partial(resize_to, height=320, width=320),
        _IMAGENET,
    ),
}


def make_sscd(protocol: str, weights: str) -> Embedder:
    """Loads SSCD.

    Args:
      protocol: key of `PROTOCOLS`.
      weights: path of the published file.
    Raises:
      FileNotFoundError: no file at `weights`.
      ValueError: the protocol is not known, no path is given, or the file does not hold
        the weights that the protocol needs.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"{protocol!r} is no SSCD protocol: use {', '.join(PROTOCOLS)}"
        )
    steps = PROTOCOLS[protocol]
    if not weights:
        raise ValueError(
            f"{protocol} needs the weights of SSCD: download "
            f"{steps.weights}.torchscript.pt (or .classy.pt), linked from the README of "
            f"{_PROJECT}, and set eval.weights.{steps.weights}=PATH"
        )
    graphdef, params = nnx.split(load_sscd(weights, steps.architecture))
    mean, std = (255 * np.array(v, np.float32) for v in steps.statistics[1:])

    def apply(params, images):
        pixel_values = (images.astype(jnp.float32) - mean) / std
        return nnx.merge(graphdef, params)(pixel_values)

    text = (
        f"SSCD {steps.weights} ({steps.architecture}), weights sha256 "
        f"{hash_weights([epath.Path(weights)])[:12]}; {steps.resizing}; "
        f"{steps.statistics.text}; float32; cosine of the features"
    )
    return Embedder(protocol, text, steps.prepare, params, apply)
