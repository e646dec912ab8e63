"""Loads published weights: files in, sharded arrays out, one tensor at a time.

Names and shapes of everything are compared before the first tensor is read. Then each
is read, transposed, cast and put where it belongs, so that host memory holds one tensor
beside what stays there, and pages of mapped files, which the kernel drops when it must.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from copymit.models.torch_layout import (
    check_fit,
    from_torch_order,
    to_torch_name,
    to_torch_shape,
)
from copymit.pretrained.pipeline import find_network
from copymit.pretrained.source import Source
from copymit.pretrained.weight_files import StoredTensor, open_weights

logger = logging.getLogger(__name__)


def load_network(
    source: Source,
    network: str,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    *,
    variant: str | None = None,
) -> dict[str, jax.Array]:
    """Loads the parameters of one network.

    In a run of several processes each calls this, and each reads the files.

    Args:
      network: one of `NETWORKS`.
      abstract: flat table of parameters; each is cast to the type and put on the
        sharding given there (without one, on the default device).
      variant: read only files of this kind, such as `fp16`.
    Returns:
      The arrays, in the order of `abstract`.
    Raises:
      FileNotFoundError: files are missing.
      ValueError: a tensor is missing, unused, misshapen or not of floats, or a file is
        damaged; nothing has been loaded then.
    """
    prefix = find_network(source, network)
    with open_weights(source, network, prefix, variant) as stored:
        return place_tensors(f"the {network} of {source.name}", abstract, stored)


def place_tensors(
    owner: str,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    stored: Mapping[str, StoredTensor],
) -> dict[str, jax.Array]:
    """Reads the parameters of a network from tensors under published names.

    Args:
      owner: what is read from where, for messages.
      abstract: as of `load_network`, whose errors these are.
    """
    began = time.monotonic()
    _check(owner, abstract, stored)
    names = {to_torch_name(name): name for name in abstract}
    loaded = {
        names[torch_name]: _place(names[torch_name], tensor, abstract)
        for torch_name, tensor in stored.items()
    }
    seconds = time.monotonic() - began
    logger.info("%s: %d tensors in %.0f s", owner, len(loaded), seconds)
    return {name: loaded[name] for name in abstract}


def _check(
    owner: str,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    stored: Mapping[str, StoredTensor],
) -> None:
    check_fit(
        owner,
        {
            to_torch_name(name): to_torch_shape(name, value.shape)
            for name, value in abstract.items()
        },
        {name: tensor.shape for name, tensor in stored.items()},
        "Check that the config belongs to these weights",
    )
    for name, tensor in stored.items():
        # jax's function knows of bfloat16.
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ValueError(f"{name} of {owner} is {tensor.dtype}, not floating point")


def _place(
    name: str, tensor: StoredTensor, abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> jax.Array:
    wanted = abstract[name]
    values = from_torch_order(name, tensor.read(), wanted.shape)

    def shard(index: Any) -> np.ndarray:
        # A copy, also where nothing changes: the original may be memory of a file.
        return np.array(values[index], wanted.dtype, order="C")

    if wanted.sharding is None:
        return jax.device_put(shard(...))
    return jax.make_array_from_callback(wanted.shape, wanted.sharding, shard)
