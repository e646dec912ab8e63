"""What a compiled program takes of a device, as numbers and as a report."""

import collections
from collections.abc import Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from copymit.chips import Chip
from copymit.plan.loops import Program, num_bytes, runs

# A step of training has these collectives; what others are called is not counted.
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


class Cost(NamedTuple):
    """What a compiled program takes of each device.

    Attributes:
      arguments: bytes of what is there before, by kind.
      temporary: bytes in between.
      flops, accessed: operations, and bytes read or written in memory; of kernels only
        what enters and leaves them, and of loops as often as they run.
      collectives: kind -> (how many, bytes of their results).
      refusal: why the compiler gave up, for want of memory; then there are no numbers but
        those of the arguments, and `temporary` is infinite.
    """

    arguments: dict[str, float]
    temporary: float
    flops: float
    accessed: float
    collectives: dict[str, tuple[int, float]]
    refusal: str = ""

    @property
    def total_bytes(self) -> float:
        """What must fit the device's memory."""
        return sum(self.arguments.values()) + self.temporary


def roofline_seconds(cost: Cost, chip: Chip) -> tuple[float, str]:
    """Returns the least time of a program, and what bounds it."""
    compute = cost.flops / chip.bf16_flops
    memory = cost.accessed / chip.bytes_per_second
    return max((compute, "operations"), (memory, "memory's bandwidth"))


def count_collectives(program: Program) -> dict[str, tuple[int, float]]:
    """Counts the collectives of a compiled program, as often as they run."""
    found: dict[str, tuple[int, float]] = collections.defaultdict(lambda: (0, 0.0))
    for name, times in runs(program).items():
        for instruction in program.computations.get(name, []):
            kind = instruction.opcode.removesuffix("-start")
            if times and kind in _COLLECTIVES:
                count, total = found[kind]
                size = num_bytes(instruction.result)
                found[kind] = (count + times, total + times * size)
    return dict(found)


def what_to_change(config: ConfigDict, cost: Cost, chip: Chip) -> Iterator[str]:
    """Yields, for a program that does not fit, settings that would make it smaller."""
    train, state = config.train, cost.arguments.get("optimizer", 0.0)
    if cost.temporary > 0.2 * chip.memory_bytes:
        if train.dtype == "float32":
            yield "train.dtype='bfloat16' halves what is in between"
        if config.model.unet.remat != "blocks":
            yield "model.unet.remat='blocks' computes twice instead of remembering"
        yield (
            f"train.accumulate_steps={2 * train.accumulate_steps} halves what is in between"
        )
    if config.mesh.fsdp == 1:
        yield "mesh.fsdp=-1 mesh.data=1 divides parameters and moments among devices"
    if state and train.moments_dtype == "float32":
        yield "train.moments_dtype='bfloat16' halves the moments, 'float8' quarters them"
    if "frozen" in cost.arguments and not (
        config.data.cache_latents and config.data.cache_embeddings
    ):
        yield "data.cache_latents and data.cache_embeddings keep frozen networks away"
    yield "more devices, or some with more memory"


def describe(
    name: str, cost: Cost, chip: Chip | None, config: ConfigDict
) -> Iterator[str]:
    """Yields the lines of a report, all numbers of one device."""
    gib = 2**30
    yield f"{name}, per device"
    total = f"{cost.total_bytes / gib:.3f} GiB"
    yield f"  memory         {'more than there is' if cost.refusal else total}"
    for kind, size in [*cost.arguments.items(), ("temporary", cost.temporary)]:
        yield f"    {kind:16} {size / gib:8.3f}"
    if cost.refusal:
        yield f"  DOES NOT FIT   {cost.refusal}"
        if chip is not None:
            yield from _advice(config, cost, chip)
        return
    yield f"  operations     {cost.flops / 1e12:.3f} TFLOP"
    yield f"  bytes          {cost.accessed / 1e9:.2f} GB read and written"
    for kind, (count, size) in sorted(cost.collectives.items()):
        yield f"  {kind:14} {count} of {size / 1e9:.3f} GB"
    if chip is None:
        yield "  no table knows this device: neither time nor fit can be said"
        return
    seconds, bound = roofline_seconds(cost, chip)
    yield f"  at least       {seconds * 1e3:.2f} ms, bound by {bound} ({chip.source})"
    if cost.total_bytes <= chip.memory_bytes:
        yield f"  fits           the {chip.memory_bytes / gib:.2f} GiB of a {chip.name}"
        return
    yield f"  DOES NOT FIT   the {chip.memory_bytes / gib:.2f} GiB of a {chip.name}:"
    yield from _advice(config, cost, chip)


def _advice(config: ConfigDict, cost: Cost, chip: Chip) -> Iterator[str]:
    yield from (f"    - {change}" for change in what_to_change(config, cost, chip))
