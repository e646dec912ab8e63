"""Loads published CLIP and DINOv2: a name goes in, a config and parameters come out."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from etils import epath

from copymit.models.clip import (
    CLIPConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from copymit.models.dinov2 import Dinov2Config, Dinov2Model
from copymit.models.functional import (
    Params,
    describe_params,
    module_params,
    trace_module,
)
from copymit.models.torch_layout import load_torch_state
from copymit.pretrained.components import read_text_encoder
from copymit.pretrained.dinov2_original import config_of_original, to_hub_names
from copymit.pretrained.load import load_network
from copymit.pretrained.published_fields import Json, read_fields, refusal
from copymit.pretrained.source import Source, open_source, read_json
from copymit.pretrained.weight_files import (
    find_weights,
    hash_weights,
    open_weight_file,
    shard_paths,
)

Tower = Literal["vision", "text"]

_CLIP_MODULES = {
    "vision": CLIPVisionModelWithProjection,
    "text": CLIPTextModelWithProjection,
}
# What else a config could ask for, with what we have.
_CLIP_VISION_FIXED = {"num_channels": 3}
_DINOV2_FIXED = {
    "hidden_act": "gelu",
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}


class LoadedClip(NamedTuple):
    """Half of a CLIP.

    Attributes:
      config: of both halves.
      params: of the half that was asked for.
      weights: where they come from, and the beginning of their sha256.
    """

    config: CLIPConfig
    params: Params
    weights: str


class LoadedDinov2(NamedTuple):
    """A DINOv2; `weights` says where the parameters come from."""

    config: Dinov2Config
    params: Params
    weights: str


def load_clip(source: str, tower: Tower = "vision") -> LoadedClip:
    """Loads one half of a CLIP in transformers' layout.

    Args:
      source: folder, `gs://` folder or hub id.
      tower: `vision` loads a `CLIPVisionModelWithProjection`, `text` its counterpart.
    Raises:
      FileNotFoundError, ValueError, ConnectionError: it cannot be opened, is of another
        architecture, or a tensor is missing, unused or misshapen.
    """
    opened = open_source(source)
    config = _read_config(opened, "clip", _read_clip)
    module = _CLIP_MODULES[tower]
    params = _load(opened, f"clip_{tower}", lambda rngs: module(config, rngs=rngs))
    return LoadedClip(config, params, _describe(opened, f"clip_{tower}"))


def load_dinov2(source: str) -> LoadedDinov2:
    """Loads a DINOv2 in transformers' layout, or as its authors publish it.

    Args:
      source: folder, `gs://` folder, hub id, or a file such as
        `dinov2_vits14_pretrain.pth`.
    Raises:
      FileNotFoundError, ValueError, ConnectionError: it cannot be opened, is of another
        architecture, or a tensor is missing, unused or misshapen.
    """
    if source.endswith(".pth"):
        return _load_original(epath.Path(source).expanduser())
    opened = open_source(source)
    config = _read_config(opened, "dinov2", _read_dinov2)
    params = _load(opened, "dinov2", lambda rngs: Dinov2Model(config, rngs=rngs))
    return LoadedDinov2(config, params, _describe(opened, "dinov2"))


def _load_original(path: epath.Path) -> LoadedDinov2:
    if not path.is_file():
        raise FileNotFoundError(f"There is no weight file {path}")
    with open_weight_file(path) as stored:
        try:
            config = config_of_original({n: t.shape for n, t in stored.items()})
            model = trace_module(lambda rngs: Dinov2Model(config, rngs=rngs))
            tensors = to_hub_names({n: tensor.read() for n, tensor in stored.items()})
            load_torch_state(model, tensors, ignore=[r"^embeddings\.mask_token$"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return LoadedDinov2(
        config, module_params(model), f"{path.name}, {_short_hash([path])}"
    )


def _load(source: Source, network: str, make_module: Any) -> Params:
    parameters = describe_params(make_module)
    abstract = {name: p.abstract() for name, p in parameters.items()}
    return load_network(source, network, abstract)


def _describe(source: Source, network: str) -> str:
    shards = shard_paths(source, find_weights(source, network, ""))
    paths = [source.fetch(path) for path in sorted(shards)]
    return f"{source.name}, {_short_hash(paths)}"


def _short_hash(paths: list[epath.Path]) -> str:
    return f"sha256 {hash_weights(paths)[:12]}"


def _read_config(source: Source, kind: str, read: Any) -> Any:
    """Reads config.json if it is of this kind of model."""
    published = read_json(source, "config.json")
    try:
        if published.get("model_type") != kind:
            raise refusal(
                "model_type", published.get("model_type"), f"a {kind} model is needed"
            )
        return read(published)
    except ValueError as error:
        raise ValueError(f"{source.name}: config.json: {error}") from error


def _read_clip(published: Json) -> CLIPConfig:
    vision, text = (_section(published, name) for name in ("vision", "text"))
    _require("vision_config.", vision, _CLIP_VISION_FIXED)
    shared = {k: v for k, v in published.items() if k == "projection_dim"}
    return CLIPConfig(
        CLIPVisionConfig(**read_fields(CLIPVisionConfig, vision, {})),
        read_text_encoder(text),
        **read_fields(CLIPConfig, shared, {}),
    )


def _section(published: Json, name: str) -> Json:
    """Returns the part of a config about one half, by today's or its older name.

    Where there is the older one, it decides, as in transformers.
    """
    for key in (f"{name}_config_dict", f"{name}_config"):
        section = published.get(key)
        if section is not None:
            if not isinstance(section, dict):
                raise refusal(key, section, "must be a JSON object")
            return section
    return {}


def _read_dinov2(published: Json) -> Dinov2Config:
    if published.get("use_swiglu_ffn"):
        raise refusal(
            "use_swiglu_ffn", True, "ViT-g/14 is not implemented: use ViT-S, B or L"
        )
    _require("", published, _DINOV2_FIXED)
    ours = {k: v for k, v in published.items() if k != "position_offset"}
    return Dinov2Config(**read_fields(Dinov2Config, ours, {}))


def _require(owner: str, published: Json, fixed: Mapping[str, Any]) -> None:
    for name, value in fixed.items():
        if published.get(name, value) != value:
            reason = f"only {value!r} is implemented"
            raise refusal(f"{owner}{name}", published[name], reason)
