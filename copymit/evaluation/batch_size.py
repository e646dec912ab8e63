"""How many images are generated at a time: as many as asked for, or as fit the devices."""

import logging
from collections.abc import Callable
from typing import Any

import jax

logger = logging.getLogger(__name__)

# The rest is for what the allocator cannot use.
_USABLE = 0.95


def device_memory_limit() -> int | None:
    """Returns the bytes that a device lends to programs, where the platform tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    return int(_USABLE * limit) if limit else None


def fit_batch_size(
    compile_for: Callable[[int], Any], wanted: int, multiple: int, limit: int
) -> tuple[int, Any]:
    """Compiles for the largest batch that fits, up to the one that is wanted.

    Args:
      compile_for: size -> compiled program.
      multiple: what every size is a multiple of, as `wanted` is.
      limit: bytes that a device has for arguments, results and what is in between.
    Returns:
      The size and its program.
    Raises:
      ValueError: if not even `multiple` images fit.
    """
    size = wanted
    while True:
        try:
            compiled = compile_for(size)
            fixed, variable = _bytes(compiled)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            fixed, variable = 0, 2 * limit  # unknown: half of the size is next
        if fixed + variable <= limit:
            if size < wanted:
                logger.warning(
                    "eval.batch_size: %d images at a time, since %d do not fit the "
                    "device's memory; the images are the same",
                    size,
                    wanted,
                )
            return size, compiled
        if size == multiple:
            raise ValueError(
                f"generating {size} images at a time takes "
                f"{(fixed + variable) / 2**30:.1f} GiB of each device's "
                f"{limit / 2**30:.1f}: use train.dtype='bfloat16', more devices, or "
                "devices with more memory"
            )
        # Parameters stay, the rest grows with the batch.
        fits = int(size * max(limit - fixed, 0) / variable) // multiple * multiple
        size = max(multiple, min(fits, size - multiple))


def _bytes(compiled: Any) -> tuple[int, int]:
    """Returns the bytes of a program that do not grow with the batch, and the others."""
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes + results
