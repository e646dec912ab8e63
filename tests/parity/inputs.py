"""What both sides of a comparison compute from: weights, images, features, photos.

Everything comes from numpy's legacy generator, whose stream is frozen, so that two
environments with different numpy versions see the same numbers.
"""

import tarfile
from pathlib import Path

import numpy as np

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "imagenette2-224.tar"
# Of each of two sets: for the ordinary tests, and for `make parity`.
PHOTO_COUNTS = (32, 1000)
PROTOCOLS = ("clean", "legacy_pytorch", "legacy_tensorflow", "dcr")
# Height and width: shrunk to 299 pixels, left as it is, enlarged, and both.
IMAGE_SIZES = ((375, 500), (299, 299), (64, 64), (224, 320))
FEATURE_IMAGE_SIZE = (160, 120)


def inception_weights(
    convolutions: dict[str, tuple[int, ...]], seed: int = 0
) -> dict[str, np.ndarray]:
    """Draws weights that keep activations near their scale, and norms that act.

    Args:
      convolutions: `OWNER.conv.weight` -> shape (out, in, height, width).
    Returns:
      a state dict with the names of the published file, the classifier included.
    """
    tensors = {}
    rng = np.random.RandomState(seed)
    for name in sorted(convolutions):
        shape = tuple(convolutions[name])
        bound = (6 / np.prod(shape[1:])) ** 0.5
        tensors[name] = rng.uniform(-bound, bound, shape)
        norm, count = name.replace(".conv.weight", ".bn"), shape[0]
        tensors[f"{norm}.weight"] = rng.uniform(0.8, 1.2, count)
        tensors[f"{norm}.bias"] = rng.standard_normal(count) * 0.1
        tensors[f"{norm}.running_mean"] = rng.standard_normal(count) * 0.1
        tensors[f"{norm}.running_var"] = rng.uniform(0.6, 1.2, count)
    tensors["fc.weight"] = rng.standard_normal((1008, 2048)) * 0.02
    tensors["fc.bias"] = rng.standard_normal(1008) * 0.02
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def draw_images(height: int, width: int, count: int = 2, seed: int = 0) -> np.ndarray:
    """Draws uint8 images (count, height, width, 3): waves, with noise on top."""
    rng = np.random.RandomState(seed)
    rows, columns = np.mgrid[:height, :width, :1][:2]
    images = []
    for _ in range(count):
        down, across, phase = rng.uniform(0.01, 0.3, (3, 3))
        waves = np.sin(rows * down + columns * across + 20 * phase)
        noise = rng.standard_normal((height, width, 3))
        images.append(np.clip(127 + 90 * waves + 25 * noise, 0, 255))
    return np.array(images).astype(np.uint8)


def sample_pixels(pixels: np.ndarray) -> np.ndarray:
    """Takes a grid that meets every phase of a resize, and the corners."""
    return pixels[:, ::18, ::17]


def draw_features(
    count: int, size: int, shift: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Draws correlated features (count, size), never negative as behind a ReLU."""
    common = np.random.RandomState(size)
    mixing = common.standard_normal((size, size)) / size**0.5
    mean = 0.3 * common.standard_normal(size) + shift
    rows = np.random.RandomState(seed).standard_normal((count, size)) @ mixing
    return np.maximum(rows + mean, 0) * 0.5


def feature_sets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draws pairs of equally many references and generations, in float64."""
    return {
        "narrow": (draw_features(400, 64), draw_features(400, 64, 0.1, seed=1)),
        "wide": (draw_features(200, 2048), draw_features(200, 2048, 0.1, seed=1)),
    }


def photo_names(archive: tarfile.TarFile, count: int) -> tuple[list[str], list[str]]:
    """Chooses two sets of training photos without one in common, of every class.

    Args:
      count: of each set; at most 1,000.
    """
    names = sorted(
        name
        for name in archive.getnames()
        if "/train/" in name and name.endswith(".JPEG")
    )
    first, second = names[::5][:1000], names[2::5][:1000]
    step = len(first) // count
    return first[::step][:count], second[::step][:count]


def read_photos(count: int) -> tuple[list[bytes], list[bytes]]:
    """Reads two sets of `count` encoded photos."""
    with tarfile.open(PHOTOS) as archive:
        return tuple(
            [archive.extractfile(name).read() for name in names]
            for names in photo_names(archive, count)
        )
