"""What a published model says of itself: its networks, schedule and tokenizer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from copymit.data.captions_file import listed
from copymit.data.tokenizer import read_vocabulary
from copymit.models.autoencoder_kl import AutoencoderKLConfig
from copymit.models.autoencoder_tiny import AutoencoderTinyConfig
from copymit.models.text_encoder import TextEncoderConfig
from copymit.models.unet import UNetConfig
from copymit.pretrained.components import read_network_config
from copymit.pretrained.source import Source, read_json

_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
_END_TOKEN = "<|endoftext|>"


@dataclass(frozen=True)
class Pipeline:
    """A published text-to-image model without its weights.

    Attributes:
      scheduler: the parsed `scheduler_config.json`.
      pad_token_id: what captions are filled up with.
    """

    unet: UNetConfig
    vae: AutoencoderKLConfig | AutoencoderTinyConfig
    text_encoder: TextEncoderConfig
    scheduler: dict[str, Any]
    pad_token_id: int

    @property
    def prediction_type(self) -> str:
        """`epsilon`, `v_prediction` or what else the scheduler's file says."""
        return str(self.scheduler.get("prediction_type", "epsilon"))

    @property
    def native_size_px(self) -> int:
        """Height and width of the images that the latents of the config stand for."""
        return self.unet.sample_size * self.vae.downsampling


def read_pipeline(source: Source) -> Pipeline:
    """Reads all settings of a model and checks that they fit each other.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a network is of another kind, or they do not fit each other.
    """
    if source.has("model_index.json"):
        kind = read_json(source, "model_index.json").get("_class_name")
        if kind not in _PIPELINES:
            raise ValueError(
                f"{source.name} is a {str(kind)[:80]}: only {' and '.join(_PIPELINES)} "
                "can be read, which the family of Stable Diffusion 1.x and 2.x are"
            )
    configs: dict[str, Any] = {
        network: read_config(source, network)
        for network in ("unet", "vae", "text_encoder")
    }
    pipeline = Pipeline(
        **configs,
        scheduler=read_json(source, "scheduler/scheduler_config.json"),
        pad_token_id=_read_pad_token_id(source),
    )
    _check_fit(source, pipeline)
    return pipeline


def read_config(source: Source, network: str) -> Any:
    """Reads the config of one network of `NETWORKS`.

    Raises:
      FileNotFoundError, ValueError: it is missing, or of another kind of network.
    """
    published = read_json(source, f"{find_network(source, network)}config.json")
    try:
        return read_network_config(network, published)
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from error


def find_network(source: Source, network: str) -> str:
    """Returns the prefix of a network's files: its folder, or the source itself.

    Autoencoders are also published alone.
    """
    alone = not source.has(f"{network}/config.json") and source.has("config.json")
    return "" if alone else f"{network}/"


def _check_fit(source: Source, pipeline: Pipeline) -> None:
    channels = pipeline.vae.latent_channels
    for field in ("in_channels", "out_channels"):
        if getattr(pipeline.unet, field) != channels:
            raise ValueError(
                f"{source.name}: the unet has {field}={getattr(pipeline.unet, field)}, "
                f"the vae {channels} latent channels: only text-to-image models can be "
                "read, not those for inpainting or upscaling"
            )
    if pipeline.unet.cross_attention_dim != pipeline.text_encoder.hidden_size:
        raise ValueError(
            f"{source.name}: the unet has cross_attention_dim="
            f"{pipeline.unet.cross_attention_dim}, the text encoder hidden_size="
            f"{pipeline.text_encoder.hidden_size}: they are not of one model"
        )


def _read_pad_token_id(source: Source) -> int:
    """Looks the padding token up; SD 1.x repeats the end token, SD 2.x has `!`."""
    vocabulary, merges = read_vocabulary()
    _check_vocabulary(source, vocabulary, merges)
    token: Any = _END_TOKEN
    # The first file that has it decides, as in transformers.
    for path in (
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
    ):
        if source.has(path) and (found := read_json(source, path).get("pad_token")):
            token = found.get("content") if isinstance(found, dict) else found
            break
    if not isinstance(token, str) or token not in vocabulary:
        raise ValueError(
            f"{source.name}: {path} has pad_token={str(token)[:80]!r}, which is not in "
            f"CLIP's vocabulary: set it to {_END_TOKEN!r} (SD 1.x) or '!' (SD 2.x)"
        )
    return vocabulary[token]


def _check_vocabulary(
    source: Source, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> None:
    """Compares what decides how captions are read with CLIP's own, in every file of it.

    transformers 5 writes `tokenizer.json` alone; a token that textual inversion added is
    in its `added_tokens`, or in the `added_tokens.json` of older ones.
    """

    def refuse(path: str, what: str) -> NoReturn:
        raise ValueError(
            f"{source.name}: {path} {what}: captions would be read wrongly. Models with "
            "added or other tokens cannot be used"
        )

    path = "tokenizer/vocab.json"
    if source.has(path) and read_json(source, path) != vocabulary:
        refuse(path, "is not CLIP's vocabulary")
    path = "tokenizer/added_tokens.json"
    if source.has(path):
        added = {
            k: v for k, v in read_json(source, path).items() if k not in vocabulary
        }
        if added:
            refuse(path, f"adds {listed(list(added))}")
    path = "tokenizer/tokenizer_config.json"
    if source.has(path):
        decoder = read_json(source, path).get("added_tokens_decoder") or {}
        _check_added(decoder.values(), path, vocabulary, refuse)
    path = "tokenizer/tokenizer.json"
    if not source.has(path):
        return
    content = read_json(source, path)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("vocab") != vocabulary:
        refuse(path, "is not CLIP's vocabulary")
    # Each merge is a pair, or as it was once, a text with a space.
    pairs: Any = model.get("merges") or ()
    found = [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]
    if found != [list(pair) for pair in merges]:
        refuse(path, "has other merges than CLIP's")
    _check_added(content.get("added_tokens") or (), path, vocabulary, refuse)


def _check_added(
    tokens: Iterable[Any],
    path: str,
    vocabulary: Mapping[str, int],
    refuse: Callable[[str, str], NoReturn],
) -> None:
    names = [str(t.get("content")) if isinstance(t, dict) else str(t) for t in tokens]
    added = [name for name in names if name not in vocabulary]
    if added:
        refuse(path, f"adds {listed(added)}")
