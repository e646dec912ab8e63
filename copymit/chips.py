"""What accelerators can do, by their makers' own tables."""

from typing import NamedTuple


class Chip(NamedTuple):
    """An accelerator, as jax shows it: half a chip where jax shows two devices of one.

    Attributes:
      kinds: what jax calls it, `device_kind`.
      topology: what comes before the colon in the name of a TPU topology; "" for others.
      bf16_flops: products in bfloat16 a second, dense.
      memory_bytes: high-bandwidth memory; of TPUs what the compiler lets a program have,
        as libtpu 0.0.42 says when one takes more.
      bytes_per_second: from there.
      source: where the numbers are from; the pages on TPUs as of November 2026.
    """

    name: str
    kinds: tuple[str, ...]
    topology: str
    bf16_flops: float
    memory_bytes: float
    bytes_per_second: float
    source: str


_GIB = 2**30
_TPU = "docs.cloud.google.com/tpu/docs/"
_NVIDIA = "NVIDIA's data sheet of the "

CHIPS = (
    Chip("TPU v4", ("TPU v4",), "v4", 275e12, 30.75 * _GIB, 1200e9, _TPU + "v4"),
    Chip("TPU v5e", ("TPU v5 lite",), "v5e", 197e12, 15.75 * _GIB, 819e9, _TPU + "v5e"),
    Chip(
        "TPU v5p",
        ("TPU v5", "TPU v5p"),
        topology="v5p",
        bf16_flops=459e12,
        memory_bytes=95.74 * _GIB,
        bytes_per_second=2765e9,
        source=_TPU + "v5p",
    ),
    Chip(
        "TPU v6e", ("TPU v6 lite",), "v6e", 918e12, 31.25 * _GIB, 1638e9, _TPU + "v6e"
    ),
    # Two devices a chip, which has 2307 TFLOP/s, 192 GiB and 7380 GB/s.
    Chip("TPU7x", ("TPU7x",), "tpu7x", 1153.5e12, 94.75 * _GIB, 3690e9, _TPU + "tpu7x"),
    Chip(
        "A100 80GB",
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
        topology="",
        bf16_flops=312e12,
        memory_bytes=80e9,
        bytes_per_second=2039e9,
        source=_NVIDIA + "A100",
    ),
    Chip(
        "A100 40GB",
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
        topology="",
        bf16_flops=312e12,
        memory_bytes=40e9,
        bytes_per_second=1555e9,
        source=_NVIDIA + "A100",
    ),
    Chip("L4", ("NVIDIA L4",), "", 121e12, 24e9, 300e9, _NVIDIA + "L4"),
    Chip(
        "H100 SXM",
        ("NVIDIA H100 80GB HBM3",),
        topology="",
        bf16_flops=989e12,
        memory_bytes=80e9,
        bytes_per_second=3350e9,
        source=_NVIDIA + "H100",
    ),
    Chip("H200", ("NVIDIA H200",), "", 989e12, 141e9, 4800e9, _NVIDIA + "H200"),
    Chip("B200", ("NVIDIA B200",), "", 2250e12, 180e9, 8000e9, _NVIDIA + "DGX B200"),
)

# What jax and libtpu read when they are first imported, to compile for TPUs without one.
# libtpu would lock the chips that are not there.
TOPOLOGY_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def find_chip(device_kind: str) -> Chip | None:
    """Finds the chip that jax calls so."""
    return next((chip for chip in CHIPS if device_kind in chip.kinds), None)
