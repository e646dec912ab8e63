"""How the programs talk to a person at a terminal."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

from absl import flags
from absl import logging as absl_logging

from copymit.interrupts import SIGNALS, await_end, heeded

logger = logging.getLogger(__name__)

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other hosts of this TPU slice or cluster."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0; implies --distributed."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator.")
_HOST_TIMEOUT = flags.DEFINE_integer(
    "host_timeout_seconds", 100, "How long a host may be silent before all others end."
)

MISUSED = 2  # the exit code of a command line that cannot be run, as argparse's

_LOST_HOST = (
    "A host that ends or is silent for {} s ends all others: the first to end says why. "
    "Start all of them again with the same commands; a training goes on from its newest "
    "checkpoint."
)


def join_hosts() -> None:
    """Joins the other processes of the run, if the command line says that there are any.

    Must come before anything else that uses jax.
    """
    if _joins_hosts():
        import jax  # Here, since data are prepared where there is no jax.

        jax.distributed.initialize(
            _COORDINATOR.value,
            _NUM_PROCESSES.value,
            _PROCESS_ID.value,
            heartbeat_timeout_seconds=_HOST_TIMEOUT.value,
            shutdown_timeout_seconds=_HOST_TIMEOUT.value,
        )
        logger.info(
            "host %d of %d. %s",
            jax.process_index(),
            jax.process_count(),
            _LOST_HOST.format(_HOST_TIMEOUT.value),
        )


def keep_compiled_programs() -> None:
    """Lets jax remember what it compiles, in the user's directory for caches.

    `JAX_COMPILATION_CACHE_DIR` says another place; empty, nothing is remembered.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import jax  # As in `join_hosts`.

        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", f"{caches}/copymit/jax")


def set_up_logging(verbose: bool) -> None:
    """Shows copymit's own messages; those of the libraries only if they are errors.

    Orbax warns of things that are as they should be (a read-only directory).
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    # absl has put its own handler there, with lines for debugging.
    logging.getLogger().handlers = [handler]
    logging.getLogger("copymit").setLevel(logging.INFO)
    level = logging.INFO if verbose else logging.ERROR
    for library in ("jax", "orbax", "grain", "gcsfs", "fsspec"):
        logging.getLogger(library).setLevel(level)
    logging.getLogger("asyncio").setLevel(logging.WARNING if verbose else logging.FATAL)
    # What a thread of theirs fails of is raised in ours, too, and said in one line.
    absl_logging.set_verbosity(absl_logging.INFO if verbose else absl_logging.FATAL)


def refuse(message: str) -> NoReturn:
    """Ends the program in one line because of its command line, with exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(MISUSED)


def program_name(module: str) -> str:
    """Is what a person calls a program: `copymit VERB`, or `python -m MODULE`."""
    return sys.argv[0] if sys.argv[0].startswith("copymit ") else f"python -m {module}"


@contextlib.contextmanager
def explain_bad_input(verbose: bool) -> Iterator[None]:
    """Ends the program in one line for bad input, a full disk, Ctrl-C and SIGTERM.

    Args:
      verbose: keeps the trace of an error.
    """
    # jax.distributed has a handler of its own for SIGTERM.
    signals = SIGNALS[:1] if _joins_hosts() else SIGNALS
    with heeded(signals), contextlib.nullcontext() if verbose else _quiet_threads():
        try:
            yield
        except (ValueError, OSError, FloatingPointError) as error:
            await_end()
            if verbose:
                raise
            sys.exit(f"error: {error}\n(--debug shows where this was found)")
        except RuntimeError as error:
            await_end()
            if _joins_hosts():
                error.add_note(_LOST_HOST.format(_HOST_TIMEOUT.value))
            raise


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Shows no traces of the libraries' threads in C: what failed is said in ours.

    tensorstore has one for each array of a checkpoint that did not fit on the disk.
    """
    hook = sys.excepthook

    def show(*error: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            hook(*error)

    sys.excepthook = show
    try:
        yield
    finally:
        sys.excepthook = hook


def _joins_hosts() -> bool:
    """Says whether the command line does; not every program has absl's flags."""
    return flags.FLAGS.is_parsed() and bool(_DISTRIBUTED.value or _COORDINATOR.value)
