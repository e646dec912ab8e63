"""Every embedder by its name in configs and results."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from copymit.embedding.clip import CLIP_MODELS, make_clip
from copymit.embedding.dinov2 import DINOV2_MODELS, make_dinov2
from copymit.embedding.efficientnet import make_efficientnet_lite0
from copymit.embedding.embedder import Embedder
from copymit.embedding.inception import PROTOCOLS as INCEPTION_PROTOCOLS
from copymit.embedding.inception import find_inception, make_inception
from copymit.embedding.pixels import PIXEL_SIZES, make_pixels
from copymit.embedding.sscd import PROTOCOLS as SSCD_PROTOCOLS
from copymit.embedding.sscd import find_sscd, make_sscd


class _Entry(NamedTuple):
    """What is known of an embedder before it is made.

    Attributes:
      weights: name of its weights in `eval.weights`; "" where it has none or brings them.
      make: makes it of the path of the weights.
      find: raises what `make` would, if the weights are not there.
    """

    weights: str
    make: Callable[[str], Embedder]
    find: Callable[[str], Any] = lambda _: None  # a hub, or a package that we depend on


_EMBEDDERS = {
    "efficientnet_lite0": _Entry("", lambda _: make_efficientnet_lite0()),
    **{
        name: _Entry("", lambda _, name=name: make_pixels(name)) for name in PIXEL_SIZES
    },
    **{
        name: _Entry(
            "" if protocol.packaged else protocol.weights,
            functools.partial(make_sscd, name),
            functools.partial(find_sscd, name),
        )
        for name, protocol in SSCD_PROTOCOLS.items()
    },
    **{
        name: _Entry(
            "inception",
            functools.partial(make_inception, name),
            functools.partial(find_inception, name),
        )
        for name in INCEPTION_PROTOCOLS
    },
    **{
        name: _Entry(model.weights, functools.partial(make_clip, name))
        for name, model in CLIP_MODELS.items()
    },
    **{
        name: _Entry(name, functools.partial(make_dinov2, name))
        for name in DINOV2_MODELS
    },
}
EMBEDDERS = tuple(_EMBEDDERS)
WEIGHTS = tuple(dict.fromkeys(e.weights for e in _EMBEDDERS.values() if e.weights))


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
    entry = _EMBEDDERS[name]
    return entry.make((weights or {}).get(entry.weights, ""))


def weights_name(embedder: str) -> str:
    """Names the setting of an embedder's weights; "" where it has none."""
    return _EMBEDDERS[embedder].weights


def check_embedders(names: Sequence[str], setting: str = "eval.embedders") -> None:
    """Raises a `ValueError` that lists the embedders if one is not known, or none given."""
    unknown = [name for name in names if name not in _EMBEDDERS]
    if unknown or not names:
        raise ValueError(
            f"{setting}={tuple(names)}: use one or more of {', '.join(_EMBEDDERS)}"
        )


def check_weights(names: Sequence[str], weights: Mapping[str, str]) -> None:
    """Looks whether the weights of embedders are there, without reading them.

    Raises:
      ValueError, FileNotFoundError: as `make_embedder`, for the first that are not.
    """
    for name in names:
        entry = _EMBEDDERS[name]
        entry.find(weights.get(entry.weights, ""))


def missing_weights(names: Sequence[str], weights: Mapping[str, str]) -> list[str]:
    """Says for each embedder whose weights are not there what it needs."""
    missing = []
    for name in dict.fromkeys(names):
        try:
            check_weights([name], weights)
        except (ValueError, OSError) as error:
            missing.append(f"{name}: {error}")
    return missing
