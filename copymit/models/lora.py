"""LoRA: a network that stays as it is, and beside some of its layers a product that trains.

A layer with kernel `W` computes with `W + A B`, where `A` has `rank` outputs and `B`
starts at zero. The product is added to the kernel, not to the layer's output: it costs
a product of the weights' sizes a step, and no layer has to know of it.

Source: Hu et al. 2021; names and initial values as in peft (`lora_A`, `lora_B`,
  `init_lora_weights="gaussian"`), with `lora_alpha` equal to the rank, which diffusers'
  training scripts use: the product is not scaled.
"""

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp

from copymit.models.functional import Parameter, Params
from copymit.models.initializers import ZERO, normal

_A, _B = ".lora_A.kernel", ".lora_B.kernel"


def lora_parameters(
    parameters: Mapping[str, Parameter], rank: int, targets: Sequence[str]
) -> dict[str, Parameter]:
    """Describes the factors beside the layers that `targets` name.

    Args:
      parameters: of the network.
      rank: of the products.
      targets: ends of dotted layer names, `to_q` or `ff.net.2`; linear layers or
        convolutions.
    """
    factors = {}
    for name, parameter in parameters.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "kernel" and f".{layer}".endswith(tuple(f".{t}" for t in targets)):
            shape, dtype = parameter.shape, parameter.dtype
            axis = len(shape) - parameter.output_axes
            inputs, outputs = shape[:axis], shape[axis:]
            factors[layer + _A] = Parameter((*inputs, rank), dtype, normal(1 / rank))
            factors[layer + _B] = Parameter((rank, *outputs), dtype, ZERO)
    return factors


def assemble(params: dict[str, Params], frozen: dict[str, Params]) -> dict[str, Params]:
    """Puts networks together of what trains and what does not.

    Args:
      params: networks, or the factors beside a network of `frozen` with the same name.
    """
    return {**frozen, **params} | {
        name: _with_products(frozen[name], params[name])
        for name in params.keys() & frozen.keys()
    }


def lora_layers(factors: Mapping[str, object]) -> Iterator[str]:
    """Yields the names of the layers that have factors."""
    return (name.removesuffix(_A) for name in factors if name.endswith(_A))


@jax.jit
def _with_products(network: Params, factors: Params) -> Params:
    products = {
        f"{layer}.kernel": network[f"{layer}.kernel"]
        + jnp.tensordot(factors[layer + _A], factors[layer + _B], 1)
        for layer in lora_layers(factors)
    }
    return {**network, **products}
