"""Writes a model as a folder that diffusers loads, on disk or in a bucket.

In: the networks as flat tables of parameters, one after the other. Out: `unet/`, `vae/`,
`text_encoder/`, `tokenizer/`, `scheduler/` and, last, `model_index.json`: a folder that
has it is complete. Every file has another name until it is.
"""

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from copymit.data.tokenizer import read_vocabulary
from copymit.models.text_encoder import TextEncoderConfig
from copymit.models.torch_layout import (
    check_fit,
    to_torch_name,
    to_torch_order,
    to_torch_shape,
)
from copymit.pretrained.components import (
    NETWORKS,
    NetworkConfig,
    abstract_params,
    network_class,
    published_config,
)
from copymit.pretrained.safetensors_format import write_tensors
from copymit.storage import whole

logger = logging.getLogger(__name__)

DTYPES = ("float32", "float16", "bfloat16")
MAX_SHARD_BYTES = 10**10

# diffusers warns of folders that are newer than itself; this one suits all.
_DIFFUSERS_VERSION = "0.30.0"


class Network(NamedTuple):
    """One network of a model.

    Attributes:
      name: one of `NETWORKS`.
      params: flat table of parameters, arrays of numpy or jax, sharded or not.
    """

    name: str
    config: NetworkConfig
    params: Mapping[str, Any]


