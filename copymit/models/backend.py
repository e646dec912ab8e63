"""The kind of machine that a computation is traced for.

Some operations have one formulation for CPUs and another for accelerators. The choice
falls while tracing, and is right by default; a program that is compiled on one machine
for another (benchmarks/tpu.py) says so.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import jax

Machine = Literal["cpu", "tpu", "cuda", "rocm"]

_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "target", default=None
)


def target_backend() -> str:
    """Returns `cpu`, `gpu` or `tpu`."""
    return _TARGET.get() or jax.default_backend()


def target_machine() -> Machine:
    """Returns what `target_backend` does, and whose the GPU is."""
    backend = target_backend()
    if backend != "gpu":
        return "tpu" if backend == "tpu" else "cpu"
    # Only another machine's compiler is without a GPU here, and that is NVIDIA's.
    if jax.default_backend() != "gpu":
        return "cuda"
    version = jax.local_devices()[0].client.platform_version
    return "rocm" if "rocm" in version.lower() else "cuda"


@contextlib.contextmanager
def tracing_for(backend: str) -> Iterator[None]:
    """Traces inside the context for `backend`, whatever this machine is.

    What `jit` has traced before is not traced again: make the function inside.
    """
    token = _TARGET.set(backend)
    try:
        yield
    finally:
        _TARGET.reset(token)
