"""Where commands run: a backend turns a task into a local command that ends with it.

`local` is that command itself, on a share of the cores; `tpu` and `xpk` are commands that
start it on a slice, wait, and end with its exit code.
"""

import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from launch.trials import PROJECT, Task


class Command(NamedTuple):
    """What is started here for a task.

    Attributes:
      argv: program and arguments.
      environment: what differs from the launcher's own.
      cores: it may use; () = all.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    cores: tuple[int, ...] = ()


Backend = Callable[[Task, int], Command]
"""(task, slot) -> command; no two commands run in one slot at a time."""


def local(num_workers: int, root: str) -> Backend:
    """Runs commands on this machine, with the cores divided among the slots.

    Args:
      root: directory of the sweep; compiled programs are kept there for all of them.
    Raises:
      ValueError: for no workers.
    """
    if num_workers < 1:
        raise ValueError(f"--num_workers={num_workers} must be at least 1")
    shares = divide_cores(_cores(), num_workers)

    def command(task: Task, slot: int) -> Command:
        cores = shares[slot]
        threads = str(len(cores)) if cores else ""
        # XLA sizes its pools by the cores that it may use; these others do not look.
        limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = dict.fromkeys(limits, threads) if threads else {}
        environment["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
            "JAX_COMPILATION_CACHE_DIR", f"{root}/.jax_cache"
        )
        return Command(python_command(task, root), environment, cores)

    return command


def tpu(root: str, options: Sequence[str]) -> Backend:
    """Runs each task on a TPU slice of its own (launch/tpu.py), given back after success.

    The slice is named after the task: a launcher that takes the task over follows what
    runs there, and starts no second one beside it.

    Args:
      options: of `launch.tpu run`, such as ("--zone=us-west4-a", "--type=v5litepod-8").
    Raises:
      ValueError: for a directory that the hosts would not share.
    """
    return _on_slices(root, ("launch.tpu", "run"), ("--delete", *options))


def xpk(root: str, options: Sequence[str]) -> Backend:
    """Runs each task as a JobSet on GKE (launch/jobset.py); otherwise as `tpu`.

    Args:
      options: of `launch.gke`, such as ("--type=v5litepod-8", "--image=...").
    """
    return _on_slices(root, ("launch.jobset",), tuple(options))


def _on_slices(root: str, program: Sequence[str], options: Sequence[str]) -> Backend:
    if not root.startswith("gs://"):
        raise ValueError(
            f"--workdir={root} is not shared with the hosts of a slice: use gs://BUCKET/..."
        )

    def command(task: Task, slot: int) -> Command:
        del slot  # the cloud has room
        if not task.program.endswith(".py"):
            return Command(python_command(task, root), {})
        run = (task.program, *task.arguments_in(root))
        name = slice_name(root, task)
        words = (*program, name, *options, "--", *run)
        return Command((sys.executable, "-m", *words), {})

    return command


def slice_name(root: str, task: Task) -> str:
    """Names what a task runs on; the same everywhere, and no other task's."""
    text = f"{root.rstrip('/')} {task.key}"
    kind = task.program.removesuffix(".py")
    return f"copymit-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def python_command(task: Task, root: str) -> tuple[str, ...]:
    """Returns the command of a task for the Python that runs this."""
    arguments = task.arguments_in(root)
    if task.program.endswith(".py"):
        return (sys.executable, str(PROJECT / task.program), *arguments)
    return (sys.executable, "-m", task.program, *arguments)


def divide_cores(cores: Sequence[int], num_workers: int) -> list[tuple[int, ...]]:
    """Deals cores out evenly; with fewer cores than workers, some share one."""
    if not cores:
        return [()] * num_workers
    if num_workers >= len(cores):
        return [(cores[i % len(cores)],) for i in range(num_workers)]
    edges = [round(i * len(cores) / num_workers) for i in range(num_workers + 1)]
    return [tuple(cores[low:high]) for low, high in itertools.pairwise(edges)]


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return []  # such a system has no way to bind a process, either
