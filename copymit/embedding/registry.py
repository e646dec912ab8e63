"""Every embedder by its name in configs and results."""

import functools
from collections.abc import Callable, Mapping, Sequence

from copymit.embedding.clip import CLIP_MODELS, make_clip
from copymit.embedding.dinov2 import DINOV2_MODELS, make_dinov2
from copymit.embedding.efficientnet import make_efficientnet_lite0
from copymit.embedding.embedder import Embedder
from copymit.embedding.inception import PROTOCOLS as INCEPTION_PROTOCOLS
from copymit.embedding.inception import make_inception
from copymit.embedding.pixels import PIXEL_SIZES, make_pixels
from copymit.embedding.sscd import PROTOCOLS as SSCD_PROTOCOLS
from copymit.embedding.sscd import make_sscd

# Name of the embedder -> name of its weights in `eval.weights` ("" where it has none or
# brings them), and what makes it of the path of the weights.
_EMBEDDERS: dict[str, tuple[str, Callable[[str], Embedder]]] = {
    "efficientnet_lite0": ("", lambda _: make_efficientnet_lite0()),
    **{name: ("", lambda _, name=name: make_pixels(name)) for name in PIXEL_SIZES},
    **{
        name: (protocol.weights, functools.partial(make_sscd, name))
        for name, protocol in SSCD_PROTOCOLS.items()
    },
    **{
        name: ("inception", functools.partial(make_inception, name))
        for name in INCEPTION_PROTOCOLS
    },
    **{
        name: (model.weights, functools.partial(make_clip, name))
        for name, model in CLIP_MODELS.items()
    },
    **{name: (name, functools.partial(make_dinov2, name)) for name in DINOV2_MODELS},
}
EMBEDDERS = tuple(_EMBEDDERS)
WEIGHTS = tuple(dict.fromkeys(weights for weights, _ in _EMBEDDERS.values() if weights))


def make_embedder(name: str, weights: Mapping[str, str] | None = None) -> Embedder:
    """Loads an embedder.

    Args:
      weights: paths or hub ids by name of the weights; those that are absent or "" are
        the published ones where a hub has them.
    Raises:
      ValueError, FileNotFoundError: for an unknown name, or weights that are not given
        or of another network.
    """
    check_embedders([name])
    of_weights, make = _EMBEDDERS[name]
    return make((weights or {}).get(of_weights, ""))


def weights_name(embedder: str) -> str:
    """Names the setting of an embedder's weights; "" where it has none."""
    return _EMBEDDERS[embedder][0]


def check_embedders(names: Sequence[str], setting: str = "eval.embedders") -> None:
    """Raises a `ValueError` that lists the embedders if one is not known, or none given."""
    unknown = [name for name in names if name not in _EMBEDDERS]
    if unknown or not names:
        raise ValueError(
            f"{setting}={tuple(names)}: use one or more of {', '.join(_EMBEDDERS)}"
        )