def save_pipeline(
    folder: epath.PathLike,
    networks: Iterable[Network],
    scheduler: Mapping[str, Any],
    *,
    pad_token_id: int,
    max_length: int = 77,
    dtype: str = "float32",
    variant: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a text-to-image model for `StableDiffusionPipeline.from_pretrained`.

    In a run of several processes all must call this; the first writes.

    Args:
      folder: a new or empty one.
      networks: one of each of `NETWORKS`. If it is a generator, a network is asked for
        when the one before has been written, so that they need not exist together.
      scheduler: content of `scheduler_config.json`, with `_class_name`.
      pad_token_id, max_length: what captions were filled up with, to how many tokens.
      dtype: of the files: float32, float16 or bfloat16.
      variant: ends the names of weight files (`fp16`), which are then only found by who
        asks for it.
      max_shard_bytes: a network with larger weights is cut into several files.
    Raises:
      ValueError: the folder is in use, a network is missing or has parameters of
        another, or a value is too large for float16.
    """
    folder = epath.Path(folder)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not known: use {', '.join(DTYPES)}")
    if "_class_name" not in scheduler:
        raise ValueError("scheduler has no _class_name: say which class of diffusers")
    if pad_token_id not in read_vocabulary()[0].values():
        raise ValueError(f"pad_token_id={pad_token_id} is not one of CLIP's tokens")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose a new folder or remove it")
    classes = {}
    for network in networks:
        save_network(
            folder,
            network,
            dtype=dtype,
            variant=variant,
            max_shard_bytes=max_shard_bytes,
        )
        classes[network.name] = network_class(network.config)
    if classes.keys() != set(NETWORKS):
        raise ValueError(
            f"networks are {', '.join(classes)}: give {', '.join(NETWORKS)}"
        )
    if jax.process_index() == 0:
        _save_tokenizer(folder / "tokenizer", pad_token_id, max_length)
        _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        index = _model_index(classes, scheduler)
        _write_json(folder / "model_index.json", index)


def save_network(
    folder: epath.PathLike,
    network: Network,
    *,
    dtype: str = "float32",
    variant: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes one network into its folder of a model; see `save_pipeline`."""
    folder = epath.Path(folder)
    name, config, params = network
    check_fit(
        f"the {name} to save",
        {key: value.shape for key, value in abstract_params(config).items()},
        {key: value.shape for key, value in params.items()},
        "Check that the config belongs to these parameters",
    )
    infix = f".{variant}" if variant else ""
    is_text = isinstance(config, TextEncoderConfig)
    stem = "model" if is_text else "diffusion_pytorch_model"
    sizes = {key: jnp.dtype(dtype).itemsize * params[key].size for key in params}
    shards = _split(sizes, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, keys in enumerate(shards, start=1):
        place = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file_name = f"{stem}{infix}{place}.safetensors"
        _save_tensors(folder / name / file_name, name, params, keys, dtype)
        weight_map |= {to_torch_name(key): file_name for key in keys}
    if jax.process_index() != 0:
        return
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": weight_map,
        }
        index_name = f"{stem}.safetensors.index{infix}.json"
        _write_json(folder / name / index_name, index)
    made_with = "torch_dtype" if is_text else "_diffusers_version"
    content = published_config(config)
    content[made_with] = dtype if is_text else _DIFFUSERS_VERSION
    _write_json(folder / name / "config.json", content)
    logger.info("wrote %s to %s", name, folder)


def save_lora(
    folder: epath.PathLike,
    factors: Mapping[str, Mapping[str, Any]],
    *,
    dtype: str = "float32",
) -> None:
    """Writes LoRA's factors for diffusers' `load_lora_weights`.

    In a run of several processes all must call this; the first writes.

    Args:
      folder: gets `pytorch_lora_weights.safetensors`.
      factors: of each network, as `copymit.models.lora` names them. Without a scale in
        the file diffusers takes that of `lora_alpha = rank`, which is 1.
      dtype: as of `save_pipeline`.
    """
    flat = {
        f"{network}.{name}": value
        for network, values in factors.items()
        for name, value in values.items()
    }
    path = epath.Path(folder) / "pytorch_lora_weights.safetensors"
    _save_tensors(path, "lora", flat, sorted(flat), dtype)


def _save_tensors(
    path: epath.Path,
    network: str,
    params: Mapping[str, Any],
    keys: Sequence[str],
    dtype: str,
) -> None:
    """Writes one file; every process takes part in gathering what is sharded."""
    tensors = (_to_torch(network, key, params[key], dtype) for key in keys)
    if jax.process_index() != 0:
        for _ in tensors:
            pass
        return
    shapes = {
        to_torch_name(key): to_torch_shape(key, params[key].shape) for key in keys
    }
    with new_file(path) as file:
        write_tensors(file, shapes, jnp.dtype(dtype), tensors)


def _to_torch(network: str, name: str, value: Any, dtype: str) -> np.ndarray:
    """Brings a parameter to the host in published order and type."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        value = multihost_utils.process_allgather(value, tiled=True)
    values = to_torch_order(name, np.asarray(value))
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values, dtype)
    if dtype == "float16" and np.isinf(cast).any() and not np.isinf(values).any():
        raise ValueError(
            f"{name} of the {network} has values beyond float16: use bfloat16 or float32"
        )
    return cast


def _split(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    """Cuts the sorted names where a file would become larger than `max_bytes`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(sizes):
        if shards[-1] and filled + sizes[name] > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += sizes[name]
    return shards


def _model_index(
    classes: Mapping[str, str], scheduler: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", classes["text_encoder"]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", classes["unet"]],
        "vae": ["diffusers", classes["vae"]],
    }


def _save_tokenizer(folder: epath.Path, pad_token_id: int, max_length: int) -> None:
    vocabulary, merges = read_vocabulary()
    words = {index: word for word, index in vocabulary.items()}
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": words[pad_token_id],
        "unk_token": "<|endoftext|>",
    }
    settings = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": max_length,
        "tokenizer_class": "CLIPTokenizer",
        **special,
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    _write_json(folder / "vocab.json", vocabulary)
    with new_file(folder / "merges.txt") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: epath.Path, content: Any) -> None:
    with new_file(path) as file:
        file.write(f"{json.dumps(content, indent=2, ensure_ascii=False)}\n".encode())


@contextlib.contextmanager
def new_file(path: epath.Path) -> Iterator[IO[bytes]]:
    """Opens a file that gets its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial, partial.open("wb") as file:
        yield file
