"""Checked shapes, fixed seeds, one backend: the same for every test.

Most of the time of the tests is compilation: of functions that run once or twice, many of
them in several tests and programs. So the compiler hardly optimises, and remembers.
Tests run side by side: libraries that wait for threads of their own wait for each other.
"""

import importlib.metadata
import itertools
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

# Read when jax is first imported, here and by the programs that tests start.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# These take two thirds off what compiling a UNet takes.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE",
        # jaxlib of Python 3.12 and later no longer knows it, and aborts.
        "--xla_cpu_use_fusion_emitters=false"
        if importlib.metadata.version("jaxlib") == "0.10.2"
        else "",
    ]
)
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / "runs" / ".jax_cache")
)

import jax
import jaxtyping
import numpy as np
import pytest

# Annotated shapes are checked in these modules, which must not be imported before this
# line. Left out are modules that refuse bad settings with an error of their own, since
# the type checker would be quicker, and those with protocols, which it cannot check.
_CHECKED = ("diffusion.objective", "models.autoencoder", "models.blocks")
_CHECKED += ("models.convolution", "models.functional", "models.torch_layout")
_CHECKED += ("models.text_encoder", "models.unet")
_CHECKED += ("models.autoencoder_kl", "models.autoencoder_tiny")
jaxtyping.install_import_hook(
    [f"copymit.{name}" for name in _CHECKED], "beartype.beartype"
)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seed_global_generators():
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="module")
def compiled_as_for_users():
    """Lets the compiler optimise; what was compiled before is not used again."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session")
def on_devices():
    """Runs Python on so many devices, a number that is fixed when jax starts.

    What it prints, as JSON, is what it found.
    """

    def run(count: int, *arguments: str):
        done = subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(count)},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Photos and weights beside the project, which not every machine has."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside the project: its photos are not public")
    return SHARED_DATA


@pytest.fixture
def few_open_files():
    """Lets the process open only sixteen files more than it has open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir("/dev/fd")}
    free = (number for number in itertools.count() if number not in taken)
    limit = next(itertools.islice(free, 16, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
