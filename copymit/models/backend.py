"""The kind of machine that a computation is traced for.

Some operations have one formulation for CPUs and another for accelerators. The choice
falls while tracing, and is right by default; a program that is compiled on one machine
for another (benchmarks/tpu.py) says so.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "target", default=None
)


def target_backend() -> str:
    """Returns `cpu`, `gpu` or `tpu`."""
    return _TARGET.get() or jax.default_backend()


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
