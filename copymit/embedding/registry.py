"""Every embedder by its name in configs and results."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from copymit.embedding.clip import CLIP_MODELS, make_clip
from copymit.embedding.dinov2 import DINOV2_MODELS, make_dinov2
from copymit.embedding.dinov2 import PRESET as DINOV2_PRESET
from copymit.embedding.efficientnet import make_efficientnet_lite0
from copymit.embedding.embedder import Embedder
from copymit.embedding.inception import PROTOCOLS as INCEPTION_PROTOCOLS
from copymit.embedding.inception import find_inception, make_inception
from copymit.embedding.pixels import PIXEL_SIZES, make_pixels
from copymit.embedding.sscd import PACKAGE as SSCD_PACKAGE
from copymit.embedding.sscd import PROJECT as SSCD_PROJECT
from copymit.embedding.sscd import PROTOCOLS as SSCD_PROTOCOLS
from copymit.embedding.sscd import find_sscd, make_sscd
from copymit.models.inception import WEIGHTS_FILE
from copymit.spelling import nearest


class _Entry(NamedTuple):
    """What is known of an embedder before it is made.

    Attributes:
      what: network and preprocessing, in words.
      published: where its weights are from.
      weights: name of its weights in `eval.weights`; "" where it has none or brings them.
      make: makes it of the path of the weights.
      find: raises what `make` would, if the weights are not there.
    """

    what: str
    published: str
    weights: str
    make: Callable[[str], Embedder]
    find: Callable[[str], Any] = lambda _: None  # a hub, or a package that we depend on


_EMBEDDERS = {
    "efficientnet_lite0": _Entry(
        "EfficientNet-Lite0, 224 px",
        "a pip package that copymit depends on",
        "",
        lambda _: make_efficientnet_lite0(),
    ),
    **{
        name: _Entry(
            f"none: correlation of pixels at {size} px",
            "none",
            "",
            lambda _, name=name: make_pixels(name),
        )
        for name, size in PIXEL_SIZES.items()
    },
    **{
        name: _Entry(
            f"SSCD, {protocol.architecture}; {protocol.resizing}; "
            f"{protocol.statistics.text}",
            f"8-bit, of {SSCD_PACKAGE} (extra `sscd`)"
            if protocol.packaged
            else f"`{protocol.weights}.torchscript.pt` of {SSCD_PROJECT}",
            "" if protocol.packaged else protocol.weights,
            functools.partial(make_sscd, name),
            functools.partial(find_sscd, name),
        )
        for name, protocol in SSCD_PROTOCOLS.items()
    },
    **{
        name: _Entry(
            f"Inception-v3 of 2015, {protocol.text}",
            f"`{WEIGHTS_FILE}` of pytorch-fid's releases",
            "inception",
            functools.partial(make_inception, name),
            functools.partial(find_inception, name),
        )
        for name, protocol in INCEPTION_PROTOCOLS.items()
    },
    **{
        name: _Entry(
            f"{model.title}; {model.preset.text}",
            f"{model.hub_id}, from the hub",
            model.weights,
            functools.partial(make_clip, name),
        )
        for name, model in CLIP_MODELS.items()
    },
    **{
        name: _Entry(
            f"{model.title}; {DINOV2_PRESET.text}",
            f"{model.hub_id}, from the hub",
            name,
            functools.partial(make_dinov2, name),
        )
        for name, model in DINOV2_MODELS.items()
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


def describe_embedders() -> list[tuple[str, str, str, str]]:
    """Lists all: name, network and preprocessing, where weights are from, their setting.

    The setting is "" where there is none.
    """
    return [
        (name, e.what, e.published, f"eval.weights.{e.weights}" if e.weights else "")
        for name, e in _EMBEDDERS.items()
    ]


def check_embedders(names: Sequence[str], setting: str = "eval.embedders") -> None:
    """Raises a `ValueError` that lists the embedders if one is not known, or none given."""
    unknown = [name for name in names if name not in _EMBEDDERS]
    if unknown or not names:
        raise ValueError(
            f"{setting}={tuple(names)}: use one or more of {', '.join(_EMBEDDERS)}"
            f"{nearest(unknown[0], _EMBEDDERS) if unknown else ''}"
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
