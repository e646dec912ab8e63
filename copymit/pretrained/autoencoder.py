"""A published autoencoder alone, for a model whose other networks start at random.

In: a folder or hub id. diffusers' `AutoencoderKL` and `AutoencoderTiny` lie there with a
`config.json`; the original files of TAESD and its kin (`taesd_encoder.pth` and
`taesd_decoder.pth`, or `.safetensors`) have none, and their tensors tell the sizes.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from copymit.models.autoencoder_kl import AutoencoderKLConfig
from copymit.models.autoencoder_tiny import (
    AutoencoderTinyConfig,
    infer_config,
    taesd_state,
)
from copymit.pretrained.load import load_network, place_tensors
from copymit.pretrained.pipeline import find_network, read_config
from copymit.pretrained.source import Source, open_source
from copymit.pretrained.weight_files import StoredTensor, open_weight_file

_FAMILIES = ("taesd", "taesdxl", "taesd3", "taef1", "taef2")
_HALVES = ("encoder", "decoder")
_ENDINGS = (".safetensors", ".pth")


class _Files(NamedTuple):
    """The two original files of one network, by half."""

    source: Source
    paths: Mapping[str, str]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.source.name}/{self.paths['encoder']}"


def read_autoencoder(name: str) -> AutoencoderKLConfig | AutoencoderTinyConfig:
    """Reads the sizes of an autoencoder.

    Args:
      name: a folder on disk or `gs://`, one of the original files in it, or a hub id.
    Raises:
      FileNotFoundError, ValueError, ConnectionError: if there is none, it cannot be
        opened, or it is of another kind.
    """
    found = _open(name)
    if isinstance(found, Source):
        return read_config(found, "vae")
    with _original_tensors(found) as stored:
        return _sizes(found, stored)


def load_autoencoder(
    name: str, abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Loads the parameters of an autoencoder; see `load_network`."""
    found = _open(name)
    if isinstance(found, Source):
        return load_network(found, "vae", abstract)
    with _original_tensors(found) as stored:
        return place_tensors(f"the autoencoder {found.name}", abstract, stored)


def _open(name: str) -> Source | _Files:
    """Finds who wrote it: a source in diffusers' layout, or the original files."""
    family = ""
    path = Path(name)
    if path.suffix in _ENDINGS and path.is_file():
        family, _, half = path.stem.rpartition("_")
        if half not in _HALVES or not family:
            raise ValueError(
                f"model.autoencoder.pretrained={name} is none of the two files of a "
                "tiny autoencoder, which are called NAME_encoder and NAME_decoder: give "
                "one of them, or a folder in diffusers' layout"
            )
        name = str(path.parent)
    source = open_source(name)
    if not family and source.has(f"{find_network(source, 'vae')}config.json"):
        return source
    there = {
        stem: {half: found for half in _HALVES if (found := _find(source, stem, half))}
        for stem in ([family] if family else _FAMILIES)
    }
    whole = [paths for paths in there.values() if len(paths) == len(_HALVES)]
    if len(whole) == 1:
        return _Files(source, whole[0])
    if whole:
        raise ValueError(
            f"{source.name} holds several tiny autoencoders: give the file of one, such "
            f"as {source.name}/{whole[0]['encoder']}"
        )
    wanted = f"{family or _FAMILIES[0]}_encoder and {family or _FAMILIES[0]}_decoder"
    raise FileNotFoundError(
        f"{source.name} holds no autoencoder: neither config.json or vae/config.json of "
        f"diffusers, nor files such as {wanted} ({' or '.join(_ENDINGS)})"
    )


def _find(source: Source, family: str, half: str) -> str:
    names = (f"{family}_{half}{ending}" for ending in _ENDINGS)
    return next(filter(source.has, names), "")


@contextlib.contextmanager
def _original_tensors(files: _Files) -> Iterator[dict[str, StoredTensor]]:
    """Opens both files: tensors by the names that the network has here."""
    with contextlib.ExitStack() as stack:
        halves = [
            stack.enter_context(open_weight_file(files.source.fetch(files.paths[half])))
            for half in _HALVES
        ]
        try:
            yield taesd_state(*halves)
        except ValueError as error:
            raise ValueError(f"{files.name}: {error}") from error


def _sizes(files: _Files, stored: Mapping[str, StoredTensor]) -> AutoencoderTinyConfig:
    """Reads the sizes off the shapes, without the numbers."""
    shapes = {
        name: np.broadcast_to(np.float32(0), tensor.shape)
        for name, tensor in stored.items()
    }
    return infer_config(shapes)
