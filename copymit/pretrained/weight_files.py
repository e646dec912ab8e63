"""Finds the weight files of a network and opens them, whatever their age.

In: a source and a network's name. Out: shapes and types of all tensors under current
names, each of which can then be read alone. Published names changed over the years:
the VAE's attention was once `query`, `key`, `value`, `proj_attn`; transformers 5 leaves
`text_model.` out of the text encoder's names.
"""

import contextlib
import functools
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from copymit.models.torch_files import read_torch_tensors
from copymit.pretrained.safetensors_format import DTYPES
from copymit.pretrained.source import Source, read_json, refuse_pointer
from copymit.storage import scratch_folder

# Stems of the safetensors file and of the older pickle.
_TRANSFORMERS_STEMS = ("model", "pytorch_model")
_STEMS = {
    "text_encoder": _TRANSFORMERS_STEMS,
    "clip_vision": _TRANSFORMERS_STEMS,
    "clip_text": _TRANSFORMERS_STEMS,
    "dinov2": _TRANSFORMERS_STEMS,
}
_DEFAULT_STEMS = ("diffusion_pytorch_model", "diffusion_pytorch_model")
_SHARD_NAME = re.compile(r"[\w.-]+\.(safetensors|bin)", re.ASCII)
# Buffers, and tensors of a file that the network has no use for.
_LEFT_OUT = {
    "text_encoder": re.compile(r"embeddings\.position_ids$"),
    "clip_vision": re.compile(
        r"^(text_model|text_projection|logit_scale)\b|embeddings\.position_ids$"
    ),
    "clip_text": re.compile(
        r"^(vision_model|visual_projection|logit_scale)\b|embeddings\.position_ids$"
    ),
    "dinov2": re.compile(r"^embeddings\.mask_token$"),
}
_VAE_ATTENTION = re.compile(
    r"(?P<block>(?:en|de)coder\.mid_block\.attentions\.0)\."
    r"(?P<part>query|key|value|proj_attn)\.(?P<leaf>weight|bias)"
)
_VAE_PARTS = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
_VAE_LINEAR = re.compile(r"\.attentions\.0\.(to_[qkv]|to_out\.0)\.weight")


class _Float8Error(ValueError):
    """Weights are there, but of too few bits to train from."""


class StoredTensor(NamedTuple):
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def find_weights(
    source: Source, network: str, prefix: str, variant: str | None = None
) -> str:
    """Returns the path of a network's weights, or of the index of their shards.

    Full precision is preferred to half, safetensors to the older pickles.

    Args:
      prefix: of the network's files in the source, such as `unet/`.
      variant: read only files of this kind, such as `fp16`.
    Raises:
      FileNotFoundError: none of the names that are known.
    """
    kinds = [variant] if variant else [None, "fp16"]
    safetensors, pickle = _STEMS.get(network, _DEFAULT_STEMS)
    candidates = [
        f"{prefix}{name}"
        for stem, ending in ((safetensors, "safetensors"), (pickle, "bin"))
        for kind in kinds
        for name in (
            f"{stem}.{kind}.{ending}" if kind else f"{stem}.{ending}",
            f"{stem}.{ending}.index.{kind}.json"
            if kind
            else f"{stem}.{ending}.index.json",
        )
    ]
    for path in candidates:
        if source.has(path):
            return path
    raise FileNotFoundError(
        f"{source.name} has no weights of the {network}: none of "
        f"{', '.join(candidates)}"
    )


def shard_paths(source: Source, weights: str) -> dict[str, frozenset[str] | None]:
    """Maps each weight file to the tensors that the index expects there.

    Args:
      weights: what `find_weights` returned; a single file has no expectations (None).
    Raises:
      ValueError: the index is damaged, or names a file that is not beside it.
    """
    if not weights.endswith(".json"):
        return {weights: None}
    weight_map = read_json(source, weights).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"{source.name}: {weights} has no weight_map: download it again"
        )
    folder = weights.rpartition("/")[0]
    shards: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        if not (isinstance(file, str) and _SHARD_NAME.fullmatch(file)):
            raise ValueError(
                f"{source.name}: {weights} says that {tensor} is in {str(file)[:100]!r}, "
                "which is not a weight file beside it: do not trust this model"
            )
        shards.setdefault(f"{folder}/{file}" if folder else file, set()).add(tensor)
    missing = [path for path in shards if not source.has(path)]
    if missing:
        raise FileNotFoundError(
            f"{source.name} has no {', '.join(missing)}, which {weights} names: "
            "download it again"
        )
    return {path: frozenset(tensors) for path, tensors in shards.items()}


