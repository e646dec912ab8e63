"""What each worker of a pool may use: cores, GPUs, memory; and how its programs end."""

import glob
import itertools
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

_GPU_MEMORY = 0.9  # of a GPU, for all that share it; the rest is CUDA's own
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
T = TypeVar("T")


class Slot(NamedTuple):
    """A share of the machine.

    Attributes:
      cores: () = any.
      environment: of the programs, where it differs from the pool's.
    """

    cores: tuple[int, ...]
    environment: Mapping[str, str]


def deal_slots(num_workers: int, cache: str) -> list[Slot]:
    """Deals cores and GPUs out to workers; what the user's environment says stays.

    Args:
      cache: directory of the programs that jax compiled, shared by all.
    Raises:
      ValueError: for no workers.
    """
    if num_workers < 1:
        raise ValueError(f"--num_workers={num_workers} must be at least 1")
    cores, gpus = deal(_cores(), num_workers), deal(_gpus(), num_workers)
    sharing = max(gpus.count(own) for own in gpus)
    common = {"JAX_COMPILATION_CACHE_DIR": cache}
    if gpus[0] and sharing > 1:
        common["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{_GPU_MEMORY / sharing:.2f}"
    common |= {name: os.environ[name] for name in common if name in os.environ}
    slots = []
    for own, devices in zip(cores, gpus, strict=True):
        # XLA sizes its pools by the cores that it may use; these others do not look.
        limits = dict.fromkeys(_THREADS, str(len(own))) if own else {}
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
        slots.append(Slot(own, {**limits, **visible, **common}))
    return slots


def deal(items: Sequence[T], num_workers: int) -> list[tuple[T, ...]]:
    """Deals items out evenly; with fewer items than workers, some share one."""
    if 0 < len(items) <= num_workers:
        return [(items[i % len(items)],) for i in range(num_workers)]
    edges = [round(i * len(items) / num_workers) for i in range(num_workers + 1)]
    return [tuple(items[a:b]) for a, b in itertools.pairwise(edges)]


def tied(command: Sequence[str], slot: Slot) -> list[str]:
    """Returns the command on the cores of a slot; on Linux, the kernel ends it with us.

    So a training whose claim is taken over is never written to by two. Elsewhere the
    claim alone has to do.
    """
    if sys.platform != "linux" or not (setpriv := shutil.which("setpriv")):
        return list(command)
    cores = f"taskset -c {','.join(map(str, slot.cores))} " if slot.cores else ""
    # The pool may have ended before the kernel was told.
    start = f'test "$PPID" = {os.getpid()} && exec {cores}"$@"'
    return [setpriv, "--pdeathsig", "KILL", "sh", "-c", start, "sh", *command]


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return []  # such a system has no way to bind a process, either


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    return [str(i) for i in range(len(glob.glob("/dev/nvidia[0-9]*")))]
