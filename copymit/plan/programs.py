"""The programs that copymit.plan asks the compiler about: the real step and generator."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.generator import make_generate, sampling_options
from copymit.mitigation.registry import with_mitigations
from copymit.models.assembly import abstract_params, make_model
from copymit.models.backend import tracing_for
from copymit.plan.cost import Cost, count_collectives
from copymit.plan.loops import loop_factors, read_program
from copymit.pretrained.base_models import find_base_model
from copymit.pretrained.settings import with_pretrained_settings
from copymit.sharding import AXES, batch_sharding, mesh_sizes
from copymit.training.checks import check_settings
from copymit.training.state import abstract_state, make_optimizer
from copymit.training.step import make_train_step, seed_key, without_unused

# The files of a published model that say how large it is, and how it is trained.
_SIZES = (
    "unet/config.json, vae/config.json, text_encoder/config.json and "
    "scheduler/scheduler_config.json"
)


class Step(NamedTuple):
    """A training step, compiled."""

    parameters: int
    trained: int
    mesh: dict[str, int]
    cost: Cost


def devices_of(topology: str) -> Sequence[Any]:
    """Returns the devices of a topology of TPUs, or those that are here.

    Raises:
      ValueError: if libtpu is not installed, or does not know the topology.
    """
    if not topology:
        return jax.devices()
    try:
        found = topologies.get_topology_desc(
            platform="tpu",
            topology_name=topology,
            # As machines with v4 show it, one device a chip.
            **{"chip_config_name": "megacore"} if topology.startswith("v4:") else {},
        )
    except Exception as error:  # jax says neither which nor why it raises
        raise ValueError(
            f"--topology={topology}: {str(error).splitlines()[0]}. Install the extra `tpu` "
            "(libtpu), and name a topology that its version knows"
        ) from error
    return found.devices


def with_sizes(config: ConfigDict) -> ConfigDict:
    """Returns the config with what it leaves to a published model, and to mitigations.

    Raises:
      FileNotFoundError, ConnectionError: if the model's sizes cannot be read; says which
        files hold them.
      ValueError: as of `with_pretrained_settings`.
    """
    try:
        return with_mitigations(with_pretrained_settings(config, weights=False))
    except (FileNotFoundError, ConnectionError) as error:
        whole = config.model.pretrained
        name = whole or config.model.autoencoder.pretrained
        base = find_base_model(name)
        there = name if isinstance(error, ConnectionError) else "OWNER/NAME"
        field = "model.pretrained" if whole else "model.autoencoder.pretrained"
        raise type(error)(
            f"{error}. A plan needs no weights, only "
            f"{_SIZES if whole else 'config.json'}: hf download "
            f"{base.hub_id if base else there} --include='*.json' --local-dir=FOLDER, then "
            f"--config.{field}=FOLDER"
        ) from error


def plan_step(config: ConfigDict, devices: Sequence[Any]) -> Step:
    """Compiles the training step of a config as `train.py` does.

    Args:
      config: with all sizes, see `with_sizes`.
    """
    mesh = _make_mesh(config, devices)
    check_settings(config.train, mesh)
    model = make_model(config.model, config.data.resolution, config.train.dtype)
    optimizer = make_optimizer(config.train)
    whole = abstract_state(model, optimizer, config, mesh)
    cached = (config.data.cache_latents, config.data.cache_embeddings)
    state = without_unused(whole, config, *cached)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    text = config.model.text_encoder
    step = make_train_step(
        model,
        make_noise_scheduler(**config.diffusion),
        optimizer,
        config,
        shardings,
        mesh,
        np.zeros(text.max_length, np.int32),
    )
    batch = _abstract_batch(config, model, mesh)
    seed = seed_key(config.seed)
    with tracing_for(devices[0].platform), jax.set_mesh(mesh):
        lowered = step.lower(state, batch, seed)  # type: ignore[attr-defined]
    arguments = {
        "parameters": _bytes(state.params),
        "optimizer": _bytes(state.opt_state),
        "moving average": _bytes(state.ema),
        "frozen": _bytes(state.frozen),
        "batch": _bytes(batch),
    }
    return Step(
        sum(p.size for network in model.parameters.values() for p in _arrays(network)),
        sum(x.size for x in jax.tree.leaves(state.params)),
        dict(mesh.shape),
        ask_compiler(lowered, {k: v for k, v in arguments.items() if v}),
    )


def plan_sampler(config: ConfigDict, devices: Sequence[Any]) -> Cost:
    """Compiles the generation of a batch, with every device its share of the images."""
    config = config.copy_and_resolve_references()
    config.mesh.update(data=-1, fsdp=1, tensor=1)
    mesh = _make_mesh(config, devices)
    model = make_model(config.model, config.data.resolution, config.train.dtype)
    length = config.model.text_encoder.max_length
    generate = make_generate(
        model,
        make_noise_scheduler(**config.diffusion),
        sampling_options(config.eval, config.mitigation.generate),
        np.zeros(length, np.int32),
    )
    size = -(-config.eval.batch_size // len(devices)) * len(devices)
    inputs = [
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))
        for shape in ((size, length), (size,))
    ]
    params = _cast(abstract_params(model, mesh), config.train.dtype)
    with tracing_for(devices[0].platform), jax.set_mesh(mesh):
        lowered = generate.lower(params, *inputs)  # type: ignore[attr-defined]
    return ask_compiler(lowered, {"parameters": _bytes(params)})


def _make_mesh(config: ConfigDict, devices: Sequence[Any]) -> Mesh:
    sizes = mesh_sizes(len(devices), **config.mesh)
    return Mesh(
        np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3
    )


def _abstract_batch(config: ConfigDict, model, mesh: Mesh) -> dict[str, Any]:
    """Describes a batch of what the config's pipeline gives, with its caches."""
    text, pixels = config.model.text_encoder, config.data.resolution
    image = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
    params = abstract_params(model, mesh)
    if config.data.cache_latents:
        moments = jax.eval_shape(model.encode_images, params, image)
        parts = {"moments": (moments.shape[1:], jnp.float32)}
    else:
        parts = {"pixel_values": ((pixels, pixels, 3), jnp.uint8)}
    if config.data.cache_embeddings:
        shape = (text.max_length, text.hidden_size)
        parts["encoder_hidden_states"] = (shape, jnp.dtype(config.train.dtype))
    else:
        parts["input_ids"] = ((text.max_length,), jnp.int32)
    parts["example_index"] = ((), jnp.int32)
    return {
        name: jax.ShapeDtypeStruct(
            (config.train.batch_size, *shape), dtype, sharding=batch_sharding(mesh)
        )
        for name, (shape, dtype) in parts.items()
    }


def ask_compiler(lowered: Any, arguments: dict[str, float]) -> Cost:
    """Compiles what `jax.jit(...).lower(...)` returns, and asks what that costs."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).partition(": ")[2].splitlines()[0]
        return Cost(arguments, math.inf, math.nan, math.nan, {}, reason)
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    program = read_program(compiled.as_text())
    operations, accessed = loop_factors(program)
    return Cost(
        arguments,
        # Results that do not take the place of arguments are there at the same time.
        memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        operations * cost.get("flops", 0.0),
        accessed * cost.get("bytes accessed", 0.0),
        count_collectives(program),
    )


def _bytes(tree: Any) -> float:
    """Counts what one device holds of arrays that are not there yet."""
    return float(
        sum(
            np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )
    )


def _cast(params: Any, dtype: str) -> Any:
    """Describes parameters as `for_inference` leaves them."""
    return {
        network: {
            name: jax.ShapeDtypeStruct(
                x.shape,
                dtype if name.endswith("kernel") else x.dtype,
                sharding=x.sharding,
            )
            for name, x in values.items()
        }
        for network, values in params.items()
    }


def _arrays(network: Any) -> list[jax.ShapeDtypeStruct]:
    return [parameter.abstract() for parameter in network.values()]