@contextlib.contextmanager
def open_weights(
    source: Source, network: str, prefix: str, variant: str | None = None
) -> Iterator[dict[str, StoredTensor]]:
    """Opens all weight files of a network: tensors by current name, in file order.

    Raises:
      FileNotFoundError, ValueError: files that are missing, damaged, of different
        content than their index says, or with two tensors of one name.
    """
    weights = find_weights(source, network, prefix, variant)
    tensors: dict[str, StoredTensor] = {}
    with contextlib.ExitStack() as stack:
        for path, expected in shard_paths(source, weights).items():
            found = stack.enter_context(open_weight_file(source.fetch(path)))
            if expected is not None and found.keys() != expected:
                odd = sorted(found.keys() ^ expected)
                raise ValueError(
                    f"{source.name}: {weights} and {path} disagree on "
                    f"{', '.join(odd[:5])}: download both again"
                )
            for stored_name, tensor in found.items():
                name = current_name(network, stored_name)
                if name is None:
                    continue
                if name in tensors:
                    raise ValueError(f"{source.name}: {path} has a second {name}")
                tensors[name] = _current_shape(network, name, tensor)
        yield tensors


def hash_weights(paths: Iterable[epath.Path]) -> str:
    """Returns the sha256 of weight files, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def current_name(network: str, name: str) -> str | None:
    """Returns what a published tensor is called today; None for one to leave out."""
    if network == "vae" and (match := _VAE_ATTENTION.fullmatch(name)):
        part = _VAE_PARTS[match["part"]]
        return f"{match['block']}.{part}.{match['leaf']}"
    if network in _LEFT_OUT and _LEFT_OUT[network].search(name):
        return None
    if network == "text_encoder" and name.startswith(
        ("embeddings.", "encoder.", "final_layer_norm.")
    ):
        return f"text_model.{name}"
    return name


def _current_shape(network: str, name: str, tensor: StoredTensor) -> StoredTensor:
    """Sees the VAE's old attention, stored as 1x1 convolutions, as linear layers."""
    if network != "vae" or tensor.shape[2:] != (1, 1) or not _VAE_LINEAR.search(name):
        return tensor
    return StoredTensor(
        tensor.shape[:2], tensor.dtype, lambda: tensor.read()[:, :, 0, 0]
    )


@contextlib.contextmanager
def open_weight_file(path: epath.Path) -> Iterator[dict[str, StoredTensor]]:
    """Opens one file, whatever its kind: tensors by the names in it.

    Raises:
      FileNotFoundError, ValueError: it is missing, damaged, or holds more than tensors.
    """
    refuse_pointer(path)
    if path.suffix in (".bin", ".pth"):
        with _local_copy(path) as local:
            arrays = read_torch_tensors(local)
        yield {
            name: StoredTensor(array.shape, array.dtype, lambda array=array: array)
            for name, array in arrays.items()
        }
        return
    with _local_copy(path) as local:
        yield _map_safetensors(path, local)


def _map_safetensors(path: epath.Path, local: Path) -> dict[str, StoredTensor]:
    """Lists the tensors in the order of their bytes; none is read.

    Args:
      path: for messages, of the file whose copy `local` may be.
    """
    try:
        file = safe_open(local, "numpy")
        tensors = {}
        for name in file.offset_keys():
            part = file.get_slice(name)
            dtype = DTYPES.get(part.get_dtype())
            if dtype is None and part.get_dtype().startswith("F8"):
                raise _Float8Error(
                    f"{path} holds numbers of 8 bits ({part.get_dtype()}), made for "
                    "sampling alone: give the weights of 16 or 32 bits"
                )
            if dtype is None:
                raise ValueError(f"{name} has the type {part.get_dtype()}")
            read = functools.partial(file.get_tensor, name)
            tensors[name] = StoredTensor(tuple(part.get_shape()), dtype, read)
    except _Float8Error:
        raise
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file that can be used ({error}): "
            "download or copy it again"
        ) from error
    return tensors


@contextlib.contextmanager
def _local_copy(path: epath.Path) -> Iterator[Path]:
    """Makes a file mappable; the map outlives the copy's name."""
    if "://" not in str(path):
        yield Path(path)
        return
    with scratch_folder() as folder, path.open("rb") as remote:
        local = folder / path.name
        with local.open("wb") as file:
            shutil.copyfileobj(remote, file, 2**24)
        yield local
