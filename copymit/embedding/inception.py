"""Inception features in each of the ways in which published FIDs were computed.

In: uint8 RGB images and the weights of 2015. Out: embedders of 2,048 features. The ways
differ in how an image comes to 299 pixels, and that alone moves a FID by whole points.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, UInt8
from PIL import Image

from copymit.embedding.embedder import Embedder
from copymit.embedding.resizing import crop_centre, resize_short_side
from copymit.models.inception import IMAGE_SIZE_PX, WEIGHTS_FILE, load_inception
from copymit.pretrained.weight_files import hash_weights

# Published files carry the beginning of their sha256 in their name.
_PUBLISHED_SHA256 = "6726825d"


class _Protocol(NamedTuple):
    """A way to bring an image to the network.

    Attributes:
      text: the way in words.
      prepare: image -> what is sent to the device.
      normalise: stacked prepared images -> pixels (B, 299, 299, 3).
    """

    text: str
    prepare: Callable[[UInt8[np.ndarray, "H W 3"]], np.ndarray]
    normalise: Callable[[Array], Float[Array, "B 299 299 3"]]


def find_inception(protocol: str, weights: str) -> epath.Path:
    """Finds the published file without reading it.

    Args:
      weights: its path, see `load_inception`.
    Raises:
      ValueError: for an unknown protocol, or no path.
      FileNotFoundError: there is no such file.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"{protocol!r} is not one of {', '.join(PROTOCOLS)}")
    if not weights:
        raise ValueError(
            f"{protocol} needs the weights of the FID's Inception: set "
            f"eval.weights.inception=PATH to {WEIGHTS_FILE}, which pytorch-fid publishes "
            "among its releases"
        )
    if not epath.Path(weights).exists():
        raise FileNotFoundError(f"no file {weights!r} (eval.weights.inception)")
    return epath.Path(weights)


def make_inception(protocol: str, weights: str) -> Embedder:
    """Loads the FID's Inception behind one of `PROTOCOLS`.

    Args and errors: as `find_inception`.
    Raises:
      ValueError: also for a file that does not fit.
    """
    find_inception(protocol, weights)
    text, prepare, normalise = PROTOCOLS[protocol]
    graphdef, params = nnx.split(load_inception(weights))

    def apply(params, images):
        return nnx.merge(graphdef, params)(normalise(images))

    return Embedder(
        protocol,
        f"Inception-v3 of 2015-12-05, weights {_describe_file(weights)}; {text}; "
        "averaged 2048 features of the last layer",
        prepare,
        params,
        apply,
    )


def _describe_file(path: str) -> str:
    digest = hash_weights([epath.Path(path)])
    published = digest.startswith(_PUBLISHED_SHA256)
    return f"sha256 {digest[:12]}{'' if published else ' (not the published file)'}"


def resize_bicubic(image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "299 299 3"]:
    """Resizes with Pillow's antialiased bicubic in float32, clipped to 0 .. 255.

    Source: Parmar et al. 2022, On Aliased Resizing; clean-fid `make_resizer`.
    """
    size = (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    channels = []
    for channel in range(3):  # Pillow has no float RGB
        grey = Image.fromarray(image[..., channel].astype(np.float32))
        channels.append(np.asarray(grey.resize(size, Image.Resampling.BICUBIC)))
    return np.stack(channels, axis=-1).clip(0, 255)


def crop_to_size(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "299 299 3"]:
    """Resizes the short side with Pillow's antialiased bilinear and crops the centre."""
    return crop_centre(resize_short_side(image, IMAGE_SIZE_PX), IMAGE_SIZE_PX)


def resize_half_pixel(
    pixels: Float[np.ndarray, "B H W C"],
) -> Float[np.ndarray, "B 299 299 C"]:
    """Resizes bilinearly without antialiasing; pixels are areas with a centre.

    Source: torch's `F.interpolate(mode="bilinear", align_corners=False)`.
    """
    return _interpolate(pixels, 0.5)


def resize_corner_pixel(
    pixels: Float[np.ndarray, "B H W C"],
) -> Float[np.ndarray, "B 299 299 C"]:
    """Resizes bilinearly without antialiasing; pixels are points at their upper left.

    Source: TensorFlow 1's `ResizeBilinear(align_corners=False)`.
    """
    return _interpolate(pixels, 0.0)


def _interpolate(pixels: np.ndarray, centre: float) -> np.ndarray:
    for axis in (1, 2):
        size = pixels.shape[axis]
        scale = np.float32(size / IMAGE_SIZE_PX)
        places = np.arange(IMAGE_SIZE_PX, dtype=np.float32) + np.float32(centre)
        places = np.maximum(places * scale - np.float32(centre), 0)
        low = np.minimum(places.astype(np.int32), size - 1)
        shape = [1] * pixels.ndim
        shape[axis] = IMAGE_SIZE_PX
        fraction = (places - low).reshape(shape)
        below = np.take(pixels, low, axis)
        above = np.take(pixels, np.minimum(low + 1, size - 1), axis)
        pixels = below + (above - below) * fraction
    return pixels


def _prepare_pytorch(image: np.ndarray) -> np.ndarray:
    return resize_half_pixel(image[None].astype(np.float32) / 255)[0]


def _prepare_tensorflow(image: np.ndarray) -> np.ndarray:
    return resize_corner_pixel(image[None].astype(np.float32))[0]


def _normalise_clean(pixels: Array) -> Array:
    return (pixels - 128) / 128


def _normalise_pytorch(images: Array) -> Array:
    return 2 * images - 1


def _normalise_dcr(images: Array) -> Array:
    return 2 * (2 * (images.astype(jnp.float32) / 255) - 1) - 1


PROTOCOLS = {
    "inception_clean": _Protocol(
        "as clean-fid (clean): Pillow's antialiased bicubic per channel in float to 299 "
        "x 299 px, clipped, not rounded; (x - 128) / 128",
        resize_bicubic,
        _normalise_clean,
    ),
    "inception_legacy_pytorch": _Protocol(
        "as pytorch-fid: x / 255, bilinear without antialiasing (half-pixel centres) to "
        "299 x 299 px; 2 x - 1",
        _prepare_pytorch,
        _normalise_pytorch,
    ),
    "inception_legacy_tensorflow": _Protocol(
        "as torch-fidelity and TensorFlow 1: bilinear without antialiasing (no half-pixel "
        "centres) to 299 x 299 px; (x - 128) / 128",
        _prepare_tensorflow,
        _normalise_clean,
    ),
    # The original normalises in its data loader, and its network once more.
    "inception_dcr": _Protocol(
        "as DCR: Pillow's antialiased bilinear of the short side to 299 px, centre crop; "
        "2 (2 x / 255 - 1) - 1, normalised twice as there, so -3 .. 1",
        crop_to_size,
        _normalise_dcr,
    ),
}
