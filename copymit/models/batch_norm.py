"""Batch normalisation for inference: folded into the convolutions that it follows.

In: published tensors by name. Out: the same, without norms, with a bias per convolution.
"""

from collections.abc import Mapping

import numpy as np


def fold_batch_norms(
    tensors: Mapping[str, np.ndarray],
    norm_after: Mapping[str, str],
    epsilon: float,
    weights: str,
) -> dict[str, np.ndarray]:
    """Merges every batch norm into the weight and a new bias of its convolution.

    Tensors it does not know are passed on, for a strict loader to refuse.

    Args:
      norm_after: last part of a convolution's name -> that of the norm beside it.
      epsilon: added to the variances.
      weights: what to take instead if a norm is missing or misshapen.
    Raises:
      ValueError: if it is; names the tensor.
    """
    folded = dict(tensors)
    for name, weight in tensors.items():
        conv, _, parameter = name.rpartition(".")
        owner, dot, leaf = conv.rpartition(".")
        if parameter != "weight" or leaf not in norm_after:
            continue
        norm = owner + dot + norm_after[leaf]
        gamma, beta, mean, variance = (
            _pop_statistic(folded, f"{norm}.{statistic}", weight.shape[:1], weights)
            for statistic in ("weight", "bias", "running_mean", "running_var")
        )
        folded.pop(f"{norm}.num_batches_tracked", None)
        scale = gamma / np.sqrt(variance + epsilon)
        folded[name] = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        folded[f"{conv}.bias"] = beta - mean * scale
    return folded


def _pop_statistic(
    tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...], weights: str
) -> np.ndarray:
    if name not in tensors or tensors[name].shape != shape:
        found = f"has shape {tensors[name].shape}" if name in tensors else "is missing"
        raise ValueError(f"{name} {found}, needs {shape}: take {weights}")
    return tensors.pop(name).astype(np.float64)
